//! Which deliveries of a topic that deduplicates may run: of all messages with one
//! key, one at a time over all workers, and none once one has finished.

use super::topic::TopicState;
use super::unsettled::Unsettled;
use super::work_item::WorkItem;
use crate::events;
use crate::queue::{ClaimAnswer, ClaimTerms, Dedup, DoneKind, Leases, QueueError};
use std::time::Instant;

/// Deliveries after deduplication. What was parked is in neither list: it is no longer
/// in flight.
pub(super) struct Deduplicated {
    pub(super) to_run: Vec<WorkItem>,
    /// Duplicates and expired messages, with their settlements.
    pub(super) not_run: Vec<(WorkItem, Unsettled)>,
}

/// `is_fetched` says that the deliveries are new: a rate limit has counted them.
pub(super) async fn deduplicate(
    topic: &TopicState,
    mut items: Vec<WorkItem>,
    is_fetched: bool,
) -> Result<Deduplicated, QueueError> {
    let Some(window) = topic.dedup_window() else { return Ok(Deduplicated { to_run: items, not_run: Vec::new() }) };
    let lease = topic.settings().lease;
    items.iter_mut().for_each(|one| one.determine_claim(topic.topic(), lease));
    let is_rated = is_fetched && topic.plugin().manifest().rate.is_some();
    let terms = ClaimTerms { window, lease, is_fetched, is_rated };
    let answers = ask(topic, &items, terms).await?;
    let mut sorted = Deduplicated { to_run: Vec::with_capacity(items.len()), not_run: Vec::new() };
    let (mut parked, mut failed) = (0_u64, Vec::new());
    for (item, answer) in items.into_iter().zip(answers) {
        match answer {
            ClaimAnswer::Run => sorted.to_run.push(item),
            ClaimAnswer::Duplicate => sorted.not_run.push(discarded(item, DoneKind::Duplicate, "duplicate")),
            ClaimAnswer::Expired => sorted.not_run.push(discarded(item, DoneKind::Expired, "expired")),
            ClaimAnswer::Busy => {
                parked += 1;
                tracing::debug!(topic = %topic.topic(), entry = %item.entry(), "{}", events::PARKED);
            }
            ClaimAnswer::Gone => {
                tracing::debug!(topic = %topic.topic(), entry = %item.entry(), "{}", events::NO_LONGER_OURS);
            }
            ClaimAnswer::Failed(error) => failed.push((item, error)),
        }
    }
    topic.metrics().parked.inc_by(parked);
    requeue(topic, failed).await;
    Ok(sorted)
}

/// Gives copies back that can't be parked: to other workers at once, and to this one
/// after a lease.
async fn requeue(topic: &TopicState, failed: Vec<(WorkItem, String)>) {
    for (item, _) in &failed {
        topic.dispatch.defer(item.entry(), Instant::now() + topic.settings().lease);
        // On an error its lease runs out.
        let _ = Leases::new(topic.queue.clone()).requeue(item.entry()).await;
    }
    if let Some((item, error)) = failed.first() {
        let count = failed.len();
        tracing::warn!(topic = %topic.topic(), entry = %item.entry(), count, error, "{}", events::PARK_FAILED);
    }
}

/// The answer for each item. What has no key needs no claim.
async fn ask(topic: &TopicState, items: &[WorkItem], terms: ClaimTerms) -> Result<Vec<ClaimAnswer>, QueueError> {
    let requests: Vec<_> = items.iter().filter_map(WorkItem::claim_request).collect();
    let mut answers = Dedup::new(topic.queue.clone()).claim(&requests, terms).await?.into_iter();
    let answer = |item: &WorkItem| item.claim.as_ref().and_then(|_| answers.next()).unwrap_or(ClaimAnswer::Run);
    Ok(items.iter().map(answer).collect())
}

fn discarded(item: WorkItem, kind: DoneKind, outcome: &'static str) -> (WorkItem, Unsettled) {
    let settlement = item.delivery.discard(kind);
    let unsettled = Unsettled { id: item.message_id(), ..Unsettled::not_run(settlement, outcome) };
    (item, unsettled)
}
