//! From Redis into the local queue: every delivery comes this way, whether it
//! was fetched, found again or reclaimed.

use super::received::Received;
use super::runner;
use super::topic::TopicState;
use super::unsettled::Unsettled;
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
    let received = deliveries.into_iter().map(Received::new).collect();
    let (fresh, duplicates) = without_duplicates(topic, received).await?;
    let is_new = topic.in_flight.add(fresh.iter().chain(&duplicates).map(|one| &one.delivery));
    settle_duplicates(topic, &duplicates);
    let mut is_new = is_new.into_iter();
    let fresh: Vec<Received> = fresh.into_iter().filter(|_| is_new.next().unwrap_or(true)).collect();
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
    mut received: Vec<Received>,
) -> Result<(Vec<Received>, Vec<Received>), QueueError> {
    if topic.dedup_window().is_none() {
        return Ok((received, Vec::new()));
    }
    // A message without a key has no copies.
    let keyed =
        received.iter_mut().enumerate().filter_map(|(at, one)| Some((at, one.deduplication_key(topic.topic())?)));
    let (positions, keys): (Vec<usize>, Vec<String>) = keyed.unzip();
    if keys.is_empty() {
        return Ok((received, Vec::new()));
    }
    let finished = Dedup::new(topic.queue.clone()).finished(&keys).await?;
    let mut is_copy = vec![false; received.len()];
    positions.into_iter().zip(finished).for_each(|(at, finished)| is_copy[at] = finished);
    let (copies, fresh): (Vec<_>, Vec<_>) = received.into_iter().zip(is_copy).partition(|(_, is_copy)| *is_copy);
    let received = |list: Vec<(Received, bool)>| list.into_iter().map(|(one, _)| one).collect();
    Ok((received(fresh), received(copies)))
}

fn settle_duplicates(topic: &Arc<TopicState>, duplicates: &[Received]) {
    let settlement = |one: &Received| one.delivery.discard(DoneKind::Duplicate);
    topic.settle(duplicates.iter().map(|one| Unsettled::not_run(settlement(one), "duplicate")).collect());
}
