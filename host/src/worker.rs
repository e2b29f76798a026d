//! One lane: a topic's messages from `take` to `settle`. A lane per topic, so
//! a slow topic holds up no other.
//!
//! Three loops share it. The *reader* takes, when there is room. The *runners*
//! call and judge, on the handlers' own threads. The *settler* puts verdicts
//! into effect, many at a time. Beside them leases are renewed, and the
//! *keeper* takes over from the dead and brings back what is due.

use crate::backlog::Backlog;
use crate::message::{self, Fields, Message};
use crate::metrics::TopicMetrics;
use crate::plugin::Plugin;
use crate::queue::{Kind, Legacy, Patience, QueueError, Reader, Settled, Settlement, Taken, TopicQueue};
use crate::settings::QueueSettings;
use crate::topic::Topic;
use crate::verdict::{Outcome, Standing, Verdict, judge};
use arc_swap::ArcSwap;
use jiff::Timestamp;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Messages in one read and in one settlement: beyond about a hundred there
/// is little to gain, and a script of this size stops Redis for a millisecond.
const BATCH_MAX: usize = 256;

/// While so many taken messages have not begun, no more are read: reads of one
/// or two at a time cost Redis ten times as much for each.
const BEGUN_LOW: usize = 128;

/// How long a settlement waits for others that are under way.
const GATHER: Duration = Duration::from_millis(1);
/// With so many it waits no longer.
const GATHERED: usize = 64;

/// What one read may bring, by what entries have weighed so far.
const READ_BYTES_MAX: usize = 32 << 20;

/// An entry of more fields than this is no message.
const FIELDS_MAX: usize = 3000;

/// How often the keeper looks, at the least.
const BEAT: Duration = Duration::from_secs(1);
/// How often it does, at the most, however much is due.
const BEAT_MIN: Duration = Duration::from_millis(10);
/// A key that is not there yet is looked at this often.
const ABSENT: Duration = Duration::from_secs(2);
const SWEEP_EVERY: Duration = Duration::from_secs(60);

const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A runner gives others on its thread a turn after this many messages.
const TURN: usize = 32;

pub struct Lane {
    queue: TopicQueue,
    plugin: ArcSwap<Plugin>,
    settings: QueueSettings,
    metrics: TopicMetrics,
    backlog: Backlog<Taken>,
    /// What is taken and not yet settled, with its delivery count.
    held: Mutex<HashMap<String, u32>>,
    room: Notify,
    settlements: mpsc::UnboundedSender<Settlement>,
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
    pub fn new(parts: LaneParts) -> (Arc<Self>, mpsc::UnboundedReceiver<Settlement>) {
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
    pub async fn run(self: Arc<Self>, receiver: mpsc::UnboundedReceiver<Settlement>) {
        let drained = CancellationToken::new();
        let reading = async {
            tokio::join!(self.read_until_stopped(), self.unblock_when_stopped());
            for taken in self.backlog.clear() {
                self.release(&taken.entry_id);
            }
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

    fn low_water(&self) -> usize {
        BEGUN_LOW.min(self.plugin.load().manifest().concurrency / 2)
    }

    fn free(&self) -> usize {
        self.plugin.load().manifest().concurrency.saturating_sub(self.held().len())
    }

    // ------------------------------------------------------------- take

    async fn read_until_stopped(self: &Arc<Self>) {
        let mut pause = PAUSE_MIN;
        while !self.stop.is_cancelled() {
            let started = Instant::now();
            let ended = self.session().await;
            self.reader_id.store(0, Ordering::SeqCst);
            let Err(error) = ended else { continue };
            if started.elapsed() > PAUSE_MAX {
                pause = PAUSE_MIN;
            }
            if matches!(error, QueueError::GroupLost) {
                tracing::warn!(topic = %self.topic(), group = self.queue.group(), "the group is gone: it is made anew");
            } else {
                self.is_consuming.store(false, Ordering::Relaxed);
                tracing::warn!(topic = %self.topic(), %error, retry_in = ?pause, "not consuming");
            }
            let _ = tokio::time::timeout(pause, self.stop.cancelled()).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// One connection's life: until it breaks or the lane stops.
    async fn session(self: &Arc<Self>) -> Result<(), QueueError> {
        let mut reader = Reader::connect(&self.queue).await?;
        self.reader_id.store(reader.client_id(), Ordering::SeqCst);
        loop {
            match self.queue.open().await? {
                Kind::Stream => break,
                Kind::Other(kind) => {
                    return Err(QueueError::WrongType(format!("the topic's key holds a {kind}, not a stream")));
                }
                Kind::Absent if self.stop.is_cancelled() => return Ok(()),
                Kind::Absent => {
                    self.is_consuming.store(true, Ordering::Relaxed);
                    reader.wait_for_key(&self.queue, ABSENT).await?;
                }
            }
        }
        // Redis may have been away for longer than our leases: they come first,
        // and nobody else's count as expired until their owners had the time too.
        self.renew().await?;
        *self.connected_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let adopted = self.queue.adopt(self.settings.adopt_after).await?;
        if adopted > 0 {
            tracing::info!(topic = %self.topic(), adopted, "acknowledged what the original had copied and left pending");
        }
        self.is_consuming.store(true, Ordering::Relaxed);
        let mut reconciled = Instant::now();
        while !self.stop.is_cancelled() {
            if reconciled.elapsed() >= self.settings.lease / 3 {
                self.reconcile().await?;
                reconciled = Instant::now();
            }
            let free = self.free();
            if free == 0 || self.backlog.len() > self.low_water() {
                let _ = tokio::time::timeout(self.settings.lease / 3, self.room.notified()).await;
                continue;
            }
            let by_bytes = READ_BYTES_MAX / self.entry_bytes.load(Ordering::Relaxed).max(1);
            let count = free.min(BATCH_MAX).min(by_bytes.max(1));
            let block = (self.settings.lease / 2).min(Duration::from_secs(5));
            let taken = reader.read(&self.queue, count, block).await?;
            self.receive(taken);
        }
        Ok(())
    }

    /// Ends the blocking read at a stop. Dropping it instead would lose what
    /// Redis is just about to answer.
    async fn unblock_when_stopped(&self) {
        self.stop.cancelled().await;
        let mut reader_id = self.reader_id.load(Ordering::SeqCst);
        while reader_id != 0 {
            self.room.notify_one();
            if self.queue.unblock(reader_id).await.is_err() {
                break;
            }
            // It may have been between two reads just then.
            tokio::time::sleep(Duration::from_millis(20)).await;
            reader_id = self.reader_id.load(Ordering::SeqCst);
        }
    }

    /// Puts what was taken to work, except what is being worked on already: a
    /// group that was made anew delivers that once more.
    fn receive(self: &Arc<Self>, taken: Vec<Taken>) {
        if taken.is_empty() {
            return;
        }
        let mut fresh = taken;
        {
            let mut held = self.held();
            fresh.retain(|one| held.insert(one.entry_id.clone(), one.deliveries).is_none());
            self.metrics.in_flight.set(i64::try_from(held.len()).unwrap_or(i64::MAX));
        }
        let mut mean = self.entry_bytes.load(Ordering::Relaxed);
        for one in &fresh {
            mean = (mean * 7 + one.bytes()) / 8;
        }
        self.entry_bytes.store(mean, Ordering::Relaxed);
        let concurrency = self.plugin.load().manifest().concurrency;
        let runners = self.backlog.offer(fresh, concurrency);
        self.start_runners(runners);
    }

    async fn reconcile(self: &Arc<Self>) -> Result<(), QueueError> {
        let _intake = self.intake.lock().await;
        let strays = self.queue.reconcile(&self.held_ids()).await?;
        if !strays.is_empty() {
            tracing::warn!(topic = %self.topic(), count = strays.len(), "taken again: Redis' answer was lost on the way");
        }
        self.receive(strays);
        Ok(())
    }

    // ------------------------------------------------------- call, judge

    fn start_runners(self: &Arc<Self>, count: usize) {
        for _ in 0..count {
            let lane = self.clone();
            self.runners.spawn_on(async move { lane.work_off().await }, &self.handlers);
        }
    }

    async fn work_off(self: Arc<Self>) {
        let mut worked = 0;
        while let Some((taken, left)) = self.backlog.next() {
            if left == self.low_water() {
                self.room.notify_one();
            }
            let mut finish = pin!(self.finish(taken));
            let is_over = poll_fn(|context| Poll::Ready(finish.as_mut().poll(context).is_ready())).await;
            if !is_over {
                self.start_runners(self.backlog.suspend());
                finish.await;
                if !self.backlog.resume() {
                    return;
                }
            }
            worked += 1;
            if worked % TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn finish(&self, taken: Taken) {
        let settlement = self.run_one(&taken).await;
        // The settler outlives the runners; without it the lease runs out.
        let _ = self.settlements.send(settlement);
    }

    async fn run_one(&self, taken: &Taken) -> Settlement {
        let now = Timestamp::now();
        let message = match self.runnable(taken, now) {
            Ok(message) => message,
            Err(settlement) => return settlement,
        };
        let plugin = self.plugin.load_full();
        let policy = &plugin.manifest().retry;
        let max_attempts = policy.max_attempts(message.max_attempts);
        let facts = Facts::of(&message);
        let standing = Standing {
            attempt: message.attempt,
            max_attempts,
            postponed: message.postponed.times,
            postponed_since: message.postponed.since,
            now,
        };
        let waited = now.duration_since(message::entry_time(&taken.entry_id)).as_secs_f64();
        self.metrics.queue_time.observe(waited.max(0.0));

        let started = Instant::now();
        let outcome = plugin.call(message, &taken.entry_id, max_attempts).await;
        let took = started.elapsed();

        self.metrics.processing.observe(took.as_secs_f64());
        self.metrics.outcome(outcome.name()).inc();
        let name = outcome.name();
        let error = outcome.error();
        let digest = short(plugin.digest());
        let (topic, id, attempt) = (self.topic().as_str(), facts.id.as_str(), standing.attempt);
        if matches!(outcome, Outcome::Done(_)) {
            tracing::debug!(topic, id, attempt, outcome = name, ?took, digest, "settled");
        }
        match judge(outcome, standing, policy, fastrand::f64()) {
            Verdict::Done(publications) if publications.is_empty() => taken.done(publications, Fields::new()),
            Verdict::Done(publications) => taken.done(publications, facts.later_fields(standing, standing.attempt, 0)),
            Verdict::Later { after, attempt: next, postponed } => {
                tracing::warn!(topic, id, attempt, outcome = name, ?took, digest, again_in = ?after, error, "settled");
                taken.later(after, facts.later_fields(standing, next, postponed))
            }
            Verdict::Dead { reason, error } => {
                tracing::warn!(topic, id, attempt, outcome = name, ?took, digest, dead = reason, error, "settled");
                self.dead(taken, reason, &error, Some((&facts, standing)), plugin.digest())
            }
        }
    }

    /// The message, or what becomes of an entry that can't be run.
    fn runnable(&self, taken: &Taken, now: Timestamp) -> Result<Message, Settlement> {
        if taken.fields.is_empty() {
            // Deleted by somebody while it was pending.
            return Err(taken.done(Vec::new(), Fields::new()));
        }
        let unrunnable = |reason: &'static str, error: &str| {
            self.metrics.outcome(reason).inc();
            let (topic, entry) = (self.topic().as_str(), taken.entry_id.as_str());
            tracing::warn!(topic, entry, outcome = reason, dead = reason, error, "settled");
            Err(self.dead(taken, reason, error, None, ""))
        };
        let (bytes, bytes_max) = (taken.bytes(), self.settings.message_bytes_max);
        if bytes > bytes_max {
            return unrunnable("too-large", &format!("{bytes} bytes; queue.max_message is {bytes_max}"));
        }
        if taken.fields.len() > FIELDS_MAX {
            return unrunnable("too-large", &format!("{} fields; at most {FIELDS_MAX}", taken.fields.len()));
        }
        match message::read(self.topic(), &taken.entry_id, &taken.fields) {
            Ok(message) if message.expires_at.is_some_and(|at| at <= now) => {
                self.metrics.outcome("expired").inc();
                tracing::warn!(topic = %self.topic(), id = message.id, outcome = "expired", "settled");
                Err(taken.done(Vec::new(), Fields::new()))
            }
            Ok(message) => Ok(message),
            Err(error) => unrunnable("decode", &error.to_string()),
        }
    }

    fn dead(
        &self,
        taken: &Taken,
        reason: &'static str,
        error: &str,
        ran: Option<(&Facts, Standing)>,
        digest: &str,
    ) -> Settlement {
        self.metrics.dead_letter(reason);
        let published_at = ran.map_or_else(|| message::entry_time(&taken.entry_id), |(facts, _)| facts.published_at);
        let attempts = ran.map_or(0, |(_, standing)| standing.attempt);
        let source = format!("{}/{}", self.topic(), taken.entry_id);
        let died_at = message::rfc3339(Timestamp::now());
        taken.dead(fields([
            ("gw-reason", reason),
            ("gw-error", error),
            ("gw-attempts", &attempts.to_string()),
            ("gw-source", &source),
            (message::PUBLISHED_FIELD, &message::rfc3339(published_at)),
            ("gw-died-at", &died_at),
            ("gw-digest", digest),
        ]))
    }

    // ------------------------------------------------------------ settle

    async fn settle_until(&self, mut receiver: mpsc::UnboundedReceiver<Settlement>, drained: &CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut pause = PAUSE_MIN;
        loop {
            if batch.is_empty() {
                tokio::select! {
                    biased;
                    count = receiver.recv_many(&mut batch, BATCH_MAX) => if count == 0 { return },
                    () = drained.cancelled() => return,
                }
                self.gather(&mut receiver, &mut batch).await;
            }
            match self.settle(&mut batch).await {
                Ok(()) if batch.is_empty() => pause = PAUSE_MIN,
                Ok(()) => {}
                Err(error) => tracing::warn!(topic = %self.topic(), %error, retry_in = ?pause, "not settled yet"),
            }
            if !batch.is_empty() {
                let _ = tokio::time::timeout(pause, drained.cancelled()).await;
                if drained.is_cancelled() {
                    return;
                }
                pause = (pause * 2).min(PAUSE_MAX);
                // What came in meanwhile does not wait for what can't be settled.
                while batch.len() < BATCH_MAX
                    && let Ok(more) = receiver.try_recv()
                {
                    batch.push(more);
                }
            }
        }
    }

    /// Waits a moment for what else is about to end, so that many share one
    /// script. What the last one holds up is only its own room.
    async fn gather(&self, receiver: &mut mpsc::UnboundedReceiver<Settlement>, batch: &mut Vec<Settlement>) {
        let deadline = tokio::time::Instant::now() + GATHER;
        while batch.len() < GATHERED && batch.len() < self.held().len() {
            let more = receiver.recv_many(batch, BATCH_MAX - batch.len());
            if !matches!(tokio::time::timeout_at(deadline, more).await, Ok(1..)) {
                return;
            }
        }
    }

    /// Settles a batch; what is left in it is to be tried again.
    async fn settle(&self, batch: &mut Vec<Settlement>) -> Result<(), QueueError> {
        let results = self.queue.settle(batch).await?;
        let mut left = Vec::new();
        let mut is_due_soon = false;
        for (settlement, result) in batch.drain(..).zip(results) {
            match result {
                Settled::Ok | Settled::Gone => {
                    is_due_soon |= matches!(&settlement, Settlement::Later { after, .. } if *after < BEAT);
                    if result == Settled::Gone {
                        tracing::debug!(topic = %self.topic(), entry = settlement.entry_id(), "settled by another, or twice");
                    }
                    self.release(settlement.entry_id());
                }
                Settled::Failed(error) => {
                    tracing::warn!(topic = %self.topic(), entry = settlement.entry_id(), error, "not settled yet");
                    left.push(settlement.or_later(&error, PAUSE_MAX));
                }
            }
        }
        *batch = left;
        if is_due_soon {
            self.due.notify_one();
        }
        Ok(())
    }

    fn release(&self, entry_id: &str) {
        let mut held = self.held();
        held.remove(entry_id);
        self.metrics.in_flight.set(i64::try_from(held.len()).unwrap_or(i64::MAX));
        drop(held);
        self.room.notify_one();
    }

    // -------------------------------------------------------------- keep

    /// Renews leases, and nothing else, so that nothing holds it up.
    async fn renew_until(&self, drained: &CancellationToken) {
        while tokio::time::timeout(self.settings.lease / 3, drained.cancelled()).await.is_err() {
            // The reader says what is the matter.
            let _ = self.renew().await;
        }
    }

    async fn keep_until(self: &Arc<Self>, drained: &CancellationToken) {
        let mut swept = None::<Instant>;
        let mut beats = 0_u32;
        while !drained.is_cancelled() {
            let next_due = match self.beat(&mut swept, beats).await {
                Ok(next_due) => next_due.unwrap_or(BEAT),
                // The reader says what is the matter.
                Err(_) => BEAT,
            };
            beats = beats.wrapping_add(1);
            tokio::select! {
                () = tokio::time::sleep(next_due.clamp(BEAT_MIN, BEAT)) => {}
                () = self.due.notified() => tokio::time::sleep(BEAT_MIN).await,
                () = drained.cancelled() => {}
            }
        }
    }

    /// One look at everything that time brings. Returns when the next message
    /// is due.
    async fn beat(self: &Arc<Self>, swept: &mut Option<Instant>, beats: u32) -> Result<Option<Duration>, QueueError> {
        if self.stop.is_cancelled() {
            return Ok(None);
        }
        // The original's due times are whole seconds, so every other look will do.
        let legacy = if beats.is_multiple_of(2) { Legacy::Look } else { Legacy::Skip };
        let promoted = self.queue.promote(legacy).await?;
        let connected_at = *self.connected_at.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connected_at) = connected_at {
            self.take_over(connected_at).await?;
            if swept.is_none_or(|at| at.elapsed() >= SWEEP_EVERY) {
                *swept = Some(Instant::now());
                self.sweep().await?;
            }
        }
        Ok(if promoted.moved > 0 { Some(Duration::ZERO) } else { promoted.next_due })
    }

    async fn renew(&self) -> Result<(), QueueError> {
        let held = self.held_ids();
        if held.is_empty() {
            return Ok(());
        }
        let lost = match self.queue.renew(&held).await {
            // The messages stay: the new group will deliver them again.
            Err(QueueError::GroupLost) => return Ok(()),
            lost => lost?,
        };
        // Settled in the meantime is not lost.
        let lost = lost.iter().filter(|id| self.held().contains_key(*id)).count();
        if lost > 0 {
            self.metrics.leases_lost.inc_by(lost as u64);
            tracing::warn!(topic = %self.topic(), lost, "leases lost: the messages may run twice");
        }
        Ok(())
    }

    async fn take_over(self: &Arc<Self>, connected_at: Instant) -> Result<(), QueueError> {
        let free = self.free();
        if free == 0 {
            return Ok(());
        }
        let (lease, legacy) = (self.settings.lease, self.settings.adopt_after);
        let patience = if connected_at.elapsed() < lease {
            Patience::OnlyGivenBack { legacy }
        } else {
            Patience::Lease { lease, legacy }
        };
        let _intake = self.intake.lock().await;
        let taken = match self.queue.take_over(patience, free.min(BATCH_MAX)).await {
            Err(QueueError::GroupLost) => return Ok(()),
            taken => taken?,
        };
        if taken.is_empty() {
            return Ok(());
        }
        self.metrics.taken_over.inc_by(taken.len() as u64);
        for (one, owner) in &taken {
            // What was given back is delivered for the first time as far as counts go.
            if one.deliveries > 1 {
                self.metrics.outcome("worker-lost").inc();
                let (topic, entry, losses) = (self.topic().as_str(), one.entry_id.as_str(), one.deliveries - 1);
                tracing::warn!(topic, entry, owner, losses, outcome = "worker-lost", "taken over");
            }
        }
        self.receive(taken.into_iter().map(|(one, _)| one).collect());
        Ok(())
    }

    async fn sweep(&self) -> Result<(), QueueError> {
        let mut from = None;
        loop {
            from = match self.queue.sweep(from.as_ref()).await {
                Err(QueueError::GroupLost | QueueError::WrongType(_)) => return Ok(()),
                next => next?,
            };
            if from.is_none() || self.stop.is_cancelled() {
                return Ok(());
            }
        }
    }
}

/// What is needed of a message after the handler has got it.
struct Facts {
    id: String,
    published_at: Timestamp,
    has_own_id: bool,
}

impl Facts {
    fn of(message: &Message) -> Self {
        Self { id: message.id.clone(), published_at: message.published_at, has_own_id: message.has_own_id }
    }

    /// The fields of an entry that will run again. It gets a new entry id, so
    /// what is only known from the old one is written down.
    fn later_fields(&self, standing: Standing, attempt: u32, postponed: u32) -> Fields {
        let mut set = fields([(message::ATTEMPT_FIELD, &*attempt.to_string())]);
        if !self.has_own_id {
            set.extend(fields([
                (message::ID_FIELD, &*self.id),
                (message::PUBLISHED_FIELD, &*message::rfc3339(self.published_at)),
            ]));
        }
        if postponed > standing.postponed {
            let since = standing.postponed_since.unwrap_or(standing.now).as_millisecond();
            set.extend(fields([
                (message::POSTPONED_FIELD, &*postponed.to_string()),
                (message::POSTPONED_SINCE_FIELD, &*since.to_string()),
            ]));
        }
        set
    }
}

fn fields<const N: usize>(pairs: [(&str, &str); N]) -> Fields {
    pairs.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).to_vec()
}

/// Enough of a digest to tell versions apart.
pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}
