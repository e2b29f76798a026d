//! Seats: which topics read from Redis by a connection of their own. A blocking
//! read delays everything else on its connection, so each needs one. Today every
//! topic gets a seat at once, and a list a second one.

use crate::queue::{self, BlockingReader, QueueError, TopicHandle};
use std::sync::atomic::{AtomicI64, Ordering};

/// A topic's seat. It is taken for as long as one connection lives.
#[derive(Default)]
pub(super) struct Seat {
    /// The id of the reader that sits there, 0 for none.
    reader_id: AtomicI64,
}

/// Gives the seat back when it is dropped.
pub(super) struct Seated<'a> {
    pub(super) reader: BlockingReader,
    seat: &'a Seat,
}

impl Seat {
    pub(super) async fn take(&self, topic: &TopicHandle) -> Result<Seated<'_>, QueueError> {
        let reader = BlockingReader::connect(topic).await?;
        self.reader_id.store(reader.client_id(), Ordering::SeqCst);
        Ok(Seated { reader, seat: self })
    }

    pub(super) fn is_taken(&self) -> bool {
        self.reader_id.load(Ordering::SeqCst) != 0
    }

    /// Ends the blocking read of this seat, if one is under way. To drop
    /// the read instead would lose what Redis is just about to answer.
    pub(super) async fn interrupt(&self, topic: &TopicHandle) -> Result<(), QueueError> {
        match self.reader_id.load(Ordering::SeqCst) {
            0 => Ok(()),
            reader_id => queue::unblock(topic, reader_id).await,
        }
    }
}

impl Drop for Seated<'_> {
    fn drop(&mut self) {
        self.seat.reader_id.store(0, Ordering::SeqCst);
    }
}
