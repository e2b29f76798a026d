//! What one plugin may have of what is there for all: the same for all of its
//! versions, so that none takes all of it.

use super::limits::{MemoryBudget, MemoryShare};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::Semaphore;

pub(super) struct Share {
    /// Calls at the same time.
    pub(super) calls: Semaphore,
    /// How many wait to be among them.
    waiting: AtomicUsize,
    pub(super) memory: Arc<MemoryShare>,
}

impl Share {
    /// Counts a call that waits, until what this returns is dropped.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(&self.waiting)
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) struct Shares {
    calls_max: usize,
    memory: Arc<MemoryBudget>,
    shares: Mutex<BTreeMap<String, Weak<Share>>>,
}

impl Shares {
    /// Each of so many calls, and of the memory.
    pub(super) fn of(calls_max: usize, memory: Arc<MemoryBudget>) -> Self {
        Self { calls_max, memory, shares: Mutex::default() }
    }

    pub(super) fn share(&self, plugin: &str) -> Arc<Share> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(plugin).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let memory = Arc::new(MemoryShare::of(&self.memory));
        let calls = Semaphore::new(self.calls_max);
        let share = Arc::new(Share { calls, waiting: AtomicUsize::new(0), memory });
        shares.insert(plugin.to_owned(), Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_version_has_no_share_of_its_own() {
        let shares = Shares::of(5, Arc::new(MemoryBudget::new(u64::MAX)));
        let (old, new) = (shares.share("a"), shares.share("a"));
        assert!(Arc::ptr_eq(&old, &new) && !Arc::ptr_eq(&old, &shares.share("b")));
        let taken = old.calls.try_acquire_many(3).unwrap();
        assert_eq!(new.calls.available_permits(), 2);
        drop(taken);
        drop((old, new));
        assert_eq!(shares.share("a").calls.available_permits(), 5);
    }
}
