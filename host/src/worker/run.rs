//! One run: what can be run is called, judged, and leaves as settlements.

use super::admission::{NotAdmitted, admit, end_isolation};
use super::isolation_gate::Admission;
use super::judged::judged;
use super::repeats::Kind;
use super::run_state::Run;
use super::topic::TopicState;
use super::unsettled::Unsettled;
use super::work_item::WorkItem;
use crate::events;
use crate::message::{self, Message};
use crate::plugin::{Job, Plugin};
use crate::queue::DoneKind;
use crate::run_span::RunSpan;
use crate::text::size;
use crate::verdict::Outcome;
use jiff::Timestamp;
use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An entry with more fields than this is no message.
const FIELDS_MAX: usize = 3000;

/// Runs messages together: one, or a batch of which none needs isolation.
pub(super) async fn run_together(topic: &Arc<TopicState>, items: &mut [WorkItem]) -> Vec<Unsettled> {
    let Some(first) = items.first() else { return Vec::new() };
    let admission = match admit(topic, first).await {
        Ok(admission) => admission,
        Err(NotAdmitted::Settle(unsettled)) => return vec![*unsettled],
        Err(NotAdmitted::Requeue) => {
            topic.in_flight.unclaim(items.iter().map(WorkItem::entry));
            return Vec::new();
        }
    };
    let unsettled = run_in_chunks(topic, items).await;
    if matches!(admission, Admission::Exclusive(_)) {
        let _ = end_isolation(topic).await;
    }
    unsettled
}

/// A batch that was collected for one version may be larger than the version
/// that is live by now takes at once. Nearly always there is one chunk.
async fn run_in_chunks(topic: &Arc<TopicState>, items: &mut [WorkItem]) -> Vec<Unsettled> {
    let (mut unsettled, mut left) = (Vec::new(), items);
    while !left.is_empty() {
        if !unsettled.is_empty() {
            // Messages that have ended do not wait for all that follow.
            topic.settle(std::mem::take(&mut unsettled));
            if topic.view.is_paused() || topic.stop.is_cancelled() {
                topic.in_flight.unclaim(left.iter().map(WorkItem::entry));
                break;
            }
        }
        // The live version is looked up for each run.
        let plugin = Arc::clone(&topic.plugin());
        let size = plugin.manifest().batch.map_or(1, |batch| batch.size);
        let (chunk, rest) = left.split_at_mut(size.clamp(1, left.len()));
        unsettled = run_chunk(topic, &plugin, chunk).await;
        left = rest;
    }
    unsettled
}

async fn run_chunk(topic: &TopicState, plugin: &Arc<Plugin>, chunk: &mut [WorkItem]) -> Vec<Unsettled> {
    match call(topic, plugin, chunk).await {
        Ok(unsettled) => unsettled,
        // The batch ended as a whole. Run one by one, the message at fault shows.
        Err(mut unsettled) => {
            for one in chunk {
                if unsettled.iter().all(|settled| settled.settlement.entry != *one.entry()) {
                    let (Ok(single) | Err(single)) = call(topic, plugin, slice::from_mut(one)).await;
                    unsettled.extend(single);
                }
            }
            unsettled
        }
    }
}

/// Calls the handler once and judges each message. An error means that a batch
/// ended as a whole. It holds the settlements of messages that can't be run.
async fn call(
    topic: &TopicState,
    plugin: &Arc<Plugin>,
    chunk: &mut [WorkItem],
) -> Result<Vec<Unsettled>, Vec<Unsettled>> {
    let now = topic.queue.now();
    let mut unsettled = Vec::with_capacity(chunk.len());
    let (mut runs, mut jobs) = (Vec::with_capacity(chunk.len()), Vec::with_capacity(chunk.len()));
    for item in chunk {
        match runnable(topic, item, now) {
            Ok(message) => {
                let (id, attempt) = (message.id.clone(), message.attempt);
                let span = RunSpan::for_message(topic.topic().clone(), plugin.label().clone(), id, attempt);
                let run = Run::new(&message, item.claim.clone(), plugin, span.clone(), now);
                let (entry, max_attempts) = (item.entry().to_string(), run.retry_state.max_attempts);
                runs.push((&mut item.delivery, run));
                jobs.push(Job { message, entry, max_attempts, span });
            }
            Err(not_run) => unsettled.push(*not_run),
        }
    }
    if jobs.is_empty() {
        return Ok(unsettled);
    }
    if jobs.len() > 1 {
        let span = RunSpan::for_batch(topic.topic().clone(), plugin.label().clone(), jobs.len());
        jobs.iter_mut().for_each(|job| job.span = span.clone());
    }
    let started = Instant::now();
    let called = plugin.call(&mut jobs).await;
    let took = started.elapsed();
    if runs.len() > 1 && called.outcomes.iter().all(Outcome::ended_instance) {
        let (size, outcome) = (runs.len(), called.outcomes[0].name());
        let kind = Kind { event: events::BATCH_SPLIT, outcome: Some(outcome), dead: None };
        if topic.repeats.admit(kind, || format!("a batch of {size}")) {
            tracing::warn!(topic = %topic.topic(), size, outcome, "{}", events::BATCH_SPLIT);
        } else {
            tracing::debug!(topic = %topic.topic(), size, outcome, "{}", events::BATCH_SPLIT);
        }
        return Err(unsettled);
    }
    let metrics = topic.metrics();
    metrics.admission_wait_seconds.observe(called.admission_wait.as_secs_f64());
    let ran = took.saturating_sub(called.admission_wait);
    plugin.probation().record(runs.iter().map(|(_, run)| run.span.id()).zip(&called.outcomes));
    for ((delivery, run), outcome) in runs.into_iter().zip(called.outcomes) {
        metrics.handler_seconds.observe(ran.as_secs_f64());
        log_handled(&run, &outcome, took);
        unsettled.push(judged(&topic.queue, delivery, run, outcome, took));
    }
    Ok(unsettled)
}

/// The run has ended. What becomes of its message is logged at the settlement.
fn log_handled(run: &Run, outcome: &Outcome, took: Duration) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        let outcome = outcome.name();
        run.span.in_scope(|| tracing::debug!(outcome, ?took, "{}", events::HANDLED));
    }
}

/// The message, or the settlement of an entry that can't be run.
fn runnable(topic: &TopicState, item: &mut WorkItem, now: Timestamp) -> Result<Message, Box<Unsettled>> {
    let delivery = &item.delivery;
    if delivery.fields.is_empty() {
        // Nothing is left of it, not even for a dead letter.
        let not_run = Unsettled::not_run(delivery.discard(DoneKind::Done), "entry-deleted");
        let error = "its entry was deleted or trimmed after its delivery and before its run".to_owned();
        return Err(Box::new(Unsettled { error, ..not_run }));
    }
    let dead = |item: &WorkItem, reason: &'static str, error: String| {
        Err(Box::new(Unsettled::unrunnable(&topic.queue, item, reason, error)))
    };
    let (bytes, bytes_max) = (delivery.bytes(), topic.settings().message_bytes_max);
    if bytes > bytes_max {
        return dead(item, "too-large", format!("{bytes} bytes; queue.max_message is {}", size(bytes_max as u64)));
    }
    if delivery.fields.len() > FIELDS_MAX {
        let error = format!("{} fields; at most {FIELDS_MAX}", delivery.fields.len());
        return dead(item, "too-large", error);
    }
    let message = match item.take_message(topic.topic()) {
        Ok(message) => message,
        Err(error) => return dead(item, "decode", error.to_string()),
    };
    if message.expires_at.is_some_and(|at| at <= now) {
        let settlement = item.delivery.discard(DoneKind::Expired).with_claim(item.claim.clone());
        return Err(Box::new(Unsettled { id: Some(message.id), ..Unsettled::not_run(settlement, "expired") }));
    }
    let waited = now.duration_since(message::entry_time(&item.entry().id)).as_secs_f64();
    topic.metrics().wait_seconds.observe(waited.max(0.0));
    Ok(message)
}
