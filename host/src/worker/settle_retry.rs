//! Settlements that Redis has refused: of one message, because a key has another
//! type, or of all that need memory, while memory is full. They are sent again
//! apart from the others, with pauses of their own.

use super::unsettled::Unsettled;
use crate::backoff::Backoff;
use crate::queue::EntryId;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// How many are sent again at a time.
const BATCH: usize = 256;
/// A refusal is not logged more often.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct SettleRetryQueue {
    /// The one that has waited longest is in front.
    waiting: VecDeque<Unsettled>,
    due: Instant,
    backoff: Backoff,
    /// One of those that were refused since the last log line, and why.
    unlogged: Option<(EntryId, String)>,
    logged_at: Option<Instant>,
}

impl Default for SettleRetryQueue {
    fn default() -> Self {
        let backoff = Backoff::default();
        Self { waiting: VecDeque::new(), due: Instant::now(), backoff, unlogged: None, logged_at: None }
    }
}

impl SettleRetryQueue {
    /// Adds what was refused when it was sent for the first time.
    pub(super) fn add(&mut self, refused: Vec<(Unsettled, String)>) {
        if self.waiting.is_empty() && !refused.is_empty() {
            self.backoff.reset();
            self.due = Instant::now() + self.backoff.next_pause();
        }
        self.push(refused);
    }

    /// When some are to be sent again, if any wait.
    pub(super) fn due_in(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then(|| self.due.saturating_duration_since(Instant::now()))
    }

    /// Those that are to be sent again now.
    pub(super) fn take_due(&mut self) -> Vec<Unsettled> {
        let count = if Instant::now() < self.due { 0 } else { self.waiting.len().min(BATCH) };
        self.waiting.drain(..count).collect()
    }

    /// This many were sent again, and these were refused again. If some passed,
    /// the others are next without a longer pause; if all did, at once.
    pub(super) fn sent_again(&mut self, count: usize, refused: Vec<(Unsettled, String)>) {
        if refused.len() < count {
            self.backoff.reset();
        }
        let pause = if refused.is_empty() { Duration::ZERO } else { self.backoff.next_pause() };
        self.due = Instant::now() + pause;
        self.push(refused);
    }

    fn push(&mut self, refused: Vec<(Unsettled, String)>) {
        for (unsettled, error) in refused {
            self.unlogged = Some((unsettled.settlement.entry.clone(), error));
            self.waiting.push_back(unsettled);
        }
    }

    /// How many wait, and one of them with its error, if it is time to log that.
    pub(super) fn take_unlogged(&mut self) -> Option<(usize, EntryId, String)> {
        if self.logged_at.is_some_and(|at| at.elapsed() < LOG_INTERVAL) {
            return None;
        }
        let (entry, error) = self.unlogged.take()?;
        self.logged_at = Some(Instant::now());
        Some((self.waiting.len(), entry, error))
    }
}
