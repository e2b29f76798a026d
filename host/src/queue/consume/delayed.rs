//! Moves delayed messages to their streams once they are due.

use crate::queue::error::QueueError;
use crate::queue::lua::scripts::{self, BATCH_BYTES};
use crate::queue::topic::TopicHandle;
use std::time::Duration;

/// The most that one script moves, since nothing else runs on the server meanwhile.
const BATCH: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promoted {
    pub moved: usize,
    /// When the next message is due.
    pub next_due: Option<Duration>,
}

pub struct Delayed {
    handle: TopicHandle,
}

impl Delayed {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    /// Moves one batch of due messages.
    pub async fn promote(&self) -> Result<Promoted, QueueError> {
        let keys = self.handle.keys();
        let mut script = scripts::PROMOTE.prepare_invoke();
        script.key(&keys.for_publish()[..]).key(&keys.dead).arg(BATCH).arg(BATCH_BYTES);
        let (moved, next_ms): (usize, i64) = script.invoke_async(&mut self.handle.shared()).await?;
        Ok(Promoted { moved, next_due: u64::try_from(next_ms).ok().map(Duration::from_millis) })
    }

    /// Whether any message is delayed. This costs less than [`Self::promote`].
    pub async fn exists(&self) -> Result<bool, QueueError> {
        Ok(redis::cmd("EXISTS").arg(&self.handle.keys().delayed).query_async(&mut self.handle.shared()).await?)
    }
}
