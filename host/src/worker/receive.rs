//! From Redis into the local queue: every delivery comes this way, whether it
//! was fetched, found again or reclaimed.

use super::runner;
use super::topic::TopicState;
use super::unsettled::Unsettled;
use super::work_item::WorkItem;
use crate::events;
use crate::queue::{Dedup, Delivery, DoneKind, LegacyPending, QueueError};
use std::sync::Arc;

/// Puts deliveries to work, except those that are in flight already (a group
/// that was created again delivers them once more) and copies of messages that
/// have finished.
pub(super) async fn receive(topic: &Arc<TopicState>, deliveries: Vec<Delivery>) -> Result<(), QueueError> {
    if deliveries.is_empty() {
        return Ok(());
    }
    topic.metrics().touch();
    topic.in_flight.set_may_differ();
    let acknowledged = LegacyPending::new(topic.queue.clone()).acknowledge_superseded_by(&deliveries).await?;
    log_legacy_acknowledged(topic, acknowledged);
    topic.intake.add_sizes(deliveries.iter().map(Delivery::bytes));
    let items = deliveries.into_iter().map(WorkItem::new).collect();
    let (fresh, duplicates) = without_duplicates(topic, items).await?;
    let is_new = topic.in_flight.add(fresh.iter().chain(&duplicates).map(|one| &one.delivery));
    settle_duplicates(topic, &duplicates);
    let mut is_new = is_new.into_iter();
    let fresh: Vec<WorkItem> = fresh.into_iter().filter(|_| is_new.next().unwrap_or(true)).collect();
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

/// Parts those that may run from copies of messages that have finished within
/// the topic's deduplication window.
async fn without_duplicates(
    topic: &TopicState,
    mut items: Vec<WorkItem>,
) -> Result<(Vec<WorkItem>, Vec<WorkItem>), QueueError> {
    if topic.dedup_window().is_none() {
        return Ok((items, Vec::new()));
    }
    // A message without a key has no copies.
    let keyed = items.iter_mut().enumerate().filter_map(|(at, one)| Some((at, one.deduplication_key(topic.topic())?)));
    let (positions, keys): (Vec<usize>, Vec<String>) = keyed.unzip();
    if keys.is_empty() {
        return Ok((items, Vec::new()));
    }
    let finished = Dedup::new(topic.queue.clone()).finished(&keys).await?;
    let mut is_copy = vec![false; items.len()];
    positions.into_iter().zip(finished).for_each(|(at, finished)| is_copy[at] = finished);
    let (copies, fresh): (Vec<_>, Vec<_>) = items.into_iter().zip(is_copy).partition(|(_, is_copy)| *is_copy);
    let items = |list: Vec<(WorkItem, bool)>| list.into_iter().map(|(one, _)| one).collect();
    Ok((items(fresh), items(copies)))
}

fn settle_duplicates(topic: &Arc<TopicState>, duplicates: &[WorkItem]) {
    let settlement = |one: &WorkItem| one.delivery.discard(DoneKind::Duplicate);
    topic.settle(duplicates.iter().map(|one| Unsettled::not_run(settlement(one), "duplicate")).collect());
}
