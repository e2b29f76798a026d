//! Leases on delivered messages. A lease is the idle time of an entry in the
//! group's pending list: its consumer renews it, and other workers reclaim the
//! message once it has expired.

use crate::queue::delivery::Delivery;
use crate::queue::error::QueueError;
use crate::queue::keyspace::{EntryId, StreamKind};
use crate::queue::lua::scripts;
use crate::queue::topic::groups::REQUEUED_IDLE;
use crate::queue::topic::{TopicHandle, reply};
use redis::Value;
use std::time::{Duration, Instant};

/// The bytes after which one script returns no more messages: a longer reply
/// might time out, and would then be asked for again.
const REPLY_BYTES: usize = 8 << 20;

/// How many consumers one script removes.
const PRUNE_MAX: usize = 100;

/// How long another worker's lease must have been idle before it is reclaimed.
#[derive(Debug, Clone, Copy)]
pub struct ReclaimTimeouts {
    /// For consumers that renew their leases.
    pub lease: Duration,
    /// For consumers of GinForge, which never renew.
    pub legacy: Duration,
    /// Time since we (re)connected. Idle times include an outage of Redis, so
    /// after a reconnect every consumer gets a full timeout again; until then
    /// only requeued entries are reclaimed.
    pub connected: Duration,
}

impl ReclaimTimeouts {
    fn since_connected(self, timeout: Duration) -> Duration {
        if self.connected < timeout { timeout.max(REQUEUED_IDLE) } else { timeout }
    }
}

/// A reading of Redis' clock.
#[derive(Debug, Clone, Copy)]
pub struct RedisClock {
    unix_ms: i64,
    read_at: Instant,
}

impl RedisClock {
    /// A clock that shows this time now.
    pub fn showing(unix_ms: i64) -> Self {
        Self { unix_ms, read_at: Instant::now() }
    }

    fn now(self) -> i64 {
        let elapsed = i64::try_from(self.read_at.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.unix_ms.saturating_add(elapsed)
    }
}

pub struct Reclaimed {
    pub clock: RedisClock,
    /// Redis' clock was set, so idle times are wrong and nothing was reclaimed.
    pub clock_stepped: bool,
    /// How many messages other consumers have in flight.
    pub others: u64,
    /// The reclaimed messages, each with the name of its previous consumer.
    pub deliveries: Vec<(Delivery, String)>,
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
    pub async fn renew(&self, in_flight: &[EntryId]) -> Result<Vec<EntryId>, QueueError> {
        let mut lost = Vec::new();
        for stream in StreamKind::ALL {
            let in_flight = ids(in_flight, stream);
            if !in_flight.is_empty() {
                let mut script = scripts::RENEW.key(self.handle.key(stream));
                script.arg(self.handle.group()).arg(self.handle.consumer()).arg(&in_flight);
                let ids: Vec<String> = script.invoke_async(&mut self.handle.shared()).await?;
                lost.extend(ids.into_iter().map(|id| EntryId { stream, id }));
            }
        }
        Ok(lost)
    }

    /// Returns a batch of the messages that Redis has delivered to us and that
    /// are not in flight here, because the reply was lost; an empty batch is the
    /// end. No read and no reclaim may run meanwhile.
    pub async fn reconcile(&self, stream: StreamKind, in_flight: &[EntryId]) -> Result<Vec<Delivery>, QueueError> {
        let mut script = scripts::RECONCILE.key(self.handle.key(stream));
        script.arg(self.handle.group()).arg(self.handle.consumer()).arg(REPLY_BYTES);
        script.arg(REQUEUED_IDLE.as_millis()).arg(ids(in_flight, stream));
        let rows: Vec<Value> = script.invoke_async(&mut self.handle.shared()).await?;
        rows.into_iter().map(|row| Ok(reply::row(stream, row)?.0)).collect()
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
        let lease = timeouts.since_connected(timeouts.lease);
        let legacy = timeouts.since_connected(timeouts.legacy);
        let mut script = scripts::RECLAIM.key(self.handle.key(stream));
        script.arg(self.handle.group()).arg(self.handle.consumer());
        script.arg(lease.as_millis()).arg(legacy.as_millis()).arg(count);
        // A smaller difference is harmless, and may come from a busy machine.
        let tolerance = timeouts.lease.min(Duration::from_secs(60)) / 3;
        script.arg(last.map_or(0, RedisClock::now)).arg(tolerance.as_millis()).arg(REPLY_BYTES);
        let reply: Vec<Value> = script.invoke_async(&mut self.handle.shared()).await?;
        let mut items = reply.into_iter();
        let mut number = || reply::number(items.next().unwrap_or(Value::Nil));
        let (unix_ms, others) = (number()?, number()?);
        Ok(Reclaimed {
            clock: RedisClock::showing(unix_ms),
            clock_stepped: others < 0,
            others: u64::try_from(others).unwrap_or(0),
            deliveries: items.map(|row| reply::row(stream, row)).collect::<Result<_, _>>()?,
        })
    }

    /// Starts leases of all consumers again, after a step of Redis' clock.
    pub async fn reset(&self, stream: StreamKind, which: LeaseReset) -> Result<usize, QueueError> {
        let mut script = scripts::RESET_LEASES.key(self.handle.key(stream));
        script.arg(self.handle.group()).arg(u8::from(which == LeaseReset::All));
        Ok(script.invoke_async(&mut self.handle.shared()).await?)
    }

    /// Requeues what was delivered to us, except the messages in flight. Returns how many.
    pub async fn requeue_except(&self, stream: StreamKind, in_flight: &[EntryId]) -> Result<usize, QueueError> {
        let mut script = scripts::REQUEUE_EXCEPT.key(self.handle.key(stream));
        script.arg(self.handle.group()).arg(self.handle.consumer()).arg(requeued_idle_ms());
        Ok(script.arg(ids(in_flight, stream)).invoke_async(&mut self.handle.shared()).await?)
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
