//! What time brings: leases to renew, messages that are due, others' leases
//! that ran out, history to sweep.

use super::{BATCH_MAX, Lane};
use crate::queue::{Clock, Patience, QueueError, Restamp, Source, Taken};
use crate::settings::DeadCaps;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often the keeper looks, at the least.
pub(super) const BEAT: Duration = Duration::from_secs(1);
/// How often it does, at the most, however much is due.
const BEAT_MIN: Duration = Duration::from_millis(10);
/// Pieces of dead letters that are dropped in one look, at the most.
const CAP_PIECES: usize = 20;
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// What the keeper remembers from one look to the next.
#[derive(Default)]
struct Kept {
    beats: u32,
    swept: Option<Instant>,
    capped: Option<Instant>,
    clock: Option<Clock>,
    looked_at_others: Option<Instant>,
    others_have_some: bool,
}

impl Kept {
    /// What is not urgent is looked at every other time: an idle topic is to
    /// cost next to nothing.
    fn is_every_other(&self) -> bool {
        self.beats.is_multiple_of(2)
    }
}

impl Lane {
    /// Renews leases, and nothing else, so that nothing holds it up.
    pub(super) async fn renew_until(&self, drained: &CancellationToken) {
        while tokio::time::timeout(self.settings.lease / 3, drained.cancelled()).await.is_err() {
            // The reader says what is the matter.
            let _ = self.renew().await;
        }
    }

    pub(super) async fn keep_until(self: &Arc<Self>, drained: &CancellationToken) {
        let mut kept = Kept::default();
        while !drained.is_cancelled() {
            let next_due = match self.beat(&mut kept).await {
                Ok(next_due) => next_due.unwrap_or(BEAT),
                Err(error) => {
                    // Of Redis as a whole the reader says what is the matter.
                    tracing::debug!(topic = %self.topic(), %error, "not kept");
                    BEAT
                }
            };
            kept.beats = kept.beats.wrapping_add(1);
            tokio::select! {
                () = tokio::time::sleep(next_due.clamp(BEAT_MIN, BEAT)) => {}
                () = self.due.notified() => tokio::time::sleep(BEAT_MIN).await,
                () = drained.cancelled() => {}
            }
        }
    }

    /// One look at everything that time brings. Returns when the next message
    /// is due.
    async fn beat(self: &Arc<Self>, kept: &mut Kept) -> Result<Option<Duration>, QueueError> {
        if self.stop.is_cancelled() {
            return Ok(None);
        }
        let next_due = self.promote(kept).await;
        // This is refused while memory is full, and all the rest is not: it must
        // not wait for it, since some of it frees memory.
        if kept.is_every_other() {
            self.look_at_flags().await?;
        }
        let connected_at = *self.connected_at();
        if let Some(connected_at) = connected_at {
            self.look_at_others(connected_at, kept).await?;
            if kept.swept.is_none_or(|at| at.elapsed() >= SWEEP_EVERY) {
                kept.swept = Some(Instant::now());
                self.sweep().await?;
                self.restamp(Restamp::Future).await?;
            }
        }
        // There may be dead letters where there is no stream to be connected to.
        if kept.capped.is_none_or(|at| at.elapsed() >= SWEEP_EVERY) && self.cap_dead().await? {
            kept.capped = Some(Instant::now());
        }
        next_due
    }

    /// Moves a piece of what is due. Returns when the next one is.
    async fn promote(&self, kept: &Kept) -> Result<Option<Duration>, QueueError> {
        let promoted = self.queue.promote().await?;
        let legacy = if kept.is_every_other() { self.queue.promote_legacy().await? } else { 0 };
        Ok(if promoted.moved + legacy > 0 { Some(Duration::ZERO) } else { promoted.next_due })
    }

    /// Paused, or written to with a priority that was not used before: a read
    /// that is under way knows nothing of it.
    async fn look_at_flags(&self) -> Result<(), QueueError> {
        let flags = self.queue.flags().await?;
        let was_paused = self.is_paused();
        self.heed(flags, &self.sources.load());
        if (flags.is_paused && !was_paused) || self.look_again.load(Ordering::SeqCst) {
            self.unblock().await?;
        }
        Ok(())
    }

    pub(super) async fn renew(&self) -> Result<(), QueueError> {
        let held = self.held_entries();
        if held.is_empty() {
            return Ok(());
        }
        let lost = match self.queue.renew(&held).await {
            // The messages stay: the new group will deliver them again.
            Err(QueueError::GroupLost) => return Ok(()),
            lost => lost?,
        };
        // Settled in the meantime is not lost.
        let lost = lost.iter().filter(|entry| self.held().contains_key(*entry)).count();
        if lost > 0 {
            self.metrics.leases_lost.inc_by(lost as u64);
            tracing::warn!(topic = %self.topic(), lost, "leases lost: the messages may run twice");
        }
        Ok(())
    }

    /// Where others have messages in flight, whether their leases ran out.
    async fn look_at_others(self: &Arc<Self>, connected_at: Instant, kept: &mut Kept) -> Result<(), QueueError> {
        let lease = self.settings.lease;
        // Who takes now and is lost at once has its lease until the next look,
        // and a second more.
        let is_early = kept.looked_at_others.is_some_and(|at| at.elapsed() < lease / 2);
        if self.is_paused() || (is_early && !kept.others_have_some && connected_at.elapsed() > lease) {
            return Ok(());
        }
        let legacy = self.settings.adopt_after;
        let patience = if connected_at.elapsed() < lease {
            Patience::OnlyGivenBack { legacy }
        } else {
            Patience::Lease { lease, legacy }
        };
        let mut others = 0;
        for source in self.sources.load().iter() {
            let free = self.free();
            if free == 0 {
                return Ok(());
            }
            let _intake = self.intake.lock().await;
            let found = match self.queue.take_over(*source, patience, kept.clock, free.min(BATCH_MAX)).await {
                Err(QueueError::GroupLost) => continue,
                found => found?,
            };
            kept.clock = Some(found.clock);
            if found.clock_stepped {
                tracing::warn!(topic = %self.topic(), "Redis' clock was set: every lease begins anew");
                self.set_connected_at(Some(Instant::now()));
                return self.restamp(Restamp::All).await;
            }
            others += found.others;
            self.taken_over(found.taken).await?;
        }
        kept.others_have_some = others > 0;
        kept.looked_at_others = Some(Instant::now());
        Ok(())
    }

    async fn taken_over(self: &Arc<Self>, taken: Vec<(Taken, String)>) -> Result<(), QueueError> {
        self.metrics.taken_over.inc_by(taken.len() as u64);
        for (one, owner) in &taken {
            // What was given back is delivered for the first time as far as counts go.
            if one.losses > 0 {
                self.metrics.outcome("worker-lost").inc();
                let (topic, entry, losses) = (self.topic().as_str(), &one.entry, one.losses);
                tracing::warn!(topic, %entry, owner, losses, outcome = "worker-lost", "taken over");
            }
        }
        self.receive(taken.into_iter().map(|(one, _)| one).collect()).await
    }

    async fn restamp(&self, which: Restamp) -> Result<(), QueueError> {
        for source in self.sources.load().iter() {
            match self.queue.restamp(*source, which).await {
                Ok(_) | Err(QueueError::GroupLost) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Drops dead letters that are over the caps, and never in silence. Returns
    /// whether that is all: what else there is to do must not wait for it.
    async fn cap_dead(&self) -> Result<bool, QueueError> {
        let caps = self.settings.dead_caps;
        if caps == DeadCaps::default() {
            return Ok(true);
        }
        let (mut dropped, mut result) = (0, Ok(false));
        for _ in 0..CAP_PIECES {
            match self.queue.cap_dead(caps).await {
                Ok(0) => result = Ok(true),
                Ok(piece) => {
                    dropped += piece;
                    continue;
                }
                Err(error) => result = Err(error),
            }
            break;
        }
        if dropped > 0 {
            self.metrics.dead_dropped.inc_by(dropped);
            let (topic, max_age, max_bytes) = (self.topic(), caps.age, caps.bytes);
            tracing::warn!(%topic, dropped, ?max_age, ?max_bytes, "dead letters dropped: too old or too many");
        }
        result
    }

    async fn sweep(&self) -> Result<(), QueueError> {
        if !self.sources.load().contains(&Source::Normal) {
            return Ok(());
        }
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
