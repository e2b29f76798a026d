//! The settling loop: puts verdicts into effect, many at a time, until Redis has
//! confirmed each. A topic has one script under way at a time, so that no server
//! of a cluster waits for another's.

use super::judged::judged_again;
use super::settle_retry::SettleRetryQueue;
use super::topic::TopicState;
use super::topic_loop::TopicLoop;
use super::unsettled::Unsettled;
use crate::backoff::Backoff;
use crate::events;
use crate::queue::{QueueError, Settled, Settlement, Settlements};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::timeout;

/// How many are settled at a time: beyond about a hundred there is little to
/// gain, and a script for this many stops Redis for a millisecond.
const BATCH: usize = 256;

/// What becomes due earlier than this is announced to the promotion loop, which
/// looks as often by itself.
const SOON: Duration = Duration::from_secs(1);

pub(super) struct Settler;

impl TopicLoop<TopicState> for Settler {
    const NAME: &'static str = "settling";

    type Memory = SettleRetryQueue;

    async fn visit(&self, topic: &Arc<TopicState>, retries: &mut SettleRetryQueue) -> Option<Duration> {
        loop {
            let fresh = topic.settling.take(BATCH);
            let has_fresh = !fresh.is_empty();
            if has_fresh {
                retries.add(settle(topic, fresh).await);
            }
            // Apart from the fresh ones, so that these need not wait. While memory
            // is full, those that need none are what frees some.
            let due = retries.take_due();
            let has_due = !due.is_empty();
            if has_due {
                let count = due.len();
                retries.sent_again(count, settle(topic, due).await);
            }
            if let Some((waiting, entry, error)) = retries.take_unlogged() {
                tracing::warn!(topic = %topic.topic(), waiting, %entry, error, "{}", events::SETTLE_DELAYED);
            }
            if topic.drained.is_cancelled() || !(has_fresh || has_due) {
                return retries.due_in();
            }
        }
    }
}

/// Settles a batch, as soon as Redis answers. Returns what it refused, and why.
async fn settle(topic: &Arc<TopicState>, mut batch: Vec<Unsettled>) -> Vec<(Unsettled, String)> {
    let (mut refused, mut backoff, mut is_resent) = (Vec::new(), Backoff::default(), false);
    while !batch.is_empty() {
        match settle_once(topic, &mut batch, is_resent).await {
            Ok(more) => {
                refused.extend(more);
                continue;
            }
            Err(error) => {
                let retry_in = backoff.next_pause();
                tracing::warn!(topic = %topic.topic(), %error, ?retry_in, "{}", events::SETTLE_DELAYED);
                is_resent = true;
                if timeout(retry_in, topic.drained.cancelled()).await.is_ok() {
                    break;
                }
            }
        }
    }
    refused
}

/// Sends a batch once. What is left in it afterwards got another verdict. An
/// error means that some may be settled and some not: the same is sent again.
async fn settle_once(
    topic: &Arc<TopicState>,
    batch: &mut Vec<Unsettled>,
    is_resent: bool,
) -> Result<Vec<(Unsettled, String)>, QueueError> {
    let _phase = topic.settling.phase.lock().await;
    let settlements = Settlements::new(topic.queue.clone());
    let sent: Vec<&Settlement> = batch.iter().map(|one| &one.settlement).collect();
    let results = settlements.settle(&sent, topic.dedup_window().unwrap_or_default()).await?;
    let (mut settled, mut refused, mut judged) = (Vec::with_capacity(batch.len()), Vec::new(), Vec::new());
    for (unsettled, result) in batch.drain(..).zip(results) {
        match result {
            Settled::Ok => {
                unsettled.confirmed(topic.topic(), topic.metrics());
                settled.push(unsettled.settlement);
            }
            Settled::Gone => {
                // Sent again after a lost reply, it was settled the first time.
                if is_resent {
                    unsettled.confirmed(topic.topic(), topic.metrics());
                } else {
                    let entry = &unsettled.settlement.entry;
                    tracing::debug!(topic = %topic.topic(), %entry, "{}", events::SETTLE_IGNORED);
                }
                settled.push(unsettled.settlement);
            }
            Settled::FollowUpsRefused(error) => judged.extend(judged_again(topic.topic(), unsettled, &error)),
            Settled::Failed(error) => refused.push((unsettled, error)),
        }
    }
    *batch = judged;
    topic.in_flight.remove(settled.iter().map(|one| &one.entry));
    announce(topic, &settlements, &settled);
    Ok(refused)
}

/// Hints at what the settlements have left for other loops to do.
fn announce(topic: &Arc<TopicState>, settlements: &Settlements, settled: &[Settlement]) {
    if settled.iter().any(|one| settlements.uses_outbox(one)) {
        topic.outbox.has_entries.store(true, Ordering::SeqCst);
        topic.shared.hints.outbox.now(topic);
    }
    if settled.iter().filter_map(Settlement::runs_again_in).any(|after| after < SOON) {
        topic.shared.hints.promotion.now(topic);
    }
}
