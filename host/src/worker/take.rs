//! The reader: takes when there is room, and finds again what was lost on the
//! way.

use super::{BATCH_MAX, Lane, PAUSE_MAX, PAUSE_MIN};
use crate::queue::{End, Flags, FlowControl, Kind, Opened, QueueError, Reader, Source, Take, Taken};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// While so many taken messages have not begun, no more are read: reads of one
/// or two at a time cost Redis ten times as much for each.
const BEGUN_LOW: usize = 256;

/// What one read may bring, by what entries have weighed so far.
const READ_BYTES_MAX: usize = 32 << 20;

/// What they are taken to weigh before any was seen: the first read is to bring
/// a few, whatever they are.
pub(super) const UNSEEN_BYTES: usize = READ_BYTES_MAX / 4;

/// A key that is not there yet is looked at this often.
const ABSENT: Duration = Duration::from_secs(2);

/// Where all workers together have as many in flight as they may, one looks
/// this often whether there is room.
const FULL: Duration = Duration::from_millis(100);

/// A paused topic is looked at this often.
const PAUSED: Duration = Duration::from_secs(1);

impl Lane {
    pub(super) async fn read_until_stopped(self: &Arc<Self>) {
        let mut pause = PAUSE_MIN;
        while !self.stop.is_cancelled() {
            let started = Instant::now();
            let ended = self.session().await;
            self.reader_id.store(0, Ordering::SeqCst);
            // Whether Redis was away for longer than leases last is not known now.
            self.set_connected_at(None);
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
        let mut is_first = true;
        while let Some(opened) = self.opened(&mut reader).await? {
            self.begin(opened, is_first).await?;
            is_first = false;
            self.consume(&mut reader).await?;
        }
        Ok(())
    }

    /// Waits until there is something to read from, and says what; `None` at a
    /// stop.
    async fn opened(&self, reader: &mut Reader) -> Result<Option<Opened>, QueueError> {
        loop {
            self.look_again.store(false, Ordering::SeqCst);
            let opened = self.queue.open().await?;
            self.is_list.send_replace(opened.kind == Kind::List);
            if self.stop.is_cancelled() {
                return Ok(None);
            }
            if let Kind::Other(kind) = opened.kind {
                return Err(QueueError::WrongType(format!("the topic's key holds a {kind}, not a stream or list")));
            }
            // What a lost worker had put aside of a list does not wait until it is one again.
            if opened.kind == Kind::Stream && self.queue.ingest(End::Left).await.is_ok_and(|moved| moved > 0) {
                continue;
            }
            self.opened.store(Arc::new(opened.clone()));
            if !opened.sources.is_empty() {
                return Ok(Some(opened));
            }
            self.is_consuming.store(true, Ordering::Relaxed);
            if opened.absent.is_empty() {
                let _ = tokio::time::timeout(ABSENT, self.stop.cancelled()).await;
            } else {
                reader.wait_for_more(&self.queue, &opened, &[], ABSENT).await?;
            }
        }
    }

    /// What comes before the first message is taken.
    async fn begin(self: &Arc<Self>, opened: Opened, is_first: bool) -> Result<(), QueueError> {
        let is_stream = opened.sources.contains(&Source::Normal);
        self.set_paused(opened.is_paused);
        // Redis may have been away for longer than our leases: they come first,
        // and nobody else's count as expired until their owners had the time too.
        self.renew().await?;
        if is_stream {
            // However fresh: it writes the copy in the moment in which it has failed.
            self.tell_adopted(self.queue.adopt(Duration::ZERO).await?);
        }
        if is_first {
            // From here on others' messages may be taken over, the original's too.
            self.set_connected_at(Some(Instant::now()));
        }
        tracing::debug!(topic = %self.topic(), kind = ?opened.kind, sources = ?opened.sources, "opened");
        self.is_consuming.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Takes until something has changed that wants a look at the keys.
    async fn consume(self: &Arc<Self>, reader: &mut Reader) -> Result<(), QueueError> {
        let opened = self.opened.load_full();
        let (mut reconciled, mut was_paused) = (None::<Instant>, false);
        while !self.stop.is_cancelled() && !self.look_again.load(Ordering::SeqCst) {
            if self.is_paused() {
                self.stand_still().await?;
                // Some of what was given back may still be in our name.
                (reconciled, was_paused) = (None, true);
                continue;
            }
            // An idle topic has little that could have been lost on the way: what a
            // take-over brought, or a read that reached Redis after we gave it up.
            let must = self.must_reconcile.load(Ordering::SeqCst);
            let every = if must { self.settings.lease / 3 } else { self.settings.lease };
            if reconciled.is_none_or(|at: Instant| at.elapsed() >= every) {
                self.must_reconcile.store(false, Ordering::SeqCst);
                let has_found = self.reconcile(was_paused || must).await?;
                // There may be more, and they are ours whether there is room or not.
                reconciled = (!has_found).then(Instant::now);
                was_paused &= has_found;
                continue;
            }
            let free = self.free();
            if free == 0 || self.backlog.waiting() > self.low_water() {
                let _ = tokio::time::timeout(self.settings.lease / 3, self.room.notified()).await;
                continue;
            }
            let by_bytes = READ_BYTES_MAX / self.entry_bytes.load(Ordering::Relaxed).max(1);
            let count = free.min(BATCH_MAX).min(by_bytes.max(1));
            let taken = self.take(reader, &opened, count).await?;
            self.receive(taken).await?;
        }
        Ok(())
    }

    /// New messages, or none after a while. A plain read where nothing more is
    /// asked for: it costs least.
    async fn take(&self, reader: &mut Reader, opened: &Opened, count: usize) -> Result<Vec<Taken>, QueueError> {
        let control = self.flow_control();
        let block = (self.settings.lease / 2).min(Duration::from_secs(5));
        let sources = &opened.sources[..];
        if let [source] = sources
            && control.is_none()
            && opened.has_main()
        {
            let (taken, flags) = reader.read(&self.queue, *source, count, block).await?;
            self.heed(flags);
            return Ok(if flags.is_paused { self.hand_back(taken).await? } else { taken });
        }
        let pause = match reader.take(&self.queue, sources, control, count).await? {
            Take::Taken(taken) => {
                self.turn.store((control.turn + taken.len()) % 1_000_000, Ordering::Relaxed);
                return Ok(taken);
            }
            Take::Empty(behind) if behind.len() == sources.len() => {
                if reader.wait_for_more(&self.queue, opened, &behind, block).await? {
                    self.look_again.store(true, Ordering::SeqCst);
                }
                return Ok(Vec::new());
            }
            Take::Empty(_) => return Err(QueueError::GroupLost),
            Take::Paused => {
                self.set_paused(true);
                return Ok(Vec::new());
            }
            Take::Full => FULL,
            Take::TooSoon(wait) => wait,
        };
        let _ = tokio::time::timeout(pause.min(block), self.stop.cancelled()).await;
        Ok(Vec::new())
    }

    fn flow_control(&self) -> FlowControl {
        let plugin = self.plugin.load();
        let manifest = plugin.manifest();
        FlowControl {
            total: manifest.global_concurrency,
            rate: manifest.rate.map(|rate| (rate.limit, rate.per)),
            turn: self.turn.load(Ordering::Relaxed),
        }
    }

    /// Delivered to us while the topic is paused: as if it had never been.
    async fn hand_back(&self, taken: Vec<Taken>) -> Result<Vec<Taken>, QueueError> {
        if !taken.is_empty() {
            self.give_back().await?;
        }
        Ok(Vec::new())
    }

    /// What a paused lane does instead of taking.
    async fn stand_still(&self) -> Result<(), QueueError> {
        self.release(self.backlog.clear().iter().map(|taken| &taken.entry));
        self.give_back().await?;
        let _ = tokio::time::timeout(PAUSED, self.stop.cancelled()).await;
        self.set_paused(self.queue.flags().await?.is_paused);
        Ok(())
    }

    /// Takes notice of what the topic's state says.
    pub(super) fn heed(&self, flags: Flags) {
        self.set_paused(flags.is_paused);
        let known = std::mem::replace(&mut *self.flags(), flags);
        let opened = self.opened.load();
        let is_news = |has: bool, had: bool, source| has && !had && !opened.sources.contains(&source);
        if is_news(flags.has_high, known.has_high, Source::High) || is_news(flags.has_low, known.has_low, Source::Low) {
            self.look_again.store(true, Ordering::SeqCst);
        }
    }

    /// Ends the blocking read at a stop. Dropping it instead would lose what
    /// Redis is just about to answer.
    pub(super) async fn unblock_when_stopped(&self) {
        self.stop.cancelled().await;
        while self.reader_id.load(Ordering::SeqCst) != 0 {
            self.room.notify_one();
            if self.unblock().await.is_err() {
                break;
            }
            // It may have been between two reads just then.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Puts what was taken to work, except what is being worked on already (a
    /// group that was made anew delivers that once more) and copies of what
    /// has finished.
    pub(super) async fn receive(self: &Arc<Self>, taken: Vec<Taken>) -> Result<(), QueueError> {
        let mut fresh = taken;
        if fresh.is_empty() {
            return Ok(());
        }
        self.must_reconcile.store(true, Ordering::SeqCst);
        self.tell_adopted(self.queue.supersede(&fresh).await?);
        let duplicates = self.duplicates(&mut fresh).await?;
        {
            let mut held = self.held();
            let mut hold = |one: &Taken| held.insert(one.entry.clone(), one.deliveries).is_none();
            fresh.retain(&mut hold);
            duplicates.iter().for_each(|one| {
                hold(one);
            });
            self.metrics.in_flight.set(i64::try_from(held.len()).unwrap_or(i64::MAX));
        }
        self.drop_duplicates(duplicates);
        let mut mean = self.entry_bytes.load(Ordering::Relaxed);
        for one in &fresh {
            mean = (mean * 7 + one.bytes()) / 8;
        }
        self.entry_bytes.store(mean, Ordering::Relaxed);
        let concurrency = self.plugin.load().manifest().concurrency;
        let runners = self.backlog.offer(fresh, concurrency);
        self.start_runners(runners);
        self.arrived.notify_one();
        Ok(())
    }

    /// What there is to tell of it, if anything.
    pub(super) fn tell_adopted(&self, adopted: usize) {
        if adopted > 0 {
            tracing::info!(topic = %self.topic(), adopted, "acknowledged what the original had copied and left pending");
        }
    }

    /// Finds again a piece of what was lost on the way. Returns whether there was any.
    async fn reconcile(self: &Arc<Self>, mut was_given_back: bool) -> Result<bool, QueueError> {
        let _intake = self.intake.lock().await;
        let mut has_found = false;
        for source in self.opened.load().sources.iter() {
            let (known, is_free_again) = self.known_entries();
            was_given_back |= is_free_again;
            let strays = self.queue.reconcile(*source, &known).await?;
            if !strays.is_empty() {
                let (topic, count) = (self.topic(), strays.len());
                has_found = true;
                if was_given_back {
                    tracing::debug!(%topic, count, "taken again: it had been given back");
                } else {
                    tracing::warn!(%topic, count, "taken again: Redis' answer was lost on the way");
                }
            }
            self.receive(strays).await?;
        }
        Ok(has_found)
    }

    /// How many may wait for a runner when more are read.
    pub(super) fn low_water(&self) -> usize {
        BEGUN_LOW.min(self.plugin.load().manifest().concurrency / 2)
    }
}
