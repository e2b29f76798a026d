//! The quota of each plugin, shared by all of its versions, so that no plugin uses
//! all resources.

use super::budgets::{FileBudget, MemoryBudget, MemoryQuota};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::Semaphore;

#[derive(Debug)]
pub(super) struct PluginQuota {
    /// Permits for concurrent calls.
    pub(super) calls: Semaphore,
    /// Calls that wait for a permit.
    waiting: AtomicUsize,
    pub(super) memory: MemoryQuota,
    /// Not limited per plugin, because an instance may open only a few.
    pub(super) files: Arc<FileBudget>,
}

impl PluginQuota {
    fn new(calls_max: usize, memory: MemoryQuota, files: &Arc<FileBudget>) -> Arc<Self> {
        let (calls, waiting) = (Semaphore::new(calls_max), AtomicUsize::new(0));
        Arc::new(Self { calls, waiting, memory, files: files.clone() })
    }

    /// For a load check, which is short, and must not fail because of running calls.
    pub(super) fn for_load_check(&self) -> Arc<Self> {
        Self::new(0, MemoryQuota::unbounded(), &self.files)
    }

    /// Counts a waiting call until the result is dropped.
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

pub(super) struct Quotas {
    calls_max: usize,
    memory: Arc<MemoryBudget>,
    files: Arc<FileBudget>,
    quotas: Mutex<BTreeMap<String, Weak<PluginQuota>>>,
}

impl Quotas {
    pub(super) fn new(calls_max: usize, memory: Arc<MemoryBudget>, files: Arc<FileBudget>) -> Self {
        Self { calls_max, memory, files, quotas: Mutex::default() }
    }

    pub(super) fn of_plugin(&self, plugin: &str) -> Arc<PluginQuota> {
        let mut quotas = self.quotas.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(quota) = quotas.get(plugin).and_then(Weak::upgrade) {
            return quota;
        }
        quotas.retain(|_, quota| quota.strong_count() > 0);
        let quota = PluginQuota::new(self.calls_max, MemoryQuota::new(&self.memory), &self.files);
        quotas.insert(plugin.to_owned(), Arc::downgrade(&quota));
        quota
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_versions_of_a_plugin_share_a_quota() {
        let quotas = Quotas::new(5, Arc::new(MemoryBudget::new(u64::MAX)), Arc::new(FileBudget::for_process(u64::MAX)));
        let (old, new) = (quotas.of_plugin("a"), quotas.of_plugin("a"));
        assert!(Arc::ptr_eq(&old, &new) && !Arc::ptr_eq(&old, &quotas.of_plugin("b")));
        let taken = old.calls.try_acquire_many(3).unwrap();
        assert_eq!(new.calls.available_permits(), 2);
        drop(taken);
        drop((old, new));
        assert_eq!(quotas.of_plugin("a").calls.available_permits(), 5);
    }
}
