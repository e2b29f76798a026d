//! The reader: takes when there is room, and finds again what was lost on the
//! way.

use super::{BATCH_MAX, Lane, PAUSE_MAX, PAUSE_MIN};
use crate::queue::{Kind, QueueError, Reader, Taken};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// While so many taken messages have not begun, no more are read: reads of one
/// or two at a time cost Redis ten times as much for each.
const BEGUN_LOW: usize = 256;

/// What one read may bring, by what entries have weighed so far.
const READ_BYTES_MAX: usize = 32 << 20;

/// A key that is not there yet is looked at this often.
const ABSENT: Duration = Duration::from_secs(2);

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
        let adopted = self.queue.adopt(self.settings.adopt_after).await?;
        if adopted > 0 {
            tracing::info!(topic = %self.topic(), adopted, "acknowledged what the original had copied and left pending");
        }
        // From here on others' messages may be taken over, the original's too.
        self.set_connected_at(Some(Instant::now()));
        self.is_consuming.store(true, Ordering::Relaxed);
        let mut reconciled = Instant::now();
        while !self.stop.is_cancelled() {
            if reconciled.elapsed() >= self.settings.lease / 3 {
                self.reconcile().await?;
                reconciled = Instant::now();
            }
            let free = self.free();
            if free == 0 || self.backlog.waiting() > self.low_water() {
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
    pub(super) async fn unblock_when_stopped(&self) {
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
    pub(super) fn receive(self: &Arc<Self>, taken: Vec<Taken>) {
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

    pub(super) async fn reconcile(self: &Arc<Self>) -> Result<(), QueueError> {
        let _intake = self.intake.lock().await;
        let strays = self.queue.reconcile(&self.held_ids()).await?;
        if !strays.is_empty() {
            tracing::warn!(topic = %self.topic(), count = strays.len(), "taken again: Redis' answer was lost on the way");
        }
        self.receive(strays);
        Ok(())
    }

    /// How many may wait for a runner when more are read.
    pub(super) fn low_water(&self) -> usize {
        BEGUN_LOW.min(self.plugin.load().manifest().concurrency / 2)
    }
}
