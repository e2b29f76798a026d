//! The outbox: follow-ups for topics that no script of this topic can reach,
//! because a cluster keeps them elsewhere. They are committed with the message
//! that they follow, and brought to their topics from there: at least once,
//! with the same ids.

use super::topic_queue::TopicQueue;
use super::{QueueError, reply, scripts};
use crate::message::{self, Fields};
use crate::topic::Topic;
use redis::Value;
use std::time::Duration;

const GROUP: &str = "relay";
const PIECE: usize = 100;

impl TopicQueue {
    /// How many follow-ups are on their way.
    pub async fn outgoing(&self) -> Result<usize, QueueError> {
        Ok(redis::cmd("XLEN").arg(&self.keys().out).query_async(&mut self.shared()).await?)
    }

    /// Brings a piece of the outbox to its topics; returns how many arrived.
    /// What another took and did not bring within `lease` is brought again.
    pub async fn relay(&self, lease: Duration) -> Result<usize, QueueError> {
        let mut entries = match self.abandoned(lease).await {
            // Without an outbox there is nothing to relay, and none is made for
            // that: at maxmemory it would be refused.
            Err(QueueError::GroupLost) if self.outgoing().await? == 0 => return Ok(0),
            Err(QueueError::GroupLost) => {
                self.make_relay_group().await?;
                Vec::new()
            }
            entries => entries?,
        };
        entries.extend(self.fresh().await?);
        let mut arrived = Vec::with_capacity(entries.len());
        for (id, fields) in entries {
            match self.bring(&fields).await {
                Ok(()) => arrived.push(id),
                // Its turn comes again; the others need not wait for it.
                Err(error @ (QueueError::WrongType(_) | QueueError::Failed(_))) => {
                    tracing::warn!(topic = %self.topic(), entry = id, %error, "a follow-up does not arrive");
                }
                Err(error) => return Err(error),
            }
        }
        if !arrived.is_empty() {
            let mut script = scripts::RELAYED.key(&self.keys().out);
            script.arg(GROUP).arg(&arrived).invoke_async::<()>(&mut self.shared()).await?;
        }
        Ok(arrived.len())
    }

    async fn bring(&self, fields: &Fields) -> Result<(), QueueError> {
        let text = |name| message::field(fields, name).and_then(|value| std::str::from_utf8(value).ok());
        let bad = || QueueError::Failed("an entry of the outbox can't be read".to_owned());
        let topic = text("topic").and_then(|name| Topic::parse(name).ok()).ok_or_else(bad)?;
        let due = text("due").and_then(|due| due.parse().ok()).ok_or_else(bad)?;
        let queue = self.other(&topic);
        let mut script = queue.publishing(due, text("priority").unwrap_or_default());
        for (name, value) in fields.iter().skip(3) {
            script.arg(name).arg(value);
        }
        Ok(script.invoke_async(&mut self.shared()).await?)
    }

    async fn abandoned(&self, lease: Duration) -> Result<Vec<(String, Fields)>, QueueError> {
        let mut command = redis::cmd("XAUTOCLAIM");
        command.arg(&self.keys().out).arg(GROUP).arg(self.me()).arg(lease.as_millis()).arg("0").arg("COUNT").arg(PIECE);
        let (_, entries, _): (String, Vec<Value>, Value) = command.query_async(&mut self.shared()).await?;
        entries.into_iter().map(reply::entry).collect()
    }

    async fn fresh(&self) -> Result<Vec<(String, Fields)>, QueueError> {
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(GROUP).arg(self.me()).arg("COUNT").arg(PIECE);
        command.arg("STREAMS").arg(&self.keys().out).arg(">");
        reply::entries(command.query_async(&mut self.shared()).await?)
    }

    async fn make_relay_group(&self) -> Result<(), QueueError> {
        let mut command = redis::cmd("XGROUP");
        command.arg("CREATE").arg(&self.keys().out).arg(GROUP).arg("0");
        match command.query_async::<()>(&mut self.shared()).await {
            Err(error) if error.code() == Some("BUSYGROUP") => Ok(()),
            made => Ok(made?),
        }
    }
}
