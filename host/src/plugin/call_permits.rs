//! Permits for concurrent calls. A plugin gets at most half of them, and load
//! checks have permits of their own, so that neither blocks the others.

use super::quotas::PluginQuota;
use crossbeam_utils::CachePadded;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

/// Concurrent calls of all plugins. Each uses a slot of the pooling allocator.
pub(super) const CALLS_MAX: u32 = 1000;

/// Concurrent calls of all versions of one plugin.
pub(super) const PLUGIN_CALLS_MAX: usize = CALLS_MAX as usize / 2;

/// Concurrent load checks.
pub(super) const LOAD_CHECKS_MAX: u32 = 32;

/// A call that gets no permit in this time ends as `plugin-unavailable`.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(10);

pub(super) struct CallPermits {
    /// Every thread writes to it for each call, so it has a cache line of its own.
    calls: CachePadded<Semaphore>,
    load_checks: Semaphore,
}

/// Admits one call until it is dropped.
pub(super) struct CallPermit<'a> {
    _plugin_permits: Option<SemaphorePermit<'a>>,
    _total_permits: SemaphorePermit<'a>,
    pub(super) waited: Duration,
}

impl CallPermits {
    pub(super) fn new() -> Self {
        let calls = CachePadded::new(Semaphore::new(CALLS_MAX as usize));
        Self { calls, load_checks: Semaphore::new(LOAD_CHECKS_MAX as usize) }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.calls.available_permits() == CALLS_MAX as usize
            && self.load_checks.available_permits() == LOAD_CHECKS_MAX as usize
    }

    /// `None` if no permit becomes free in time. The wait does not count towards
    /// `limits.timeout`, because other plugins cause it.
    pub(super) async fn acquire<'a>(&'a self, quota: &'a PluginQuota, weight: u32) -> Option<CallPermit<'a>> {
        if let Ok(plugin_permits) = quota.calls.try_acquire_many(weight)
            && let Ok(total_permits) = self.calls.try_acquire_many(weight)
        {
            let waited = Duration::ZERO;
            return Some(CallPermit { _plugin_permits: Some(plugin_permits), _total_permits: total_permits, waited });
        }
        let (_waiting, started) = (quota.wait(), Instant::now());
        timeout(WAIT_MAX, async {
            // In this order, so that a call that waits for its plugin's quota
            // takes no permit from other plugins.
            let plugin_permits = quota.calls.acquire_many(weight).await.ok()?;
            let total_permits = self.calls.acquire_many(weight).await.ok()?;
            let waited = started.elapsed();
            Some(CallPermit { _plugin_permits: Some(plugin_permits), _total_permits: total_permits, waited })
        })
        .await
        .ok()?
    }

    /// Has no timeout, because load checks are short.
    pub(super) async fn acquire_for_load_check(&self, weight: u32) -> Option<CallPermit<'_>> {
        let total_permits = self.load_checks.acquire_many(weight).await.ok()?;
        Some(CallPermit { _plugin_permits: None, _total_permits: total_permits, waited: Duration::ZERO })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::budgets::{FileBudget, MemoryBudget};
    use crate::plugin::quotas::Quotas;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_plugin_gets_half_of_the_permits() {
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
        // A call counts as waiting until it gets a permit or is dropped.
        let waits = permits.acquire(&greedy, 1);
        let seen = async {
            while greedy.waiting() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            permit = waits => panic!("{}", permit.is_some()),
            () = seen => {}
        }
        assert_eq!(greedy.waiting(), 0);
        assert!(permits.acquire(&other, 8).await.is_some());
        assert!(permits.acquire_for_load_check(8).await.is_some());
        assert!(!permits.is_idle());
        drop(taken);
        assert!(permits.is_idle());
    }
}
