//! Promotes the delayed messages of legacy publishers. In GinForge only a running
//! publisher does that.

use crate::queue::error::QueueError;
use crate::queue::lua::scripts::{self, BATCH_BYTES};
use crate::queue::publish::Publisher;
use crate::queue::topic::TopicHandle;

/// The most that one script moves, since nothing else runs on the server meanwhile.
const BATCH: usize = 100;

/// How long a worker that has claimed due messages may take to publish them;
/// afterwards others may claim them.
const CLAIM_SECONDS: u32 = 30;

/// The end of the year 9999 in Unix seconds. What is due later was most likely scored
/// in milliseconds, which are seconds of the year 50,000 and more.
const FAR: &str = "(253402300799";

pub struct LegacyDelayed {
    handle: TopicHandle,
}

impl LegacyDelayed {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    /// Moves one batch of due messages to the topic. Due times are whole seconds
    /// of Redis' clock. Returns how many messages it moved.
    pub async fn promote(&self) -> Result<usize, QueueError> {
        let (keys, connection) = (self.handle.keys(), self.handle.connection());
        let mut command = redis::cmd("ZRANGE");
        command.arg(&keys.legacy_delayed).arg(0).arg(0).arg("WITHSCORES");
        let first: Vec<(Vec<u8>, f64)> = command.query_async(&mut self.handle.shared()).await?;
        let Some((_, due)) = first.first() else { return Ok(0) };
        if !connection.is_same_slot(&keys.main, &keys.legacy_delayed) {
            return self.promote_across_slots().await;
        }
        // Reading the clock costs less than the script. The servers of a cluster have several clocks.
        if !connection.is_cluster() {
            let (now, _): (u64, u64) = redis::cmd("TIME").query_async(&mut self.handle.shared()).await?;
            if *due > now as f64 {
                return Ok(0);
            }
        }
        let mut script = scripts::LEGACY_PROMOTE.prepare_invoke();
        script.key(&keys.for_publish()[..]).key(&keys.legacy_delayed).arg(BATCH).arg(BATCH_BYTES);
        Ok(script.invoke_async(&mut self.handle.shared()).await?)
    }

    /// How many messages are due after the year 9999.
    pub async fn due_far(&self) -> Result<u64, QueueError> {
        let mut command = redis::cmd("ZCOUNT");
        command.arg(&self.handle.keys().legacy_delayed).arg(FAR).arg("+inf");
        Ok(command.query_async(&mut self.handle.shared()).await?)
    }

    /// Publishes, then removes: in a cluster no script can do both, so a worker
    /// that is lost in between leaves a message twice, and none is lost. It claims
    /// the messages first, because otherwise each worker would publish them.
    async fn promote_across_slots(&self) -> Result<usize, QueueError> {
        let delayed = &self.handle.keys().legacy_delayed;
        let publisher = Publisher::new(self.handle.clone());
        let mut script = scripts::LEGACY_CLAIM_DUE.key(delayed);
        script.arg(BATCH).arg(BATCH_BYTES).arg(CLAIM_SECONDS);
        let due: Vec<Vec<u8>> = script.invoke_async(&mut self.handle.shared()).await?;
        for envelope in &due {
            publisher.publish_body(envelope).await?;
            let mut command = redis::cmd("ZREM");
            command.arg(delayed).arg(envelope).query_async::<()>(&mut self.handle.shared()).await?;
        }
        Ok(due.len())
    }
}
