//! What time brings: leases to renew, messages that are due, others' leases
//! that ran out, history to sweep.

use super::{BATCH_MAX, Lane};
use crate::queue::{Legacy, Patience, QueueError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often the keeper looks, at the least.
pub(super) const BEAT: Duration = Duration::from_secs(1);
/// How often it does, at the most, however much is due.
const BEAT_MIN: Duration = Duration::from_millis(10);
const SWEEP_EVERY: Duration = Duration::from_secs(60);

impl Lane {
    /// Renews leases, and nothing else, so that nothing holds it up.
    pub(super) async fn renew_until(&self, drained: &CancellationToken) {
        while tokio::time::timeout(self.settings.lease / 3, drained.cancelled()).await.is_err() {
            // The reader says what is the matter.
            let _ = self.renew().await;
        }
    }

    pub(super) async fn keep_until(self: &Arc<Self>, drained: &CancellationToken) {
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

    pub(super) async fn renew(&self) -> Result<(), QueueError> {
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
