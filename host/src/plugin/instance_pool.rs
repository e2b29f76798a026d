//! Instances that are kept for another call, where the manifest asks for it.
//! One is kept only after a call that came back with a good reply and left
//! nothing of its requests open; what it has in memory, the next message's call
//! sees.

use super::guest::Guest;
use super::program::RunningInstance;
use crate::manifest::Instances;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::Store;

/// A store with what lives in it; none yet where the first call makes it.
pub(super) struct PooledInstance {
    pub(super) store: Store<Guest>,
    pub(super) running: Option<RunningInstance>,
    calls: u32,
}

/// Those of one version that wait for a call.
pub(super) struct InstancePool {
    max_calls: u32,
    idle_timeout: Duration,
    idle: Mutex<Vec<IdleInstance>>,
}

struct IdleInstance {
    instance: PooledInstance,
    since: Instant,
    /// Its place in the pool.
    _permit: OwnedSemaphorePermit,
}

impl PooledInstance {
    pub(super) fn new(store: Store<Guest>) -> Self {
        Self { store, running: None, calls: 0 }
    }
}

impl InstancePool {
    pub(super) fn new(instances: Instances) -> Self {
        let (max_calls, idle_timeout) = match instances {
            Instances::PerMessage => (1, Duration::ZERO),
            Instances::Reused { calls, idle } => (calls, idle),
        };
        Self { max_calls, idle_timeout, idle: Mutex::default() }
    }

    /// One that may be called again; the one that was used last, so that those
    /// which are not needed grow old.
    pub(super) fn checkout(&self) -> Option<PooledInstance> {
        if self.is_enabled() { self.checkout_at(Instant::now()) } else { None }
    }

    /// Whether any is to be kept.
    pub(super) fn is_enabled(&self) -> bool {
        self.max_calls > 1
    }

    fn checkout_at(&self, now: Instant) -> Option<PooledInstance> {
        let mut idle = self.idle();
        let last = idle.pop()?;
        // If even the last one is too old, all are.
        if self.is_expired(&last, now) {
            idle.clear();
            return None;
        }
        Some(last.instance)
    }

    /// To be called when a call has come back with a reply.
    pub(super) fn checkin(&self, mut instance: PooledInstance, permits: &Arc<Semaphore>, weight: u32) {
        instance.calls += 1;
        // What is left open of its requests would hold connections that no
        // run's limit counts.
        if instance.calls >= self.max_calls || instance.store.data().run.http.is_under_way() {
            return;
        }
        // Where there is no permits it was the last call of this one.
        if let Ok(permits) = permits.clone().try_acquire_many_owned(weight) {
            self.idle().push(IdleInstance { instance, since: Instant::now(), _permit: permits });
        }
    }

    /// Lets go of those that nobody has needed for long. To be called once in a
    /// while.
    pub(super) fn evict_idle(&self) {
        let now = Instant::now();
        self.idle().retain(|idle| !self.is_expired(idle, now));
    }

    pub(super) fn clear(&self) {
        self.idle().clear();
    }

    fn is_expired(&self, idle: &IdleInstance, now: Instant) -> bool {
        now.saturating_duration_since(idle.since) >= self.idle_timeout
    }

    fn idle(&self) -> MutexGuard<'_, Vec<IdleInstance>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_has_waited_for_too_long_is_not_called_again() {
        let idle = Duration::from_secs(10);
        let pool = InstancePool::new(Instances::Reused { calls: 10, idle });
        let (engine, permits) = (wasmtime::Engine::default(), Arc::new(Semaphore::new(1)));
        let checkin = || {
            pool.checkin(PooledInstance::new(Store::new(&engine, Guest::under(""))), &permits, 1);
            Instant::now()
        };
        assert!(pool.checkout_at(checkin()).is_some());
        assert!(pool.checkout_at(checkin() + idle).is_none());
        assert_eq!(permits.available_permits(), 1);
    }
}
