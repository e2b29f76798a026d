//! The promotion loop: moves delayed messages that are due into their streams.

use super::hints::INTERVAL;
use super::topic::TopicState;
use super::topic_loop::TopicLoop;
use crate::events;
use crate::queue::{Delayed, LegacyDelayed, Promoted, QueueError};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The shortest time between two looks, however much is due.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

/// Due times that can't be meant are searched for this often.
const SEARCH_INTERVAL: Duration = Duration::from_secs(30);

pub(super) struct Promotion;

#[derive(Default)]
pub(super) struct PromotionMemory {
    looks: u32,
    /// Whether there were delayed messages at the last look.
    has_delayed: bool,
    /// When legacy delayed messages were last searched for due times that can't be
    /// meant, and whether some were found and reported.
    searched_at: Option<Instant>,
    has_reported_far: bool,
}

impl TopicLoop<TopicState> for Promotion {
    const NAME: &'static str = "promotion";

    type Memory = PromotionMemory;

    async fn visit(&self, topic: &Arc<TopicState>, memory: &mut PromotionMemory) -> Option<Duration> {
        if topic.stop.is_cancelled() {
            return None;
        }
        let next_due = promote(topic, memory).await.unwrap_or_else(|error| {
            tracing::debug!(topic = %topic.topic(), %error, "{}", events::PROMOTION_FAILED);
            None
        });
        memory.looks = memory.looks.wrapping_add(1);
        Some(next_due.unwrap_or(INTERVAL).clamp(INTERVAL_MIN, INTERVAL))
    }
}

/// Moves a batch of what is due. Returns when the next message is.
async fn promote(topic: &TopicState, memory: &mut PromotionMemory) -> Result<Option<Duration>, QueueError> {
    let delayed = Delayed::new(topic.queue.clone());
    let mut promoted = Promoted { moved: 0, next_due: None };
    if memory.has_delayed || delayed.exists().await? {
        promoted = delayed.promote().await?;
    }
    memory.has_delayed = promoted.next_due.is_some();
    // An idle topic is to cost next to nothing, and legacy times are whole seconds.
    let is_legacy_turn = memory.looks.is_multiple_of(2);
    let legacy = if is_legacy_turn { LegacyDelayed::new(topic.queue.clone()).promote().await? } else { 0 };
    if is_legacy_turn {
        report_far(topic, memory).await?;
    }
    Ok(if promoted.moved + legacy > 0 { Some(Duration::ZERO) } else { promoted.next_due })
}

/// Warns once of legacy delayed messages that are due after the year 9999: their
/// publisher has scored them in another unit, and they would wait for ever.
async fn report_far(topic: &TopicState, memory: &mut PromotionMemory) -> Result<(), QueueError> {
    if memory.has_reported_far || memory.searched_at.is_some_and(|at| at.elapsed() < SEARCH_INTERVAL) {
        return Ok(());
    }
    memory.searched_at = Some(Instant::now());
    let count = LegacyDelayed::new(topic.queue.clone()).due_far().await?;
    if count > 0 {
        memory.has_reported_far = true;
        let key = topic.queue.legacy_delayed_key();
        tracing::warn!(topic = %topic.topic(), key, count, "{}", events::LEGACY_DUE_FAR);
    }
    Ok(())
}
