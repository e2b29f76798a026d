//! The messages of one topic that this worker has in flight: fetched, and not
//! settled yet. Their leases are renewed; whatever else Redis lists under this
//! worker's name was lost on the way or is to be given back.

use super::work_item::WorkItem;
use crate::metrics::TopicMetrics;
use crate::queue::{Claim, EntryId, NotRenewed};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

pub(super) struct InFlight {
    entries: Mutex<HashMap<EntryId, Lease>>,
    metrics: Arc<TopicMetrics>,
    /// Wakes the intake: there may be capacity now.
    freed: Notify,
    /// Wakes the drain, which waits until nothing is in flight.
    emptied: Notify,
    /// Whether Redis may list deliveries under our name that are not in here.
    may_differ: AtomicBool,
    /// Whether some of these were given back on purpose.
    has_requeued: AtomicBool,
    /// Whether pending rows may have been lost that nobody has looked for yet.
    has_lost: AtomicBool,
}

/// What this worker knows of its lease on one message.
struct Lease {
    /// Tells one delivery from another.
    delivery_count: u32,
    /// When it began, or when its last confirmed renewal was sent.
    renewed_at: Instant,
    /// It is no longer ours, and was counted if it was lost.
    is_over: bool,
    /// Its entry was deleted, and the log says so.
    is_deleted: bool,
    /// Where the topic deduplicates.
    claim: Option<Claim>,
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
            has_lost: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<EntryId, Lease>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether one of these leases may have ended, because it is not confirmed to
    /// have been renewed for that long.
    pub(super) fn may_have_lost<'a>(&self, entries: impl IntoIterator<Item = &'a EntryId>, lease: Duration) -> bool {
        let held = self.lock();
        let is_old = |one: &Lease| !one.is_over && one.renewed_at.elapsed() >= lease;
        entries.into_iter().filter_map(|entry| held.get(entry)).any(is_old)
    }

    /// These were renewed by a command that was sent then.
    pub(super) fn set_renewed(&self, renewed: &[EntryId], sent: Instant) {
        let mut held = self.lock();
        for entry in renewed {
            if let Some(lease) = held.get_mut(entry) {
                lease.renewed_at = lease.renewed_at.max(sent);
                lease.is_over = false;
            }
        }
    }

    /// Marks leases that are no longer ours. Returns how many of them were lost and
    /// not marked before: another worker has the message; or nobody has it and our
    /// lease had ended, so another worker had it. Where nobody has it within our
    /// lease, a worker that had lost it to us has settled it.
    pub(super) fn mark_over(&self, not_renewed: &NotRenewed, lease: Duration) -> usize {
        let (mut held, mut count) = (self.lock(), 0);
        let all = not_renewed.taken.iter().map(|entry| (entry, true));
        for (entry, is_taken) in all.chain(not_renewed.gone.iter().map(|entry| (entry, false))) {
            let Some(one) = held.get_mut(entry) else { continue };
            if !one.is_over && (is_taken || one.renewed_at.elapsed() >= lease) {
                count += 1;
            }
            if !one.is_over && !is_taken {
                self.has_lost.store(true, Ordering::SeqCst);
            }
            one.is_over = true;
        }
        count
    }

    pub(super) fn entries(&self) -> Vec<EntryId> {
        self.lock().keys().cloned().collect()
    }

    /// The claims of all but these.
    pub(super) fn claims_except(&self, lost: &NotRenewed) -> Vec<Claim> {
        let lost: HashSet<&EntryId> = lost.taken.iter().chain(&lost.gone).collect();
        let entries = self.lock();
        entries.iter().filter(|(entry, _)| !lost.contains(entry)).filter_map(|(_, held)| held.claim.clone()).collect()
    }

    /// Adds deliveries. Returns for each whether it was not in flight before: a
    /// group that was created again delivers its messages once more.
    pub(super) fn add<'a>(&self, items: impl IntoIterator<Item = &'a WorkItem>) -> Vec<bool> {
        let (mut entries, renewed_at) = (self.lock(), Instant::now());
        let new = |item: &WorkItem| Lease {
            delivery_count: item.delivery.delivery_count,
            renewed_at,
            is_over: false,
            is_deleted: false,
            claim: item.claim.clone(),
        };
        let mut add = |one: &WorkItem| entries.insert(one.entry().clone(), new(one)).is_none();
        let is_new = items.into_iter().map(&mut add).collect();
        self.show(&entries);
        is_new
    }

    /// The delivery count with which it is in flight, if it is.
    pub(super) fn delivery_count(&self, entry: &EntryId) -> Option<u32> {
        self.lock().get(entry).map(|held| held.delivery_count)
    }

    /// The entries of these were deleted. Returns those for which that is new.
    pub(super) fn mark_deleted<'a>(&self, deleted: &'a [EntryId]) -> Vec<&'a EntryId> {
        let mut entries = self.lock();
        let mut mark = |entry: &EntryId| match entries.get_mut(entry) {
            Some(held) => !std::mem::replace(&mut held.is_deleted, true),
            None => false,
        };
        deleted.iter().filter(|entry| mark(entry)).collect()
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

    /// These were made pending for us again, as if they had been given back.
    pub(super) fn has_restored(&self) {
        self.has_requeued.store(true, Ordering::SeqCst);
        self.set_may_differ();
        self.wake_intake();
    }

    /// Whether pending rows may have been lost since the last call.
    pub(super) fn take_lost(&self) -> bool {
        self.has_lost.swap(false, Ordering::SeqCst)
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

    fn show(&self, entries: &HashMap<EntryId, Lease>) {
        self.metrics.in_flight.set(i64::try_from(entries.len()).unwrap_or(i64::MAX));
    }
}
