//! The schedule: publishes to the topic what its plugin's manifest fires.
//!
//! Every worker does, and none leads: which fire times are due follows from
//! Redis' clock and from the last one in Redis, and the script that publishes
//! them lets one worker through.

use super::{Lane, PAUSE_MAX, PAUSE_MIN};
use crate::publication::BadDraft;
use crate::queue::QueueError;
use crate::schedule::{Due, Schedule};
use std::time::Duration;

/// How often it looks at the least, since clocks may be set.
const LOOK: Duration = Duration::from_secs(30);
/// How often at the most, whatever the clocks say.
const LOOK_MIN: Duration = Duration::from_millis(5);

/// How many messages, and bytes of them, go into one script.
const PIECE: usize = 100;
const PIECE_BYTES: usize = 1 << 20;

impl Lane {
    pub(super) async fn fire_until_stopped(&self) {
        let mut pause = PAUSE_MIN;
        while !self.stop.is_cancelled() {
            let plugin = self.plugin.load_full();
            let wait = match &plugin.manifest().schedule {
                None => None,
                Some(schedule) => match self.fire(schedule).await {
                    Ok(wait) => {
                        pause = PAUSE_MIN;
                        Some(wait)
                    }
                    Err(error) => {
                        let (topic, schedule) = (self.topic(), schedule.name());
                        tracing::warn!(%topic, schedule, %error, retry_in = ?pause, "the schedule waits");
                        let wait = pause;
                        pause = (pause * 2).min(PAUSE_MAX);
                        Some(wait)
                    }
                },
            };
            tokio::select! {
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
                () = self.swapped.notified() => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Fires what is due. Returns how long to wait for the next fire time.
    async fn fire(&self, schedule: &Schedule) -> Result<Duration, QueueError> {
        let mut seen = self.queue.look_at_schedule(schedule.name()).await?;
        let Due { fires, is_truncated } = schedule.due(seen.last, seen.now);
        if is_truncated {
            let (topic, schedule, last) = (self.topic(), schedule.name(), seen.last);
            tracing::warn!(%topic, schedule, %last, "too many fire times were missed: the oldest are left out");
        }
        let sealed = fires.into_iter().map(|at| Ok((at, schedule.publication(self.topic(), at)?)));
        let sealed: Vec<_> = sealed.collect::<Result<_, BadDraft>>().map_err(|error| {
            // The manifest was checked, so this is a fault of ours.
            QueueError::Failed(error.to_string())
        })?;
        let bytes = sealed.first().map_or(1, |(_, publication)| publication.body.len());
        for piece in sealed.chunks((PIECE_BYTES / bytes).clamp(1, PIECE)) {
            seen = self.queue.fire(schedule.name(), seen.last, piece).await?;
            if seen.published > 0 {
                let (topic, schedule, last) = (self.topic(), schedule.name(), seen.last);
                tracing::debug!(%topic, schedule, %last, count = seen.published, "fired");
            }
            if piece.last().is_some_and(|(at, _)| *at != seen.last) {
                // Another worker was faster, or the clock was set back.
                break;
            }
        }
        // After a clock was set back, nothing is due until it is there again.
        let wait = schedule.next_after(seen.now.max(seen.last)).map(|next| next.duration_since(seen.now));
        let wait = wait.and_then(|wait| Duration::try_from(wait).ok()).unwrap_or(LOOK);
        Ok(wait.clamp(LOOK_MIN, LOOK))
    }
}
