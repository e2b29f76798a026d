//! The first while of a version that has replaced another. If it crashes on
//! several messages then, the one before it is restored; afterwards a crash
//! says something about its message, and no longer about the version.

use crate::verdict::Outcome;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const LASTS: Duration = Duration::from_secs(600);
const CALLS: u32 = 1000;
/// Crashes on so many messages, told apart by their ids, condemn it.
const CRASHES: usize = 5;

/// A version that has not stood its probation: its plugin, its digest.
pub(super) type Condemned = (String, String);

/// None to begin with: a version that replaces nothing has no way back.
#[derive(Default)]
pub struct Probation {
    is_on: AtomicBool,
    calls: AtomicU32,
    crashes: AtomicU32,
    trial: Mutex<Option<Trial>>,
}

struct Trial {
    ends: Instant,
    crashed: BTreeSet<String>,
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
        *self.trial() = Some(Trial { ends: now + LASTS, crashed: BTreeSet::new(), version, court });
        self.calls.store(0, Ordering::Relaxed);
        self.crashes.store(0, Ordering::Relaxed);
        self.is_on.store(true, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.is_on.store(false, Ordering::Relaxed);
        *self.trial() = None;
    }

    /// Tells how a message ended. Costs next to nothing once it is over.
    pub fn ended(&self, id: &str, outcome: &Outcome) {
        if self.is_on.load(Ordering::Relaxed) {
            self.ended_at(id, outcome, Instant::now());
        }
    }

    fn ended_at(&self, id: &str, outcome: &Outcome, now: Instant) {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let is_crash = matches!(outcome, Outcome::Trap(_) | Outcome::BadReply(_));
        if !is_crash && calls < CALLS {
            return;
        }
        let mut trial = self.trial();
        let Some(open) = trial.as_mut() else { return };
        if now < open.ends && is_crash {
            open.crashed.insert(id.to_owned());
            self.crashes.store(u32::try_from(open.crashed.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
        let is_condemned = open.crashed.len() >= CRASHES;
        if is_condemned {
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

    /// Whether it has crashed and is not proven yet.
    pub(super) fn is_suspect(&self) -> bool {
        self.standing().is_some_and(|standing| standing.crashes > 0)
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

    #[test]
    fn crashes_on_five_messages_condemn_and_on_four_do_not() {
        let (probation, mut condemned, now) = begun();
        for round in 0..3 {
            for id in 0..4 {
                let crash = if id % 2 == 0 { trap() } else { Outcome::BadReply("none".to_owned()) };
                probation.ended_at(&id.to_string(), &crash, now);
            }
            assert!(condemned.try_recv().is_err(), "round {round}: one message's retries are one crash");
        }
        probation.ended_at("4", &trap(), now);
        assert_eq!(condemned.try_recv().unwrap(), ("a".to_owned(), "digest".to_owned()));
        // Once.
        probation.ended("5", &trap());
        assert!(condemned.try_recv().is_err() && probation.standing().is_none());
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
            probation.ended_at(&id.to_string(), &outcome, now);
        }
        assert!(condemned.try_recv().is_err());
        assert_eq!(probation.standing(), Some(Standing { calls: 100, crashes: 0 }));
    }

    #[test]
    fn it_ends_after_a_thousand_calls() {
        for (calls, is_over) in [(CALLS - 1, false), (CALLS, true)] {
            let (probation, mut condemned, now) = begun();
            for id in 0..calls {
                probation.ended_at(&id.to_string(), &Outcome::Done(Vec::new()), now);
            }
            assert_eq!(probation.standing().is_none(), is_over);
            for id in 0..10 {
                probation.ended(&format!("late {id}"), &trap());
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
                probation.ended_at(&id.to_string(), &trap(), now + after);
            }
            assert_eq!(condemned.try_recv().is_ok(), is_condemned, "{after:?}");
        }
    }
}
