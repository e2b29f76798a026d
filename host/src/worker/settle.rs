//! The settler: puts verdicts into effect, many at a time, until Redis has
//! confirmed each.

use super::keep::BEAT;
use super::{BATCH_MAX, Lane, PAUSE_MAX, PAUSE_MIN};
use crate::queue::{EntryKey, QueueError, Settled, Settlement};
use std::sync::atomic::Ordering;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

impl Lane {
    pub(super) async fn settle_until(
        &self,
        mut receiver: mpsc::UnboundedReceiver<Vec<Settlement>>,
        drained: &CancellationToken,
    ) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut pause = PAUSE_MIN;
        loop {
            if batch.is_empty() {
                tokio::select! {
                    biased;
                    Some(more) = receiver.recv() => batch.extend(more),
                    () = drained.cancelled() => return,
                }
            }
            // What came in meanwhile goes along, and does not wait for what
            // can't be settled now.
            while batch.len() < BATCH_MAX
                && let Ok(more) = receiver.try_recv()
            {
                batch.extend(more);
            }
            match self.settle(&mut batch).await {
                Ok(()) if batch.is_empty() => {
                    pause = PAUSE_MIN;
                    continue;
                }
                Ok(()) => {}
                Err(error) => tracing::warn!(topic = %self.topic(), %error, retry_in = ?pause, "not settled yet"),
            }
            if tokio::time::timeout(pause, drained.cancelled()).await.is_ok() {
                return;
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Settles a batch; what is left in it is to be tried again.
    async fn settle(&self, batch: &mut Vec<Settlement>) -> Result<(), QueueError> {
        let window = self.dedup_window().unwrap_or_default();
        let results = self.queue.settle(batch, window).await?;
        let (mut settled, mut left) = (Vec::with_capacity(batch.len()), Vec::new());
        for (settlement, result) in batch.drain(..).zip(results) {
            match result {
                Settled::Ok => settled.push(settlement),
                Settled::Gone => {
                    tracing::debug!(topic = %self.topic(), entry = %settlement.entry, "settled by another, or twice");
                    settled.push(settlement);
                }
                Settled::Failed(error) => {
                    tracing::warn!(topic = %self.topic(), entry = %settlement.entry, error, "not settled yet");
                    left.push(settlement.or_later(&error, PAUSE_MAX));
                }
            }
        }
        *batch = left;
        self.release(settled.iter().map(|one| &one.entry));
        let is_soon = |one: &Settlement| one.comes_back_in().is_some_and(|after| after < BEAT);
        let is_outgoing = settled.iter().any(|one| self.queue.sends_out(one));
        if is_outgoing {
            self.has_outgoing.store(true, Ordering::SeqCst);
        }
        if is_outgoing || settled.iter().any(is_soon) {
            self.due.notify_one();
        }
        Ok(())
    }

    /// These are no longer ours to settle.
    pub(super) fn release<'a>(&self, entries: impl IntoIterator<Item = &'a EntryKey>) {
        let mut held = self.held();
        for entry in entries {
            held.remove(entry);
        }
        self.metrics.in_flight.set(i64::try_from(held.len()).unwrap_or(i64::MAX));
        drop(held);
        self.room.notify_one();
    }
}
