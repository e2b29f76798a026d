//! The renewal loop: renews the leases of what is in flight, and its claims, every
//! third of a lease, and does nothing else, so that nothing delays it.

use super::topic::TopicState;
use super::topic_loop::TopicLoop;
use crate::events;
use crate::queue::{Dedup, EntryId, Leases, NotRenewed, QueueError};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// Renews the leases of all that is in flight, and counts those that were lost, each
/// once.
pub(super) async fn renew(topic: &TopicState) -> Result<(), QueueError> {
    let entries = topic.in_flight.entries();
    // Others have to get the messages of a worker with a part missing.
    if entries.is_empty() || topic.shared.supervisor.has_failed() {
        return Ok(());
    }
    let sent = Instant::now();
    let not_renewed = match Leases::new(topic.queue.clone()).renew(&entries).await {
        // The messages stay in flight: the new group delivers them again.
        Err(QueueError::GroupLost) => return Ok(()),
        not_renewed => not_renewed?,
    };
    let missing: HashSet<&EntryId> = not_renewed.taken.iter().chain(&not_renewed.gone).collect();
    let renewed: Vec<EntryId> = entries.into_iter().filter(|entry| !missing.contains(entry)).collect();
    topic.in_flight.set_renewed(&renewed, sent);
    let claims = topic.in_flight.claims_except(&not_renewed);
    if !claims.is_empty() {
        Dedup::new(topic.queue.clone()).extend(&claims).await?;
    }
    if not_renewed == NotRenewed::default() {
        return Ok(());
    }
    // What was settled meanwhile is not lost. The settling loop removes it from
    // what is in flight before its phase ends.
    drop(topic.settling.phase.lock().await);
    let deleted = topic.in_flight.mark_deleted(&not_renewed.deleted);
    if let Some(entry) = deleted.first() {
        let (topic, count) = (topic.topic(), deleted.len());
        tracing::warn!(%topic, count, %entry, "{}", events::ENTRIES_DELETED);
    }
    let lost = topic.in_flight.mark_over(&not_renewed, topic.settings().lease);
    if lost > 0 {
        topic.metrics().leases_lost.inc_by(lost as u64);
        tracing::warn!(topic = %topic.topic(), lost, "{}", events::LEASES_LOST);
    }
    Ok(())
}
