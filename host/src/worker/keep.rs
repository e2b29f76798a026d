//! What time brings: leases to renew, messages that are due, others' leases
//! that ran out.

use super::tidy::Tidied;
use super::{BATCH_MAX, Lane};
use crate::queue::{Delivery, LeaseReset, Probe, Promoted, QueueError, ReclaimTimeouts, RedisClock, StreamKind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often the keeper looks, at the least.
pub(super) const BEAT: Duration = Duration::from_secs(1);
/// How often it does, at the most, however much is due.
const BEAT_MIN: Duration = Duration::from_millis(10);

/// What the keeper remembers from one look to the next.
#[derive(Default)]
struct Kept {
    beats: u32,
    /// Whether there were delayed messages the last time.
    has_later: bool,
    clock: Option<RedisClock>,
    looked_at_others: Option<Instant>,
    others_have_some: bool,
    tidied: Tidied,
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
            self.look_at_keys().await?;
        }
        let connected_at = *self.connected_at();
        if let Some(connected_at) = connected_at {
            self.look_at_others(connected_at, kept).await?;
        }
        self.tidy(&mut kept.tidied, connected_at.is_some()).await?;
        next_due
    }

    /// Moves a piece of what is due. Returns when the next one is.
    async fn promote(&self, kept: &mut Kept) -> Result<Option<Duration>, QueueError> {
        let mut promoted = Promoted { moved: 0, next_due: None };
        if kept.has_later || self.queue.delayed.exists().await? {
            promoted = self.queue.delayed.promote().await?;
        }
        kept.has_later = promoted.next_due.is_some();
        let legacy = if kept.is_every_other() { self.queue.legacy_delayed.promote().await? } else { 0 };
        Ok(if promoted.moved + legacy > 0 { Some(Duration::ZERO) } else { promoted.next_due })
    }

    /// Paused, read by others too, or written to where nothing was before: a
    /// read that is under way knows nothing of it.
    async fn look_at_keys(&self) -> Result<(), QueueError> {
        let Probe { flags, has_changed } = self.queue.probes.probe(&self.opened.load_full()).await?;
        let was_paused = self.is_paused();
        self.heed(flags);
        self.look_again.fetch_or(has_changed, Ordering::SeqCst);
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
        let lost = match self.queue.leases.renew(&held).await {
            // The messages stay: the new group will deliver them again.
            Err(QueueError::GroupLost) => return Ok(()),
            lost => lost?,
        };
        if lost.is_empty() {
            return Ok(());
        }
        // Settled in the meantime is not lost, once the settler has heard of it.
        drop(self.settling.lock().await);
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
        let patience = ReclaimTimeouts { lease, legacy: self.settings.adopt_after, connected: connected_at.elapsed() };
        let mut others = 0;
        for source in self.opened.load().streams.iter() {
            let free = self.free();
            if free == 0 {
                return Ok(());
            }
            // What the original has ended in its own way is not to be run.
            if *source == StreamKind::Normal && patience.connected >= patience.legacy {
                match self.queue.legacy_pending.acknowledge_copied(patience.legacy).await {
                    Err(QueueError::GroupLost) => continue,
                    adopted => self.tell_adopted(adopted?),
                }
            }
            let _intake = self.intake.lock().await;
            let found = match self.queue.leases.reclaim(*source, patience, kept.clock, free.min(BATCH_MAX)).await {
                Err(QueueError::GroupLost) => continue,
                found => found?,
            };
            kept.clock = Some(found.clock);
            if found.clock_stepped {
                tracing::warn!(topic = %self.topic(), "Redis' clock was set: every lease begins anew");
                self.set_connected_at(Some(Instant::now()));
                return self.restamp(LeaseReset::All).await;
            }
            others += found.others;
            self.taken_over(found.deliveries).await?;
        }
        kept.others_have_some = others > 0;
        kept.looked_at_others = Some(Instant::now());
        Ok(())
    }

    async fn taken_over(self: &Arc<Self>, taken: Vec<(Delivery, String)>) -> Result<(), QueueError> {
        self.metrics.taken_over.inc_by(taken.len() as u64);
        for (one, owner) in &taken {
            // What was given back is delivered for the first time as far as counts go.
            if one.crash_count > 0 {
                self.metrics.outcome("worker-lost").inc();
                let (topic, entry, losses) = (self.topic().as_str(), &one.entry, one.crash_count);
                tracing::warn!(topic, %entry, owner, losses, outcome = "worker-lost", "taken over");
            }
        }
        self.receive(taken.into_iter().map(|(one, _)| one).collect()).await
    }

    pub(super) async fn restamp(&self, which: LeaseReset) -> Result<(), QueueError> {
        for source in self.opened.load().streams.iter() {
            match self.queue.leases.reset(*source, which).await {
                Ok(_) | Err(QueueError::GroupLost) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
