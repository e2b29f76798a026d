//! Fetches new messages of one topic: by a plain blocking read where nothing more
//! is asked for, because it costs least, else by a script that knows priorities,
//! rates and limits over all workers.

use super::drain::requeue_not_in_flight;
use crate::queue::{Delivery, FlowControl, QueueError, StreamKind, Take, TopicKeys};
use crate::worker::seats::Seated;
use crate::worker::topic::TopicState;
use std::time::Duration;

/// How many messages one fetch brings: beyond about a hundred there is little to
/// gain.
const BATCH: usize = 256;

/// The longest blocking read.
const BLOCK_MAX: Duration = Duration::from_secs(5);

/// Where all workers together have as many messages in flight as they may, one
/// looks this often whether there is capacity.
const FULL: Duration = Duration::from_millis(100);

/// So that the turn stays a small number. It is a multiple of every sum of the
/// streams' weights.
const TURNS: usize = 1_000_000;

pub(super) struct Fetcher<'a> {
    topic: &'a TopicState,
    seated: Seated<'a>,
    /// Which turn of the streams' weighted round is next.
    turn: usize,
}

impl<'a> Fetcher<'a> {
    pub(super) fn new(topic: &'a TopicState, seated: Seated<'a>) -> Self {
        Self { topic, seated, turn: 0 }
    }

    /// New messages, or none after a while. At most as many as there is capacity
    /// for, and as entries have been small so far.
    pub(super) async fn fetch(&mut self, keys: &TopicKeys, capacity: usize) -> Result<Vec<Delivery>, QueueError> {
        let topic = self.topic;
        let count = capacity.min(BATCH).min(topic.intake.entries_max());
        let block = (topic.settings().lease / 2).min(BLOCK_MAX);
        let control = self.flow_control();
        if let [stream] = keys.streams[..]
            && control.is_none()
            && keys.has_main()
        {
            return self.read(stream, count, block).await;
        }
        let streams = &keys.streams[..];
        let pause = match self.seated.reader.take(streams, control, count).await? {
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
        let (deliveries, flags) = self.seated.reader.read(stream, count, block).await?;
        self.topic.view.apply(flags);
        if !flags.is_paused {
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
        if self.seated.reader.wait_for_more(keys, behind, block).await? {
            self.topic.view.set_must_reopen();
        }
        Ok(())
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
