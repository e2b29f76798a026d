//! What this worker knows of one topic's keys and state in Redis. The intake and
//! the probe write it, everybody reads it.

use crate::events;
use crate::queue::{QueueError, StreamKind, TopicFlags, TopicKeys, TopicKind, Trouble};
use crate::topic::Topic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
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
    /// Why the last fetch failed, until one succeeds: a session may begin well and fail
    /// at each fetch.
    fetch_trouble: Option<Trouble>,
    /// Why nothing could be settled at the last attempt.
    settle_trouble: Option<Trouble>,
    /// Since when messages are not fetched and settled; `None` while they are.
    unserved_since: Option<Instant>,
}

/// How a topic is served by this worker now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Service {
    Consumed,
    Paused,
    /// For how long it has not been, and why where that is known.
    Unserved(Duration, Option<Trouble>),
}

impl Known {
    fn note_service(&mut self) {
        let is_served = self.is_consuming && self.fetch_trouble.is_none() && self.settle_trouble.is_none();
        self.unserved_since = if is_served { None } else { self.unserved_since.or_else(|| Some(Instant::now())) };
    }
}

impl TopicView {
    pub(super) fn new(topic: &Topic) -> Self {
        let known = Known { unserved_since: Some(Instant::now()), ..Known::default() };
        Self { topic: topic.clone(), known: watch::Sender::new(known), is_paused: AtomicBool::new(false) }
    }

    /// What the topic's keys were when they were opened last.
    pub(super) fn keys(&self) -> Arc<TopicKeys> {
        self.known.borrow().keys.clone()
    }

    pub(super) fn is_list(&self) -> bool {
        self.known.borrow().keys.kind == TopicKind::List
    }

    pub(super) fn service(&self) -> Service {
        let known = self.known.borrow();
        match known.unserved_since {
            _ if known.is_paused => Service::Paused,
            None => Service::Consumed,
            Some(since) => {
                let trouble = known.fetch_trouble.as_ref().or(known.settle_trouble.as_ref());
                Service::Unserved(since.elapsed(), trouble.cloned())
            }
        }
    }

    /// Whether the last fetch failed.
    pub(super) fn has_fetch_trouble(&self) -> bool {
        self.known.borrow().fetch_trouble.is_some()
    }

    /// A fetch failed, or succeeded again.
    pub(super) fn set_fetch_trouble(&self, error: Option<&QueueError>) {
        self.set_trouble(error, |known| &mut known.fetch_trouble);
    }

    /// Nothing could be settled, or it can again.
    pub(super) fn set_settle_trouble(&self, error: Option<&QueueError>) {
        self.set_trouble(error, |known| &mut known.settle_trouble);
    }

    fn set_trouble(&self, error: Option<&QueueError>, which: fn(&mut Known) -> &mut Option<Trouble>) {
        self.known.send_if_modified(|known| {
            let trouble = which(known);
            if error.is_none() && trouble.is_none() {
                return false;
            }
            *trouble = error.map(Trouble::from);
            known.note_service();
            true
        });
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
            known.note_service();
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
