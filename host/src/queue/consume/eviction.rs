//! Evicts dead letters that are over the caps.

use crate::queue::error::QueueError;
use crate::queue::lua::scripts::{self, BATCH_BYTES};
use crate::queue::topic::TopicHandle;
use crate::settings::DeadLetterCaps;

/// Each call asks Redis for the memory of all dead letters, so a batch is large.
const BATCH: usize = 1000;

/// How many dead letters were evicted, by the cap that they were over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evicted {
    pub by_age: u64,
    pub by_bytes: u64,
}

pub struct Eviction {
    handle: TopicHandle,
}

impl Eviction {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    /// Evicts one batch, oldest first, and counts it in the topic's state. If
    /// nothing was evicted, no dead letter is over the caps.
    pub async fn evict(&self, caps: DeadLetterCaps) -> Result<Evicted, QueueError> {
        let keys = self.handle.keys();
        let mut script = scripts::DEAD_EVICT.key(&keys.dead);
        // 0 is no cap, so the shortest age is 1 ms.
        script.key(&keys.state).arg(caps.age.map_or(0, |age| age.as_millis().max(1)));
        script.arg(caps.bytes.unwrap_or(0)).arg(BATCH).arg(BATCH_BYTES);
        let (by_age, by_bytes) = script.invoke_async(&mut self.handle.shared()).await?;
        Ok(Evicted { by_age, by_bytes })
    }
}
