//! The cron loop: publishes to a topic what its plugin's manifest schedules.
//!
//! Every worker does this, and none leads: which fire times are due follows from
//! Redis' clock and from the last fire time in Redis, and the script that
//! publishes them lets one worker through.

use super::retry_log::log_retry;
use super::topic::TopicState;
use super::topic_loop::TopicLoop;
use crate::backoff::Backoff;
use crate::events;
use crate::publication::InvalidDraft;
use crate::queue::{QueueError, Schedules};
use crate::schedule::{Due, Schedule};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest time between two looks, since clocks may be set.
const LOOK_MAX: Duration = Duration::from_secs(30);
/// The shortest, whatever the clocks say.
const LOOK_MIN: Duration = Duration::from_millis(5);

/// How many messages, and how many bytes of them, one script publishes.
const BATCH: usize = 100;
const BATCH_BYTES: usize = 1 << 20;

pub(super) struct Cron;

impl TopicLoop<TopicState> for Cron {
    const NAME: &'static str = "cron";

    type Memory = Backoff;

    async fn visit(&self, topic: &Arc<TopicState>, backoff: &mut Backoff) -> Option<Duration> {
        if topic.stop.is_cancelled() {
            return None;
        }
        let plugin = Arc::clone(&topic.plugin());
        // A version with a schedule comes with a hint.
        let schedule = plugin.manifest().schedule.as_ref()?;
        match fire(topic, schedule).await {
            Ok(wait) => {
                backoff.reset();
                Some(wait)
            }
            Err(error) => {
                let retry_in = backoff.next_pause();
                log_retry(topic, events::SCHEDULE_FAILED, &error, Instant::now(), retry_in);
                Some(retry_in)
            }
        }
    }
}

/// Publishes what is due. Returns how long to wait for the next fire time.
async fn fire(topic: &TopicState, schedule: &Schedule) -> Result<Duration, QueueError> {
    let schedules = Schedules::new(topic.queue.clone());
    let mut state = schedules.last_fire(schedule.name()).await?;
    let Due { fires, is_truncated } = schedule.due(state.last, state.now);
    let (topic, name) = (topic.topic(), schedule.name());
    if is_truncated {
        tracing::warn!(%topic, schedule = name, last = %state.last, "{}", events::FIRE_TIMES_SKIPPED);
    }
    let publications = fires.into_iter().map(|at| Ok((at, schedule.publication(topic, at)?)));
    let publications: Vec<_> = publications.collect::<Result<_, InvalidDraft>>().map_err(|error| {
        // The manifest was checked, so this is a fault of the host.
        QueueError::Failed(error.to_string())
    })?;
    let bytes = publications.first().map_or(1, |(_, publication)| publication.body.len());
    for batch in publications.chunks((BATCH_BYTES / bytes).clamp(1, BATCH)) {
        state = schedules.fire(name, state.last, batch).await?;
        if state.published > 0 {
            let (last, count) = (state.last, state.published);
            tracing::debug!(%topic, schedule = name, %last, count, "{}", events::SCHEDULE_FIRED);
        }
        if batch.last().is_some_and(|(at, _)| *at != state.last) {
            // Another worker was faster, or the clock was set back.
            break;
        }
    }
    // After a clock was set back, nothing is due until it is there again.
    let wait = schedule.next_after(state.now.max(state.last)).map(|next| next.duration_since(state.now));
    let wait = wait.and_then(|wait| Duration::try_from(wait).ok()).unwrap_or(LOOK_MAX);
    Ok(wait.clamp(LOOK_MIN, LOOK_MAX))
}
