//! The probe loop: looks whether a topic's keys are still what they were when
//! they were opened. A blocking read of one of them learns nothing of the others,
//! nor of a pause.

use super::topic::TopicState;
use super::topic_loop::TopicLoop;
use crate::events;
use crate::queue::{Probes, QueueError};
use std::sync::Arc;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_secs(2);

pub(super) struct Probe;

impl TopicLoop<TopicState> for Probe {
    const NAME: &'static str = "probe";

    type Memory = ();

    async fn visit(&self, topic: &Arc<TopicState>, (): &mut ()) -> Option<Duration> {
        topic.repeats.report();
        if topic.stop.is_cancelled() {
            return None;
        }
        if let Err(error) = probe(topic).await {
            tracing::debug!(topic = %topic.topic(), %error, "{}", events::PROBE_FAILED);
        }
        Some(INTERVAL)
    }
}

async fn probe(topic: &TopicState) -> Result<(), QueueError> {
    let found = Probes::new(topic.queue.clone()).probe(&topic.view.keys()).await?;
    let was_paused = topic.view.is_paused();
    topic.view.apply(found.flags);
    if found.has_changed {
        topic.view.set_must_reopen();
    }
    if (found.flags.is_paused && !was_paused) || topic.view.must_reopen() {
        topic.intake.seat.interrupt(&topic.queue).await?;
    }
    Ok(())
}
