//! One topic's queue, seen by one worker: everything but the blocking read
//! and the settling, which have files of their own.

use super::connection::Connection;
use super::keys::{self, Keys};
use super::{QueueError, Taken, reader, scripts};
use crate::publication::Publication;
use crate::topic::Topic;
use redis::Value;
use redis::aio::ConnectionManager;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The idle time that marks an entry as given back: no owner that lives lets
/// one lie for a day, so such entries may be taken over without waiting.
const GIVEN_BACK: Duration = Duration::from_secs(24 * 60 * 60);

/// How many are moved or looked at by one script, which nothing else runs beside.
const PIECE: usize = 100;

/// What the topic's key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Nobody has published yet.
    Absent,
    Stream,
    /// Anything else, by Redis' name for it.
    Other(String),
}

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

#[derive(Clone)]
pub struct TopicQueue {
    connection: Connection,
    topic: Topic,
    keys: Keys,
    prefix: String,
    group: String,
    me: String,
    /// Whether settled entries may be deleted: not where others read them too.
    deletes: Arc<AtomicBool>,
}

impl TopicQueue {
    /// `group` may contain `{topic}`; `me` is this process's consumer name.
    pub fn new(connection: &Connection, prefix: &str, group: &str, me: &str, topic: &Topic) -> Self {
        Self {
            connection: connection.clone(),
            keys: Keys::new(prefix, topic),
            topic: topic.clone(),
            prefix: prefix.to_owned(),
            group: keys::group(group, topic),
            me: me.to_owned(),
            deletes: Arc::new(AtomicBool::new(true)),
        }
    }

    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    pub fn group(&self) -> &str {
        &self.group
    }

    pub(super) fn me(&self) -> &str {
        &self.me
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(super) fn keys_of(&self, topic: &Topic) -> Keys {
        Keys::new(&self.prefix, topic)
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn shared(&self) -> ConnectionManager {
        self.connection.shared()
    }

    pub(super) fn deletes(&self) -> u8 {
        u8::from(self.deletes.load(Ordering::Relaxed))
    }

    /// Looks what the key is; where it is a stream, the group stands afterwards.
    pub async fn open(&self) -> Result<Kind, QueueError> {
        let mut script = scripts::OPEN.key(&self.keys.stream);
        let kind: String = script.key(&self.keys.state).arg(&self.group).invoke_async(&mut self.shared()).await?;
        Ok(match kind.as_str() {
            "none" => Kind::Absent,
            "stream" => Kind::Stream,
            _ => Kind::Other(kind),
        })
    }

    /// Ends a reader's blocking read now. It then finds nothing.
    pub async fn unblock(&self, client_id: i64) -> Result<(), QueueError> {
        self.connection.unblock(&self.keys.stream, client_id).await
    }

    /// Renews the leases of what we hold; returns what we no longer do.
    pub async fn renew(&self, held: &[String]) -> Result<Vec<String>, QueueError> {
        Ok(self.held_script(&scripts::RENEW, held).invoke_async(&mut self.shared()).await?)
    }

    /// Finds what was delivered to us and never arrived. Only to be called
    /// while no read and no take-over is under way.
    pub async fn reconcile(&self, held: &[String]) -> Result<Vec<Taken>, QueueError> {
        let reply: Value = self.held_script(&scripts::RECONCILE, held).invoke_async(&mut self.shared()).await?;
        Ok(reader::rows(reply)?.into_iter().map(|(taken, _)| taken).collect())
    }

    fn held_script<'a>(&self, script: &'a redis::Script, held: &[String]) -> redis::ScriptInvocation<'a> {
        let mut script = script.key(&self.keys.stream);
        script.arg(&self.group).arg(&self.me).arg(held);
        script
    }

    /// Takes over at most `count` messages whose owner let its lease run out;
    /// with the names of those owners.
    pub async fn take_over(&self, patience: Patience, count: usize) -> Result<Vec<(Taken, String)>, QueueError> {
        let (lease, legacy) = match patience {
            Patience::Lease { lease, legacy } => (lease, legacy),
            Patience::OnlyGivenBack { legacy } => (GIVEN_BACK, legacy),
        };
        let mut script = scripts::TAKE_OVER.key(&self.keys.stream);
        script.arg(&self.group).arg(&self.me).arg(lease.as_millis()).arg(legacy.as_millis()).arg(count);
        reader::rows(script.invoke_async(&mut self.shared()).await?)
    }

    /// Gives back what we have taken, except what we still hold.
    pub async fn give_back(&self, held: &[String]) -> Result<usize, QueueError> {
        let mut script = scripts::GIVE_BACK.key(&self.keys.stream);
        script.arg(&self.group).arg(&self.me).arg((GIVEN_BACK + Duration::from_secs(1)).as_millis()).arg(held);
        Ok(script.invoke_async(&mut self.shared()).await?)
    }

    /// Moves a piece of what is due into the stream.
    pub async fn promote(&self, legacy: Legacy) -> Result<Promoted, QueueError> {
        let mut script = scripts::PROMOTE.prepare_invoke();
        script.key(&self.keys.for_publish()[..]).key(&self.keys.dead).key(&self.keys.legacy_delay);
        script.arg(PIECE).arg(u8::from(legacy == Legacy::Look));
        let (moved, next_ms): (usize, i64) = script.invoke_async(&mut self.shared()).await?;
        Ok(Promoted { moved, next_due: u64::try_from(next_ms).ok().map(Duration::from_millis) })
    }

    /// Sweeps a piece of the original's history, from where the last call
    /// ended. `None` is the end.
    pub async fn sweep(&self, from: Option<&SweptTo>) -> Result<Option<SweptTo>, QueueError> {
        let (from, goal) = from.map_or(("-", ""), |swept| (&swept.at, &swept.goal));
        let mut script = scripts::SWEEP.key(&self.keys.stream);
        script.key(&self.keys.state).arg(&self.group).arg(from).arg(goal).arg(PIECE);
        let (at, goal, swept, others): (String, String, usize, usize) = script.invoke_async(&mut self.shared()).await?;
        if self.deletes.swap(others == 0, Ordering::Relaxed) && others > 0 {
            tracing::warn!(topic = %self.topic, others, "other groups read this stream: entries are acknowledged and not deleted");
        }
        if swept > 0 {
            tracing::debug!(topic = %self.topic, swept, "delivered history deleted");
        }
        Ok((!at.is_empty()).then_some(SweptTo { at, goal }))
    }

    pub async fn publish(&self, publication: &Publication) -> Result<(), QueueError> {
        let mut script = scripts::PUBLISH.prepare_invoke();
        script.key(&self.keys.for_publish()[..]).arg(publication.delay.as_millis());
        script.arg(crate::message::MESSAGE_FIELD).arg(&publication.body);
        Ok(script.invoke_async(&mut self.shared()).await?)
    }

    /// Publishes many in one round trip. On an error some may be published.
    pub async fn publish_all(&self, publications: &[Publication]) -> Result<(), QueueError> {
        let sha = scripts::PUBLISH.load_async(&mut self.shared()).await?;
        let mut pipe = redis::pipe();
        for publication in publications {
            let keys = self.keys.for_publish();
            let command = pipe.cmd("EVALSHA").arg(&sha).arg(keys.len()).arg(&keys[..]);
            command
                .arg(publication.delay.as_millis())
                .arg(crate::message::MESSAGE_FIELD)
                .arg(&publication.body)
                .ignore();
        }
        Ok(pipe.query_async(&mut self.shared()).await?)
    }

    /// Takes our name off the group's list, if nothing is left under it.
    pub async fn leave(&self) -> Result<(), QueueError> {
        let pending: Vec<Value> = redis::cmd("XPENDING")
            .arg(&[&self.keys.stream, &self.group, "-", "+", "1", &self.me])
            .query_async(&mut self.shared())
            .await?;
        if pending.is_empty() {
            let mut command = redis::cmd("XGROUP");
            command.arg("DELCONSUMER").arg(&self.keys.stream).arg(&self.group).arg(&self.me);
            command.query_async::<()>(&mut self.shared()).await?;
        }
        Ok(())
    }
}

/// How long an owner's silence must be before its messages are taken over.
#[derive(Debug, Clone, Copy)]
pub enum Patience {
    /// Owners that renew, and the original's consumers, which never do.
    Lease { lease: Duration, legacy: Duration },
    /// Just after connecting: Redis may have been away and every lease look
    /// expired, so only what was given back on purpose is taken.
    OnlyGivenBack { legacy: Duration },
}

/// Whether the original's delayed set is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Legacy {
    Look,
    Skip,
}

/// Says in `mq::workers` that a worker lives, or no longer does; for display
/// only. `stale` is what it said before.
pub async fn announce(
    connection: &Connection,
    prefix: &str,
    member: Option<&str>,
    stale: Option<&str>,
) -> Result<(), QueueError> {
    let key = keys::workers(prefix);
    let now = jiff::Timestamp::now().as_second();
    let mut pipe = redis::pipe();
    if let Some(stale) = stale {
        pipe.zrem(&key, stale).ignore();
    }
    if let Some(member) = member {
        pipe.zadd(&key, member, now).ignore();
    }
    pipe.zrembyscore(&key, "-inf", now - 86_400).ignore();
    Ok(pipe.query_async(&mut connection.shared()).await?)
}
