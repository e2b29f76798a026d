//! The reclaim loop: takes over messages whose worker has let the lease expire.

use super::hints::INTERVAL;
use super::receive::{Arrival, log_legacy_acknowledged, receive};
use super::repeats::Kind;
use super::topic::TopicState;
use super::topic_loop::TopicLoop;
use crate::events;
use crate::queue::{Delivery, LeaseReset, Leases, LegacyPending, QueueError, ReclaimTimeouts, RedisClock, StreamKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many messages one script reclaims.
const BATCH: usize = 256;

pub(super) struct Reclaim;

#[derive(Default)]
pub(super) struct ReclaimMemory {
    clock: Option<RedisClock>,
    looked_at: Option<Instant>,
    others_have_some: bool,
    /// The shortest lease among the other workers, where it is known.
    shortest_lease: Option<Duration>,
}

impl TopicLoop<TopicState> for Reclaim {
    const NAME: &'static str = "reclaim";

    type Memory = ReclaimMemory;

    async fn visit(&self, topic: &Arc<TopicState>, memory: &mut ReclaimMemory) -> Option<Duration> {
        if topic.stop.is_cancelled() {
            return None;
        }
        if let Some(since) = topic.view.connected_since()
            && let Err(error) = reclaim(topic, since.elapsed(), memory).await
        {
            tracing::debug!(topic = %topic.topic(), %error, "{}", events::RECLAIM_FAILED);
        }
        Some(INTERVAL)
    }
}

/// Looks where other workers have messages in flight, whether their leases have
/// expired. `connected` is for how long Redis has answered us.
async fn reclaim(topic: &Arc<TopicState>, connected: Duration, memory: &mut ReclaimMemory) -> Result<(), QueueError> {
    let (lease, legacy) = (topic.settings().lease, topic.settings().legacy_reclaim_after);
    // A worker that fetches now and dies at once keeps its lease until the next
    // look, and a second more. Its lease may be shorter than ours.
    let shortest = memory.shortest_lease.map_or(lease, |shortest| shortest.min(lease));
    let is_early = memory.looked_at.is_some_and(|at| at.elapsed() < shortest / 2);
    if topic.view.is_paused() || (is_early && !memory.others_have_some && connected > lease) {
        return Ok(());
    }
    let timeouts = ReclaimTimeouts { lease, legacy, connected };
    let (mut others, mut shortest_lease) = (0, None::<Duration>);
    for stream in topic.view.keys().streams.iter().copied() {
        let capacity = topic.capacity().min(BATCH);
        if capacity == 0 {
            return Ok(());
        }
        // What a legacy worker has ended in its own way is not to be run.
        if stream == StreamKind::Normal && connected >= legacy {
            match LegacyPending::new(topic.queue.clone()).acknowledge_copied(legacy).await {
                Err(QueueError::GroupLost) => continue,
                acknowledged => log_legacy_acknowledged(topic, acknowledged?),
            }
        }
        let _comparison = topic.intake.comparison.lock().await;
        if topic.stop.is_cancelled() {
            return Ok(());
        }
        let found = match Leases::new(topic.queue.clone()).reclaim(stream, timeouts, memory.clock, capacity).await {
            Err(QueueError::GroupLost) => continue,
            found => found?,
        };
        memory.clock = Some(found.clock);
        if found.clock_stepped {
            tracing::warn!(topic = %topic.topic(), "{}", events::CLOCK_STEPPED);
            topic.view.set_connected_since(Some(Instant::now()));
            return reset_leases(topic, LeaseReset::All).await;
        }
        others += found.others;
        shortest_lease = shortest_lease.into_iter().chain(found.shortest_lease).min();
        receive_reclaimed(topic, found.deliveries).await?;
    }
    memory.others_have_some = others > 0;
    memory.shortest_lease = shortest_lease;
    memory.looked_at = Some(Instant::now());
    Ok(())
}

async fn receive_reclaimed(topic: &Arc<TopicState>, deliveries: Vec<(Delivery, String)>) -> Result<(), QueueError> {
    let (metrics, repeats) = (topic.metrics(), &topic.repeats);
    metrics.reclaimed.inc_by(deliveries.len() as u64);
    for (delivery, owner) in &deliveries {
        // What was requeued counts as delivered for the first time.
        if delivery.delivery_count > 1 {
            metrics.outcome("lease-expired").inc();
            let (entry, crashes) = (&delivery.entry, delivery.crash_count);
            let (topic, outcome) = (topic.topic(), "lease-expired");
            let kind = Kind { event: events::RECLAIMED, outcome: Some(outcome), dead: None };
            if repeats.admit(kind, || entry.to_string()) {
                tracing::warn!(%topic, %entry, owner, crashes, outcome, "{}", events::RECLAIMED);
            } else {
                tracing::debug!(%topic, %entry, owner, crashes, outcome, "{}", events::RECLAIMED);
            }
        }
    }
    receive(topic, deliveries.into_iter().map(|(delivery, _)| delivery).collect(), Arrival::Again).await
}

pub(super) async fn reset_leases(topic: &TopicState, which: LeaseReset) -> Result<(), QueueError> {
    let leases = Leases::new(topic.queue.clone());
    for stream in &topic.view.keys().streams {
        match leases.reset(*stream, which).await {
            Ok(_) | Err(QueueError::GroupLost) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
