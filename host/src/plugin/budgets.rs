//! Budgets that all instances share: memory and open files.

use crossbeam_utils::CachePadded;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The memory of all instances, for their linear memories and tables.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    max: u64,
    /// Every thread writes to it for each call, so it has a cache line of its own.
    used: CachePadded<AtomicU64>,
    /// How many plugins share it.
    plugins: AtomicUsize,
}

/// Ends a guest that has not exceeded its own limit.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryExhausted {
    #[error("all handlers together use all of handler_memory")]
    Total,
    #[error("the plugin uses all of its quota of memory, which is half of handler_memory")]
    Plugin,
}

impl MemoryBudget {
    pub(super) fn new(max: u64) -> Self {
        Self { max, used: CachePadded::default(), plugins: AtomicUsize::new(0) }
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// The quota of one plugin: half of the budget, or all of it for the only plugin.
#[derive(Debug)]
pub(super) struct MemoryQuota {
    budget: Arc<MemoryBudget>,
    used: AtomicU64,
}

impl MemoryQuota {
    pub(super) fn new(budget: &Arc<MemoryBudget>) -> Self {
        budget.plugins.fetch_add(1, Ordering::Relaxed);
        Self { budget: budget.clone(), used: AtomicU64::new(0) }
    }

    /// For load checks.
    pub(super) fn unbounded() -> Self {
        Self::new(&Arc::new(MemoryBudget::new(u64::MAX)))
    }

    pub(super) fn max(&self) -> u64 {
        let is_only = self.budget.plugins.load(Ordering::Relaxed) <= 1;
        if is_only { self.budget.max } else { self.budget.max / 2 }
    }

    /// Whether idle instances should be dropped.
    pub(super) fn is_under_pressure(&self) -> bool {
        let is_half_used = |used: &AtomicU64, max: u64| used.load(Ordering::Relaxed) > max / 2;
        is_half_used(&self.used, self.max()) || is_half_used(&self.budget.used, self.budget.max)
    }

    pub(super) fn acquire(&self, bytes: u64) -> Result<(), MemoryExhausted> {
        acquire(&self.used, bytes, self.max()).ok_or(MemoryExhausted::Plugin)?;
        acquire(&self.budget.used, bytes, self.budget.max).ok_or_else(|| {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            MemoryExhausted::Total
        })
    }

    pub(super) fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for MemoryQuota {
    fn drop(&mut self) {
        self.budget.plugins.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Adds to a counter, unless the sum would exceed `max`.
fn acquire(used: &AtomicU64, wanted: u64, max: u64) -> Option<()> {
    let sum = |used: u64| used.checked_add(wanted).filter(|used| *used <= max);
    used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum).ok().map(drop)
}

/// The open files of all instances.
#[derive(Debug)]
pub(super) struct FileBudget {
    max: u64,
    used: AtomicU64,
}

impl FileBudget {
    /// Half of what the process may open.
    pub(super) fn for_process(open_files: u64) -> Self {
        Self { max: open_files / 2, used: AtomicU64::new(0) }
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn acquire(&self, files: u64) -> bool {
        if files == 0 {
            // Most instances open none and need not touch the shared counter.
            return true;
        }
        acquire(&self.used, files, self.max).is_some()
    }

    pub(super) fn release(&self, files: u64) {
        if files > 0 {
            self.used.fetch_sub(files, Ordering::Relaxed);
        }
    }
}
