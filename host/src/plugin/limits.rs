//! What one instance may have: memory and table elements over all that it has
//! of each, handles, and bytes in a call to the host. And what all of them
//! together may have of memory.

use crate::manifest::Limits;
use crate::verdict::Outcome;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wasmtime::ResourceLimiter;
use wasmtime::component::ResourceTableError;

/// A guest that is refused more sees its growth fail, as the standard has it,
/// and mostly traps then; whether it does is not ours to say.
#[derive(Debug)]
pub(super) struct InstanceLimit {
    memory_max: u64,
    memory: u64,
    budget: Arc<MemoryBudget>,
    elements_max: u32,
    elements: u64,
    refused: Option<Refused>,
}

/// What was asked for beyond its limit last.
#[derive(Debug, Clone, Copy)]
enum Refused {
    Memory,
    Elements,
}

impl InstanceLimit {
    /// A limit beyond what there is for all would be waited for in vain.
    pub(super) fn of(limits: &Limits, budget: &Arc<MemoryBudget>) -> Self {
        let (memory_max, elements_max) = (limits.memory.min(budget.max), limits.table_elements);
        Self { memory_max, memory: 0, budget: budget.clone(), elements_max, elements: 0, refused: None }
    }

    /// What an earlier run was refused is not why this one fails.
    pub(super) fn begin(&mut self) {
        self.refused = None;
    }

    /// The limit that a guest failed at, if it failed at one.
    pub(super) fn outcome(&self, error: &wasmtime::Error, limits: &Limits) -> Option<Outcome> {
        // Wasmtime has no types for two of these; tests hold its words to us.
        let told = error.root_cause().to_string();
        if told.contains("handle limit exceeded")
            || matches!(error.downcast_ref::<ResourceTableError>(), Some(ResourceTableError::Full))
        {
            return Some(Outcome::HandleLimit(limits.handles));
        }
        if told.contains("fuel allocated for hostcalls") {
            return Some(Outcome::HostCallLimit(limits.host_call));
        }
        self.refused.map(|refused| match refused {
            Refused::Memory => Outcome::MemoryLimit(self.memory_max),
            Refused::Elements => Outcome::TableLimit(limits.table_elements),
        })
    }
}

impl Drop for InstanceLimit {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.memory, Ordering::Relaxed);
    }
}

/// The memory of all instances.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    max: u64,
    used: AtomicU64,
}

/// The typed reason for ending a guest that did nothing wrong.
#[derive(Debug, thiserror::Error)]
#[error("the memory of all handlers together (handler_memory) is in use")]
pub(super) struct NoMemoryLeft;

impl MemoryBudget {
    pub(super) fn new(max: u64) -> Self {
        Self { max, used: AtomicU64::new(0) }
    }

    /// Whether instances that only wait had better go.
    pub(super) fn is_scarce(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.max / 2
    }

    fn take(&self, bytes: u64) -> Result<(), NoMemoryLeft> {
        let taken = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).map(drop).map_err(|_| NoMemoryLeft)
    }
}

impl ResourceLimiter for InstanceLimit {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current) as u64;
        let bytes = self.memory + more;
        if bytes > self.memory_max {
            self.refused = Some(Refused::Memory);
            return Ok(false);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        // Not as a failure to grow: a guest would take that for its own.
        self.budget.take(more)?;
        self.memory = bytes;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let elements = self.elements + desired.saturating_sub(current) as u64;
        if elements > u64::from(self.elements_max) {
            self.refused = Some(Refused::Elements);
            return Ok(false);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.elements = elements;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_instances_together_have_their_memory_and_give_it_back() {
        let budget = Arc::new(MemoryBudget::new(100 << 20));
        let limits = Limits { memory: 60 << 20, ..Limits::default() };
        let (mut one, mut other) = (InstanceLimit::of(&limits, &budget), InstanceLimit::of(&limits, &budget));
        assert!(one.memory_growing(0, 50 << 20, None).unwrap());
        assert!(!budget.is_scarce());
        assert!(other.memory_growing(0, 50 << 20, None).unwrap());
        assert!(budget.is_scarce());
        // Within its own limit it is ended, beyond it it is refused.
        assert!(one.memory_growing(50 << 20, 51 << 20, None).unwrap_err().is::<NoMemoryLeft>());
        assert!(!one.memory_growing(50 << 20, 61 << 20, None).unwrap());
        drop(other);
        assert!(one.memory_growing(50 << 20, 60 << 20, None).unwrap());
        drop(one);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);

        let limits = Limits { memory: 4 << 30, ..limits };
        assert!(!InstanceLimit::of(&limits, &budget).memory_growing(0, 101 << 20, None).unwrap());
    }
}
