//! Tells which messages have finished, so that their duplicates don't run.

use crate::queue::error::QueueError;
use crate::queue::topic::{TopicHandle, markers};

pub struct Dedup {
    handle: TopicHandle,
}

impl Dedup {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    /// Which of these deduplication keys belong to a message that has finished
    /// within the topic's window.
    pub async fn finished(&self, dedup_keys: &[String]) -> Result<Vec<bool>, QueueError> {
        markers::finished(&self.handle, dedup_keys).await
    }
}
