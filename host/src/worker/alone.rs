//! A message that workers were lost with, again and again, may be what they
//! were lost by. From its second loss on it runs alone in its process, so that
//! only its own losses convict it and no bystander's.

use super::{Lane, PAUSE_MAX};
use crate::queue::{EntryKey, QueueError, Settlement, Taken};
use crate::topic::Topic;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// From so many losses on, a message runs alone.
pub(super) const SUSPECT: u32 = 2;
/// So many losses while alone convict it.
const CONVICTED: u32 = 3;

/// Who may run now: many beside each other, or one alone. Fair, so a suspect
/// waits for those before it, and the next one for those that waited for it.
#[derive(Default)]
pub struct Alone {
    gate: RwLock<()>,
    now: Mutex<Option<(Topic, EntryKey)>>,
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

    fn now(&self) -> MutexGuard<'_, Option<(Topic, EntryKey)>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    /// Waits until the message may run; or says what becomes of it instead:
    /// nothing, where it is left to others, or the topic was paused meanwhile.
    pub(super) async fn turn_of(&self, taken: &Taken) -> Result<Turn<'_>, Option<Settlement>> {
        if taken.losses < SUSPECT {
            let turn = self.alone.beside().await;
            return if self.is_paused() { Err(None) } else { Ok(turn) };
        }
        let (topic, entry, losses) = (self.topic().as_str(), &taken.entry, taken.losses);
        let (guard, lost) = loop {
            let guard = self.alone.gate.write().await;
            if self.is_paused() {
                return Err(None);
            }
            // It has to be known before it begins.
            match self.queue.suspect(entry).await {
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
            let _ = self.queue.acquit(entry).await;
            return Err(Some(self.dead(taken, "crash-loop", &error, None)));
        }
        tracing::warn!(topic, %entry, losses, lost, "runs alone: workers were lost with it");
        *self.alone.now() = Some((self.topic().clone(), entry.clone()));
        Ok(Turn::Alone(guard))
    }

    /// The message of ours that ran alone, if one did, has ended, or was ended
    /// by a stop: either way its worker was not lost by it.
    pub(super) async fn acquit(&self) -> Result<(), QueueError> {
        let ours = self.alone.now().take_if(|(topic, _)| topic == self.topic());
        match ours {
            Some((_, entry)) => self.queue.acquit(&entry).await,
            None => Ok(()),
        }
    }
}
