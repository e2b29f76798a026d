//! The first while of a version that has replaced another. If it crashes on
//! several messages then, the one before it is restored; afterwards it is
//! proven: a crash says something about its message, and no longer about the
//! version.

use crate::verdict::Outcome;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const LASTS: Duration = Duration::from_secs(600);
const CALLS: u32 = 1000;
/// Crashes on so many messages, told apart by their ids, condemn it.
const CRASHES: u32 = 5;

/// A version that has not stood its probation: its plugin, its digest.
pub(super) type Condemned = (String, String);

/// None to begin with: a version that replaces nothing has no way back.
#[derive(Default)]
pub struct Probation {
    is_on: AtomicBool,
    is_condemned: AtomicBool,
    calls: AtomicU32,
    crashes: AtomicU32,
    trial: Mutex<Option<Trial>>,
}

struct Trial {
    ends: Instant,
    /// Messages that it crashed on.
    crashed: BTreeSet<String>,
    crashes: u32,
    version: Condemned,
    court: mpsc::UnboundedSender<Condemned>,
}

/// How it stands, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    pub calls: u32,
    pub crashes: u32,
}

impl Probation {
    pub(super) fn begin(&self, now: Instant, version: Condemned, court: mpsc::UnboundedSender<Condemned>) {
        *self.trial() = Some(Trial { ends: now + LASTS, crashed: BTreeSet::new(), crashes: 0, version, court });
        self.is_condemned.store(false, Ordering::Relaxed);
        self.calls.store(0, Ordering::Relaxed);
        self.crashes.store(0, Ordering::Relaxed);
        self.is_on.store(true, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.is_on.store(false, Ordering::Relaxed);
        self.is_condemned.store(false, Ordering::Relaxed);
        *self.trial() = None;
    }

    /// Tells how the messages of one call ended. Costs next to nothing once it
    /// is over.
    pub fn ended<'a>(&self, messages: impl Iterator<Item = (&'a str, &'a Outcome)>) {
        if self.is_on.load(Ordering::Relaxed) {
            self.ended_at(messages, Instant::now());
        }
    }

    fn ended_at<'a>(&self, messages: impl Iterator<Item = (&'a str, &'a Outcome)>, now: Instant) {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let is_crash = |outcome: &Outcome| matches!(outcome, Outcome::Trap(_) | Outcome::BadReply(_));
        let crashed: Vec<&str> = messages.filter(|(_, outcome)| is_crash(outcome)).map(|(id, _)| id).collect();
        if crashed.is_empty() && calls < CALLS {
            return;
        }
        let mut trial = self.trial();
        let Some(open) = trial.as_mut() else { return };
        if now < open.ends && !crashed.is_empty() {
            // However many there were in it, one call is one crash; and so are
            // all calls with the same message.
            open.crashes += u32::from(crashed.iter().all(|id| !open.crashed.contains(*id)));
            open.crashed.extend(crashed.into_iter().map(ToOwned::to_owned));
            self.crashes.store(open.crashes, Ordering::Relaxed);
        }
        let is_condemned = open.crashes >= CRASHES;
        if is_condemned {
            self.is_condemned.store(true, Ordering::Relaxed);
            let _ = open.court.send(open.version.clone());
        }
        if is_condemned || calls >= CALLS || now >= open.ends {
            self.is_on.store(false, Ordering::Relaxed);
            *trial = None;
        }
    }

    /// How it stands, while it lasts.
    pub fn standing(&self) -> Option<Standing> {
        let lasts = self.is_on.load(Ordering::Relaxed)
            && self.trial().as_ref().is_some_and(|trial| Instant::now() < trial.ends);
        let count = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        lasts.then(|| Standing { calls: count(&self.calls), crashes: count(&self.crashes) })
    }

    /// Whether it has stood it, or had none to stand.
    pub(super) fn is_stood(&self) -> bool {
        let is_over = self.trial().as_ref().is_none_or(|trial| Instant::now() >= trial.ends);
        is_over && !self.is_condemned.load(Ordering::Relaxed)
    }

    fn trial(&self) -> MutexGuard<'_, Option<Trial>> {
        self.trial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun() -> (Probation, mpsc::UnboundedReceiver<Condemned>, Instant) {
        let (court, condemned) = mpsc::unbounded_channel();
        let (probation, now) = (Probation::default(), Instant::now());
        probation.begin(now, ("a".to_owned(), "digest".to_owned()), court);
        (probation, condemned, now)
    }

    fn trap() -> Outcome {
        Outcome::Trap("unreachable".to_owned())
    }

    impl Probation {
        fn one_ended(&self, id: &str, outcome: &Outcome, now: Instant) {
            self.ended_at([(id, outcome)].into_iter(), now);
        }
    }

    #[test]
    fn crashes_on_five_messages_condemn_and_on_four_do_not() {
        let (probation, mut condemned, now) = begun();
        for round in 0..3 {
            for id in 0..4 {
                let crash = if id % 2 == 0 { trap() } else { Outcome::BadReply("none".to_owned()) };
                probation.one_ended(&id.to_string(), &crash, now);
            }
            assert!(condemned.try_recv().is_err(), "round {round}: one message's retries are one crash");
        }
        assert!(!probation.is_stood());
        probation.one_ended("4", &trap(), now);
        assert_eq!(condemned.try_recv().unwrap(), ("a".to_owned(), "digest".to_owned()));
        // Once.
        probation.one_ended("5", &trap(), now);
        assert!(condemned.try_recv().is_err() && probation.standing().is_none() && !probation.is_stood());
    }

    #[test]
    fn a_batch_is_one_crash_and_so_are_all_with_the_same_message() {
        let (probation, mut condemned, now) = begun();
        let batch = |ids: &[&str]| {
            let crash = Outcome::BadReply("1 replies to a batch of 6".to_owned());
            probation.ended_at(ids.iter().map(|id| (*id, &crash)), now);
        };
        for ids in [["a", "b", "c", "d", "e", "f"], ["f", "1", "2", "3", "4", "5"], ["5", "6", "7", "8", "9", "a"]] {
            batch(&ids);
        }
        assert_eq!(probation.standing(), Some(Standing { calls: 3, crashes: 1 }));
        for ids in [["g"], ["h"], ["i"]] {
            batch(&ids);
        }
        assert!(condemned.try_recv().is_err());
        batch(&["j", "a new one with it"]);
        assert!(condemned.try_recv().is_ok());
    }

    #[test]
    fn what_a_handler_answers_is_no_crash() {
        let (probation, mut condemned, now) = begun();
        for id in 0..100 {
            let outcome = match id % 4 {
                0 => Outcome::Retry { reason: String::new(), after: None },
                1 => Outcome::Reject { code: "no".to_owned(), reason: String::new() },
                2 => Outcome::Timeout(LASTS),
                _ => Outcome::CpuLimit(LASTS),
            };
            probation.one_ended(&id.to_string(), &outcome, now);
        }
        assert!(condemned.try_recv().is_err());
        assert_eq!(probation.standing(), Some(Standing { calls: 100, crashes: 0 }));
    }

    #[test]
    fn it_ends_after_a_thousand_calls() {
        for (calls, is_over) in [(CALLS - 1, false), (CALLS, true)] {
            let (probation, mut condemned, now) = begun();
            for id in 0..calls {
                probation.one_ended(&id.to_string(), &Outcome::Done(Vec::new()), now);
            }
            assert_eq!((probation.standing().is_none(), probation.is_stood()), (is_over, is_over));
            for id in 0..10 {
                probation.one_ended(&format!("late {id}"), &trap(), now);
            }
            // The last call of it counts, those after it do not.
            assert!(condemned.try_recv().is_err(), "{calls}");
        }
    }

    #[test]
    fn it_ends_after_ten_minutes() {
        for (after, is_condemned) in [(LASTS - Duration::from_secs(1), true), (LASTS, false)] {
            let (probation, mut condemned, now) = begun();
            for id in 0..CRASHES {
                probation.one_ended(&id.to_string(), &trap(), now + after);
            }
            assert_eq!(condemned.try_recv().is_ok(), is_condemned, "{after:?}");
        }
        // What was crashed on before is not added to.
        let (probation, mut condemned, now) = begun();
        for id in 1..CRASHES {
            probation.one_ended(&id.to_string(), &trap(), now);
        }
        probation.one_ended("late", &trap(), now + LASTS);
        assert!(condemned.try_recv().is_err() && probation.is_stood());
    }
}
