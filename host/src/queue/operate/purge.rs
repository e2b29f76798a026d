//! Deletes waiting messages without blocking Redis: streams in batches, other
//! keys by one `UNLINK`.

use super::never_ours;
use super::search::Progress;
use crate::queue::error::QueueError;
use crate::queue::keyspace::StreamKind;
use crate::queue::lua::scripts::{self, BATCH_BYTES};
use crate::queue::topic::TopicHandle;

/// The most that one script deletes, since nothing else runs on the server meanwhile.
const BATCH: usize = 500;

/// How many messages were deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    pub waiting: u64,
    pub delayed: u64,
}

pub struct Purge {
    handle: TopicHandle,
}

impl Purge {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    /// Deletes the messages that wait now and, if asked for, delayed ones; never
    /// messages in flight. It goes through the keys in the order in which messages
    /// pass through them, so that a message that moves meanwhile is still deleted.
    pub async fn purge(&self, delayed: bool, progress: &mut Progress<'_>) -> Result<Purged, QueueError> {
        let (handle, keys) = (&self.handle, self.handle.keys());
        let mut purged = Purged::default();
        if delayed {
            purged.delayed += self.purge_delayed(progress).await?;
            let is_same_slot = handle.connection().is_same_slot(&keys.main, &keys.legacy_delayed);
            let legacy = [keys.legacy_delayed.as_str(), &keys.state];
            let count = self.delete_key(if is_same_slot { &legacy } else { &legacy[..1] }, progress).await?;
            if !is_same_slot && count > 0 {
                handle.add_to_counter("purged", count).await;
            }
            purged.delayed += count;
        }
        for list in [&keys.main, &keys.input] {
            purged.waiting += self.delete_key(&[list, &keys.state], progress).await?;
        }
        for stream in StreamKind::ALL {
            purged.waiting += self.purge_stream(handle.key(stream), progress).await?;
            purged.waiting += never_ours::delete(handle, stream, progress).await?;
        }
        Ok(purged)
    }

    /// How many other groups read the topic's streams: they lose what is deleted.
    pub async fn other_groups(&self) -> Result<u64, QueueError> {
        let mut others = 0;
        for stream in StreamKind::ALL {
            // No entry has this id, so nothing is deleted.
            others += self.purge_batch(self.handle.key(stream), "0-0").await?.1;
        }
        Ok(others)
    }

    /// Deletes a list or a sorted set; `keys` are those of the script.
    async fn delete_key(&self, keys: &[&str], progress: &mut Progress<'_>) -> Result<u64, QueueError> {
        let mut script = scripts::PURGE.prepare_invoke();
        script.key(keys).arg("whole");
        let (count, _): (u64, u64) = script.invoke_async(&mut self.handle.shared()).await?;
        if count > 0 {
            progress(count);
        }
        Ok(count)
    }

    /// Deletes as many delayed messages as there are at the start, so that it ends
    /// while others are added.
    async fn purge_delayed(&self, progress: &mut Progress<'_>) -> Result<u64, QueueError> {
        let (keys, mut purged) = (self.handle.keys(), 0);
        let mut left: u64 = redis::cmd("ZCARD").arg(&keys.delayed).query_async(&mut self.handle.shared()).await?;
        while left > 0 {
            let mut script = scripts::PURGE.key(&keys.delayed);
            script.key(&keys.state).key(&keys.claims).key(&keys.delayed_body).arg("delayed").arg("").arg("");
            script.arg(left.min(BATCH as u64)).arg(BATCH_BYTES);
            let (count, _): (u64, u64) = script.invoke_async(&mut self.handle.shared()).await?;
            if count == 0 {
                break;
            }
            progress(count);
            purged += count;
            left = left.saturating_sub(count);
        }
        Ok(purged)
    }

    /// Deletes the entries that wait in a stream, up to the newest one at the
    /// start, so that it ends while others publish.
    async fn purge_stream(&self, key: &str, progress: &mut Progress<'_>) -> Result<u64, QueueError> {
        let Some(last) = self.last_id(key).await? else { return Ok(0) };
        let mut purged = 0;
        loop {
            let (count, _) = self.purge_batch(key, &last).await?;
            if count == 0 {
                return Ok(purged);
            }
            progress(count);
            purged += count;
        }
    }

    /// Returns how many were deleted, and how many other groups read the stream.
    async fn purge_batch(&self, key: &str, last: &str) -> Result<(u64, u64), QueueError> {
        let mut script = scripts::PURGE.key(key);
        let keys = self.handle.keys();
        script.key(&keys.state).key(&keys.claims).arg("waiting").arg(self.handle.group());
        script.arg(last).arg(BATCH).arg(BATCH_BYTES);
        Ok(script.invoke_async(&mut self.handle.shared()).await?)
    }

    /// The id of a stream's newest entry; `None` where the key is no stream.
    async fn last_id(&self, key: &str) -> Result<Option<String>, QueueError> {
        let mut shared = self.handle.shared();
        let kind: String = redis::cmd("TYPE").arg(key).query_async(&mut shared).await?;
        if kind != "stream" {
            return Ok(None);
        }
        let mut command = redis::cmd("XREVRANGE");
        command.arg(key).arg("+").arg("-").arg("COUNT").arg(1);
        let newest: Vec<(String, redis::Value)> = command.query_async(&mut shared).await?;
        Ok(newest.into_iter().next().map(|(last, _)| last))
    }
}
