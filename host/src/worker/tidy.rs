//! What nobody waits for, and what is therefore done a little at a time: the
//! original's history is swept, dead letters are capped, and the names of those
//! who are gone are forgotten.

use super::Lane;
use crate::queue::{Evicted, LeaseReset, QueueError, StreamKind, SweepCursor};
use crate::settings::DeadCaps;
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(60);
/// Pieces of history that are swept in one look, and of dead letters that are
/// dropped, at the most: what is due must not wait for them.
const SWEEP_PIECES: usize = 50;
const CAP_PIECES: usize = 20;
/// Who has not asked for a message for so long, and so many leases, is gone.
const GONE: Duration = Duration::from_secs(60 * 60);
const GONE_LEASES: u32 = 10;

/// What is remembered from one look to the next.
#[derive(Default)]
pub(super) struct Tidied {
    swept: Option<Instant>,
    /// How far, while it is not done.
    swept_to: Option<SweepCursor>,
    capped: Option<Instant>,
}

impl Lane {
    pub(super) async fn tidy(&self, tidied: &mut Tidied, is_connected: bool) -> Result<(), QueueError> {
        let is_time = |last: Option<Instant>| last.is_none_or(|at| at.elapsed() >= EVERY);
        if is_connected && is_time(tidied.swept) {
            tidied.swept = Some(Instant::now());
            tidied.swept_to = self.sweep(None).await?;
            self.restamp(LeaseReset::Future).await?;
            self.forget_the_gone().await?;
        } else if is_connected && tidied.swept_to.is_some() {
            tidied.swept_to = self.sweep(tidied.swept_to.take()).await?;
        }
        // There may be dead letters where there is no stream to be connected to.
        if is_time(tidied.capped) && self.cap_dead().await? {
            tidied.capped = Some(Instant::now());
        }
        Ok(())
    }

    /// Sweeps some of the history. Returns where to go on, if there is more.
    async fn sweep(&self, mut from: Option<SweepCursor>) -> Result<Option<SweepCursor>, QueueError> {
        if !self.opened.load().streams.contains(&StreamKind::Normal) {
            return Ok(None);
        }
        for _ in 0..SWEEP_PIECES {
            from = match self.queue.legacy_history.sweep(from.as_ref()).await {
                Err(QueueError::GroupLost | QueueError::WrongType(_)) => return Ok(None),
                next => next?,
            };
            if from.is_none() || self.stop.is_cancelled() {
                break;
            }
        }
        Ok(from)
    }

    /// A worker that is killed leaves its name in each group, and so does each of
    /// the original's.
    async fn forget_the_gone(&self) -> Result<(), QueueError> {
        let idle = GONE.max(self.settings.lease * GONE_LEASES);
        for source in self.opened.load().streams.iter() {
            match self.queue.leases.prune_consumers(*source, idle).await {
                Err(QueueError::GroupLost | QueueError::WrongType(_)) => {}
                Ok(0) => {}
                Ok(forgotten) => {
                    tracing::debug!(topic = %self.topic(), forgotten, "names of consumers that are gone removed")
                }
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
            match self.queue.eviction.evict(caps).await {
                Ok(evicted) if evicted == Evicted::default() => result = Ok(true),
                Ok(evicted) => {
                    dropped += evicted.by_age + evicted.by_bytes;
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
}
