//! What this worker knows of one topic's keys and state in Redis. The intake and
//! the probe write it, everybody reads it.

use crate::events;
use crate::queue::{StreamKind, TopicFlags, TopicKeys, TopicKind};
use crate::topic::Topic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::watch;

pub(super) struct TopicView {
    topic: Topic,
    known: watch::Sender<Known>,
    /// Apart from [`Known`], because it is read before each run.
    is_paused: AtomicBool,
}

#[derive(Default)]
struct Known {
    keys: Arc<TopicKeys>,
    flags: TopicFlags,
    /// The keys have changed: the intake is to open them again.
    must_reopen: bool,
    is_paused: bool,
    /// Since when Redis has answered the intake without a break. Before that
    /// Redis may have been away, and every lease looks expired.
    connected_since: Option<Instant>,
    is_consuming: bool,
}

impl TopicView {
    pub(super) fn new(topic: &Topic) -> Self {
        Self { topic: topic.clone(), known: watch::Sender::new(Known::default()), is_paused: AtomicBool::new(false) }
    }

    /// What the topic's keys were when they were opened last.
    pub(super) fn keys(&self) -> Arc<TopicKeys> {
        self.known.borrow().keys.clone()
    }

    pub(super) fn is_list(&self) -> bool {
        self.known.borrow().keys.kind == TopicKind::List
    }

    pub(super) fn is_consuming(&self) -> bool {
        self.known.borrow().is_consuming
    }

    pub(super) fn connected_since(&self) -> Option<Instant> {
        self.known.borrow().connected_since
    }

    pub(super) fn must_reopen(&self) -> bool {
        self.known.borrow().must_reopen
    }

    pub(super) fn is_paused(&self) -> bool {
        self.is_paused.load(Ordering::SeqCst)
    }

    /// Waits until the topic is paused.
    pub(super) async fn paused(&self) {
        let _ = self.known.subscribe().wait_for(|known| known.is_paused).await;
    }

    /// To be called before the keys are opened: a change from then on counts.
    pub(super) fn begin_opening(&self) {
        self.known.send_modify(|known| known.must_reopen = false);
    }

    pub(super) fn set_keys(&self, keys: TopicKeys) {
        self.known.send_modify(|known| known.keys = Arc::new(keys));
    }

    pub(super) fn set_must_reopen(&self) {
        self.known.send_modify(|known| known.must_reopen = true);
    }

    pub(super) fn set_connected_since(&self, since: Option<Instant>) {
        self.known.send_modify(|known| known.connected_since = since);
    }

    pub(super) fn set_consuming(&self, is_consuming: bool) {
        self.known.send_if_modified(|known| {
            let was_consuming = std::mem::replace(&mut known.is_consuming, is_consuming);
            was_consuming != is_consuming
        });
    }

    pub(super) fn set_paused(&self, is_paused: bool) {
        let has_changed = self.known.send_if_modified(|known| {
            let was_paused = std::mem::replace(&mut known.is_paused, is_paused);
            self.is_paused.store(is_paused, Ordering::SeqCst);
            was_paused != is_paused
        });
        if has_changed {
            let event = if is_paused { events::TOPIC_PAUSED } else { events::TOPIC_RESUMED };
            tracing::info!(topic = %self.topic, "{event}");
        }
    }

    /// Applies what the topic's state says. A priority that was written to for
    /// the first time has a stream that is not read yet.
    pub(super) fn apply(&self, flags: TopicFlags) {
        self.set_paused(flags.is_paused);
        self.known.send_if_modified(|known| {
            let before = std::mem::replace(&mut known.flags, flags);
            let is_new = |has: bool, had: bool, stream| has && !had && !known.keys.streams.contains(&stream);
            let has_new_stream = is_new(flags.has_high, before.has_high, StreamKind::High)
                || is_new(flags.has_low, before.has_low, StreamKind::Low);
            known.must_reopen |= has_new_stream;
            has_new_stream
        });
    }
}
