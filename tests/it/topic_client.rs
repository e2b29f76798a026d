//! Everything that the host does with a topic, for one consumer.

use gateway_worker::queue::dead::{DeadLetterPurge, DeadLetters, Replay};
use gateway_worker::queue::{
    Connection, Dedup, Delayed, Eviction, Isolation, Leases, LegacyDelayed, LegacyHistory, LegacyPending, ListIntake,
    MessageSearch, Publisher, Purge, QueueError, Schedules, Settlements, StreamKind, SweepCursor, Swept, TopicDetails,
    TopicHandle, TopicKeys, open, set_paused, topic_details,
};
use gateway_worker::topic::Topic;

pub(crate) struct TopicClient {
    pub(crate) handle: TopicHandle,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) dead_purge: DeadLetterPurge,
    pub(crate) dedup: Dedup,
    pub(crate) delayed: Delayed,
    pub(crate) eviction: Eviction,
    pub(crate) isolation: Isolation,
    pub(crate) leases: Leases,
    pub(crate) legacy_delayed: LegacyDelayed,
    pub(crate) legacy_history: LegacyHistory,
    pub(crate) legacy_pending: LegacyPending,
    pub(crate) list_intake: ListIntake,
    pub(crate) publisher: Publisher,
    pub(crate) purge: Purge,
    pub(crate) replay: Replay,
    pub(crate) schedules: Schedules,
    pub(crate) search: MessageSearch,
    pub(crate) settlements: Settlements,
}

impl TopicClient {
    pub(crate) fn new(connection: &Connection, prefix: &str, group: &str, consumer: &str, topic: &Topic) -> Self {
        let handle = TopicHandle::new(connection, prefix, group, consumer, topic);
        Self {
            dead_letters: DeadLetters::new(handle.clone()),
            dead_purge: DeadLetterPurge::new(handle.clone()),
            dedup: Dedup::new(handle.clone()),
            delayed: Delayed::new(handle.clone()),
            eviction: Eviction::new(handle.clone()),
            isolation: Isolation::new(handle.clone()),
            leases: Leases::new(handle.clone()),
            legacy_delayed: LegacyDelayed::new(handle.clone()),
            legacy_history: LegacyHistory::new(handle.clone()),
            legacy_pending: LegacyPending::new(handle.clone()),
            list_intake: ListIntake::new(handle.clone()),
            publisher: Publisher::new(handle.clone()),
            purge: Purge::new(handle.clone()),
            replay: Replay::new(handle.clone()),
            schedules: Schedules::new(handle.clone()),
            search: MessageSearch::new(handle.clone()),
            settlements: Settlements::new(handle.clone()),
            handle,
        }
    }

    pub(crate) async fn open(&self) -> Result<TopicKeys, QueueError> {
        open(&self.handle).await
    }

    /// Sweeps one batch of the main stream.
    pub(crate) async fn sweep(&self, from: Option<&SweepCursor>) -> Result<Swept, QueueError> {
        self.legacy_history.sweep(StreamKind::Normal, from, false).await
    }

    /// Sweeps a stream to its end.
    pub(crate) async fn sweep_all(&self, stream: StreamKind) -> Swept {
        let mut all = Swept::default();
        loop {
            let swept = self.legacy_history.sweep(stream, all.next.as_ref(), false).await.unwrap();
            all.history.extend(swept.history);
            all.never_ours.extend(swept.never_ours);
            all.unfinished.extend(swept.unfinished);
            all.next = swept.next;
            if all.next.is_none() {
                return all;
            }
        }
    }

    pub(crate) async fn set_paused(&self, is_paused: bool) -> Result<bool, QueueError> {
        set_paused(&self.handle, is_paused).await
    }

    pub(crate) async fn details(&self, has_handler: bool) -> Result<TopicDetails, QueueError> {
        topic_details(&self.handle, has_handler).await
    }
}
