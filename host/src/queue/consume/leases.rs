//! Leases on delivered messages. A lease is the idle time of an entry in the
//! group's pending list: its consumer renews it, and other workers reclaim the
//! message once it has expired.

use crate::queue::delivery::Delivery;
use crate::queue::error::QueueError;
use crate::queue::keyspace::{EntryId, StreamKind};
use crate::queue::lua::scripts;
use crate::queue::server::RedisClock;
use crate::queue::topic::groups::REQUEUED_IDLE;
use crate::queue::topic::{TopicHandle, reply};
use redis::Value;
use std::time::Duration;

/// The bytes after which one script returns no more messages: a longer reply
/// might time out, and would then be asked for again.
const REPLY_BYTES: usize = 8 << 20;

/// How many ids one script gets: ten thousand would stop the server for 20 ms.
const IDS_MAX: usize = 1000;

/// How long it is remembered whose delivery had its entry deleted, after the last
/// renewal of its consumer.
pub(super) const DELETED_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// How many consumers one script removes.
const PRUNE_MAX: usize = 100;

/// How long another worker's lease must have been idle before it is reclaimed.
#[derive(Debug, Clone, Copy)]
pub struct ReclaimTimeouts {
    /// For consumers that renew their leases and whose name tells no lease. Where it
    /// tells one (see [`consumer_name`](crate::queue::consumer_name)), that counts.
    pub lease: Duration,
    /// For consumers of GinForge, which never renew.
    pub legacy: Duration,
    /// Time since we (re)connected. Idle times include an outage of Redis, so
    /// after a reconnect every consumer gets a full timeout again; until then
    /// only requeued entries are reclaimed.
    pub connected: Duration,
}

pub struct Reclaimed {
    pub clock: RedisClock,
    /// Redis' clock was set, so idle times are wrong and nothing was reclaimed.
    pub clock_stepped: bool,
    /// How many messages other consumers have in flight.
    pub others: u64,
    /// The shortest lease of a consumer of the group that has asked for messages
    /// lately, where its name tells one.
    pub shortest_lease: Option<Duration>,
    /// The reclaimed messages, each with the name of its previous consumer.
    pub deliveries: Vec<(Delivery, String)>,
}

/// Messages whose leases can't be renewed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NotRenewed {
    /// Another worker has them.
    pub taken: Vec<EntryId>,
    /// No worker has them: they were settled, or their pending rows were lost.
    pub gone: Vec<EntryId>,
    /// Still ours, but somebody has deleted their entries.
    pub deleted: Vec<EntryId>,
}

/// Which leases start again at zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseReset {
    All,
    /// Those that began in the future: Redis' clock was set back since.
    Future,
}

pub struct Leases {
    handle: TopicHandle,
}

impl Leases {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    /// Renews the leases of these messages. Returns those that are no longer ours.
    pub async fn renew(&self, in_flight: &[EntryId]) -> Result<NotRenewed, QueueError> {
        let mut not_renewed = NotRenewed::default();
        for stream in StreamKind::ALL {
            for in_flight in ordered_ids(in_flight, stream).chunks(IDS_MAX) {
                let mut script = scripts::RENEW.key(self.handle.key(stream));
                script.key(&self.handle.keys().deleted).arg(self.handle.group()).arg(self.handle.consumer());
                script.arg(stream.class()).arg(DELETED_TTL.as_millis()).arg(in_flight);
                let (taken, gone, deleted): (Vec<String>, Vec<String>, Vec<String>) =
                    script.invoke_async(&mut self.handle.shared()).await?;
                not_renewed.taken.extend(taken.into_iter().map(|id| EntryId { stream, id }));
                not_renewed.gone.extend(gone.into_iter().map(|id| EntryId { stream, id }));
                not_renewed.deleted.extend(deleted.into_iter().map(|id| EntryId { stream, id }));
            }
        }
        Ok(not_renewed)
    }

    /// Returns a batch of the messages that Redis has delivered to us and that
    /// are not in flight here, because the reply was lost; an empty batch is the
    /// end. No read and no reclaim may run meanwhile.
    pub async fn reconcile(&self, stream: StreamKind, in_flight: &[EntryId]) -> Result<Vec<Delivery>, QueueError> {
        let ids = ordered_ids(in_flight, stream);
        let mut first = "-".to_owned();
        let mut chunks = ids.chunks(IDS_MAX).peekable();
        loop {
            let known = chunks.next().unwrap_or_default();
            // The last script looks at all that follows.
            let last = match (known.last(), chunks.peek()) {
                (Some(last), Some(_)) => (*last).to_owned(),
                _ => "+".to_owned(),
            };
            let mut script = scripts::RECONCILE.key(self.handle.key(stream));
            script.arg(self.handle.group()).arg(self.handle.consumer()).arg(REPLY_BYTES);
            script.arg(REQUEUED_IDLE.as_millis()).arg(first).arg(&last).arg(known);
            let rows: Vec<Value> = script.invoke_async(&mut self.handle.shared()).await?;
            if !rows.is_empty() || last == "+" {
                return rows.into_iter().map(|row| Ok(reply::row(stream, row)?.0)).collect();
            }
            first = format!("({last}");
        }
    }

    /// Reclaims at most `count` messages whose lease has expired, fewer if they
    /// are large. It reclaims none if Redis' clock differs from the `last` reading.
    pub async fn reclaim(
        &self,
        stream: StreamKind,
        timeouts: ReclaimTimeouts,
        last: Option<RedisClock>,
        count: usize,
    ) -> Result<Reclaimed, QueueError> {
        let mut script = scripts::RECLAIM.key(self.handle.key(stream));
        script.key(&self.handle.keys().deleted);
        script.arg(self.handle.group()).arg(self.handle.consumer());
        script.arg(timeouts.lease.as_millis()).arg(timeouts.legacy.as_millis()).arg(count);
        script.arg(last.map_or(0, RedisClock::now_ms)).arg(REPLY_BYTES);
        script.arg(timeouts.connected.as_millis()).arg(REQUEUED_IDLE.as_millis());
        script.arg(stream.class()).arg(DELETED_TTL.as_millis());
        let reply: Vec<Value> = script.invoke_async(&mut self.handle.shared()).await?;
        let mut items = reply.into_iter();
        let mut number = || reply::number(items.next().unwrap_or(Value::Nil));
        let (unix_ms, others, shortest) = (number()?, number()?, number()?);
        Ok(Reclaimed {
            clock: RedisClock::showing(unix_ms),
            clock_stepped: others < 0,
            others: u64::try_from(others).unwrap_or(0),
            shortest_lease: u64::try_from(shortest).ok().filter(|ms| *ms > 0).map(Duration::from_millis),
            deliveries: items.map(|row| reply::row(stream, row)).collect::<Result<_, _>>()?,
        })
    }

    /// Starts leases of all consumers again, after a step of Redis' clock.
    pub async fn reset(&self, stream: StreamKind, which: LeaseReset) -> Result<usize, QueueError> {
        let mut script = scripts::RESET_LEASES.key(self.handle.key(stream));
        script.key(&self.handle.keys().deleted);
        script.arg(self.handle.group()).arg(u8::from(which == LeaseReset::All));
        script.arg(stream.class()).arg(DELETED_TTL.as_millis());
        Ok(script.invoke_async(&mut self.handle.shared()).await?)
    }

    /// Requeues what was delivered to us, except the messages in flight. Returns how many.
    pub async fn requeue_except(&self, stream: StreamKind, in_flight: &[EntryId]) -> Result<usize, QueueError> {
        let mut script = scripts::REQUEUE_EXCEPT.key(self.handle.key(stream));
        script.arg(self.handle.group()).arg(self.handle.consumer()).arg(requeued_idle_ms());
        Ok(script.arg(ids(in_flight, stream)).invoke_async(&mut self.handle.shared()).await?)
    }

    /// Makes unfinished entries pending again whose pending rows were lost, each with
    /// the delivery count with which it is in flight here, if it is. Any worker may
    /// reclaim the others at once. Returns those that were restored.
    pub async fn restore(
        &self,
        stream: StreamKind,
        unfinished: &[(EntryId, Option<u32>)],
    ) -> Result<Vec<EntryId>, QueueError> {
        let handle = &self.handle;
        let mut script = scripts::RESTORE.key(handle.key(stream));
        script.key(&handle.keys().state).arg(handle.group()).arg(handle.consumer());
        script.arg(requeued_idle_ms()).arg(stream.class());
        for (entry, delivery_count) in unfinished {
            script.arg(&entry.id).arg(delivery_count.unwrap_or(0));
        }
        let ids: Vec<String> = script.invoke_async(&mut handle.shared()).await?;
        Ok(ids.into_iter().map(|id| EntryId { stream, id }).collect())
    }

    /// Requeues one message, so that another worker may reclaim it at once.
    pub async fn requeue(&self, entry: &EntryId) -> Result<(), QueueError> {
        let mut script = scripts::REQUEUE.key(self.handle.key(entry.stream));
        script.arg(self.handle.group()).arg(self.handle.consumer()).arg(requeued_idle_ms());
        Ok(script.arg(&entry.id).invoke_async(&mut self.handle.shared()).await?)
    }

    /// Removes our consumer from the group, unless entries are pending for it.
    pub async fn remove_consumer(&self, stream: StreamKind) -> Result<(), QueueError> {
        let mut script = scripts::REMOVE_CONSUMER.key(self.handle.key(stream));
        script.arg(self.handle.group()).arg(self.handle.consumer());
        Ok(script.invoke_async(&mut self.handle.shared()).await?)
    }

    /// Removes consumers that have no pending entries and have not read for this
    /// long. Returns how many. Redis adds a live one again with its next message.
    pub async fn prune_consumers(&self, stream: StreamKind, idle: Duration) -> Result<usize, QueueError> {
        let mut script = scripts::PRUNE_CONSUMERS.key(self.handle.key(stream));
        script.arg(self.handle.group()).arg(self.handle.consumer()).arg(idle.as_millis()).arg(PRUNE_MAX);
        Ok(script.invoke_async(&mut self.handle.shared()).await?)
    }
}

/// More than [`REQUEUED_IDLE`], so that a small step of the clock does not hide it.
fn requeued_idle_ms() -> u128 {
    (REQUEUED_IDLE + Duration::from_secs(1)).as_millis()
}

fn ids(entries: &[EntryId], stream: StreamKind) -> Vec<&str> {
    entries.iter().filter(|entry| entry.stream == stream).map(|entry| entry.id.as_str()).collect()
}

/// The same in the order of the stream.
fn ordered_ids(entries: &[EntryId], stream: StreamKind) -> Vec<&str> {
    let mut ordered: Vec<&EntryId> = entries.iter().filter(|entry| entry.stream == stream).collect();
    ordered.sort_unstable_by_key(|entry| entry.order());
    ordered.into_iter().map(|entry| entry.id.as_str()).collect()
}
