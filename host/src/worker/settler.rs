//! The settling loop: puts verdicts into effect, many at a time, until Redis has
//! confirmed each. A topic has one script under way at a time, so that no server
//! of a cluster waits for another's.

use super::judged::{entry_deleted, judged_again};
use super::renewal::renew;
use super::retry_log::log_retry;
use super::settle_retry::SettleRetryQueue;
use super::topic::TopicState;
use super::topic_loop::TopicLoop;
use super::unsettled::Unsettled;
use crate::backoff::Backoff;
use crate::events;
use crate::queue::{QueueError, Settled, Settlement, Settlements};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// How many are settled at a time: beyond about a hundred there is little to
/// gain, and a script for this many stops Redis for a millisecond.
const BATCH: usize = 256;

/// A visit ends when nothing was handed over for this long.
const IDLE: Duration = Duration::from_secs(1);

/// What becomes due earlier than this is announced to the promotion loop, which
/// looks as often by itself.
const SOON: Duration = Duration::from_secs(1);
/// The earliest announcement, so that messages which fail at once keep no loop busy.
const SOON_MIN: Duration = Duration::from_millis(10);

pub(super) struct Settler;

impl TopicLoop<TopicState> for Settler {
    const NAME: &'static str = "settling";

    type Memory = ();

    /// Lasts while runners hand something over, so that each hand-over costs one
    /// wake-up and no task.
    async fn visit(&self, topic: &Arc<TopicState>, (): &mut ()) -> Option<Duration> {
        let mut retries = SettleRetryQueue::default();
        while !topic.drained.is_cancelled() {
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
            if has_fresh || has_due {
                continue;
            }
            let due_in = retries.due_in();
            tokio::select! {
                () = topic.settling.arrived() => {}
                () = sleep(due_in.unwrap_or(IDLE)) => if due_in.is_none() && topic.settling.end_visit() {
                    break;
                },
                () = topic.drained.cancelled() => {}
            }
        }
        None
    }
}

/// Settles a batch, as soon as Redis answers. Returns what it refused, and why.
async fn settle(topic: &Arc<TopicState>, mut batch: Vec<Unsettled>) -> Vec<(Unsettled, String)> {
    let (started, mut refused, mut backoff) = (Instant::now(), Vec::new(), Backoff::default());
    while !batch.is_empty() {
        let sent = batch.len();
        match settle_once(topic, &mut batch).await {
            Ok(more) => {
                topic.view.set_settle_trouble(refusal_of_all(sent, &more).as_ref());
                refused.extend(more);
            }
            Err(error) => {
                topic.view.set_settle_trouble(Some(&error));
                let retry_in = backoff.next_pause();
                log_retry(topic, events::SETTLE_DELAYED, &error, started, retry_in);
                batch.iter_mut().for_each(|one| one.may_be_settled = true);
                if timeout(retry_in, topic.drained.cancelled()).await.is_ok() {
                    break;
                }
            }
        }
    }
    refused
}

/// Why all that were sent were refused. A key of another type concerns one message only.
fn refusal_of_all(sent: usize, refused: &[(Unsettled, String)]) -> Option<QueueError> {
    let (_, reason) = refused.first().filter(|(_, reason)| refused.len() == sent && !reason.contains("WRONGTYPE"))?;
    Some(QueueError::Failed(reason.clone()))
}

/// Sends a batch once. What is left in it afterwards got another verdict. An
/// error means that some may be settled and some not: the same is sent again.
async fn settle_once(
    topic: &Arc<TopicState>,
    batch: &mut Vec<Unsettled>,
) -> Result<Vec<(Unsettled, String)>, QueueError> {
    // A lease that may have ended is looked at first. Afterwards the entry may be
    // gone, and nothing would tell that it was lost. Without an answer the
    // settlement gets none either.
    if topic.in_flight.may_have_lost(batch.iter().map(|one| &one.settlement.entry), topic.settings().lease) {
        let _ = renew(topic).await;
    }
    let phase = topic.settling.phase.lock().await;
    let settlements = Settlements::new(topic.queue.clone());
    let sent: Vec<&Settlement> = batch.iter().map(|one| &one.settlement).collect();
    let results = settlements.settle(&sent, topic.dedup_window().unwrap_or_default()).await?;
    let (mut settled, mut refused, mut judged) = (Vec::with_capacity(batch.len()), Vec::new(), Vec::new());
    for (unsettled, result) in batch.drain(..).zip(results) {
        match result {
            Settled::Ok => settled.push((unsettled, true)),
            // Sent again after a lost reply, it was settled the first time.
            Settled::Gone => {
                let was_settled = unsettled.may_be_settled;
                settled.push((unsettled, was_settled));
            }
            Settled::FollowUpsRefused(error) => judged.extend(judged_again(&topic.queue, unsettled, &error)),
            Settled::Deleted => judged.extend(entry_deleted(&topic.queue, unsettled)),
            Settled::Failed(error) => refused.push((unsettled, error)),
        }
    }
    *batch = judged;
    let confirmed = settled.iter().filter(|(_, is_confirmed)| *is_confirmed);
    confirmed.for_each(|(unsettled, _)| unsettled.count(topic.metrics()));
    // The drain, which waits until nothing is in flight, has to know of the outbox.
    announce(topic, &settlements, &settled);
    topic.in_flight.remove(settled.iter().map(|(one, _)| &one.settlement.entry));
    // A slow log delays no renewal, which waits for this phase.
    drop(phase);
    for (unsettled, is_confirmed) in &settled {
        if *is_confirmed {
            unsettled.log(topic.topic(), &topic.repeats);
        } else {
            let entry = &unsettled.settlement.entry;
            tracing::debug!(topic = %topic.topic(), %entry, "{}", events::SETTLE_IGNORED);
        }
    }
    Ok(refused)
}

/// Hints at what the settlements leave for other loops to do.
fn announce(topic: &Arc<TopicState>, settlements: &Settlements, settled: &[(Unsettled, bool)]) {
    let settled = || settled.iter().map(|(one, _)| &one.settlement);
    if settled().any(|one| settlements.uses_outbox(one)) {
        topic.outbox.has_entries.store(true, Ordering::SeqCst);
        topic.shared.hints.outbox.now(topic);
    }
    let soonest = settled().filter_map(Settlement::runs_again_in).min();
    if let Some(soonest) = soonest.filter(|after| *after < SOON) {
        topic.shared.hints.promotion.after(topic, soonest.max(SOON_MIN));
    }
}
