//! One lane: a topic's messages from `take` to `settle`. A lane per topic, so
//! a slow topic holds up no other.
//!
//! Three loops share it. The *reader* takes, when there is room. The *runners*
//! call and judge, on the handlers' own threads. The *settler* puts verdicts
//! into effect, many at a time. Beside them leases are renewed, and the
//! *keeper* takes over from the dead and brings back what is due, the *relay*
//! brings follow-ups on their way, and where plain clients push into a list, the
//! *ingester* moves that to a stream. The *schedule* publishes what the plugin
//! fires by the clock.

mod alone;
mod dedup;
mod gather;
mod handle;
mod ingest;
mod keep;
mod refused;
mod relay;
mod run;
mod schedule;
mod settle;
mod take;
mod tidy;

pub use alone::Alone;

use crate::backlog::Backlog;
use crate::metrics::TopicMetrics;
use crate::plugin::Plugin;
use crate::queue::{EntryKey, Flags, Opened, QueueError, Settlement, Taken, TopicQueue};
use crate::settings::QueueSettings;
use crate::topic::Topic;
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};
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
    held: Mutex<HashMap<EntryKey, u32>>,
    /// What the topic's keys were when the reader looked last.
    opened: ArcSwap<Opened>,
    /// What its state said last.
    flags: Mutex<Flags>,
    /// Which of them has the next turn.
    turn: AtomicUsize,
    /// Whether the keys have changed so that the reader must look at them.
    look_again: AtomicBool,
    is_paused: AtomicBool,
    /// Whether plain clients fill a list.
    is_list: watch::Sender<bool>,
    /// Whether the outbox may have follow-ups.
    has_outgoing: AtomicBool,
    outgoing: Notify,
    alone: Arc<Alone>,
    /// Given back, and not to be taken again before.
    handed_on: Mutex<HashMap<EntryKey, Instant>>,
    room: Notify,
    /// Something new is in the backlog, for who gathers a batch.
    arrived: Notify,
    gathering: tokio::sync::Mutex<()>,
    /// Held while what Redis has settled may not be known here yet.
    settling: tokio::sync::Mutex<()>,
    /// Whether Redis may say that we have what we do not.
    must_reconcile: AtomicBool,
    settlements: mpsc::UnboundedSender<Vec<Settlement>>,
    /// Held while what Redis says we have is compared with what we have, and
    /// while a take-over changes both.
    intake: tokio::sync::Mutex<()>,
    handlers: Handle,
    runners: TaskTracker,
    stop: CancellationToken,
    due: Notify,
    /// Another version of the plugin may have another schedule.
    swapped: Notify,
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
    /// One for all lanes of a process.
    pub alone: Arc<Alone>,
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
            opened: ArcSwap::default(),
            flags: Mutex::default(),
            turn: AtomicUsize::new(0),
            look_again: AtomicBool::new(false),
            is_paused: AtomicBool::new(false),
            is_list: watch::Sender::new(false),
            // Another worker may have left some.
            has_outgoing: AtomicBool::new(true),
            outgoing: Notify::new(),
            alone: parts.alone,
            handed_on: Mutex::default(),
            room: Notify::new(),
            arrived: Notify::new(),
            gathering: tokio::sync::Mutex::new(()),
            settling: tokio::sync::Mutex::new(()),
            must_reconcile: AtomicBool::new(true),
            settlements,
            intake: tokio::sync::Mutex::new(()),
            handlers: parts.handlers,
            runners: TaskTracker::new(),
            stop: CancellationToken::new(),
            due: Notify::new(),
            swapped: Notify::new(),
            is_consuming: AtomicBool::new(false),
            reader_id: AtomicI64::new(0),
            connected_at: Mutex::new(None),
            entry_bytes: AtomicUsize::new(take::UNSEEN_BYTES),
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
        self.swapped.notify_one();
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
            tokio::join!(self.read_until_stopped(), self.unblock_when_stopped(), self.ingest_until_stopped());
            self.release(self.backlog.clear().iter().map(|taken| &taken.entry));
            // Others need not wait for it until what runs here has ended.
            let _ = self.give_back().await;
            self.runners.close();
            self.runners.wait().await;
            while !self.held().is_empty() {
                self.room.notified().await;
            }
            drained.cancel();
        };
        tokio::join!(
            reading,
            self.fire_until_stopped(),
            self.settle_until(receiver, &drained),
            self.renew_until(&drained),
            self.keep_until(&drained),
            self.relay_until(&drained)
        );
        self.leave().await;
    }

    /// Gives back whatever is still in this lane's name, whether Redis and we
    /// agree on it or not. To be called when it no longer runs, at its end or
    /// in its midst.
    pub async fn leave(&self) {
        self.is_consuming.store(false, Ordering::Relaxed);
        let leave = async {
            let mut given_back = 0;
            // A stop is no loss, whoever was alone then.
            self.acquit().await?;
            for source in self.opened.load().sources.iter() {
                given_back += self.queue.give_back(*source, &[]).await?;
                self.queue.leave(*source).await?;
            }
            Ok::<_, QueueError>(given_back)
        };
        match leave.await {
            Ok(given_back) => tracing::debug!(topic = %self.topic(), given_back, "lane ended"),
            Err(error) => tracing::debug!(topic = %self.topic(), %error, "lane ended; its leases have to run out"),
        }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<EntryKey, u32>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_entries(&self) -> Vec<EntryKey> {
        self.held().keys().cloned().collect()
    }

    /// Gives back what Redis says we have and we do not hold. Only to be called
    /// while no read is under way.
    async fn give_back(&self) -> Result<(), QueueError> {
        let _intake = self.intake.lock().await;
        for source in self.opened.load().sources.iter() {
            self.queue.give_back(*source, &self.held_entries()).await?;
        }
        Ok(())
    }

    fn connected_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.connected_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_connected_at(&self, at: Option<Instant>) {
        *self.connected_at() = at;
    }

    fn flags(&self) -> MutexGuard<'_, Flags> {
        self.flags.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_paused(&self) -> bool {
        self.is_paused.load(Ordering::SeqCst)
    }

    fn set_paused(&self, is_paused: bool) {
        if self.is_paused.swap(is_paused, Ordering::SeqCst) != is_paused {
            tracing::info!(topic = %self.topic(), "{}", if is_paused { "paused" } else { "resumed" });
            // Who gathers a batch waits for nothing else.
            self.arrived.notify_one();
        }
    }

    /// Makes the reader look at the topic's keys anew.
    async fn look_again(&self) {
        self.look_again.store(true, Ordering::SeqCst);
        let _ = self.unblock().await;
    }

    /// Ends the reader's blocking read, if one is under way.
    async fn unblock(&self) -> Result<(), QueueError> {
        match self.reader_id.load(Ordering::SeqCst) {
            0 => Ok(()),
            reader_id => self.queue.unblock(reader_id).await,
        }
    }

    fn free(&self) -> usize {
        self.plugin.load().manifest().concurrency.saturating_sub(self.held().len())
    }
}
