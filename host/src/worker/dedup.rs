//! Copies of what has finished are not run, where the topic asks for that.

use super::Lane;
use crate::message;
use crate::queue::{Delivery, DoneKind, QueueError};
use std::time::Duration;

impl Lane {
    /// How long what has finished is remembered, where it is.
    pub(super) fn dedup_window(&self) -> Option<Duration> {
        self.plugin.load().manifest().dedup
    }

    /// Takes out of `taken` what has finished before.
    pub(super) async fn duplicates(&self, taken: &mut Vec<Delivery>) -> Result<Vec<Delivery>, QueueError> {
        if self.dedup_window().is_none() {
            return Ok(Vec::new());
        }
        let mark = |one: &Delivery| message::read(self.topic(), &one.entry.id, &one.fields).ok()?.mark().cloned();
        // What has no mark has no copies.
        let (marked, marks): (Vec<usize>, Vec<String>) =
            taken.iter().enumerate().filter_map(|(at, one)| Some((at, mark(one)?))).unzip();
        if marks.is_empty() {
            return Ok(Vec::new());
        }
        let finished = self.queue.dedup.finished(&marks).await?;
        let mut is_copy = vec![false; taken.len()];
        marked.into_iter().zip(finished).for_each(|(at, finished)| is_copy[at] = finished);
        let (copies, fresh): (Vec<_>, Vec<_>) = taken.drain(..).zip(is_copy).partition(|(_, is_copy)| *is_copy);
        *taken = fresh.into_iter().map(|(one, _)| one).collect();
        Ok(copies.into_iter().map(|(one, _)| one).collect())
    }

    pub(super) fn drop_duplicates(&self, duplicates: Vec<Delivery>) {
        if duplicates.is_empty() {
            return;
        }
        self.metrics.outcome("duplicate").inc_by(duplicates.len() as u64);
        for one in &duplicates {
            tracing::debug!(topic = %self.topic(), entry = %one.entry, outcome = "duplicate", "settled");
        }
        // The settler outlives the reader.
        let _ = self.settlements.send(duplicates.iter().map(|one| one.discard(DoneKind::Duplicate)).collect());
    }
}
