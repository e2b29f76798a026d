//! How a topic stops being consumed: what has not begun goes back to Redis, what
//! runs may end, and this worker's name leaves the group.

use crate::events;
use crate::queue::{Leases, QueueError};
use crate::worker::admission::end_isolation;
use crate::worker::outbox;
use crate::worker::topic::TopicState;
use crate::worker::work_item::WorkItem;
use std::sync::Arc;
use std::time::Duration;

/// A stop may come between two reads, so the interruption is repeated.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(20);

/// Ends the blocking read at a stop.
pub(super) async fn interrupt_when_stopped(topic: &TopicState) {
    topic.stop.cancelled().await;
    while topic.intake.seat.is_taken() {
        topic.in_flight.wake_intake();
        if topic.intake.seat.interrupt(&topic.queue).await.is_err() {
            break;
        }
        tokio::time::sleep(INTERRUPT_INTERVAL).await;
    }
}

/// To be called when no read is under way any more.
pub(super) async fn drain(topic: &Arc<TopicState>) {
    let waiting = topic.dispatch.local_queue.clear();
    topic.in_flight.remove(waiting.iter().map(WorkItem::entry));
    // Other workers need not wait until what runs here has ended.
    let _ = requeue_not_in_flight(topic).await;
    topic.dispatch.runners.close();
    topic.dispatch.runners.wait().await;
    topic.in_flight.emptied().await;
    // The follow-ups of the last messages are not left behind.
    outbox::relay(topic, true).await;
}

/// Gives back what Redis lists under our name and is not in flight here. To be
/// called while no read is under way.
pub(super) async fn requeue_not_in_flight(topic: &TopicState) -> Result<(), QueueError> {
    let _comparison = topic.intake.comparison.lock().await;
    let leases = Leases::new(topic.queue.clone());
    for stream in &topic.view.keys().streams {
        leases.requeue_except(*stream, &topic.in_flight.entries()).await?;
    }
    Ok(())
}

/// Gives back whatever is still pending under our name, whether Redis and we
/// agree on it or not, and removes the name. To be called when the topic is no
/// longer consumed, also when handlers still run.
pub(super) async fn leave(topic: &TopicState) {
    topic.view.set_consuming(false);
    let leave = async {
        let mut requeued = 0;
        // A stop is no crash, whatever ran in isolation.
        end_isolation(topic).await?;
        let leases = Leases::new(topic.queue.clone());
        for stream in &topic.view.keys().streams {
            requeued += leases.requeue_except(*stream, &[]).await?;
            leases.remove_consumer(*stream).await?;
        }
        Ok::<_, QueueError>(requeued)
    };
    match leave.await {
        Ok(requeued) => tracing::debug!(topic = %topic.topic(), requeued, "{}", events::TOPIC_LEFT),
        Err(error) => tracing::debug!(topic = %topic.topic(), %error, "{}", events::TOPIC_LEFT_WITH_LEASES),
    }
}
