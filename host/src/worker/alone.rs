//! A message that workers were lost with, again and again, may be what they
//! were lost by. From its second loss on it runs alone in its process, so that
//! only its own losses convict it and no bystander's.

use super::{Lane, PAUSE_MAX};
use crate::queue::{Delivery, EntryId, QueueError, Settlement};
use crate::topic::Topic;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::timeout;

/// From so many losses on, a message runs alone.
pub(super) const SUSPECT: u32 = 2;
/// So many losses while alone convict it.
const CONVICTED: u32 = 3;

/// Nobody begins while a suspect waits for those that run. So it waits no longer
/// than a lease, and this at first; in vain, twice as long the next time.
const PATIENCE_MIN: Duration = Duration::from_secs(10);
const PATIENCE_MAX: Duration = Duration::from_secs(60);
/// After a wait in vain, none waits for so many times as long: whatever runs,
/// suspects keep others from beginning for a tenth of the time at most.
const PAUSE: u32 = 9;

/// Who may run now: many beside each other, or one alone. Fair, so a suspect
/// waits for those before it, and the next one for those that waited for it.
#[derive(Default)]
pub struct Alone {
    gate: RwLock<()>,
    now: Mutex<Option<(Topic, EntryId)>>,
    /// Held by the suspect that waits. The last wait in vain, and when the next
    /// one may begin.
    waits: tokio::sync::Mutex<Option<(Duration, Instant)>>,
}

/// Holds a message's place while it runs.
pub(super) enum Turn<'a> {
    Beside(#[allow(dead_code, reason = "held, never read")] RwLockReadGuard<'a, ()>),
    Alone(#[allow(dead_code, reason = "held, never read")] RwLockWriteGuard<'a, ()>),
}

impl Alone {
    async fn beside(&self) -> Turn<'_> {
        // Nearly always free, and then without a word to the scheduler.
        match self.gate.try_read() {
            Ok(guard) => Turn::Beside(guard),
            Err(_) => Turn::Beside(self.gate.read().await),
        }
    }

    /// Waits until nobody else runs; an error says when to try again.
    async fn alone(&self, lease: Duration) -> Result<RwLockWriteGuard<'_, ()>, Instant> {
        let mut waits = self.waits.lock().await;
        let patience = match *waits {
            Some((_, again)) if again > Instant::now() => Duration::ZERO,
            Some((last, _)) => (last * 2).min(PATIENCE_MAX),
            None => lease.min(PATIENCE_MIN),
        };
        match timeout(patience, self.gate.write()).await {
            Ok(guard) => {
                *waits = None;
                Ok(guard)
            }
            Err(_) if patience.is_zero() => Err(waits.map_or_else(Instant::now, |(_, again)| again)),
            Err(_) => {
                let again = Instant::now() + patience * PAUSE;
                *waits = Some((patience, again));
                tracing::warn!(waited = ?patience, again_in = ?patience * PAUSE, "a suspect can't run alone: what runs beside it does not end");
                Err(again)
            }
        }
    }

    fn now(&self) -> MutexGuard<'_, Option<(Topic, EntryId)>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    /// Waits until the message may run; or says what becomes of it instead:
    /// nothing, where it is left to others, or the topic was paused meanwhile.
    pub(super) async fn turn_of(&self, taken: &Delivery) -> Result<Turn<'_>, Option<Settlement>> {
        if taken.crash_count < SUSPECT {
            let turn = self.alone.beside().await;
            return if self.is_paused() { Err(None) } else { Ok(turn) };
        }
        let (topic, entry, losses) = (self.topic().as_str(), &taken.entry, taken.crash_count);
        let (guard, lost) = loop {
            tracing::debug!(topic, %entry, losses, "waits for those that run, to run alone");
            let guard = match self.alone.alone(self.settings.lease).await {
                Ok(guard) => guard,
                Err(again) => {
                    tracing::debug!(topic, %entry, losses, "given back: it can't run alone");
                    self.hand_on(entry, again).await;
                    return Err(None);
                }
            };
            if self.is_paused() {
                return Err(None);
            }
            // It has to be known before it begins.
            match self.queue.isolation.begin(entry).await {
                Ok(lost) => break (guard, lost),
                Err(error) => tracing::warn!(topic, %entry, %error, "waits to run alone"),
            }
            // The others need not wait for that.
            drop(guard);
            if tokio::time::timeout(PAUSE_MAX, self.stop.cancelled()).await.is_ok() {
                return Err(None);
            }
        };
        if lost >= CONVICTED {
            let error = format!("{lost} workers were lost while it ran alone");
            self.metrics.outcome("crash-loop").inc();
            tracing::error!(topic, %entry, outcome = "crash-loop", error, "settled");
            let _ = self.queue.isolation.clear(entry).await;
            return Err(Some(self.dead(taken, "crash-loop", &error, None)));
        }
        tracing::warn!(topic, %entry, losses, lost, "runs alone: workers were lost with it");
        *self.alone.now() = Some((self.topic().clone(), entry.clone()));
        Ok(Turn::Alone(guard))
    }

    /// Gives a message back for others to take at once, and for us later.
    async fn hand_on(&self, entry: &EntryId, again: Instant) {
        self.handed_on().insert(entry.clone(), again);
        self.release([entry]);
        // Otherwise its lease runs out.
        let _ = self.queue.leases.requeue(entry).await;
    }

    /// What is not to be found again: what we hold, and what we have just given
    /// back; and whether some of that may be found from now on.
    pub(super) fn known_entries(&self) -> (Vec<EntryId>, bool) {
        let mut known = self.held_entries();
        let (mut handed_on, now) = (self.handed_on(), Instant::now());
        let count = handed_on.len();
        handed_on.retain(|_, again| *again > now);
        known.extend(handed_on.keys().cloned());
        (known, handed_on.len() < count)
    }

    fn handed_on(&self) -> MutexGuard<'_, HashMap<EntryId, Instant>> {
        self.handed_on.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The message of ours that ran alone, if one did, has ended, or was ended
    /// by a stop: either way its worker was not lost by it.
    pub(super) async fn acquit(&self) -> Result<(), QueueError> {
        let ours = self.alone.now().take_if(|(topic, _)| topic == self.topic());
        match ours {
            Some((_, entry)) => self.queue.isolation.clear(&entry).await,
            None => Ok(()),
        }
    }
}
