//! Deletes what waits, so that nothing else is held up: streams in pieces, and
//! what holds nothing else at once.

use super::look::PIECE;
use super::scripts::PIECE_BYTES;
use super::source::Source;
use super::topic_queue::TopicQueue;
use super::{QueueError, scripts};

/// What was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    pub waiting: u64,
    pub delayed: u64,
}

impl TopicQueue {
    /// Deletes what waits now and, if asked for, what is delayed; never what
    /// is in flight. In the order in which messages pass through, so that one
    /// which moves on meanwhile is met again.
    pub async fn purge(&self, delayed: bool, progress: &mut (dyn FnMut(u64) + Send)) -> Result<Purged, QueueError> {
        let keys = self.keys();
        let mut purged = Purged::default();
        if delayed {
            let ours = [keys.later.as_str(), &keys.state, &keys.later_body];
            purged.delayed += self.purge_whole(&ours, progress).await?;
            let shares = self.connection().share_slot(&keys.stream, &keys.legacy_delay);
            let legacy = [keys.legacy_delay.as_str(), &keys.state];
            let reached = if shares { &legacy[..] } else { &legacy[..1] };
            let count = self.purge_whole(reached, progress).await?;
            if !shares && count > 0 {
                self.count_apart("purged", count).await;
            }
            purged.delayed += count;
        }
        for list in [&keys.stream, &keys.input] {
            purged.waiting += self.purge_whole(&[list, &keys.state], progress).await?;
        }
        for source in Source::ALL {
            purged.waiting += self.purge_waiting(source.key(keys), progress).await?;
        }
        Ok(purged)
    }

    /// The other groups that read the topic's streams: what is deleted, they
    /// lose too.
    pub async fn other_groups(&self) -> Result<u64, QueueError> {
        let mut others = 0;
        for source in Source::ALL {
            let key = source.key(self.keys());
            // Asks for none of them.
            others += self.purge_piece(key, "0-0").await?.1;
        }
        Ok(others)
    }

    /// Deletes a list or a sorted set.
    async fn purge_whole(&self, keys: &[&str], progress: &mut (dyn FnMut(u64) + Send)) -> Result<u64, QueueError> {
        let mut script = scripts::PURGE.prepare_invoke();
        script.key(keys).arg("whole");
        let (count, _): (u64, u64) = script.invoke_async(&mut self.shared()).await?;
        if count > 0 {
            progress(count);
        }
        Ok(count)
    }

    /// Deletes what waits in a stream now: to chase what comes meanwhile would
    /// have no end.
    async fn purge_waiting(&self, key: &str, progress: &mut (dyn FnMut(u64) + Send)) -> Result<u64, QueueError> {
        let Some(last) = self.last_id(key).await? else { return Ok(0) };
        let mut purged = 0;
        loop {
            let (count, _) = self.purge_piece(key, &last).await?;
            if count == 0 {
                return Ok(purged);
            }
            progress(count);
            purged += count;
        }
    }

    /// Returns how many were deleted, and how many other groups read the stream.
    async fn purge_piece(&self, key: &str, last: &str) -> Result<(u64, u64), QueueError> {
        let mut script = scripts::PURGE.key(key);
        script.key(&self.keys().state).arg("waiting").arg(self.group()).arg(last).arg(PIECE).arg(PIECE_BYTES);
        Ok(script.invoke_async(&mut self.shared()).await?)
    }

    /// Where a stream ends; nothing where the key is none.
    async fn last_id(&self, key: &str) -> Result<Option<String>, QueueError> {
        let mut shared = self.shared();
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
