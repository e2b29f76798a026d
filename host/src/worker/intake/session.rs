//! Consumes a topic: connects, opens its keys, fetches until something changes,
//! and does so again after each failure.

use super::drain::requeue_not_in_flight;
use super::fetch::Fetcher;
use crate::backoff::Backoff;
use crate::events;
use crate::queue::{
    self, Leases, LegacyPending, ListEnd, ListIntake, Probes, QueueError, StreamKind, TopicKeys, TopicKind,
};
use crate::worker::receive::{Arrival, log_legacy_acknowledged, receive};
use crate::worker::renewal::renew;
use crate::worker::retry_log::log_retry;
use crate::worker::topic::TopicState;
use crate::worker::work_item::WorkItem;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// A session that lasted this long has worked: the next pause is the shortest.
const HEALTHY: Duration = Duration::from_secs(2);

/// A key that does not exist yet is looked at this often.
const ABSENT: Duration = Duration::from_secs(2);

/// A paused topic is looked at this often.
const PAUSED: Duration = Duration::from_secs(1);

pub(super) async fn consume_until_stopped(topic: &Arc<TopicState>) {
    let (mut backoff, mut failing_since) = (Backoff::default(), Instant::now());
    while !topic.stop.is_cancelled() {
        let started = Instant::now();
        let ended = session(topic).await;
        // Whether Redis was away for longer than leases last is not known now.
        topic.view.set_connected_since(None);
        let Err(error) = ended else {
            failing_since = Instant::now();
            continue;
        };
        if started.elapsed() > HEALTHY {
            backoff.reset();
            failing_since = Instant::now();
        }
        let retry_in = backoff.next_pause();
        if matches!(error, QueueError::GroupLost) {
            tracing::warn!(topic = %topic.topic(), group = topic.queue.group(), "{}", events::GROUP_LOST);
        } else {
            topic.view.set_fetch_trouble(Some(&error));
            topic.view.set_consuming(false);
            log_retry(topic, events::NOT_CONSUMING, &error, failing_since, retry_in);
        }
        let _ = timeout(retry_in, topic.stop.cancelled()).await;
    }
}

/// One connection's life: until it breaks or the topic stops.
async fn session(topic: &Arc<TopicState>) -> Result<(), QueueError> {
    let mut fetcher = Fetcher::new(topic).await?;
    let mut is_first = true;
    while let Some(keys) = open(topic, &mut fetcher).await? {
        begin(topic, &keys, is_first).await?;
        is_first = false;
        consume(topic, &mut fetcher, &keys).await?;
    }
    Ok(())
}

/// Waits until there is a stream to read, and returns the topic's keys; `None`
/// at a stop.
async fn open(topic: &Arc<TopicState>, fetcher: &mut Fetcher<'_>) -> Result<Option<Arc<TopicKeys>>, QueueError> {
    loop {
        fetcher.leave_if_asked();
        topic.view.begin_opening();
        let keys = queue::open(&topic.queue).await?;
        if topic.stop.is_cancelled() {
            return Ok(None);
        }
        let kind = keys.kind.clone();
        topic.view.set_keys(keys);
        if let TopicKind::Other(kind) = kind {
            return Err(QueueError::WrongType(format!("the topic's key holds a {kind}, not a stream or list")));
        }
        if kind == TopicKind::List {
            topic.shared.hints.list_intake.now(topic);
        }
        // What a lost worker had moved out of a list does not wait until the key
        // is a list again.
        let list = ListIntake::new(topic.queue.clone());
        if kind == TopicKind::Stream && list.move_batch(ListEnd::Left).await.is_ok_and(|moved| moved > 0) {
            continue;
        }
        let keys = topic.view.keys();
        if !keys.streams.is_empty() {
            return Ok(Some(keys));
        }
        topic.view.set_consuming(true);
        if keys.absent.is_empty() {
            topic.view.set_fetch_trouble(None);
            let _ = timeout(ABSENT, topic.stop.cancelled()).await;
        } else {
            fetcher.wait_for_more(&keys, &[], ABSENT).await?;
            topic.view.set_fetch_trouble(None);
        }
    }
}

/// What comes before the first message is fetched.
async fn begin(topic: &Arc<TopicState>, keys: &TopicKeys, is_first: bool) -> Result<(), QueueError> {
    topic.view.set_paused(keys.is_paused);
    // Redis may have been away for longer than a lease. Ours are renewed first,
    // and no lease counts as expired until its owner had the time for that too.
    renew(topic).await?;
    if is_first {
        topic.queue.refresh_clock().await?;
    }
    if keys.streams.contains(&StreamKind::Normal) {
        // However fresh: a legacy worker writes the copy at the moment of its failure.
        let legacy = LegacyPending::new(topic.queue.clone());
        log_legacy_acknowledged(topic, legacy.acknowledge_copied(Duration::ZERO).await?);
    }
    if is_first {
        // From here on messages may be reclaimed, those of legacy workers too.
        topic.view.set_connected_since(Some(Instant::now()));
    }
    tracing::debug!(topic = %topic.topic(), kind = ?keys.kind, streams = ?keys.streams, "{}", events::TOPIC_OPENED);
    topic.view.set_consuming(true);
    Ok(())
}

/// Fetches until the keys must be opened again.
async fn consume(topic: &Arc<TopicState>, fetcher: &mut Fetcher<'_>, keys: &TopicKeys) -> Result<(), QueueError> {
    let lease = topic.settings().lease;
    let (mut reconciled, mut was_requeued) = (None::<Instant>, false);
    while !topic.stop.is_cancelled() && !topic.view.must_reopen() {
        fetcher.leave_if_asked();
        if topic.view.is_paused() {
            wait_while_paused(topic).await?;
            // Some of what was requeued may still be under our name.
            (reconciled, was_requeued) = (None, true);
            continue;
        }
        // Little can be lost on the way to an idle topic: what a reclaim brought, or
        // a read that reached Redis after it was given up.
        let may_differ = topic.in_flight.may_differ();
        let every = if may_differ { lease / 3 } else { lease };
        if reconciled.is_none_or(|at: Instant| at.elapsed() >= every) {
            was_requeued |= topic.in_flight.begin_comparison();
            let has_found = reconcile(topic, was_requeued).await?;
            // There may be more, and they are ours whether there is capacity or not.
            reconciled = (!has_found).then(Instant::now);
            was_requeued &= has_found;
            continue;
        }
        let capacity = topic.capacity();
        if capacity == 0 || topic.dispatch.local_queue.waiting() > topic.low_water() {
            let _ = timeout(lease / 3, topic.in_flight.freed()).await;
            continue;
        }
        let deliveries = fetcher.fetch(keys, capacity).await?;
        topic.view.set_fetch_trouble(None);
        receive(topic, deliveries, Arrival::Fetched).await?;
    }
    Ok(())
}

/// What has not begun goes back, and the topic's state is looked at.
async fn wait_while_paused(topic: &TopicState) -> Result<(), QueueError> {
    let waiting = topic.dispatch.local_queue.clear();
    topic.in_flight.remove(waiting.iter().map(WorkItem::entry));
    requeue_not_in_flight(topic).await?;
    let _ = timeout(PAUSED, topic.stop.cancelled()).await;
    topic.view.set_paused(Probes::new(topic.queue.clone()).flags().await?.is_paused);
    Ok(())
}

/// Finds a batch of what Redis has delivered to us and is not in flight here.
/// Returns whether there was any. `was_requeued` says whether we have given
/// something back, which is then found too.
async fn reconcile(topic: &Arc<TopicState>, mut was_requeued: bool) -> Result<bool, QueueError> {
    let _comparison = topic.intake.comparison.lock().await;
    let leases = Leases::new(topic.queue.clone());
    let mut has_found = false;
    for stream in topic.view.keys().streams.iter().copied() {
        let (mut known, may_return) = topic.dispatch.deferred_entries();
        known.extend(topic.in_flight.entries());
        was_requeued |= may_return;
        let found = leases.reconcile(stream, &known).await?;
        if !found.is_empty() {
            let (topic, count) = (topic.topic(), found.len());
            has_found = true;
            if was_requeued {
                tracing::debug!(%topic, count, "{}", events::FETCHED_AGAIN);
            } else {
                tracing::warn!(%topic, count, "{}", events::RECOVERED);
            }
        }
        receive(topic, found, Arrival::Again).await?;
    }
    Ok(has_found)
}
