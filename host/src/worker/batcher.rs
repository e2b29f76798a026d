//! What a runner processes next: one message, or as many as make a batch.

use super::topic::TopicState;
use super::work_item::WorkItem;
use crate::manifest::Batch;
use tokio::time::{Instant, sleep_until};

/// The next messages, to be run together. `None` ends the runner.
pub(super) async fn next(topic: &TopicState) -> Option<Vec<WorkItem>> {
    let batch = topic.plugin().manifest().batch;
    let Some(batch) = batch else {
        return Some(vec![next_one(topic)?]);
    };
    let _turn = topic.dispatch.batch_turn.lock().await;
    loop {
        let collected = collect(topic, batch).await?;
        if !topic.view.is_paused() {
            return Some(collected);
        }
        topic.in_flight.unclaim(collected.iter().map(WorkItem::entry));
    }
}

/// As many as make a batch; fewer when its time is over, and at a stop or pause.
async fn collect(topic: &TopicState, batch: Batch) -> Option<Vec<WorkItem>> {
    let mut collected = vec![next_one(topic)?];
    if collected[0].needs_isolation() {
        return Some(collected);
    }
    let dispatch = &topic.dispatch;
    let ends = Instant::now() + batch.wait;
    while collected.len() < batch.size && !topic.view.is_paused() {
        if let Some(one) = dispatch.local_queue.next_if(|one| !one.needs_isolation()) {
            collected.push(one);
            continue;
        }
        tokio::select! {
            () = dispatch.arrived.notified() => {}
            () = topic.view.paused() => {}
            () = sleep_until(ends) => break,
            () = topic.stop.cancelled() => break,
        }
    }
    Some(collected)
}

fn next_one(topic: &TopicState) -> Option<WorkItem> {
    let (item, waiting) = topic.dispatch.local_queue.next()?;
    if waiting == topic.low_water() {
        topic.in_flight.wake_intake();
    }
    Some(item)
}
