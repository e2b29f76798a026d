//! The renewal loop: renews the leases of what is in flight, every third of a
//! lease, and does nothing else, so that nothing delays it.

use super::topic::TopicState;
use super::topic_loop::TopicLoop;
use crate::events;
use crate::queue::{Leases, QueueError};
use std::sync::Arc;
use std::time::Duration;

pub(super) struct Renewal;

impl TopicLoop<TopicState> for Renewal {
    const NAME: &'static str = "renewal";

    type Memory = ();

    async fn visit(&self, topic: &Arc<TopicState>, (): &mut ()) -> Option<Duration> {
        // The intake logs what is wrong with Redis.
        let _ = renew(topic).await;
        Some(topic.renewal_interval())
    }
}

/// Renews the leases of all that is in flight, and counts those that were lost.
pub(super) async fn renew(topic: &TopicState) -> Result<(), QueueError> {
    let entries = topic.in_flight.entries();
    if entries.is_empty() {
        return Ok(());
    }
    let lost = match Leases::new(topic.queue.clone()).renew(&entries).await {
        // The messages stay in flight: the new group delivers them again.
        Err(QueueError::GroupLost) => return Ok(()),
        lost => lost?,
    };
    if lost.is_empty() {
        return Ok(());
    }
    // What was settled meanwhile is not lost. The settling loop removes it from
    // what is in flight before its phase ends.
    drop(topic.settling.phase.lock().await);
    let lost = lost.iter().filter(|entry| topic.in_flight.contains(entry)).count();
    if lost > 0 {
        topic.metrics().leases_lost.inc_by(lost as u64);
        tracing::warn!(topic = %topic.topic(), lost, "{}", events::LEASES_LOST);
    }
    Ok(())
}
