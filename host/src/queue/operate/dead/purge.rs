//! Deletes many dead letters.

use super::letter::Origin;
use super::letters::newest;
use crate::queue::error::QueueError;
use crate::queue::lua::scripts::{self, BATCH_BYTES};
use crate::queue::topic::TopicHandle;
use std::time::Duration;

/// The most that one script deletes, since nothing else runs on the server meanwhile.
const BATCH: usize = 100;

pub struct DeadLetterPurge {
    handle: TopicHandle,
}

impl DeadLetterPurge {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    /// Deletes a batch of the dead letters up to `last`, which the first call sets
    /// to the newest one. Returns how many; 0 is the end.
    pub async fn all(&self, origin: Origin, last: &mut Option<String>) -> Result<u64, QueueError> {
        if last.is_none() {
            *last = newest(&self.handle, origin).await?;
        }
        let Some(last) = last else { return Ok(0) };
        self.delete_batch(origin, last, 0).await
    }

    /// Deletes a batch of the dead letters that died longer ago than this. Returns
    /// how many; 0 is the end.
    pub async fn older_than(&self, origin: Origin, age: Duration) -> Result<u64, QueueError> {
        // 0 means any age to the script.
        self.delete_batch(origin, "", age.as_millis().max(1)).await
    }

    async fn delete_batch(&self, origin: Origin, last: &str, age_ms: u128) -> Result<u64, QueueError> {
        let mut script = scripts::DEAD_PURGE.key(origin.key(self.handle.keys()));
        script.arg(last).arg(age_ms).arg(BATCH).arg(BATCH_BYTES);
        Ok(script.invoke_async(&mut self.handle.shared()).await?)
    }
}
