//! What time brings: what is due goes to its stream, history is swept.

use super::scripts::PIECE_BYTES;
use super::source::Source;
use super::topic_queue::TopicQueue;
use super::{QueueError, scripts};
use std::time::Duration;

/// How many are moved or looked at by one script, which nothing else runs beside.
const PIECE: usize = 100;

/// How long who has taken some of the original's delayed messages may need to
/// publish them; after that they are anybody's.
const TAKEN_SECONDS: u32 = 30;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promoted {
    pub moved: usize,
    pub next_due: Option<Duration>,
}

/// How far a sweep has come, and how far it is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweptTo {
    at: String,
    goal: String,
}

impl TopicQueue {
    /// Moves a piece of what is due into its stream.
    pub async fn promote(&self) -> Result<Promoted, QueueError> {
        let mut script = scripts::PROMOTE.prepare_invoke();
        script.key(&self.keys().for_publish()[..]).key(&self.keys().dead).arg(PIECE).arg(PIECE_BYTES);
        let (moved, next_ms): (usize, i64) = script.invoke_async(&mut self.shared()).await?;
        Ok(Promoted { moved, next_due: u64::try_from(next_ms).ok().map(Duration::from_millis) })
    }

    /// Whether anything is delayed. To ask costs less than to look what is due.
    pub async fn has_later(&self) -> Result<bool, QueueError> {
        Ok(redis::cmd("EXISTS").arg(&self.keys().later).query_async(&mut self.shared()).await?)
    }

    /// Moves a piece of what is due of the original's delayed messages, whose
    /// times are whole seconds of Redis' clock. Returns how many.
    pub async fn promote_legacy(&self) -> Result<usize, QueueError> {
        let keys = self.keys();
        let mut command = redis::cmd("ZRANGE");
        command.arg(&keys.legacy_delay).arg(0).arg(0).arg("WITHSCORES");
        let head: Vec<(Vec<u8>, f64)> = command.query_async(&mut self.shared()).await?;
        let Some((_, due)) = head.first() else { return Ok(0) };
        if !self.connection().share_slot(&keys.stream, &keys.legacy_delay) {
            return self.promote_legacy_across().await;
        }
        // To ask for the time costs less than to look what is due.
        if self.connection().has_one_clock() {
            let (now, _): (u64, u64) = redis::cmd("TIME").query_async(&mut self.shared()).await?;
            if *due > now as f64 {
                return Ok(0);
            }
        }
        let mut script = scripts::PROMOTE_LEGACY.prepare_invoke();
        script.key(&keys.for_publish()[..]).key(&keys.legacy_delay).arg(PIECE).arg(PIECE_BYTES);
        Ok(script.invoke_async(&mut self.shared()).await?)
    }

    /// Publish, then remove: in a cluster no step can do both, so a worker that
    /// is lost in between leaves a message twice, and none is lost. Before that
    /// it takes them for itself: else all workers, which look every few seconds,
    /// would publish them.
    async fn promote_legacy_across(&self) -> Result<usize, QueueError> {
        let legacy = &self.keys().legacy_delay;
        let mut script = scripts::DUE_LEGACY.key(legacy);
        script.arg(PIECE).arg(PIECE_BYTES).arg(TAKEN_SECONDS);
        let due: Vec<Vec<u8>> = script.invoke_async(&mut self.shared()).await?;
        for envelope in &due {
            self.publish_body(envelope).await?;
            let mut command = redis::cmd("ZREM");
            command.arg(legacy).arg(envelope).query_async::<()>(&mut self.shared()).await?;
        }
        Ok(due.len())
    }

    /// Sweeps a piece of the history that the original leaves in its stream,
    /// from where the last call ended. `None` is the end.
    pub async fn sweep(&self, from: Option<&SweptTo>) -> Result<Option<SweptTo>, QueueError> {
        let begun;
        let SweptTo { at: from, goal } = match from {
            Some(swept) => swept,
            None => {
                // What is swept may be the only evidence of what the original has failed at.
                let goal = self.own_group(Source::Normal).await?.ok_or(QueueError::GroupLost)?.last_delivered;
                self.adopt_up_to(Duration::ZERO, &goal).await?;
                begun = SweptTo { at: "-".to_owned(), goal };
                &begun
            }
        };
        let mut script = scripts::SWEEP.key(Source::Normal.key(self.keys()));
        script.key(&self.keys().state).arg(self.group()).arg(from).arg(goal).arg(PIECE).arg(PIECE_BYTES);
        let (at, swept, others): (String, usize, usize) = script.invoke_async(&mut self.shared()).await?;
        self.set_others(Source::Normal, others);
        if swept > 0 {
            tracing::debug!(topic = %self.topic(), swept, "delivered history deleted");
        }
        Ok((!at.is_empty()).then(|| SweptTo { at, goal: goal.clone() }))
    }
}
