//! Room for calls: what the pool has of it, shared so that no plugin takes all
//! of it, and versions are tried out beside whatever runs.

use super::shares::Share;
use crossbeam_utils::CachePadded;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// Calls at the same time, over all plugins. Each has a slot of the pool.
pub(super) const CALLS_MAX: u32 = 1000;

/// What all versions of one plugin may have of them.
pub(super) const SHARE: usize = CALLS_MAX as usize / 2;

/// For what is only tried out, beside them.
pub(super) const TRIALS_MAX: u32 = 32;

/// Who has found no room by then tries again later.
const WAIT_MAX: Duration = Duration::from_secs(10);

pub(super) struct Slots {
    /// All threads write to it for each call: nothing else is to be in its line
    /// of a processor's cache.
    calls: CachePadded<Semaphore>,
    trials: Semaphore,
}

/// Room for one call, of its plugin's share.
pub(super) struct Slot<'a> {
    _of_share: Option<SemaphorePermit<'a>>,
    _of_all: SemaphorePermit<'a>,
}

impl Slots {
    pub(super) fn new() -> Self {
        let calls = CachePadded::new(Semaphore::new(CALLS_MAX as usize));
        Self { calls, trials: Semaphore::new(TRIALS_MAX as usize) }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.calls.available_permits() == CALLS_MAX as usize && self.trials.available_permits() == TRIALS_MAX as usize
    }

    /// None where there is no room in time. That wait is before the run, and not
    /// part of its `limits.timeout`: a run is not charged with what others use up.
    pub(super) async fn call<'a>(&'a self, share: &'a Share, weight: u32) -> Option<Slot<'a>> {
        if let Ok(of_share) = share.calls.try_acquire_many(weight)
            && let Ok(of_all) = self.calls.try_acquire_many(weight)
        {
            return Some(Slot { _of_share: Some(of_share), _of_all: of_all });
        }
        let _waiting = share.wait();
        timeout(WAIT_MAX, async {
            // In this order: who waits for its own plugin keeps no other waiting.
            let of_share = share.calls.acquire_many(weight).await.ok()?;
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
    use crate::plugin::budgets::{FileBudget, MemoryBudget};
    use crate::plugin::shares::Shares;
    use std::sync::Arc;

    #[tokio::test]
    async fn no_plugin_has_all_of_it() {
        let slots = Slots::new();
        let shares = Shares::of(SHARE, Arc::new(MemoryBudget::new(u64::MAX)), Arc::new(FileBudget::of(u64::MAX)));
        let (greedy, other) = (shares.share("greedy"), shares.share("other"));
        let mut taken = Vec::new();
        while greedy.calls.available_permits() > 0 {
            taken.push(slots.call(&greedy, 1).await.unwrap());
        }
        assert_eq!(taken.len(), 500);
        // Who waits is seen, and no longer once it has given up or has its turn.
        let waits = slots.call(&greedy, 1);
        let seen = async {
            while greedy.waiting() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            slot = waits => panic!("{}", slot.is_some()),
            () = seen => {}
        }
        assert_eq!(greedy.waiting(), 0);
        assert!(slots.call(&other, 8).await.is_some());
        assert!(slots.trial(8).await.is_some());
        assert!(!slots.is_idle());
        drop(taken);
        assert!(slots.is_idle());
    }
}
