//! The limits of one instance: memory and table elements, summed over its memories
//! and tables, and the outcomes for resources and host call bytes.

use super::quotas::PluginQuota;
use crate::manifest::Limits;
use crate::verdict::Outcome;
use std::sync::Arc;
use wasmtime::ResourceLimiter;
use wasmtime::component::ResourceTableError;

/// Memory of the host per table element.
const ELEMENT_BYTES: u64 = 8;

/// Beyond its limit, growth fails as WebAssembly specifies. Most guests trap then;
/// if they do, the outcome names the limit.
#[derive(Debug)]
pub(super) struct InstanceLimiter {
    memory_max: u64,
    memory: u64,
    quota: Arc<PluginQuota>,
    elements_max: u32,
    elements: u64,
    denied_by: Option<DeniedBy>,
}

/// The limit that the last failed growth has exceeded.
#[derive(Debug, Clone, Copy)]
enum DeniedBy {
    Memory,
    Elements,
}

impl InstanceLimiter {
    /// Bounded by the quota of the plugin: retries could never succeed beyond it.
    pub(super) fn new(limits: &Limits, quota: &Arc<PluginQuota>) -> Self {
        let (memory_max, elements_max) = (limits.memory.min(quota.memory.max()), limits.table_elements);
        Self { memory_max, memory: 0, quota: quota.clone(), elements_max, elements: 0, denied_by: None }
    }

    /// Growth that failed in a previous run does not explain a failure of this one.
    pub(super) fn begin_run(&mut self) {
        self.denied_by = None;
    }

    /// The outcome, if the guest failed at a limit.
    pub(super) fn outcome(&self, error: &wasmtime::Error, limits: &Limits) -> Option<Outcome> {
        // Wasmtime has no types for these errors; tests check the texts.
        let cause = error.root_cause().to_string();
        if cause.contains("handle limit exceeded")
            || matches!(error.downcast_ref::<ResourceTableError>(), Some(ResourceTableError::Full))
        {
            return Some(Outcome::ResourceLimit(limits.resources));
        }
        if cause.contains("fuel allocated for hostcalls") {
            return Some(Outcome::HostCallLimit(limits.host_call_bytes));
        }
        self.denied_by.map(|denied_by| match denied_by {
            DeniedBy::Memory => Outcome::MemoryLimit(self.memory_max),
            DeniedBy::Elements => Outcome::TableLimit(limits.table_elements),
        })
    }
}

impl Drop for InstanceLimiter {
    fn drop(&mut self) {
        self.quota.memory.release(self.memory + ELEMENT_BYTES * self.elements);
    }
}

impl ResourceLimiter for InstanceLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current) as u64;
        let bytes = self.memory + more;
        if bytes > self.memory_max {
            self.denied_by = Some(DeniedBy::Memory);
            return Ok(false);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        // An error instead of failed growth: the guest has not reached its limit.
        self.quota.memory.acquire(more)?;
        self.memory = bytes;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current) as u64;
        let elements = self.elements + more;
        if elements > u64::from(self.elements_max) {
            self.denied_by = Some(DeniedBy::Elements);
            return Ok(false);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.quota.memory.acquire(ELEMENT_BYTES * more)?;
        self.elements = elements;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::budgets::{FileBudget, MemoryBudget, MemoryExhausted};
    use crate::plugin::quotas::Quotas;

    fn quotas(bytes: u64) -> (Arc<MemoryBudget>, Quotas) {
        let budget = Arc::new(MemoryBudget::new(bytes));
        let quotas = Quotas::new(1, budget.clone(), Arc::new(FileBudget::for_process(u64::MAX)));
        (budget, quotas)
    }

    #[test]
    fn all_instances_share_the_budget_and_release_it() {
        let (budget, quotas) = quotas(100 << 20);
        let quota = quotas.of_plugin("a");
        let limits = Limits { memory: 60 << 20, ..Limits::default() };
        let (mut one, mut other) = (InstanceLimiter::new(&limits, &quota), InstanceLimiter::new(&limits, &quota));
        assert!(one.memory_growing(0, 50 << 20, None).unwrap());
        assert!(!quota.memory.is_under_pressure());
        assert!(other.memory_growing(0, 50 << 20, None).unwrap());
        assert!(quota.memory.is_under_pressure());
        // Within its own limit a guest is ended; beyond it, growth fails.
        assert!(one.memory_growing(50 << 20, 51 << 20, None).unwrap_err().is::<MemoryExhausted>());
        assert!(!one.memory_growing(50 << 20, 61 << 20, None).unwrap());
        drop(other);
        assert!(one.memory_growing(50 << 20, 60 << 20, None).unwrap());
        drop(one);
        assert_eq!(budget.used(), 0);

        let limits = Limits { memory: 4 << 30, ..limits };
        assert!(!InstanceLimiter::new(&limits, &quota).memory_growing(0, 101 << 20, None).unwrap());
    }

    #[test]
    fn a_plugin_among_others_gets_half_of_the_memory() {
        let (_, quotas) = quotas(100 << 20);
        let greedy = quotas.of_plugin("greedy");
        let limits = Limits::default();
        let start = |quota: &Arc<PluginQuota>| InstanceLimiter::new(&limits, quota);
        let (mut one, mut two) = (start(&greedy), start(&greedy));
        assert!(one.memory_growing(0, 60 << 20, None).unwrap());
        let other = quotas.of_plugin("other");
        let error = two.memory_growing(0, 1 << 20, None).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(MemoryExhausted::Plugin)), "{error}");
        let mut third = start(&other);
        assert!(third.memory_growing(0, 40 << 20, None).unwrap());
        let error = third.memory_growing(40 << 20, 41 << 20, None).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(MemoryExhausted::Total)), "{error}");
        // Failed growth is not counted.
        drop(one);
        assert!(third.memory_growing(40 << 20, 50 << 20, None).unwrap());
        // More than the quota fails as growth, without a retry.
        assert!(!start(&other).memory_growing(0, 51 << 20, None).unwrap());
        drop((third, other));
        assert!(two.memory_growing(0, 64 << 20, None).unwrap());
    }

    #[test]
    fn memories_of_an_instance_are_summed() {
        let (_, quotas) = quotas(u64::MAX);
        let limits = Limits { memory: 60 << 20, ..Limits::default() };
        let mut limit = InstanceLimiter::new(&limits, &quotas.of_plugin("a"));
        assert!(limit.memory_growing(0, 40 << 20, None).unwrap());
        assert!(!limit.memory_growing(0, 21 << 20, None).unwrap());
        assert!(limit.memory_growing(0, 20 << 20, None).unwrap());
        assert!(!limit.memory_growing(40 << 20, 41 << 20, None).unwrap());
    }

    #[test]
    fn tables_count_as_memory() {
        let (budget, quotas) = quotas(1 << 20);
        let quota = quotas.of_plugin("a");
        let mut tables: Vec<_> = (0..2).map(|_| InstanceLimiter::new(&Limits::default(), &quota)).collect();
        assert!(tables[0].table_growing(0, 100_000, None).unwrap());
        assert!(tables[1].table_growing(0, 100_000, None).unwrap_err().is::<MemoryExhausted>());
        tables.clear();
        assert_eq!(budget.used(), 0);
    }
}
