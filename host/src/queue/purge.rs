//! Deletes what waits, in pieces, so that nothing else is held up.

use super::look::PIECE;
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
            purged.delayed += self.purge_pieces(&ours, "scored", progress).await?;
            let shares = self.connection().share_slot(&keys.stream, &keys.legacy_delay);
            let legacy = [keys.legacy_delay.as_str(), &keys.state];
            let reached = if shares { &legacy[..] } else { &legacy[..1] };
            purged.delayed += self.purge_pieces(reached, "scored", progress).await?;
        }
        for list in [&keys.stream, &keys.input] {
            purged.waiting += self.purge_pieces(&[list, &keys.state], "list", progress).await?;
        }
        for source in Source::ALL {
            purged.waiting += self.purge_pieces(&[source.key(keys), &keys.state], "waiting", progress).await?;
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
            let mut script = scripts::PURGE.key(key);
            script.key(&self.keys().state).arg("waiting").arg(1).arg(self.group()).arg("0-0");
            let (_, found): (u64, u64) = script.invoke_async(&mut self.shared()).await?;
            others += found;
        }
        Ok(others)
    }

    /// Deletes as many as there are now: to chase what comes meanwhile would
    /// have no end.
    async fn purge_pieces(
        &self,
        keys: &[&str],
        how: &str,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<u64, QueueError> {
        let Some((mut left, last)) = self.extent(keys[0], how).await? else { return Ok(0) };
        let mut purged = 0;
        while left > 0 {
            let mut script = scripts::PURGE.prepare_invoke();
            script.key(keys).arg(how).arg(left.min(PIECE as u64)).arg(self.group()).arg(&last);
            let (count, _): (u64, u64) = script.invoke_async(&mut self.shared()).await?;
            if count == 0 {
                break;
            }
            progress(count);
            purged += count;
            left = left.saturating_sub(count);
        }
        Ok(purged)
    }

    /// How many may be there, and where a stream ends; nothing where the key
    /// is of another type.
    async fn extent(&self, key: &str, how: &str) -> Result<Option<(u64, String)>, QueueError> {
        let mut shared = self.shared();
        let kind: String = redis::cmd("TYPE").arg(key).query_async(&mut shared).await?;
        Ok(match (how, kind.as_str()) {
            ("scored", "zset") => Some((redis::cmd("ZCARD").arg(key).query_async(&mut shared).await?, String::new())),
            ("list", "list") => Some((redis::cmd("LLEN").arg(key).query_async(&mut shared).await?, String::new())),
            ("waiting", "stream") => {
                let mut command = redis::cmd("XREVRANGE");
                command.arg(key).arg("+").arg("-").arg("COUNT").arg(1);
                let newest: Vec<(String, redis::Value)> = command.query_async(&mut shared).await?;
                newest.into_iter().next().map(|(last, _)| (u64::MAX, last))
            }
            _ => None,
        })
    }
}
