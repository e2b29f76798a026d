//! Dead letters are edited, deleted, and dropped where they are too old or too
//! many.

use super::{LetterId, Origin, PIECE};
use crate::queue::scripts::PIECE_BYTES;
use crate::queue::topic_queue::TopicQueue;
use crate::queue::{QueueError, scripts};
use crate::settings::DeadLetterCaps;
use std::time::Duration;

/// Each piece asks for the bytes, so it is to be worth it.
const CAP_PIECE: usize = 1000;

impl TopicQueue {
    /// Puts another body into a letter of ours. Returns the new letter's id, or
    /// nothing where the old one is gone.
    pub async fn edit_dead(&self, id: &LetterId, body: &[u8]) -> Result<Option<String>, QueueError> {
        let mut script = scripts::DEAD_EDIT.key(self.dead_key(Origin::Ours));
        Ok(script.arg(id.to_string()).arg(body).invoke_async(&mut self.shared()).await?)
    }

    /// Returns whether it was there.
    pub async fn delete_dead(&self, id: &LetterId) -> Result<bool, QueueError> {
        for origin in Origin::ALL {
            let mut command = redis::cmd("XDEL");
            command.arg(self.dead_key(origin)).arg(id.to_string());
            if command.query_async(&mut self.shared()).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Deletes a piece of what was dead when `newest` was the newest, which is
    /// asked for by the first call. Returns how many; none is the end.
    pub async fn purge_dead(&self, origin: Origin, newest: &mut Option<String>) -> Result<u64, QueueError> {
        if newest.is_none() {
            *newest = self.newest_dead(origin).await?;
        }
        let Some(newest) = newest else { return Ok(0) };
        self.drop_piece(origin, newest, DeadLetterCaps::default()).await
    }

    /// Deletes a piece of what died longer ago than this. Returns how many;
    /// none is the end.
    pub async fn purge_older(&self, origin: Origin, age: Duration) -> Result<u64, QueueError> {
        self.drop_piece(origin, "", DeadLetterCaps { age: Some(age), bytes: None }).await
    }

    /// Drops a piece of our letters that are over the caps, oldest first, and
    /// counts them in the topic's state. Returns how many; none is the end.
    pub async fn cap_dead(&self, caps: DeadLetterCaps) -> Result<u64, QueueError> {
        let mut script = scripts::DEAD_DROP.key(self.dead_key(Origin::Ours));
        script.key(&self.keys().state).arg("").arg(millis(caps.age)).arg(caps.bytes.unwrap_or(0));
        Ok(script.arg(CAP_PIECE).arg(PIECE_BYTES).invoke_async(&mut self.shared()).await?)
    }

    async fn drop_piece(&self, origin: Origin, newest: &str, caps: DeadLetterCaps) -> Result<u64, QueueError> {
        let mut script = scripts::DEAD_DROP.key(self.dead_key(origin));
        script.arg(newest).arg(millis(caps.age)).arg(caps.bytes.unwrap_or(0)).arg(PIECE).arg(PIECE_BYTES);
        Ok(script.invoke_async(&mut self.shared()).await?)
    }
}

/// Zero is none, so a cap of nothing is the shortest that there is.
fn millis(age: Option<Duration>) -> u128 {
    age.map_or(0, |age| age.as_millis().max(1))
}
