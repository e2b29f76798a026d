//! What there is for all instances together: memory, and files to hold open.

use crossbeam_utils::CachePadded;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The memory of all instances: that of their memories and their tables.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    max: u64,
    /// All threads write to it for each call: what they read is in another line
    /// of a processor's cache.
    used: CachePadded<AtomicU64>,
    /// How many have a quota of it.
    plugins: AtomicUsize,
}

/// The typed reason for ending a guest that did nothing wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryExhausted {
    #[error("the memory of all handlers together (handler_memory) is in use")]
    Total,
    #[error("the memory that one plugin may have, half of that of all handlers together (handler_memory), is in use")]
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

/// What the instances of one plugin have of it: half at most, as soon as there
/// are others that would be left with nothing.
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

    /// For what is only tried out.
    pub(super) fn unbounded() -> Self {
        Self::new(&Arc::new(MemoryBudget::new(u64::MAX)))
    }

    pub(super) fn max(&self) -> u64 {
        let is_alone = self.budget.plugins.load(Ordering::Relaxed) <= 1;
        if is_alone { self.budget.max } else { self.budget.max / 2 }
    }

    /// Whether instances that only wait had better go.
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

/// Counts what is taken of so many at most; nothing where it would be more.
fn acquire(used: &AtomicU64, wanted: u64, max: u64) -> Option<()> {
    let taken = |used: u64| used.checked_add(wanted).filter(|used| *used <= max);
    used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).ok().map(drop)
}

/// The files that all instances together may hold open.
#[derive(Debug)]
pub(super) struct FileBudget {
    max: u64,
    used: AtomicU64,
}

impl FileBudget {
    /// Of a process that may have so many.
    pub(super) fn for_process(open_files: u64) -> Self {
        Self { max: open_files / 2, used: AtomicU64::new(0) }
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn acquire(&self, files: u64) -> bool {
        if files == 0 {
            // Most instances open none: nobody else is to notice them.
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
