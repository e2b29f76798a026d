//! What one instance may have: memory and table elements over all that it has
//! of each, handles, and bytes in a call to the host.

use super::shares::Share;
use crate::manifest::Limits;
use crate::verdict::Outcome;
use std::sync::Arc;
use wasmtime::ResourceLimiter;
use wasmtime::component::ResourceTableError;

/// What an element of a table takes of the host's memory.
const ELEMENT_BYTES: u64 = 8;

/// A guest that is refused more sees its growth fail, as the standard has it,
/// and mostly traps then; whether it does is not ours to say.
#[derive(Debug)]
pub(super) struct InstanceLimit {
    memory_max: u64,
    memory: u64,
    share: Arc<Share>,
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
    /// A limit beyond what its plugin may have would be waited for in vain.
    pub(super) fn of(limits: &Limits, share: &Arc<Share>) -> Self {
        let (memory_max, elements_max) = (limits.memory.min(share.memory.max()), limits.table_elements);
        Self { memory_max, memory: 0, share: share.clone(), elements_max, elements: 0, refused: None }
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
            return Some(Outcome::HandleLimit(limits.resources));
        }
        if told.contains("fuel allocated for hostcalls") {
            return Some(Outcome::HostCallLimit(limits.host_call_bytes));
        }
        self.refused.map(|refused| match refused {
            Refused::Memory => Outcome::MemoryLimit(self.memory_max),
            Refused::Elements => Outcome::TableLimit(limits.table_elements),
        })
    }
}

impl Drop for InstanceLimit {
    fn drop(&mut self) {
        self.share.memory.give_back(self.memory + ELEMENT_BYTES * self.elements);
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
        self.share.memory.take(more)?;
        self.memory = bytes;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current) as u64;
        let elements = self.elements + more;
        if elements > u64::from(self.elements_max) {
            self.refused = Some(Refused::Elements);
            return Ok(false);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.share.memory.take(ELEMENT_BYTES * more)?;
        self.elements = elements;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::budgets::{FileBudget, MemoryBudget, NoMemoryLeft};
    use crate::plugin::shares::Shares;

    fn shares(bytes: u64) -> (Arc<MemoryBudget>, Shares) {
        let budget = Arc::new(MemoryBudget::new(bytes));
        let shares = Shares::of(1, budget.clone(), Arc::new(FileBudget::of(u64::MAX)));
        (budget, shares)
    }

    #[test]
    fn all_instances_together_have_their_memory_and_give_it_back() {
        let (budget, shares) = shares(100 << 20);
        let share = shares.share("a");
        let limits = Limits { memory: 60 << 20, ..Limits::default() };
        let (mut one, mut other) = (InstanceLimit::of(&limits, &share), InstanceLimit::of(&limits, &share));
        assert!(one.memory_growing(0, 50 << 20, None).unwrap());
        assert!(!share.memory.is_scarce());
        assert!(other.memory_growing(0, 50 << 20, None).unwrap());
        assert!(share.memory.is_scarce());
        // Within its own limit it is ended, beyond it it is refused.
        assert!(one.memory_growing(50 << 20, 51 << 20, None).unwrap_err().is::<NoMemoryLeft>());
        assert!(!one.memory_growing(50 << 20, 61 << 20, None).unwrap());
        drop(other);
        assert!(one.memory_growing(50 << 20, 60 << 20, None).unwrap());
        drop(one);
        assert_eq!(budget.used(), 0);

        let limits = Limits { memory: 4 << 30, ..limits };
        assert!(!InstanceLimit::of(&limits, &share).memory_growing(0, 101 << 20, None).unwrap());
    }

    #[test]
    fn a_plugin_among_others_has_half_of_the_memory() {
        let (_, shares) = shares(100 << 20);
        let greedy = shares.share("greedy");
        let limits = Limits::default();
        let start = |share: &Arc<Share>| InstanceLimit::of(&limits, share);
        let (mut one, mut two) = (start(&greedy), start(&greedy));
        assert!(one.memory_growing(0, 60 << 20, None).unwrap());
        let other = shares.share("other");
        let told = two.memory_growing(0, 1 << 20, None).unwrap_err();
        assert!(matches!(told.downcast_ref(), Some(NoMemoryLeft::OfPlugin)), "{told}");
        let mut third = start(&other);
        assert!(third.memory_growing(0, 40 << 20, None).unwrap());
        let told = third.memory_growing(40 << 20, 41 << 20, None).unwrap_err();
        assert!(matches!(told.downcast_ref(), Some(NoMemoryLeft::OfAll)), "{told}");
        // What did not fit is not counted.
        drop(one);
        assert!(third.memory_growing(40 << 20, 50 << 20, None).unwrap());
        // More than half is no longer waited for, but refused.
        assert!(!start(&other).memory_growing(0, 51 << 20, None).unwrap());
        drop((third, other));
        assert!(two.memory_growing(0, 64 << 20, None).unwrap());
    }

    /// An instance may have several.
    #[test]
    fn the_memories_of_an_instance_are_one_sum() {
        let (_, shares) = shares(u64::MAX);
        let limits = Limits { memory: 60 << 20, ..Limits::default() };
        let mut limit = InstanceLimit::of(&limits, &shares.share("a"));
        assert!(limit.memory_growing(0, 40 << 20, None).unwrap());
        assert!(!limit.memory_growing(0, 21 << 20, None).unwrap());
        assert!(limit.memory_growing(0, 20 << 20, None).unwrap());
        assert!(!limit.memory_growing(40 << 20, 41 << 20, None).unwrap());
    }

    #[test]
    fn tables_count_as_memory() {
        let (budget, shares) = shares(1 << 20);
        let share = shares.share("a");
        let mut tables: Vec<_> = (0..2).map(|_| InstanceLimit::of(&Limits::default(), &share)).collect();
        assert!(tables[0].table_growing(0, 100_000, None).unwrap());
        assert!(tables[1].table_growing(0, 100_000, None).unwrap_err().is::<NoMemoryLeft>());
        tables.clear();
        assert_eq!(budget.used(), 0);
    }
}
