//! Records isolated runs in Redis, so that the workers that are lost during one
//! are counted.

use crate::queue::error::QueueError;
use crate::queue::keyspace::EntryId;
use crate::queue::lua::scripts;
use crate::queue::topic::TopicHandle;

/// How long a record is stored if no worker deletes it.
const RECORD_SECONDS: u32 = 7 * 24 * 60 * 60;

pub struct Isolation {
    handle: TopicHandle,
}

impl Isolation {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    /// Records that a message is about to run in isolation, under its first entry.
    /// Returns how many workers were lost during its earlier isolated runs.
    pub async fn begin(&self, entry: &EntryId, first_entry: &EntryId) -> Result<u32, QueueError> {
        let handle = &self.handle;
        let mut script = scripts::ISOLATE.key(handle.key(entry.stream));
        script.key(&handle.keys().isolated).arg(handle.group()).arg(handle.consumer()).arg(&entry.id);
        script.arg(first_entry.to_string()).arg(RECORD_SECONDS);
        let runs: u32 = script.invoke_async(&mut handle.shared()).await?;
        Ok(runs.saturating_sub(1))
    }

    /// Deletes the record: the isolated run has ended, and its worker is alive.
    pub async fn clear(&self, first_entry: &EntryId) -> Result<(), QueueError> {
        let mut command = redis::cmd("HDEL");
        // The number of runs, and the worker of the last one.
        command.arg(&self.handle.keys().isolated).arg(first_entry.to_string()).arg(format!("{first_entry}:by"));
        Ok(command.query_async(&mut self.handle.shared()).await?)
    }
}
