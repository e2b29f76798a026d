//! Room for calls: what the pool has of it, shared so that no plugin takes all
//! of it, and versions are tried out beside whatever runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// Calls at the same time, over all plugins. Each has a slot of the pool.
pub(super) const CALLS_MAX: u32 = 1000;

/// What all versions of one plugin may have of them.
const SHARE: usize = CALLS_MAX as usize / 2;

/// For what is only tried out, beside them.
pub(super) const TRIALS_MAX: u32 = 32;

/// Who has found no room by then tries again later.
const WAIT_MAX: Duration = Duration::from_secs(10);

pub(super) struct Slots {
    calls: Semaphore,
    trials: Semaphore,
    shares: Mutex<BTreeMap<String, Weak<Semaphore>>>,
}

/// Room for one call, of its plugin's share.
pub(super) struct Slot<'a> {
    _of_share: Option<SemaphorePermit<'a>>,
    _of_all: SemaphorePermit<'a>,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self {
            calls: Semaphore::new(CALLS_MAX as usize),
            trials: Semaphore::new(TRIALS_MAX as usize),
            shares: Mutex::default(),
        }
    }

    /// A plugin's own, the same for all of its versions.
    pub(super) fn share(&self, plugin: &str) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(plugin).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(SHARE));
        shares.insert(plugin.to_owned(), Arc::downgrade(&share));
        share
    }

    pub(super) fn is_idle(&self) -> bool {
        self.calls.available_permits() == CALLS_MAX as usize && self.trials.available_permits() == TRIALS_MAX as usize
    }

    /// None where there is no room in time.
    pub(super) async fn call<'a>(&'a self, share: &'a Semaphore, weight: u32) -> Option<Slot<'a>> {
        if let Ok(of_share) = share.try_acquire_many(weight)
            && let Ok(of_all) = self.calls.try_acquire_many(weight)
        {
            return Some(Slot { _of_share: Some(of_share), _of_all: of_all });
        }
        timeout(WAIT_MAX, async {
            // In this order: who waits for its own plugin keeps no other waiting.
            let of_share = share.acquire_many(weight).await.ok()?;
            let of_all = self.calls.acquire_many(weight).await.ok()?;
            Some(Slot { _of_share: Some(of_share), _of_all: of_all })
        })
        .await
        .ok()?
    }

    /// Those end by themselves, soon.
    pub(super) async fn trial(&self, weight: u32) -> Option<Slot<'_>> {
        let of_all = self.trials.acquire_many(weight).await.ok()?;
        Some(Slot { _of_share: None, _of_all: of_all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_plugin_has_all_of_it() {
        let slots = Slots::new();
        let (greedy, other) = (slots.share("greedy"), slots.share("other"));
        let mut taken = Vec::new();
        while let Ok(of_share) = greedy.clone().try_acquire_owned() {
            taken.push((of_share, slots.calls.try_acquire().unwrap()));
        }
        assert_eq!(taken.len(), 500);
        assert!(slots.call(&other, 8).await.is_some());
        assert!(slots.trial(8).await.is_some());
        assert!(!slots.is_idle());
        // A new version has no share of its own.
        assert_eq!(slots.share("greedy").available_permits(), 0);
        drop((taken, greedy));
        assert!(slots.is_idle());
        assert_eq!(slots.share("greedy").available_permits(), 500);
    }
}
