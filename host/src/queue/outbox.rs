//! The outbox: follow-ups for topics that no script of this topic can reach,
//! because a cluster keeps them elsewhere. They are committed with the message
//! that they follow, and brought to their topics from there: at least once,
//! with the same ids.
//!
//! What one topic refuses is no other's matter: each has its own task, and what
//! has arrived is taken off the outbox whatever becomes of the rest. Leases are
//! idle times in the group's pending list, as those of messages are.

use super::scripts::PIECE_BYTES;
use super::topic_queue::TopicQueue;
use super::{QueueError, reply, scripts};
use crate::message::{self, Fields};
use crate::topic::Topic;
use redis::Value;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const GROUP: &str = "relay";
const PIECE: usize = 100;
const START: &str = "0-0";
/// A topic that refuses is not told of more often.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// What is remembered of an outbox from one piece to the next.
#[derive(Default)]
pub struct Outbox {
    /// How far the way through what was taken has come, and when it began.
    at: Option<String>,
    began: Option<Instant>,
    /// Arrived, and not yet taken off.
    arrived: Vec<String>,
    refusing: HashMap<Topic, Refusal>,
    unreadable: Option<Instant>,
}

struct Refusal {
    /// Nothing is sent there before.
    again: Instant,
    told: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relayed {
    pub arrived: usize,
    /// Whether there may be more to bring now.
    pub has_more: bool,
}

/// A follow-up on its way.
struct Outgoing {
    id: String,
    due_ms: i64,
    fields: Fields,
}

impl TopicQueue {
    /// How many follow-ups are on their way.
    pub async fn outgoing(&self) -> Result<usize, QueueError> {
        Ok(redis::cmd("XLEN").arg(&self.keys().out).query_async(&mut self.shared()).await?)
    }

    /// Brings a piece of the outbox to its topics. What another took and did
    /// not bring within `lease` is brought again, and so is what did not arrive.
    pub async fn relay(&self, outbox: &mut Outbox, lease: Duration) -> Result<Relayed, QueueError> {
        self.take_off(outbox).await?;
        let Some((at, entries)) = self.piece(outbox, lease).await? else {
            return Ok(Relayed { arrived: 0, has_more: false });
        };
        let has_more = at.is_some() || !entries.is_empty();
        outbox.at = at;
        let mut left: Vec<String> = entries.iter().map(|(id, _)| id.clone()).collect();
        let mut bringing = JoinSet::new();
        for (to, follow_ups) in self.by_topic(entries, outbox) {
            if outbox.refusing.get(&to).is_none_or(|refusal| refusal.again <= Instant::now()) {
                bringing.spawn(self.clone().bring_all(to, follow_ups));
            }
        }
        let mut arrived = 0;
        let mut renewal = tokio::time::interval(lease / 3);
        renewal.reset();
        loop {
            tokio::select! {
                brought = bringing.join_next() => match brought {
                    None => return Ok(Relayed { arrived, has_more }),
                    // Who panicked has arrived nowhere, as far as is known.
                    Some(Err(_)) => {}
                    Some(Ok((to, ids, ended))) => {
                        self.note(outbox, to, ended, lease);
                        arrived += ids.len();
                        left.retain(|id| !ids.contains(id));
                        outbox.arrived.extend(ids);
                        self.take_off(outbox).await?;
                    }
                },
                // Otherwise others would bring them too.
                _ = renewal.tick() => {
                    let mut script = scripts::RENEW.key(&self.keys().out);
                    let _ = script.arg(GROUP).arg(self.me()).arg(&left).invoke_async::<Value>(&mut self.shared()).await;
                }
            }
        }
    }

    /// Takes off what has arrived; what can't be now is remembered.
    async fn take_off(&self, outbox: &mut Outbox) -> Result<(), QueueError> {
        if !outbox.arrived.is_empty() {
            let mut script = scripts::RELAYED.key(&self.keys().out);
            script.arg(GROUP).arg(&outbox.arrived).invoke_async::<()>(&mut self.shared()).await?;
            outbox.arrived.clear();
        }
        Ok(())
    }

    /// What is to be brought next, and where the way through what was taken
    /// goes on, unless it has come to its end.
    async fn piece(
        &self,
        outbox: &mut Outbox,
        lease: Duration,
    ) -> Result<Option<(Option<String>, Vec<(String, Fields)>)>, QueueError> {
        // Where much is refused, that way is long.
        let is_soon = outbox.at.is_none() && outbox.began.is_some_and(|began| began.elapsed() < lease / 3);
        let at = if is_soon { "" } else { outbox.at.as_deref().unwrap_or(START) };
        if at == START {
            outbox.began = Some(Instant::now());
        }
        let mut script = scripts::RELAY.key(&self.keys().out);
        script.arg(GROUP).arg(self.me()).arg(lease.as_millis()).arg(at);
        script.arg(PIECE).arg(PIECE_BYTES);
        let taken: Vec<Value> = match script.invoke_async(&mut self.shared()).await.map_err(QueueError::from) {
            Err(QueueError::GroupLost) => {
                // Without an outbox there is nothing to relay, and none is made
                // for that: at maxmemory it would be refused.
                if self.outgoing().await? == 0 {
                    return Ok(None);
                }
                self.make_relay_group().await?;
                script.invoke_async(&mut self.shared()).await?
            }
            taken => taken?,
        };
        let mut words = taken.into_iter();
        let at = reply::text(words.next().unwrap_or(Value::Nil))?;
        let entries = words.map(reply::entry).collect::<Result<_, _>>()?;
        Ok(Some(((at != START).then_some(at), entries)))
    }

    /// Who is to get what, in its order.
    fn by_topic(&self, entries: Vec<(String, Fields)>, outbox: &mut Outbox) -> HashMap<Topic, Vec<Outgoing>> {
        let mut topics: HashMap<Topic, Vec<Outgoing>> = HashMap::new();
        for (id, fields) in entries {
            let text = |name| message::field(&fields, name).and_then(|value| std::str::from_utf8(value).ok());
            let to = text("topic").and_then(|name| Topic::parse(name).ok());
            let due_ms = text("due").and_then(|due| due.parse().ok());
            match to.zip(due_ms) {
                Some((to, due_ms)) => topics.entry(to).or_default().push(Outgoing { id, due_ms, fields }),
                None if outbox.unreadable.is_some_and(|told| told.elapsed() < TOLD_EVERY) => {}
                None => {
                    outbox.unreadable = Some(Instant::now());
                    tracing::warn!(topic = %self.topic(), entry = id, "an entry of the outbox can't be read");
                }
            }
        }
        topics
    }

    /// Brings these to one topic, until it refuses. Returns those that arrived.
    async fn bring_all(self, to: Topic, follow_ups: Vec<Outgoing>) -> (Topic, Vec<String>, Result<(), QueueError>) {
        let (queue, mut arrived) = (self.other(&to), Vec::new());
        for Outgoing { id, due_ms, fields } in follow_ups {
            let class = message::field(&fields, "priority").unwrap_or_default();
            let mut script = queue.publishing(due_ms, &String::from_utf8_lossy(class));
            for (name, value) in fields.iter().skip(3) {
                script.arg(name).arg(value);
            }
            if let Err(error) = script.invoke_async::<()>(&mut self.shared()).await {
                return (to, arrived, Err(error.into()));
            }
            arrived.push(id);
        }
        (to, arrived, Ok(()))
    }

    /// Remembers who refuses, and tells it once in a while.
    fn note(&self, outbox: &mut Outbox, to: Topic, ended: Result<(), QueueError>, lease: Duration) {
        let known = outbox.refusing.get(&to).map(|refusal| refusal.told);
        let Err(error) = ended else {
            if outbox.refusing.remove(&to).is_some() {
                tracing::info!(topic = %self.topic(), %to, "follow-ups arrive again");
            }
            return;
        };
        let now = Instant::now();
        let told = known.filter(|told| told.elapsed() < TOLD_EVERY).unwrap_or_else(|| {
            tracing::warn!(topic = %self.topic(), %to, %error, "a follow-up does not arrive: it is tried again");
            now
        });
        // What it did not get is free again after a lease.
        outbox.refusing.insert(to, Refusal { again: now + lease / 2, told });
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
