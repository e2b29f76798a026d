//! The outbox loop: publishes follow-ups that the settling script could not
//! reach, because a cluster keeps their topics elsewhere. A loop of its own,
//! since a part of a cluster that does not answer must not delay anything else.

use super::hints::INTERVAL;
use super::topic::TopicState;
use super::topic_loop::TopicLoop;
use crate::events;
use crate::queue::QueueError;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub(super) struct Outbox;

impl TopicLoop<TopicState> for Outbox {
    const NAME: &'static str = "outbox";

    type Memory = ();

    async fn visit(&self, topic: &Arc<TopicState>, (): &mut ()) -> Option<Duration> {
        relay(topic, false).await;
        Some(INTERVAL)
    }
}

/// Publishes what is in the outbox, if there may be anything. The last time, what
/// does not arrive is left to other workers.
pub(super) async fn relay(topic: &TopicState, is_last: bool) {
    if let Err(error) = relay_all(topic, is_last).await {
        tracing::debug!(topic = %topic.topic(), %error, "{}", events::OUTBOX_FAILED);
    }
}

async fn relay_all(topic: &TopicState, is_last: bool) -> Result<(), QueueError> {
    if !topic.outbox.has_entries.load(Ordering::SeqCst) {
        return Ok(());
    }
    let mut relay = topic.outbox.relay.lock().await;
    loop {
        let relayed = relay.relay(topic.settings().lease).await?;
        // A topic that stops is relayed a last time by its drain.
        let is_over = if is_last { relayed.arrived == 0 } else { topic.stop.is_cancelled() };
        if !relayed.has_more || is_over {
            break;
        }
    }
    // A settlement may add some meanwhile, so the flag is cleared before the look.
    topic.outbox.has_entries.store(false, Ordering::SeqCst);
    if relay.len().await.is_ok_and(|count| count == 0) {
        return Ok(());
    }
    topic.outbox.has_entries.store(true, Ordering::SeqCst);
    Ok(())
}
