//! What a runner works off next: one message, or as many as make a batch.

use super::Lane;
use super::alone::SUSPECT;
use crate::manifest::Batch;
use crate::queue::Delivery;
use std::sync::atomic::Ordering;
use tokio::time::{Instant, sleep_until};

impl Lane {
    /// The next messages to be run together. With `None` the runner has ended.
    pub(super) async fn next(&self) -> Option<Vec<Delivery>> {
        let Some(batch) = self.plugin.load().manifest().batch else {
            return Some(vec![self.next_one()?]);
        };
        // One gathers at a time, or each would wait for what the others have.
        let _gathering = self.gathering.lock().await;
        loop {
            let gathered = self.gather(batch).await?;
            if !self.is_paused() {
                return Some(gathered);
            }
            self.set_aside(&gathered);
        }
    }

    /// As many as make a batch; fewer at its time, a stop or a pause.
    async fn gather(&self, batch: Batch) -> Option<Vec<Delivery>> {
        let mut gathered = vec![self.next_one()?];
        // Who is to run alone is no batch.
        if gathered[0].crash_count >= SUSPECT {
            return Some(gathered);
        }
        let ends = Instant::now() + batch.wait;
        while gathered.len() < batch.size && !self.is_paused() {
            if let Some(one) = self.backlog.next_if(|one| one.crash_count < SUSPECT) {
                gathered.push(one);
                continue;
            }
            tokio::select! {
                () = self.arrived.notified() => {}
                () = sleep_until(ends) => break,
                () = self.stop.cancelled() => break,
            }
        }
        Some(gathered)
    }

    /// Not begun, and not to be begun now: the reader gives back what we do not hold.
    pub(super) fn set_aside(&self, taken: &[Delivery]) {
        self.release(taken.iter().map(|one| &one.entry));
        self.must_reconcile.store(true, Ordering::SeqCst);
    }

    fn next_one(&self) -> Option<Delivery> {
        let (taken, left) = self.backlog.next()?;
        if left == self.low_water() {
            self.room.notify_one();
        }
        Some(taken)
    }
}
