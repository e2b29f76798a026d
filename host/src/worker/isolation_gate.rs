//! The gate that isolates poison-message candidates: a message that workers
//! crashed with runs while nothing else runs in this process, so that a crash
//! can be attributed to it and to no other message.

use crate::events;
use crate::queue::EntryId;
use crate::topic::Topic;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::timeout;

/// Nothing begins while a message waits to be isolated, so the wait is limited:
/// to a lease or this, whichever is shorter. After each failed wait the limit
/// doubles.
const WAIT_MIN: Duration = Duration::from_secs(10);
const WAIT_MAX: Duration = Duration::from_secs(60);
/// After a failed wait no other begins for this many times as long. Isolation
/// therefore keeps messages from beginning for a tenth of the time at most.
const PAUSE_FACTOR: u32 = 9;

/// One for all topics of a process. The lock is fair: an isolated message waits
/// for those that began before it, and the next one for those that waited for it.
#[derive(Default)]
pub(super) struct IsolationGate {
    gate: RwLock<()>,
    isolated: Mutex<Option<(Topic, EntryId)>>,
    /// Locked by the message that waits. The duration of the last failed wait,
    /// and when the next wait may begin.
    last_failure: tokio::sync::Mutex<Option<(Duration, Instant)>>,
}

/// The right to run. It is given back when it is dropped.
pub(super) enum Admission<'a> {
    Shared(#[allow(dead_code, reason = "a guard, never read")] RwLockReadGuard<'a, ()>),
    Exclusive(#[allow(dead_code, reason = "a guard, never read")] RwLockWriteGuard<'a, ()>),
}

impl IsolationGate {
    pub(super) async fn shared(&self) -> Admission<'_> {
        // Nearly always free, and then no task switch is needed.
        match self.gate.try_read() {
            Ok(guard) => Admission::Shared(guard),
            Err(_) => Admission::Shared(self.gate.read().await),
        }
    }

    /// Waits until nothing else runs. An error says when to try again.
    pub(super) async fn exclusive(&self, lease: Duration) -> Result<Admission<'_>, Instant> {
        let mut last_failure = self.last_failure.lock().await;
        let wait = match *last_failure {
            Some((_, next)) if next > Instant::now() => {
                return match self.gate.try_write() {
                    Ok(guard) => Ok(Self::admit(&mut last_failure, guard)),
                    Err(_) => Err(next),
                };
            }
            Some((last, _)) => (last * 2).min(WAIT_MAX),
            None => lease.min(WAIT_MIN),
        };
        match timeout(wait, self.gate.write()).await {
            Ok(guard) => Ok(Self::admit(&mut last_failure, guard)),
            Err(_) => {
                let next = Instant::now() + wait * PAUSE_FACTOR;
                *last_failure = Some((wait, next));
                tracing::warn!(waited = ?wait, retry_in = ?wait * PAUSE_FACTOR, "{}", events::ISOLATION_TIMED_OUT);
                Err(next)
            }
        }
    }

    fn admit<'a>(last_failure: &mut Option<(Duration, Instant)>, guard: RwLockWriteGuard<'a, ()>) -> Admission<'a> {
        *last_failure = None;
        Admission::Exclusive(guard)
    }

    /// The message that had this entry at first runs in isolation from now on.
    pub(super) fn begin(&self, topic: &Topic, first_entry: &EntryId) {
        *self.lock() = Some((topic.clone(), first_entry.clone()));
    }

    /// The isolated message, if it is one of this topic. It has ended, or is
    /// given up by a stop: either way this worker did not crash with it.
    pub(super) fn end(&self, topic: &Topic) -> Option<EntryId> {
        self.lock().take_if(|(isolated, _)| isolated == topic).map(|(_, entry)| entry)
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Topic, EntryId)>> {
        self.isolated.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
