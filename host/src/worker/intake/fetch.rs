//! Fetches new messages of one topic: by a plain blocking read where nothing more
//! is asked for, because it costs least, else by a script that knows priorities,
//! rates and limits over all workers.

use super::drain::requeue_not_in_flight;
use crate::queue::{Delivery, FlowControl, Look, PollingReader, QueueError, StreamKind, Take, TopicKeys};
use crate::worker::seats::{Polled, Seated};
use crate::worker::topic::TopicState;
use std::time::Duration;

/// How many messages one fetch brings: beyond about a hundred there is little to
/// gain.
const BATCH: usize = 256;

/// The longest blocking read.
const BLOCK_MAX: Duration = Duration::from_secs(5);

/// The longest blocking read after a failure.
const BLOCK_IN_TROUBLE: Duration = Duration::from_millis(100);

/// Where all workers together have as many messages in flight as they may, one
/// looks this often whether there is capacity.
const FULL: Duration = Duration::from_millis(100);

/// So that the turn stays a small number. It is a multiple of every sum of the
/// streams' weights.
const TURNS: usize = 1_000_000;

/// How many messages a topic without a seat fetches at once, so that those that share
/// its connection have their turn.
const POLLED_BATCH: usize = 32;

pub(super) struct Fetcher<'a> {
    topic: &'a TopicState,
    reader: Reader,
    /// Which turn of the streams' weighted round is next.
    turn: usize,
}

/// How the topic is read now.
enum Reader {
    Seated(Seated),
    Polled { reader: PollingReader, _counted: Polled },
}

impl<'a> Fetcher<'a> {
    pub(super) async fn new(topic: &'a TopicState) -> Result<Self, QueueError> {
        topic.queue.follow_master().await?;
        let mut fetcher = Self { topic, reader: Reader::polled(topic), turn: 0 };
        fetcher.choose_reader().await;
        Ok(fetcher)
    }

    /// Leaves the seat if a busier topic wants it.
    pub(super) fn leave_if_asked(&mut self) {
        if matches!(self.reader, Reader::Seated(_)) && self.topic.intake.seat.must_leave() {
            self.reader = Reader::polled(self.topic);
        }
    }

    /// Takes a seat where that is possible, unless the topic has one.
    async fn choose_reader(&mut self) {
        self.leave_if_asked();
        let topic = self.topic;
        if matches!(self.reader, Reader::Seated(_)) {
            return;
        }
        if let Some(seated) = topic.shared.seats.take(&topic.intake.seat, &topic.queue).await {
            self.reader = Reader::Seated(seated);
        }
    }

    /// New messages, or none after a while. At most as many as there is capacity
    /// for, and as entries have been small so far.
    pub(super) async fn fetch(&mut self, keys: &TopicKeys, capacity: usize) -> Result<Vec<Delivery>, QueueError> {
        self.choose_reader().await;
        let topic = self.topic;
        let count = capacity.min(self.reader.batch()).min(topic.intake.entries_max());
        let mut block = (topic.settings().lease / 2).min(BLOCK_MAX);
        if topic.view.has_fetch_trouble() {
            // Whether it is over is to be seen soon.
            block = block.min(BLOCK_IN_TROUBLE);
        }
        let control = self.flow_control();
        let deliveries = match keys.streams[..] {
            [stream] if control.is_none() && keys.has_main() => self.read(stream, count, block).await?,
            _ => self.take(keys, control, count, block).await?,
        };
        if !deliveries.is_empty() {
            topic.intake.seat.add_read();
        }
        Ok(deliveries)
    }

    async fn take(
        &mut self,
        keys: &TopicKeys,
        control: FlowControl,
        count: usize,
        block: Duration,
    ) -> Result<Vec<Delivery>, QueueError> {
        let (topic, streams) = (self.topic, &keys.streams[..]);
        let taken = match &mut self.reader {
            Reader::Seated(seated) => seated.reader.take(streams, control, count).await?,
            Reader::Polled { reader, .. } => reader.take(streams, control, count).await?,
        };
        let pause = match taken {
            Take::Taken(deliveries) => {
                self.turn = (self.turn + deliveries.len()) % TURNS;
                return Ok(deliveries);
            }
            Take::Empty(behind) if behind.len() == streams.len() => {
                self.wait_for_more(keys, &behind, block).await?;
                return Ok(Vec::new());
            }
            Take::Empty(_) => return Err(QueueError::GroupLost),
            Take::Paused => {
                topic.view.set_paused(true);
                return Ok(Vec::new());
            }
            Take::Full => FULL,
            Take::TooSoon(wait) => wait,
        };
        let _ = tokio::time::timeout(pause.min(block), topic.stop.cancelled()).await;
        Ok(Vec::new())
    }

    async fn read(&mut self, stream: StreamKind, count: usize, block: Duration) -> Result<Vec<Delivery>, QueueError> {
        let (deliveries, flags) = match &mut self.reader {
            Reader::Seated(seated) => seated.reader.read(stream, count, block).await?,
            Reader::Polled { reader, .. } => reader.read(stream, count).await?,
        };
        self.topic.view.apply(flags);
        if !flags.is_paused {
            if deliveries.is_empty() {
                self.pause_if_polled(block).await;
            }
            return Ok(deliveries);
        }
        // The topic was paused while the read waited: this delivery does not count.
        if !deliveries.is_empty() {
            requeue_not_in_flight(self.topic).await?;
        }
        Ok(Vec::new())
    }

    /// Waits for something behind these ids, and for keys that do not exist yet.
    pub(super) async fn wait_for_more(
        &mut self,
        keys: &TopicKeys,
        behind: &[String],
        block: Duration,
    ) -> Result<(), QueueError> {
        let is_created = match &mut self.reader {
            Reader::Seated(seated) => seated.reader.wait_for_more(keys, behind, block).await?,
            Reader::Polled { reader, .. } => match reader.look(keys, behind).await? {
                Look::Created => true,
                Look::Entries => false,
                Look::Nothing => {
                    self.pause_if_polled(block).await;
                    false
                }
            },
        };
        if is_created {
            self.topic.view.set_must_reopen();
        }
        Ok(())
    }

    /// A poll that brought nothing is not repeated at once. A blocking read has waited.
    async fn pause_if_polled(&self, max: Duration) {
        if let Reader::Polled { .. } = self.reader {
            let (topic, pause) = (self.topic, self.topic.shared.seats.poll_interval().min(max));
            let _ = topic.stop.run_until_cancelled(topic.intake.seat.pause(pause)).await;
        }
    }

    fn flow_control(&self) -> FlowControl {
        let plugin = self.topic.plugin();
        let manifest = plugin.manifest();
        FlowControl {
            total: manifest.global_concurrency,
            rate: manifest.rate.map(|rate| (rate.limit, rate.per)),
            turn: self.turn,
        }
    }
}

impl Reader {
    fn polled(topic: &TopicState) -> Self {
        Self::Polled { reader: PollingReader::new(&topic.queue), _counted: topic.shared.seats.polled() }
    }

    /// How many messages one fetch brings at most.
    fn batch(&self) -> usize {
        match self {
            Self::Seated(_) => BATCH,
            Self::Polled { .. } => POLLED_BATCH,
        }
    }
}
