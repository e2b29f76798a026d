//! Whether a message may begin now: together with others, or in isolation.

use super::isolation_gate::Admission;
use super::retry_log::log_retry;
use super::topic::TopicState;
use super::unsettled::Unsettled;
use super::work_item::WorkItem;
use crate::events;
use crate::queue::{Isolation, Leases, QueueError};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// After this many crashes in isolation a message is a poison message.
const DEAD_AFTER: u32 = 3;

const PAUSE: Duration = Duration::from_secs(2);

/// Why a message does not begin.
pub(super) enum NotAdmitted {
    /// It goes back to Redis: the topic was paused, or the message can't be
    /// isolated here.
    Requeue,
    Settle(Box<Unsettled>),
}

/// Waits until the message may begin.
pub(super) async fn admit<'a>(topic: &'a TopicState, item: &WorkItem) -> Result<Admission<'a>, NotAdmitted> {
    if item.needs_isolation() {
        return isolate(topic, item).await;
    }
    let admission = topic.shared.gate.shared().await;
    if topic.view.is_paused() { Err(NotAdmitted::Requeue) } else { Ok(admission) }
}

/// Waits until nothing else runs, and writes down in Redis that the message runs
/// in isolation, before it begins.
async fn isolate<'a>(topic: &'a TopicState, item: &WorkItem) -> Result<Admission<'a>, NotAdmitted> {
    let (entry, crashes) = (item.entry(), item.delivery.crash_count);
    let first_entry = item.delivery.first_entry();
    let isolation = Isolation::new(topic.queue.clone());
    let (admission, isolated_crashes) = loop {
        tracing::debug!(topic = %topic.topic(), %entry, crashes, "{}", events::WAITING_FOR_ISOLATION);
        let admission = match topic.shared.gate.exclusive(topic.settings().lease).await {
            Ok(admission) => admission,
            Err(next) => {
                tracing::debug!(topic = %topic.topic(), %entry, crashes, "{}", events::REQUEUED_NOT_ISOLATED);
                requeue(topic, item, next).await;
                return Err(NotAdmitted::Requeue);
            }
        };
        if topic.view.is_paused() {
            return Err(NotAdmitted::Requeue);
        }
        match isolation.begin(entry, &first_entry).await {
            Ok(isolated_crashes) => break (admission, isolated_crashes),
            Err(error) => log_retry(topic, events::ISOLATION_DELAYED, &error, Instant::now(), PAUSE),
        }
        // The other handlers need not wait for Redis.
        drop(admission);
        if timeout(PAUSE, topic.stop.cancelled()).await.is_ok() {
            return Err(NotAdmitted::Requeue);
        }
    };
    if isolated_crashes >= DEAD_AFTER {
        let _ = isolation.clear(&first_entry).await;
        return Err(NotAdmitted::Settle(Box::new(poison_message(topic, item, isolated_crashes))));
    }
    tracing::warn!(topic = %topic.topic(), %entry, crashes, isolated_crashes, "{}", events::RUNNING_ISOLATED);
    topic.shared.gate.begin(topic.topic(), &first_entry);
    Ok(admission)
}

fn poison_message(topic: &TopicState, item: &WorkItem, isolated_crashes: u32) -> Unsettled {
    let error = format!("{isolated_crashes} workers crashed while it ran in isolation");
    Unsettled::unrunnable(&topic.queue, item, "poison-message", error)
}

/// Gives a message back, to other workers at once and to this one later.
async fn requeue(topic: &TopicState, item: &WorkItem, until: Instant) {
    let entry = item.entry();
    topic.dispatch.defer(entry, until);
    topic.in_flight.remove([entry]);
    // On an error its lease runs out.
    let _ = Leases::new(topic.queue.clone()).requeue(entry).await;
}

/// Clears the mark of this topic's isolated message, if there is one: it has
/// ended, or is given up by a stop, and this worker did not crash with it.
pub(super) async fn end_isolation(topic: &TopicState) -> Result<(), QueueError> {
    match topic.shared.gate.end(topic.topic()) {
        Some(entry) => Isolation::new(topic.queue.clone()).clear(&entry).await,
        None => Ok(()),
    }
}
