//! The janitor loop: what nobody waits for, done a little at a time. It deletes
//! the history that legacy workers leave in their streams, evicts dead letters
//! over the limits, and removes the names of consumers that are gone.

use super::hints::INTERVAL;
use super::reclaim::reset_leases;
use super::sweep::Sweep;
use super::topic::TopicState;
use super::topic_loop::TopicLoop;
use crate::events;
use crate::queue::{Eviction, LeaseReset, Leases, QueueError, StreamKind};
use crate::settings::DeadLetterCaps;
use crate::text::{size, span};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(60);
/// The batches of dead letters that are deleted in one visit.
const EVICT_BATCHES: usize = 20;
/// A consumer that has not asked for a message for this long, and for this many
/// leases, is gone.
const GONE: Duration = Duration::from_secs(60 * 60);
const GONE_LEASES: u32 = 10;

pub(super) struct Janitor;

#[derive(Default)]
pub(super) struct JanitorMemory {
    swept_at: Option<Instant>,
    sweeps: BTreeMap<StreamKind, Sweep>,
    evicted_at: Option<Instant>,
}

impl TopicLoop<TopicState> for Janitor {
    const NAME: &'static str = "janitor";

    type Memory = JanitorMemory;

    async fn visit(&self, topic: &Arc<TopicState>, memory: &mut JanitorMemory) -> Option<Duration> {
        if topic.stop.is_cancelled() {
            return None;
        }
        if let Err(error) = clean(topic, memory).await {
            tracing::debug!(topic = %topic.topic(), %error, "{}", events::JANITOR_FAILED);
        }
        Some(INTERVAL)
    }
}

async fn clean(topic: &TopicState, memory: &mut JanitorMemory) -> Result<(), QueueError> {
    let is_connected = topic.view.connected_since().is_some();
    let is_time = |last: Option<Instant>| last.is_none_or(|at| at.elapsed() >= EVERY);
    // A lost lease may have lost its pending row.
    if is_connected && (is_time(memory.swept_at) || topic.in_flight.take_lost()) {
        memory.swept_at = Some(Instant::now());
        memory.sweeps.values_mut().for_each(Sweep::begin);
        sweep(topic, memory, |_| true).await?;
        reset_leases(topic, LeaseReset::Future).await?;
        prune_consumers(topic).await?;
    } else if is_connected {
        sweep(topic, memory, Sweep::is_under_way).await?;
    }
    // There may be dead letters where there is no stream to be connected to.
    if is_time(memory.evicted_at) && evict(topic).await? {
        memory.evicted_at = Some(Instant::now());
    }
    Ok(())
}

/// Sweeps some of each stream for which that `is_wanted`.
async fn sweep(
    topic: &TopicState,
    memory: &mut JanitorMemory,
    is_wanted: impl Fn(&Sweep) -> bool,
) -> Result<(), QueueError> {
    for stream in topic.view.keys().streams.iter().copied() {
        let sweep = memory.sweeps.entry(stream).or_default();
        if is_wanted(sweep) {
            sweep.go_on(topic, stream).await?;
        }
    }
    Ok(())
}

/// A worker that is killed leaves its name in each group, and so does each legacy
/// worker.
async fn prune_consumers(topic: &TopicState) -> Result<(), QueueError> {
    let idle = GONE.max(topic.settings().lease * GONE_LEASES);
    let leases = Leases::new(topic.queue.clone());
    for stream in &topic.view.keys().streams {
        match leases.prune_consumers(*stream, idle).await {
            Err(QueueError::GroupLost | QueueError::WrongType(_)) | Ok(0) => {}
            Ok(removed) => tracing::debug!(topic = %topic.topic(), removed, "{}", events::CONSUMERS_REMOVED),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Evicts dead letters over the limits. Each eviction is counted and logged.
/// Returns whether there are no more.
async fn evict(topic: &TopicState) -> Result<bool, QueueError> {
    let caps = topic.settings().dead_letter_caps;
    if caps == DeadLetterCaps::default() {
        return Ok(true);
    }
    let eviction = Eviction::new(topic.queue.clone());
    let (mut by_age, mut by_bytes, mut result) = (0, 0, Ok(false));
    for _ in 0..EVICT_BATCHES {
        match eviction.evict(caps).await {
            Ok(evicted) if evicted.by_age + evicted.by_bytes == 0 => result = Ok(true),
            Ok(evicted) => {
                by_age += evicted.by_age;
                by_bytes += evicted.by_bytes;
                continue;
            }
            Err(error) => result = Err(error),
        }
        break;
    }
    for (reason, evicted) in [("age", by_age), ("bytes", by_bytes)] {
        if evicted > 0 {
            topic.metrics().dead_letters_evicted(reason, evicted);
            let (topic, max_age, max_bytes) = (topic.topic(), caps.age.map(span), caps.bytes.map(size));
            tracing::warn!(%topic, evicted, reason, max_age, max_bytes, "{}", events::DEAD_LETTERS_EVICTED);
        }
    }
    result
}
