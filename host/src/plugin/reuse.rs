//! Instances that are kept for another call, where the manifest asks for it.
//! One is kept only after a call that came back with a good reply and left
//! nothing of its requests open; what it has in memory, the next message's call
//! sees.

use super::guest::Guest;
use super::program::Live;
use crate::manifest::Instances;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::Store;

/// A store with what lives in it; none yet where the first call makes it.
pub(super) struct Life {
    pub(super) store: Store<Guest>,
    pub(super) live: Option<Live>,
    calls: u32,
}

/// Those of one version that wait for a call.
pub(super) struct Kept {
    calls_max: u32,
    idle_max: Duration,
    waiting: Mutex<Vec<Waiting>>,
}

struct Waiting {
    life: Life,
    since: Instant,
    /// Its place in the pool.
    _room: OwnedSemaphorePermit,
}

impl Life {
    pub(super) fn new(store: Store<Guest>) -> Self {
        Self { store, live: None, calls: 0 }
    }
}

impl Kept {
    pub(super) fn new(instances: Instances) -> Self {
        let (calls_max, idle_max) = match instances {
            Instances::PerMessage => (1, Duration::ZERO),
            Instances::Reused { max_calls, idle_timeout } => (max_calls, idle_timeout),
        };
        Self { calls_max, idle_max, waiting: Mutex::default() }
    }

    /// One that may be called again; the one that was used last, so that those
    /// which are not needed grow old.
    pub(super) fn take(&self) -> Option<Life> {
        if self.is_wanted() { self.take_at(Instant::now()) } else { None }
    }

    /// Whether any is to be kept.
    pub(super) fn is_wanted(&self) -> bool {
        self.calls_max > 1
    }

    fn take_at(&self, now: Instant) -> Option<Life> {
        let mut waiting = self.waiting();
        let last = waiting.pop()?;
        // If even the last one is too old, all are.
        if self.is_old(&last, now) {
            waiting.clear();
            return None;
        }
        Some(last.life)
    }

    /// To be called when a call has come back with a reply.
    pub(super) fn put(&self, mut life: Life, room: &Arc<Semaphore>, weight: u32) {
        life.calls += 1;
        // What is left open of its requests would hold connections that no
        // run's limit counts.
        if life.calls >= self.calls_max || life.store.data().run.http.is_under_way() {
            return;
        }
        // Where there is no room it was the last call of this one.
        if let Ok(room) = room.clone().try_acquire_many_owned(weight) {
            self.waiting().push(Waiting { life, since: Instant::now(), _room: room });
        }
    }

    /// Lets go of those that nobody has needed for long. To be called once in a
    /// while.
    pub(super) fn forget_old(&self) {
        let now = Instant::now();
        self.waiting().retain(|waiting| !self.is_old(waiting, now));
    }

    pub(super) fn forget_all(&self) {
        self.waiting().clear();
    }

    fn is_old(&self, waiting: &Waiting, now: Instant) -> bool {
        now.saturating_duration_since(waiting.since) >= self.idle_max
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_has_waited_for_too_long_is_not_called_again() {
        let idle = Duration::from_secs(10);
        let kept = Kept::new(Instances::Reused { max_calls: 10, idle_timeout: idle });
        let (engine, room) = (wasmtime::Engine::default(), Arc::new(Semaphore::new(1)));
        let put = || {
            kept.put(Life::new(Store::new(&engine, Guest::under(""))), &room, 1);
            Instant::now()
        };
        assert!(kept.take_at(put()).is_some());
        assert!(kept.take_at(put() + idle).is_none());
        assert_eq!(room.available_permits(), 1);
    }
}
