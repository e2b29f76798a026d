//! Instances that are pooled for further calls, if the manifest asks for it. An
//! instance returns to the pool only after a valid reply, and without open requests.
//! The next call sees what the previous one left in memory.

use super::guest::Guest;
use super::program::RunningInstance;
use crate::manifest::Instances;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::Store;

/// A store and its instance, which the first call creates.
pub(super) struct PooledInstance {
    pub(super) store: Store<Guest>,
    pub(super) running: Option<RunningInstance>,
    calls: u32,
}

/// The idle instances of one version, most recently used last.
pub(super) struct InstancePool {
    max_calls: u32,
    idle_timeout: Duration,
    idle: Mutex<Vec<IdleInstance>>,
}

struct IdleInstance {
    instance: PooledInstance,
    since: Instant,
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
            Instances::Reused { max_calls, idle_timeout } => (max_calls, idle_timeout),
        };
        Self { max_calls, idle_timeout, idle: Mutex::default() }
    }

    /// Takes the most recently used instance, so that surplus ones expire.
    pub(super) fn checkout(&self) -> Option<PooledInstance> {
        if self.is_enabled() { self.checkout_at(Instant::now()) } else { None }
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.max_calls > 1
    }

    fn checkout_at(&self, now: Instant) -> Option<PooledInstance> {
        let mut idle = self.idle();
        let last = idle.pop()?;
        // The last one is the most recently used: if it has expired, all have.
        if self.is_expired(&last, now) {
            idle.clear();
            return None;
        }
        Some(last.instance)
    }

    /// Returns an instance after a call with a valid reply.
    pub(super) fn checkin(&self, mut instance: PooledInstance, permits: &Arc<Semaphore>, weight: u32) {
        instance.calls += 1;
        // Open requests would use connections that no run's limit counts.
        if instance.calls >= self.max_calls || instance.store.data().run.http.has_open_requests() {
            return;
        }
        // Without a permit the instance is dropped.
        if let Ok(permits) = permits.clone().try_acquire_many_owned(weight) {
            self.idle().push(IdleInstance { instance, since: Instant::now(), _permit: permits });
        }
    }

    /// Drops instances that have been idle for too long. Runs periodically.
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
    fn an_expired_instance_is_not_reused() {
        let idle = Duration::from_secs(10);
        let pool = InstancePool::new(Instances::Reused { max_calls: 10, idle_timeout: idle });
        let (engine, permits) = (wasmtime::Engine::default(), Arc::new(Semaphore::new(1)));
        let checkin = || {
            pool.checkin(PooledInstance::new(Store::new(&engine, Guest::for_test(""))), &permits, 1);
            Instant::now()
        };
        assert!(pool.checkout_at(checkin()).is_some());
        assert!(pool.checkout_at(checkin() + idle).is_none());
        assert_eq!(permits.available_permits(), 1);
    }
}
