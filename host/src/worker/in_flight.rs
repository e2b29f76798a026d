//! The messages of one topic that this worker has in flight: fetched, and not
//! settled yet. Their leases are renewed; whatever else Redis lists under this
//! worker's name was lost on the way or is to be given back.

use crate::metrics::TopicMetrics;
use crate::queue::{Delivery, EntryId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

pub(super) struct InFlight {
    /// By entry, with the delivery count that tells one delivery from another.
    entries: Mutex<HashMap<EntryId, u32>>,
    metrics: Arc<TopicMetrics>,
    /// Wakes the intake: there may be capacity now.
    freed: Notify,
    /// Wakes the drain, which waits until nothing is in flight.
    emptied: Notify,
    /// Whether Redis may list deliveries under our name that are not in here.
    may_differ: AtomicBool,
    /// Whether some of these were given back on purpose.
    has_requeued: AtomicBool,
}

impl InFlight {
    pub(super) fn new(metrics: Arc<TopicMetrics>) -> Self {
        Self {
            entries: Mutex::default(),
            metrics,
            freed: Notify::new(),
            emptied: Notify::new(),
            // An earlier connection of this consumer may have left some.
            may_differ: AtomicBool::new(true),
            has_requeued: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<EntryId, u32>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    pub(super) fn contains(&self, entry: &EntryId) -> bool {
        self.lock().contains_key(entry)
    }

    pub(super) fn entries(&self) -> Vec<EntryId> {
        self.lock().keys().cloned().collect()
    }

    /// Adds deliveries. Returns for each whether it was not in flight before: a
    /// group that was created again delivers its messages once more.
    pub(super) fn add<'a>(&self, deliveries: impl IntoIterator<Item = &'a Delivery>) -> Vec<bool> {
        let mut entries = self.lock();
        let mut add = |one: &Delivery| entries.insert(one.entry.clone(), one.delivery_count).is_none();
        let is_new = deliveries.into_iter().map(&mut add).collect();
        self.show(&entries);
        is_new
    }

    /// These are settled, or no longer this worker's to settle.
    pub(super) fn remove<'a>(&self, removed: impl IntoIterator<Item = &'a EntryId>) {
        let mut entries = self.lock();
        for entry in removed {
            entries.remove(entry);
        }
        self.show(&entries);
        let is_empty = entries.is_empty();
        drop(entries);
        if is_empty {
            self.emptied.notify_waiters();
        }
        self.wake_intake();
    }

    /// These go back to Redis without having begun: the intake requeues whatever
    /// is pending under our name and not in flight.
    pub(super) fn unclaim<'a>(&self, entries: impl IntoIterator<Item = &'a EntryId>) {
        self.remove(entries);
        self.has_requeued.store(true, Ordering::SeqCst);
        self.set_may_differ();
    }

    pub(super) fn set_may_differ(&self) {
        self.may_differ.store(true, Ordering::SeqCst);
    }

    pub(super) fn may_differ(&self) -> bool {
        self.may_differ.load(Ordering::SeqCst)
    }

    /// To be called before the comparison with Redis, so that a difference that
    /// arises meanwhile is noticed the next time. Returns whether something was
    /// given back on purpose, which the comparison finds too.
    pub(super) fn begin_comparison(&self) -> bool {
        self.may_differ.store(false, Ordering::SeqCst);
        self.has_requeued.swap(false, Ordering::SeqCst)
    }

    pub(super) fn wake_intake(&self) {
        self.freed.notify_one();
    }

    /// Waits until something has been removed, or [`wake_intake`](Self::wake_intake).
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    pub(super) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.len() == 0 {
                return;
            }
            emptied.await;
        }
    }

    fn show(&self, entries: &HashMap<EntryId, u32>) {
        self.metrics.in_flight.set(i64::try_from(entries.len()).unwrap_or(i64::MAX));
    }
}
