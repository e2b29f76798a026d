//! The probation of a version that has replaced another. If it crashes on several
//! messages during that time, the previous version is restored. Afterwards it is
//! proven, and a crash is attributed to the message, not to the version.

use crate::verdict::Outcome;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const DURATION: Duration = Duration::from_secs(600);
const CALLS_MAX: u32 = 1000;
/// Crashes on this many messages with different ids fail the probation.
const CRASHES_MAX: u32 = 5;

/// A version that failed its probation: plugin name and digest.
pub(super) type FailedVersion = (String, String);

/// Not started by default: a version that replaces nothing has none to restore.
#[derive(Default)]
pub struct Probation {
    is_active: AtomicBool,
    has_failed: AtomicBool,
    calls: AtomicU32,
    crashes: AtomicU32,
    window: Mutex<Option<Window>>,
}

struct Window {
    ends: Instant,
    /// Ids of the messages that it crashed on.
    crashed: BTreeSet<String>,
    crashes: u32,
    version: FailedVersion,
    rollbacks: mpsc::UnboundedSender<FailedVersion>,
}

/// The counters of a running probation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbationStats {
    pub calls: u32,
    pub crashes: u32,
}

impl Probation {
    pub(super) fn begin(&self, now: Instant, version: FailedVersion, rollbacks: mpsc::UnboundedSender<FailedVersion>) {
        *self.window() =
            Some(Window { ends: now + DURATION, crashed: BTreeSet::new(), crashes: 0, version, rollbacks });
        self.has_failed.store(false, Ordering::Relaxed);
        self.calls.store(0, Ordering::Relaxed);
        self.crashes.store(0, Ordering::Relaxed);
        self.is_active.store(true, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.is_active.store(false, Ordering::Relaxed);
        self.has_failed.store(false, Ordering::Relaxed);
        *self.window() = None;
    }

    /// Records the outcomes of one call. Costs one atomic read once the probation
    /// is over.
    pub fn record<'a>(&self, messages: impl Iterator<Item = (&'a str, &'a Outcome)>) {
        if self.is_active.load(Ordering::Relaxed) {
            self.record_at(messages, Instant::now());
        }
    }

    fn record_at<'a>(&self, messages: impl Iterator<Item = (&'a str, &'a Outcome)>, now: Instant) {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let is_crash = |outcome: &Outcome| matches!(outcome, Outcome::Trap(_) | Outcome::BadReply(_));
        let crashed: Vec<&str> = messages.filter(|(_, outcome)| is_crash(outcome)).map(|(id, _)| id).collect();
        if crashed.is_empty() && calls < CALLS_MAX {
            return;
        }
        let mut window = self.window();
        let Some(open) = window.as_mut() else { return };
        if now < open.ends && !crashed.is_empty() {
            // All messages of one call are one crash, and so are all calls with the
            // same message.
            open.crashes += u32::from(crashed.iter().all(|id| !open.crashed.contains(*id)));
            open.crashed.extend(crashed.into_iter().map(ToOwned::to_owned));
            self.crashes.store(open.crashes, Ordering::Relaxed);
        }
        let has_failed = open.crashes >= CRASHES_MAX;
        if has_failed {
            self.has_failed.store(true, Ordering::Relaxed);
            let _ = open.rollbacks.send(open.version.clone());
        }
        if has_failed || calls >= CALLS_MAX || now >= open.ends {
            self.is_active.store(false, Ordering::Relaxed);
            *window = None;
        }
    }

    /// None once the probation is over.
    pub fn stats(&self) -> Option<ProbationStats> {
        let is_running = self.is_active.load(Ordering::Relaxed)
            && self.window().as_ref().is_some_and(|window| Instant::now() < window.ends);
        let count = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        is_running.then(|| ProbationStats { calls: count(&self.calls), crashes: count(&self.crashes) })
    }

    /// Whether the version passed its probation or needed none.
    pub(super) fn has_passed(&self) -> bool {
        let is_over = self.window().as_ref().is_none_or(|window| Instant::now() >= window.ends);
        is_over && !self.has_failed.load(Ordering::Relaxed)
    }

    fn window(&self) -> MutexGuard<'_, Option<Window>> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started() -> (Probation, mpsc::UnboundedReceiver<FailedVersion>, Instant) {
        let (rollbacks, failed) = mpsc::unbounded_channel();
        let (probation, now) = (Probation::default(), Instant::now());
        probation.begin(now, ("a".to_owned(), "digest".to_owned()), rollbacks);
        (probation, failed, now)
    }

    fn trap() -> Outcome {
        Outcome::Trap("unreachable".to_owned())
    }

    impl Probation {
        fn record_one(&self, id: &str, outcome: &Outcome, now: Instant) {
            self.record_at([(id, outcome)].into_iter(), now);
        }
    }

    #[test]
    fn crashes_on_five_messages_fail_the_probation_and_on_four_do_not() {
        let (probation, mut failed, now) = started();
        for round in 0..3 {
            for id in 0..4 {
                let crash = if id % 2 == 0 { trap() } else { Outcome::BadReply("none".to_owned()) };
                probation.record_one(&id.to_string(), &crash, now);
            }
            assert!(failed.try_recv().is_err(), "round {round}: one message's retries are one crash");
        }
        assert!(!probation.has_passed());
        probation.record_one("4", &trap(), now);
        assert_eq!(failed.try_recv().unwrap(), ("a".to_owned(), "digest".to_owned()));
        // It is reported once.
        probation.record_one("5", &trap(), now);
        assert!(failed.try_recv().is_err() && probation.stats().is_none() && !probation.has_passed());
    }

    #[test]
    fn a_batch_counts_as_one_crash_and_so_do_calls_with_the_same_message() {
        let (probation, mut failed, now) = started();
        let batch = |ids: &[&str]| {
            let crash = Outcome::BadReply("1 replies to a batch of 6".to_owned());
            probation.record_at(ids.iter().map(|id| (*id, &crash)), now);
        };
        for ids in [["a", "b", "c", "d", "e", "f"], ["f", "1", "2", "3", "4", "5"], ["5", "6", "7", "8", "9", "a"]] {
            batch(&ids);
        }
        assert_eq!(probation.stats(), Some(ProbationStats { calls: 3, crashes: 1 }));
        for ids in [["g"], ["h"], ["i"]] {
            batch(&ids);
        }
        assert!(failed.try_recv().is_err());
        batch(&["j", "another"]);
        assert!(failed.try_recv().is_ok());
    }

    #[test]
    fn outcomes_that_a_handler_returns_are_no_crashes() {
        let (probation, mut failed, now) = started();
        for id in 0..100 {
            let outcome = match id % 4 {
                0 => Outcome::Retry { reason: String::new(), after: None },
                1 => Outcome::Reject { code: "no".to_owned(), reason: String::new() },
                2 => Outcome::Timeout(DURATION),
                _ => Outcome::CpuLimit(DURATION),
            };
            probation.record_one(&id.to_string(), &outcome, now);
        }
        assert!(failed.try_recv().is_err());
        assert_eq!(probation.stats(), Some(ProbationStats { calls: 100, crashes: 0 }));
    }

    #[test]
    fn it_ends_after_a_thousand_calls() {
        for (calls, is_over) in [(CALLS_MAX - 1, false), (CALLS_MAX, true)] {
            let (probation, mut failed, now) = started();
            for id in 0..calls {
                probation.record_one(&id.to_string(), &Outcome::Done(Vec::new()), now);
            }
            assert_eq!((probation.stats().is_none(), probation.has_passed()), (is_over, is_over));
            for id in 0..10 {
                probation.record_one(&format!("late {id}"), &trap(), now);
            }
            // Crashes after the last call of the probation don't count.
            assert!(failed.try_recv().is_err(), "{calls}");
        }
    }

    #[test]
    fn it_ends_after_ten_minutes() {
        for (after, has_failed) in [(DURATION - Duration::from_secs(1), true), (DURATION, false)] {
            let (probation, mut failed, now) = started();
            for id in 0..CRASHES_MAX {
                probation.record_one(&id.to_string(), &trap(), now + after);
            }
            assert_eq!(failed.try_recv().is_ok(), has_failed, "{after:?}");
        }
        // A crash after the end is not added to those before.
        let (probation, mut failed, now) = started();
        for id in 1..CRASHES_MAX {
            probation.record_one(&id.to_string(), &trap(), now);
        }
        probation.record_one("late", &trap(), now + DURATION);
        assert!(failed.try_recv().is_err() && probation.has_passed());
    }
}
