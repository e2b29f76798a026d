//! From Redis into the local queue: every delivery comes this way, whether it
//! was fetched, found again or reclaimed.

use super::deduplicate::{Deduplicated, deduplicate};
use super::runner;
use super::topic::TopicState;
use super::work_item::WorkItem;
use crate::events;
use crate::queue::{Delivery, LegacyPending, QueueError};
use std::sync::Arc;

/// How deliveries have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Newly: a rate limit has counted them.
    Fetched,
    /// They were delivered before, to us or to a worker that was lost.
    Again,
}

/// Puts deliveries to work, except those that are in flight already (a group
/// that was created again delivers them once more) and those that deduplication
/// keeps from running.
pub(super) async fn receive(
    topic: &Arc<TopicState>,
    deliveries: Vec<Delivery>,
    arrival: Arrival,
) -> Result<(), QueueError> {
    if deliveries.is_empty() {
        return Ok(());
    }
    topic.metrics().touch();
    topic.in_flight.set_may_differ();
    let acknowledged = LegacyPending::new(topic.queue.clone()).acknowledge_superseded_by(&deliveries).await?;
    log_legacy_acknowledged(topic, acknowledged);
    topic.intake.add_sizes(deliveries.iter().map(Delivery::bytes));
    let items = deliveries.into_iter().map(WorkItem::new).collect();
    let Deduplicated { to_run, not_run } = deduplicate(topic, items, arrival == Arrival::Fetched).await?;
    let is_new = topic.in_flight.add(to_run.iter().chain(not_run.iter().map(|(one, _)| one)));
    topic.settle(not_run.into_iter().map(|(_, unsettled)| unsettled).collect());
    let mut is_new = is_new.into_iter();
    let fresh: Vec<WorkItem> = to_run.into_iter().filter(|_| is_new.next().unwrap_or(true)).collect();
    let concurrency = topic.plugin().manifest().concurrency;
    runner::start(topic, topic.dispatch.local_queue.push(fresh, concurrency));
    topic.dispatch.arrived.notify_one();
    Ok(())
}

pub(super) fn log_legacy_acknowledged(topic: &TopicState, count: usize) {
    if count > 0 {
        tracing::info!(topic = %topic.topic(), count, "{}", events::LEGACY_ACKNOWLEDGED);
    }
}
