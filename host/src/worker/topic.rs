//! One topic as this worker consumes it: its state, and no loop. The state is
//! made when the topic gets a handler; when it loses it, what is in flight is
//! drained and the state is dropped.

use super::hints::{Hinted, Hints};
use super::in_flight::InFlight;
use super::isolation_gate::IsolationGate;
use super::local_queue::LocalQueue;
use super::repeats::Repeats;
use super::seats::{Seat, Seats};
use super::unsettled::Unsettled;
use super::view::{Service, TopicView};
use super::work_item::WorkItem;
use crate::metrics::TopicMetrics;
use crate::plugin::Plugin;
use crate::queue::{EntryId, OutboxRelay, TopicHandle};
use crate::settings::QueueSettings;
use crate::supervisor::Supervisor;
use crate::topic::Topic;
use arc_swap::{ArcSwap, Guard};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What one fetch may bring, by the mean size of the entries so far.
pub(super) const FETCH_BYTES_MAX: usize = 32 << 20;

/// The assumed size of an entry before any was seen: the first fetch brings a
/// few, however large they are.
const UNSEEN_ENTRY_BYTES: usize = FETCH_BYTES_MAX / 4;

/// While this many deliveries have not begun, no more are fetched: fetches of
/// one or two at a time cost Redis ten times as much for each message.
const WAITING_LOW: usize = 256;

/// What all topics of a worker share.
pub(super) struct Shared {
    pub(super) settings: QueueSettings,
    pub(super) hints: LoopHints,
    pub(super) gate: IsolationGate,
    pub(super) seats: Arc<Seats>,
    /// The threads of the handlers.
    pub(super) handlers: Handle,
    /// How many handlers run at once without waiting: one for each thread.
    pub(super) active_runners_max: usize,
    /// Set when the whole worker stops. Each topic has a stop token too.
    pub(super) stop: CancellationToken,
    pub(super) drain_timeout: Duration,
    pub(super) supervisor: Supervisor,
}

/// The hints of each loop of the worker.
#[derive(Default)]
pub(super) struct LoopHints {
    pub(super) intake: Hints<TopicState>,
    pub(super) list_intake: Hints<TopicState>,
    pub(super) settling: Hints<TopicState>,
    pub(super) renewal: Hints<TopicState>,
    pub(super) reclaim: Hints<TopicState>,
    pub(super) promotion: Hints<TopicState>,
    pub(super) probe: Hints<TopicState>,
    pub(super) outbox: Hints<TopicState>,
    pub(super) cron: Hints<TopicState>,
    pub(super) janitor: Hints<TopicState>,
}

pub struct TopicState {
    id: u64,
    pub(super) queue: TopicHandle,
    pub(super) shared: Arc<Shared>,
    plugin: ArcSwap<Plugin>,
    metrics: Arc<TopicMetrics>,
    pub(super) view: TopicView,
    pub(super) intake: IntakeState,
    pub(super) in_flight: InFlight,
    pub(super) dispatch: Dispatch,
    pub(super) settling: SettlingState,
    pub(super) outbox: OutboxState,
    pub(super) repeats: Repeats,
    /// No more messages are fetched; what is in flight may end.
    pub(super) stop: CancellationToken,
    /// Nothing is in flight any more, or it was given up.
    pub(super) drained: CancellationToken,
}

impl LoopHints {
    pub(super) fn all(&self) -> [&Hints<TopicState>; 10] {
        [
            &self.intake,
            &self.list_intake,
            &self.settling,
            &self.renewal,
            &self.reclaim,
            &self.promotion,
            &self.probe,
            &self.outbox,
            &self.cron,
            &self.janitor,
        ]
    }
}

/// What the intake needs from one fetch to the next.
pub(super) struct IntakeState {
    pub(super) seat: Arc<Seat>,
    /// For the wait at a list of plain clients.
    pub(super) list_seat: Arc<Seat>,
    /// Locked while the deliveries that Redis lists under our name are compared
    /// with those in flight, and while a reclaim changes both.
    pub(super) comparison: tokio::sync::Mutex<()>,
    mean_entry_bytes: AtomicUsize,
}

/// What the runners work on.
pub(super) struct Dispatch {
    pub(super) local_queue: LocalQueue<WorkItem>,
    /// Something was added to the local queue, for the runner that collects a batch.
    pub(super) arrived: Notify,
    /// One runner collects a batch at a time, or each would wait for the
    /// messages that the others have.
    pub(super) batch_turn: tokio::sync::Mutex<()>,
    pub(super) runners: TaskTracker,
    /// Requeued because they could not be isolated, and not to be fetched again
    /// before this time.
    deferred: Mutex<HashMap<EntryId, Instant>>,
}

/// What waits to be settled.
#[derive(Default)]
pub(super) struct SettlingState {
    queue: Mutex<SettlingQueue>,
    /// Something was added during a visit of the settling loop.
    arrived: Notify,
    /// Locked while Redis may have settled messages that are in flight here: a
    /// renewal that finds them gone waits for it.
    pub(super) phase: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct SettlingQueue {
    waiting: VecDeque<Unsettled>,
    /// Whether the settling loop visits the topic, or was given a hint to.
    is_visited: bool,
}

/// The follow-ups that leave by way of the outbox.
pub(super) struct OutboxState {
    /// Whether there may be some.
    pub(super) has_entries: AtomicBool,
    pub(super) relay: tokio::sync::Mutex<OutboxRelay>,
}

impl Hinted for TopicState {
    fn id(&self) -> u64 {
        self.id
    }

    fn is_over(&self) -> bool {
        self.drained.is_cancelled()
    }
}

impl TopicState {
    pub(super) fn new(
        queue: TopicHandle,
        plugin: Arc<Plugin>,
        metrics: TopicMetrics,
        shared: Arc<Shared>,
    ) -> Arc<Self> {
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        let metrics = Arc::new(metrics);
        Arc::new(Self {
            id: LAST_ID.fetch_add(1, Ordering::Relaxed) + 1,
            view: TopicView::new(queue.topic()),
            intake: IntakeState {
                seat: Arc::default(),
                list_seat: Arc::default(),
                comparison: tokio::sync::Mutex::new(()),
                mean_entry_bytes: AtomicUsize::new(UNSEEN_ENTRY_BYTES),
            },
            in_flight: InFlight::new(metrics.clone()),
            dispatch: Dispatch::new(shared.active_runners_max),
            settling: SettlingState::default(),
            outbox: OutboxState {
                // Another worker may have left some.
                has_entries: AtomicBool::new(true),
                relay: tokio::sync::Mutex::new(OutboxRelay::new(queue.clone())),
            },
            repeats: Repeats::new(queue.topic()),
            stop: CancellationToken::new(),
            drained: CancellationToken::new(),
            plugin: ArcSwap::new(plugin),
            queue,
            metrics,
            shared,
        })
    }

    pub fn topic(&self) -> &Topic {
        self.queue.topic()
    }

    pub fn metrics(&self) -> &TopicMetrics {
        &self.metrics
    }

    /// Whether messages of the topic are fetched and settled now.
    pub fn service(&self) -> Service {
        self.view.service()
    }

    /// Gives every loop its first hint.
    pub(super) fn begin(self: &Arc<Self>) {
        let hints = &self.shared.hints;
        let loops = [&hints.intake, &hints.reclaim, &hints.promotion, &hints.probe, &hints.outbox, &hints.cron];
        loops.into_iter().chain([&hints.janitor]).for_each(|hints| hints.now(self));
        hints.renewal.after(self, self.renewal_interval());
    }

    /// Nothing is in flight any more, or it is given up: every loop forgets the
    /// topic.
    pub(super) fn end(self: &Arc<Self>) {
        self.drained.cancel();
        self.shared.hints.all().into_iter().for_each(|hints| hints.now(self));
    }

    pub(super) fn plugin(&self) -> Guard<Arc<Plugin>> {
        self.plugin.load()
    }

    /// New runs call this version; runs that have begun go on with theirs.
    pub(super) fn swap_plugin(self: &Arc<Self>, plugin: Arc<Plugin>) {
        self.plugin.store(plugin);
        // Its concurrency and its schedule may be other ones.
        self.in_flight.wake_intake();
        self.shared.hints.cron.now(self);
    }

    pub(super) fn settings(&self) -> &QueueSettings {
        &self.shared.settings
    }

    pub(super) fn renewal_interval(&self) -> Duration {
        self.settings().lease / 3
    }

    /// How long finished messages are remembered, where the topic deduplicates.
    pub(super) fn dedup_window(&self) -> Option<Duration> {
        self.plugin().manifest().dedup
    }

    /// How many messages may be added to those in flight.
    pub(super) fn capacity(&self) -> usize {
        self.plugin().manifest().concurrency.saturating_sub(self.in_flight.len())
    }

    /// How many deliveries may wait for a runner when more are fetched.
    pub(super) fn low_water(&self) -> usize {
        WAITING_LOW.min(self.plugin().manifest().concurrency / 2)
    }

    /// Hands settlements to the settling loop.
    pub(super) fn settle(self: &Arc<Self>, unsettled: Vec<Unsettled>) {
        if unsettled.is_empty() {
            return;
        }
        if self.settling.push(unsettled) {
            self.settling.arrived.notify_one();
        } else {
            self.shared.hints.settling.now(self);
        }
    }
}

impl IntakeState {
    /// How many entries a fetch may bring.
    pub(super) fn entries_max(&self) -> usize {
        (FETCH_BYTES_MAX / self.mean_entry_bytes.load(Ordering::Relaxed).max(1)).max(1)
    }

    pub(super) fn add_sizes(&self, sizes: impl Iterator<Item = usize>) {
        let mean = sizes.fold(self.mean_entry_bytes.load(Ordering::Relaxed), |mean, size| (mean * 7 + size) / 8);
        self.mean_entry_bytes.store(mean, Ordering::Relaxed);
    }
}

impl Dispatch {
    fn new(active_runners_max: usize) -> Self {
        Self {
            local_queue: LocalQueue::new(active_runners_max),
            arrived: Notify::new(),
            batch_turn: tokio::sync::Mutex::new(()),
            runners: TaskTracker::new(),
            deferred: Mutex::default(),
        }
    }

    /// This entry is requeued, and not to be fetched again before then.
    pub(super) fn defer(&self, entry: &EntryId, until: Instant) {
        self.deferred().insert(entry.clone(), until);
    }

    /// The entries that are still deferred, and whether some are so no longer.
    pub(super) fn deferred_entries(&self) -> (Vec<EntryId>, bool) {
        let (mut deferred, now) = (self.deferred(), Instant::now());
        let count = deferred.len();
        deferred.retain(|_, until| *until > now);
        (deferred.keys().cloned().collect(), deferred.len() < count)
    }

    fn deferred(&self) -> MutexGuard<'_, HashMap<EntryId, Instant>> {
        self.deferred.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SettlingState {
    fn lock(&self) -> MutexGuard<'_, SettlingQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits, the oldest first, at most this many.
    pub(super) fn take(&self, max: usize) -> Vec<Unsettled> {
        let waiting = &mut self.lock().waiting;
        let count = waiting.len().min(max);
        waiting.drain(..count).collect()
    }

    /// Adds settlements. Returns whether the settling loop visits the topic; if not,
    /// the caller gives it a hint.
    fn push(&self, unsettled: Vec<Unsettled>) -> bool {
        let mut queue = self.lock();
        queue.waiting.extend(unsettled);
        std::mem::replace(&mut queue.is_visited, true)
    }

    /// Waits until something was added.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Returns whether nothing waits, and the visit may end.
    pub(super) fn end_visit(&self) -> bool {
        let mut queue = self.lock();
        queue.is_visited = !queue.waiting.is_empty();
        !queue.is_visited
    }
}
