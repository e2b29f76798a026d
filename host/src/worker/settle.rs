//! The settler: puts verdicts into effect, many at a time, until Redis has
//! confirmed each.

use super::keep::BEAT;
use super::refused::Refused;
use super::{BATCH_MAX, Fallback, Lane, PAUSE_MAX, PAUSE_MIN};
use crate::queue::{ERROR_FIELD, EntryId, QueueError, Settled, Settlement};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

impl Lane {
    pub(super) async fn settle_until(
        &self,
        mut receiver: mpsc::UnboundedReceiver<Vec<Settlement>>,
        drained: &CancellationToken,
    ) {
        let mut refused = Refused::default();
        while !drained.is_cancelled() {
            let mut fresh = Vec::with_capacity(BATCH_MAX);
            tokio::select! {
                biased;
                Some(more) = receiver.recv() => fresh.extend(more),
                () = refused.are_due() => {}
                () = drained.cancelled() => return,
            }
            // What came in meanwhile goes along.
            while fresh.len() < BATCH_MAX
                && let Ok(more) = receiver.try_recv()
            {
                fresh.extend(more);
            }
            for again in self.settle_surely(fresh, drained).await {
                refused.add(again);
            }
            // By themselves: what can be settled does not wait for what can't,
            // and where memory is full it is what makes room.
            let due = refused.take_due();
            if !due.is_empty() {
                let tried = due.len();
                let again = self.settle_surely(due, drained).await;
                refused.tried(tried, again);
            }
            if let Some((waiting, entry, error)) = refused.tell() {
                tracing::warn!(topic = %self.topic(), waiting, %entry, error, "not settled yet");
            }
        }
    }

    /// Settles a batch, as soon as there is a Redis that does. Returns what it
    /// refused, with why.
    async fn settle_surely(
        &self,
        mut batch: Vec<Settlement>,
        drained: &CancellationToken,
    ) -> Vec<(Settlement, String)> {
        let (mut refused, mut pause) = (Vec::new(), PAUSE_MIN);
        while !batch.is_empty() {
            match self.settle(&mut batch, &mut refused).await {
                Ok(()) => continue,
                Err(error) => tracing::warn!(topic = %self.topic(), %error, retry_in = ?pause, "not settled yet"),
            }
            if tokio::time::timeout(pause, drained.cancelled()).await.is_ok() {
                break;
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
        refused
    }

    /// Settles a batch once. What is left in it has another fate now.
    async fn settle(
        &self,
        batch: &mut Vec<Settlement>,
        refused: &mut Vec<(Settlement, String)>,
    ) -> Result<(), QueueError> {
        let _settling = self.settling.lock().await;
        let window = self.dedup_window().unwrap_or_default();
        let results = self.queue.settlements.settle(batch, window).await?;
        let (mut settled, mut left) = (Vec::with_capacity(batch.len()), Vec::new());
        for (settlement, result) in batch.drain(..).zip(results) {
            match result {
                Settled::Ok => settled.push(settlement),
                Settled::Gone => {
                    tracing::debug!(topic = %self.topic(), entry = %settlement.entry, "settled by another, or twice");
                    settled.push(settlement);
                }
                Settled::FollowUpsRefused(error) => match self.failed(&settlement.entry, &error) {
                    Some(failed) => left.push(failed),
                    None => refused.push((settlement, error)),
                },
                Settled::Failed(error) => refused.push((settlement, error)),
            }
        }
        *batch = left;
        self.release(settled.iter().map(|one| &one.entry));
        let is_soon = |one: &Settlement| one.runs_again_in().is_some_and(|after| after < BEAT);
        if settled.iter().any(|one| self.queue.settlements.uses_outbox(one)) {
            self.has_outgoing.store(true, Ordering::SeqCst);
            self.outgoing.notify_one();
        }
        if settled.iter().any(is_soon) {
            self.due.notify_one();
        }
        Ok(())
    }

    /// A run that ended well has failed after all, and costs its attempt.
    fn failed(&self, entry: &EntryId, error: &str) -> Option<Settlement> {
        let settlement = match self.fallbacks().remove(entry)? {
            Fallback::RunAgain(settlement) => settlement,
            Fallback::DeadLetter(delivery, mut fields) => {
                fields.retain(|(name, _)| name != ERROR_FIELD.as_bytes());
                fields.push((ERROR_FIELD.into(), format!("its follow-ups can't be sent: {error}").into_bytes()));
                delivery.dead_letter(fields)
            }
        };
        let topic = self.topic();
        self.metrics.outcome("retry").inc();
        if settlement.is_dead_letter() {
            self.metrics.dead_letter("retry");
        }
        let (is_dead, again_in) = (settlement.is_dead_letter(), settlement.runs_again_in());
        tracing::warn!(%topic, %entry, error, is_dead, ?again_in, "the follow-ups of a run can't be sent: it has failed");
        Some(settlement)
    }

    pub(super) fn fallbacks(&self) -> MutexGuard<'_, HashMap<EntryId, Fallback>> {
        self.fallbacks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are no longer ours to settle.
    pub(super) fn release<'a>(&self, entries: impl IntoIterator<Item = &'a EntryId>) {
        let (mut held, mut fallbacks) = (self.held(), self.fallbacks());
        for entry in entries {
            held.remove(entry);
            fallbacks.remove(entry);
        }
        self.metrics.in_flight.set(i64::try_from(held.len()).unwrap_or(i64::MAX));
        drop((held, fallbacks));
        self.room.notify_one();
    }
}
