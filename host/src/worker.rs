//! One lane: a topic's messages from `take` to `settle`. A lane per topic, so
//! a slow topic holds up no other.
//!
//! Three loops share it. The *reader* takes, when there is room. The *runners*
//! call and judge, on the handlers' own threads. The *settler* puts verdicts
//! into effect, many at a time. Beside them leases are renewed, and the
//! *keeper* takes over from the dead and brings back what is due.

mod handle;
mod keep;
mod settle;
mod take;

pub use handle::short;

use crate::backlog::Backlog;
use crate::metrics::TopicMetrics;
use crate::plugin::Plugin;
use crate::queue::{QueueError, Settlement, Taken, TopicQueue};
use crate::settings::QueueSettings;
use crate::topic::Topic;
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Messages in one read and in one settlement: beyond about a hundred there
/// is little to gain, and a script of this size stops Redis for a millisecond.
const BATCH_MAX: usize = 256;

const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

pub struct Lane {
    queue: TopicQueue,
    plugin: ArcSwap<Plugin>,
    settings: QueueSettings,
    metrics: TopicMetrics,
    backlog: Backlog<Taken>,
    /// What is taken and not yet settled, with its delivery count.
    held: Mutex<HashMap<String, u32>>,
    room: Notify,
    settlements: mpsc::UnboundedSender<Vec<Settlement>>,
    /// Held while what Redis says we have is compared with what we have, and
    /// while a take-over changes both.
    intake: tokio::sync::Mutex<()>,
    handlers: Handle,
    runners: TaskTracker,
    stop: CancellationToken,
    due: Notify,
    is_consuming: AtomicBool,
    /// The blocking reader's client id, 0 for none.
    reader_id: AtomicI64,
    connected_at: Mutex<Option<Instant>>,
    /// Running mean of an entry's bytes.
    entry_bytes: AtomicUsize,
}

/// What a lane is made of.
pub struct LaneParts {
    pub queue: TopicQueue,
    pub plugin: Arc<Plugin>,
    pub settings: QueueSettings,
    pub metrics: TopicMetrics,
    pub handlers: Handle,
    /// Handlers that run at once without waiting: one per thread of theirs.
    pub abreast_max: usize,
}

impl Lane {
    /// The lane, and the receiver that [`Lane::run`] wants.
    pub fn new(parts: LaneParts) -> (Arc<Self>, mpsc::UnboundedReceiver<Vec<Settlement>>) {
        let (settlements, receiver) = mpsc::unbounded_channel();
        let lane = Self {
            queue: parts.queue,
            plugin: ArcSwap::new(parts.plugin),
            settings: parts.settings,
            metrics: parts.metrics,
            backlog: Backlog::new(parts.abreast_max),
            held: Mutex::default(),
            room: Notify::new(),
            settlements,
            intake: tokio::sync::Mutex::new(()),
            handlers: parts.handlers,
            runners: TaskTracker::new(),
            stop: CancellationToken::new(),
            due: Notify::new(),
            is_consuming: AtomicBool::new(false),
            reader_id: AtomicI64::new(0),
            connected_at: Mutex::new(None),
            entry_bytes: AtomicUsize::new(1024),
        };
        (Arc::new(lane), receiver)
    }

    pub fn topic(&self) -> &Topic {
        self.queue.topic()
    }

    pub fn metrics(&self) -> &TopicMetrics {
        &self.metrics
    }

    /// Whether messages of the topic are taken now.
    pub fn is_consuming(&self) -> bool {
        self.is_consuming.load(Ordering::Relaxed)
    }

    /// From now on new calls go to this version; calls under way go on.
    pub fn swap_plugin(&self, plugin: Arc<Plugin>) {
        self.plugin.store(plugin);
        self.room.notify_one();
    }

    /// Asks the lane to drain.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Consumes until stopped, then drains: what runs may end; what nobody has
    /// begun goes back to others.
    pub async fn run(self: Arc<Self>, receiver: mpsc::UnboundedReceiver<Vec<Settlement>>) {
        let drained = CancellationToken::new();
        let reading = async {
            tokio::join!(self.read_until_stopped(), self.unblock_when_stopped());
            self.release(self.backlog.clear().iter().map(|taken| taken.entry_id.as_str()));
            // Others need not wait for it until what runs here has ended.
            let _ = self.queue.give_back(&self.held_ids()).await;
            self.runners.close();
            self.runners.wait().await;
            while !self.held().is_empty() {
                self.room.notified().await;
            }
            drained.cancel();
        };
        tokio::join!(
            reading,
            self.settle_until(receiver, &drained),
            self.renew_until(&drained),
            self.keep_until(&drained)
        );
        self.leave().await;
    }

    /// Gives back whatever is still in this lane's name, whether Redis and we
    /// agree on it or not. To be called when it no longer runs, at its end or
    /// in its midst.
    pub async fn leave(&self) {
        self.is_consuming.store(false, Ordering::Relaxed);
        let leave = async {
            let given_back = self.queue.give_back(&[]).await?;
            self.queue.leave().await?;
            Ok::<_, QueueError>(given_back)
        };
        match leave.await {
            Ok(given_back) => tracing::debug!(topic = %self.topic(), given_back, "lane ended"),
            Err(error) => tracing::debug!(topic = %self.topic(), %error, "lane ended; its leases have to run out"),
        }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_ids(&self) -> Vec<String> {
        self.held().keys().cloned().collect()
    }

    fn set_connected_at(&self, at: Option<Instant>) {
        *self.connected_at.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    fn free(&self) -> usize {
        self.plugin.load().manifest().concurrency.saturating_sub(self.held().len())
    }
}
