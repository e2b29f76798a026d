//! The settler: puts verdicts into effect, many at a time, until Redis has
//! confirmed each.

use super::keep::BEAT;
use super::{BATCH_MAX, Lane, PAUSE_MAX, PAUSE_MIN};
use crate::queue::{QueueError, Settled, Settlement};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How long a settlement waits for others that are under way.
const GATHER: Duration = Duration::from_millis(1);
/// With so many it waits no longer.
const GATHERED: usize = 64;

impl Lane {
    pub(super) async fn settle_until(
        &self,
        mut receiver: mpsc::UnboundedReceiver<Settlement>,
        drained: &CancellationToken,
    ) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut pause = PAUSE_MIN;
        loop {
            if batch.is_empty() {
                tokio::select! {
                    biased;
                    count = receiver.recv_many(&mut batch, BATCH_MAX) => if count == 0 { return },
                    () = drained.cancelled() => return,
                }
                self.gather(&mut receiver, &mut batch).await;
            }
            match self.settle(&mut batch).await {
                Ok(()) if batch.is_empty() => pause = PAUSE_MIN,
                Ok(()) => {}
                Err(error) => tracing::warn!(topic = %self.topic(), %error, retry_in = ?pause, "not settled yet"),
            }
            if !batch.is_empty() {
                let _ = tokio::time::timeout(pause, drained.cancelled()).await;
                if drained.is_cancelled() {
                    return;
                }
                pause = (pause * 2).min(PAUSE_MAX);
                // What came in meanwhile does not wait for what can't be settled.
                while batch.len() < BATCH_MAX
                    && let Ok(more) = receiver.try_recv()
                {
                    batch.push(more);
                }
            }
        }
    }

    /// Waits a moment for what else is about to end, so that many share one
    /// script. What the last one holds up is only its own room.
    async fn gather(&self, receiver: &mut mpsc::UnboundedReceiver<Settlement>, batch: &mut Vec<Settlement>) {
        let deadline = tokio::time::Instant::now() + GATHER;
        while batch.len() < GATHERED && batch.len() < self.held().len() {
            let more = receiver.recv_many(batch, BATCH_MAX - batch.len());
            if !matches!(tokio::time::timeout_at(deadline, more).await, Ok(1..)) {
                return;
            }
        }
    }

    /// Settles a batch; what is left in it is to be tried again.
    async fn settle(&self, batch: &mut Vec<Settlement>) -> Result<(), QueueError> {
        let results = self.queue.settle(batch).await?;
        let mut left = Vec::new();
        let mut is_due_soon = false;
        for (settlement, result) in batch.drain(..).zip(results) {
            match result {
                Settled::Ok | Settled::Gone => {
                    is_due_soon |= matches!(&settlement, Settlement::Later { after, .. } if *after < BEAT);
                    if result == Settled::Gone {
                        tracing::debug!(topic = %self.topic(), entry = settlement.entry_id(), "settled by another, or twice");
                    }
                    self.release(settlement.entry_id());
                }
                Settled::Failed(error) => {
                    tracing::warn!(topic = %self.topic(), entry = settlement.entry_id(), error, "not settled yet");
                    left.push(settlement.or_later(&error, PAUSE_MAX));
                }
            }
        }
        *batch = left;
        if is_due_soon {
            self.due.notify_one();
        }
        Ok(())
    }

    pub(super) fn release(&self, entry_id: &str) {
        let mut held = self.held();
        held.remove(entry_id);
        self.metrics.in_flight.set(i64::try_from(held.len()).unwrap_or(i64::MAX));
        drop(held);
        self.room.notify_one();
    }
}
