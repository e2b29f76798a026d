//! Sweeps the streams of a topic: deletes delivered history, says what was never
//! ours, and makes unfinished messages pending again whose pending rows were lost.

use super::topic::TopicState;
use crate::events;
use crate::queue::{EntryId, Leases, LegacyHistory, QueueError, StreamKind, SweepCursor, Swept};
use std::time::{Duration, Instant};

/// The batches that one visit sweeps.
const BATCHES: usize = 50;
/// How many ids a log line names.
const LOGGED_IDS: usize = 100;
/// What was never ours stays the same, so it is counted seldom.
const COUNT_NEVER_OURS_EVERY: Duration = Duration::from_secs(60 * 60);

/// The sweep of one stream. It may last for several visits.
#[derive(Default)]
pub(super) struct Sweep {
    cursor: Option<SweepCursor>,
    history: Found,
    never_ours: Found,
    passes_over: bool,
    /// When all that was never ours was counted, and how many the log has named.
    counted: Option<(Instant, usize)>,
}

#[derive(Default)]
struct Found {
    count: usize,
    first: Vec<String>,
    last: Option<String>,
}

impl Found {
    fn add(&mut self, entries: &[EntryId]) {
        self.count += entries.len();
        let room = LOGGED_IDS.saturating_sub(self.first.len());
        self.first.extend(entries.iter().take(room).map(ToString::to_string));
        self.last = entries.last().map(ToString::to_string).or(self.last.take());
    }
}

impl Sweep {
    pub(super) fn is_under_way(&self) -> bool {
        self.cursor.is_some()
    }

    /// Begins a sweep of this stream; one that was under way is given up.
    pub(super) fn begin(&mut self) {
        let counted = self.counted.filter(|(at, _)| at.elapsed() < COUNT_NEVER_OURS_EVERY);
        *self = Self { passes_over: counted.is_some(), counted: self.counted, ..Self::default() };
    }

    /// Sweeps some batches.
    pub(super) async fn go_on(&mut self, topic: &TopicState, stream: StreamKind) -> Result<(), QueueError> {
        let history = LegacyHistory::new(topic.queue.clone());
        for _ in 0..BATCHES {
            let swept = match history.sweep(stream, self.cursor.as_ref(), self.passes_over).await {
                // The intake opens the stream again, and the next sweep starts from the beginning.
                Err(QueueError::GroupLost | QueueError::WrongType(_)) => Swept::default(),
                swept => swept?,
            };
            self.history.add(&swept.history);
            self.never_ours.add(&swept.never_ours);
            restore(topic, stream, swept.unfinished).await?;
            self.cursor = swept.next;
            if self.cursor.is_none() {
                self.log(topic, stream);
                break;
            }
            if topic.stop.is_cancelled() {
                break;
            }
        }
        Ok(())
    }

    /// The sweep is complete.
    fn log(&mut self, topic: &TopicState, stream: StreamKind) {
        let (name, topic) = (stream.name_in(topic.topic()), topic.topic());
        let Found { count, first, last } = &self.history;
        if *count > 0 {
            let first = first.first();
            tracing::info!(%topic, stream = name, count, first, last, "{}", events::HISTORY_SWEPT);
        }
        if self.passes_over {
            return;
        }
        let Found { count, first, .. } = &self.never_ours;
        let logged = self.counted.map_or(0, |(_, logged)| logged);
        if *count > 0 && *count != logged {
            let ids = first.join(" ");
            tracing::warn!(%topic, stream = name, count, ids, "{}", events::NEVER_OURS);
        }
        self.counted = Some((Instant::now(), *count));
    }
}

/// What this worker still runs stays its own; the others are found by the next
/// comparison of what Redis lists under our name with what is in flight here.
async fn restore(topic: &TopicState, stream: StreamKind, unfinished: Vec<EntryId>) -> Result<(), QueueError> {
    if unfinished.is_empty() {
        return Ok(());
    }
    let with_count = |entry: EntryId| {
        let count = topic.in_flight.delivery_count(&entry);
        (entry, count)
    };
    let unfinished: Vec<_> = unfinished.into_iter().map(with_count).collect();
    let restored = Leases::new(topic.queue.clone()).restore(stream, &unfinished).await?;
    if !restored.is_empty() {
        topic.in_flight.has_restored();
        let (topic, count) = (topic.topic(), restored.len());
        let ids = restored.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        tracing::warn!(%topic, count, ids, "{}", events::RESTORED);
    }
    Ok(())
}
