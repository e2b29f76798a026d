//! Room for calls: what the pool has of it, shared so that no plugin takes all
//! of it, and versions are tried out beside whatever runs.

use super::quotas::PluginQuota;
use crossbeam_utils::CachePadded;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// Calls at the same time, over all plugins. Each has a slot of the pool.
pub(super) const CALLS_MAX: u32 = 1000;

/// What all versions of one plugin may have of them.
pub(super) const PLUGIN_CALLS_MAX: usize = CALLS_MAX as usize / 2;

/// For what is only tried out, beside them.
pub(super) const TRIALS_MAX: u32 = 32;

/// Who has found no room by then tries again later.
const WAIT_MAX: Duration = Duration::from_secs(10);

pub(super) struct CallPermits {
    /// All threads write to it for each call: nothing else is to be in its line
    /// of a processor's cache.
    calls: CachePadded<Semaphore>,
    trials: Semaphore,
}

/// Room for one call, of its plugin's quota.
pub(super) struct CallPermit<'a> {
    _plugin_permits: Option<SemaphorePermit<'a>>,
    _total_permits: SemaphorePermit<'a>,
}

impl CallPermits {
    pub(super) fn new() -> Self {
        let calls = CachePadded::new(Semaphore::new(CALLS_MAX as usize));
        Self { calls, trials: Semaphore::new(TRIALS_MAX as usize) }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.calls.available_permits() == CALLS_MAX as usize && self.trials.available_permits() == TRIALS_MAX as usize
    }

    /// None where there is no room in time. That wait is before the run, and not
    /// part of its `limits.timeout`: a run is not charged with what others use up.
    pub(super) async fn acquire<'a>(&'a self, quota: &'a PluginQuota, weight: u32) -> Option<CallPermit<'a>> {
        if let Ok(plugin_permits) = quota.calls.try_acquire_many(weight)
            && let Ok(total_permits) = self.calls.try_acquire_many(weight)
        {
            return Some(CallPermit { _plugin_permits: Some(plugin_permits), _total_permits: total_permits });
        }
        let _waiting = quota.wait();
        timeout(WAIT_MAX, async {
            // In this order: who waits for its own plugin keeps no other waiting.
            let plugin_permits = quota.calls.acquire_many(weight).await.ok()?;
            let total_permits = self.calls.acquire_many(weight).await.ok()?;
            Some(CallPermit { _plugin_permits: Some(plugin_permits), _total_permits: total_permits })
        })
        .await
        .ok()?
    }

    /// Those end by themselves, soon.
    pub(super) async fn acquire_trial(&self, weight: u32) -> Option<CallPermit<'_>> {
        let total_permits = self.trials.acquire_many(weight).await.ok()?;
        Some(CallPermit { _plugin_permits: None, _total_permits: total_permits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::budgets::{FileBudget, MemoryBudget};
    use crate::plugin::quotas::Quotas;
    use std::sync::Arc;

    #[tokio::test]
    async fn no_plugin_has_all_of_it() {
        let permits = CallPermits::new();
        let quotas = Quotas::new(
            PLUGIN_CALLS_MAX,
            Arc::new(MemoryBudget::new(u64::MAX)),
            Arc::new(FileBudget::for_process(u64::MAX)),
        );
        let (greedy, other) = (quotas.of_plugin("greedy"), quotas.of_plugin("other"));
        let mut taken = Vec::new();
        while greedy.calls.available_permits() > 0 {
            taken.push(permits.acquire(&greedy, 1).await.unwrap());
        }
        assert_eq!(taken.len(), 500);
        // Who waits is seen, and no longer once it has given up or has its turn.
        let waits = permits.acquire(&greedy, 1);
        let seen = async {
            while greedy.waiting() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            slot = waits => panic!("{}", permit.is_some()),
            () = seen => {}
        }
        assert_eq!(greedy.waiting(), 0);
        assert!(permits.acquire(&other, 8).await.is_some());
        assert!(permits.acquire_trial(8).await.is_some());
        assert!(!permits.is_idle());
        drop(taken);
        assert!(permits.is_idle());
    }
}
