//! Hands out connections: one that all share and that reconnects by itself, and
//! a new one for each blocking reader, because a blocking read delays whatever is
//! sent after it.

use super::blocking::{BlockingReaders, BlockingSlot};
use super::clock::{LatestClock, RedisClock};
use super::cluster_slots;
use super::servers::{Node, Servers};
use super::shared::Shared;
use crate::capability::Clock;
use crate::queue::error::QueueError;
use crate::settings::RedisTarget;
use crate::topic::Topic;
use jiff::Timestamp;
use redis::aio::MultiplexedConnection;
use redis::cluster_routing::Slot;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

#[derive(Clone)]
pub struct Connection {
    servers: Arc<Servers>,
    shared: Shared,
    /// For takes that do not block: their replies may be large, and must not delay
    /// renewals and settlements.
    takes: Shared,
    readers: Arc<BlockingReaders>,
    clock: Arc<LatestClock>,
    /// Connections to single masters of a cluster, by name.
    masters: Arc<Mutex<HashMap<String, Shared>>>,
    /// When this process has registered topics last.
    registered: Arc<Mutex<HashMap<Topic, Instant>>>,
    /// Whether it is known, and in the log, that Redis does not answer or takes no writes.
    is_away: Arc<AtomicBool>,
    /// A command has failed as it would without Redis.
    suspected: Arc<Notify>,
}

/// A server that takes longer to answer a ping counts as away.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The clock is read once a second while Redis answers.
const CLOCK_IS_FRESH: Duration = Duration::from_secs(1);

/// A topic is registered again after this long.
const REGISTERED: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Connected,
    /// It does not answer.
    Away(Trouble),
    /// It answers, and takes no writes.
    Unwritable(Trouble),
}

/// What is wrong with Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// For operators and the log.
    pub text: String,
    /// For strangers.
    pub public_text: String,
    /// Only a right is missing.
    pub is_no_permission: bool,
}

impl From<&QueueError> for Trouble {
    fn from(error: &QueueError) -> Self {
        let is_no_permission = error.is_no_permission();
        Self { text: error.to_string(), public_text: error.public_text(), is_no_permission }
    }
}

/// A server that takes writes.
pub(crate) struct Master {
    /// Its address, for messages.
    pub(crate) name: String,
    pub(crate) connection: Shared,
}

impl Connection {
    /// Connects on first use, so that a worker starts while Redis is away. An
    /// error means that the settings are invalid.
    pub fn to(target: &RedisTarget) -> Result<Self, QueueError> {
        let servers = Arc::new(Servers::new(target)?);
        let (shared, takes, clock) = (Shared::new(servers.clone()), Shared::new(servers.clone()), Arc::default());
        let (readers, masters, registered) = (Arc::default(), Arc::default(), Arc::default());
        let (is_away, suspected) = (Arc::default(), Arc::default());
        Ok(Self { shared, takes, servers, readers, clock, masters, registered, is_away, suspected })
    }

    pub(crate) fn shared(&self) -> Shared {
        self.shared.clone()
    }

    pub(crate) fn takes(&self) -> Shared {
        self.takes.clone()
    }

    /// A new connection for blocking reads of this key. It has no response
    /// timeout: with one, the client abandons a read that Redis still executes,
    /// and nobody receives the message that Redis then delivers.
    pub(crate) async fn blocking(&self, key: &str) -> Result<(MultiplexedConnection, BlockingSlot), QueueError> {
        let node = self.owner_of(key).await?;
        // After a failover, reads and writes have to move to the new master together.
        self.shared.disconnect_unless_at(&node);
        BlockingSlot::connect(node, &self.readers).await
    }

    /// After a failover, reads and writes have to move to the new master together.
    pub(crate) async fn follow_master(&self) -> Result<(), QueueError> {
        if !self.servers.is_cluster() {
            let node = self.servers.master().await?;
            [&self.shared, &self.takes].into_iter().for_each(|one| one.disconnect_unless_at(&node));
        }
        // Where the server has few connections left, these come before those of seats.
        self.shared.connect().await?;
        Ok(self.takes.connect().await?)
    }

    /// The server that owns a key now.
    async fn owner_of(&self, key: &str) -> Result<Node, QueueError> {
        if self.servers.is_cluster() {
            return cluster_slots::owner(&self.servers, key, &mut self.shared()).await;
        }
        Ok(self.servers.master().await?)
    }

    /// Ends the running blocking read of this reader.
    pub(crate) async fn unblock(&self, reader_id: i64) -> Result<(), QueueError> {
        self.readers.unblock(reader_id, &mut self.shared()).await
    }

    /// Whether this process has not registered the topic lately.
    pub(crate) fn may_register(&self, topic: &Topic) -> bool {
        self.registered().get(topic).is_none_or(|at| at.elapsed() >= REGISTERED)
    }

    pub(crate) fn set_registered(&self, topic: &Topic) {
        let mut registered = self.registered();
        registered.retain(|_, at| at.elapsed() < REGISTERED);
        registered.insert(topic.clone(), Instant::now());
    }

    fn registered(&self) -> MutexGuard<'_, HashMap<Topic, Instant>> {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one script may use both keys.
    pub(crate) fn is_same_slot(&self, one: &str, other: &str) -> bool {
        !self.servers.is_cluster() || Slot::for_key(one) == Slot::for_key(other)
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.servers.is_cluster()
    }

    /// Every server that stores a part of the keys.
    pub(crate) async fn masters(&self) -> Result<Vec<Master>, QueueError> {
        if !self.servers.is_cluster() {
            return Ok(vec![Master { name: self.servers.name(), connection: self.shared() }]);
        }
        let nodes = cluster_slots::masters(&self.servers, &mut self.shared()).await?;
        let mut known = self.masters.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|name, _| nodes.iter().any(|node| node.name == *name));
        let master = |node: Node| {
            let name = node.name.clone();
            let connection = known.entry(name.clone()).or_insert_with(|| Shared::new(Arc::new(node.into())));
            Master { connection: connection.clone(), name }
        };
        Ok(nodes.into_iter().map(master).collect())
    }

    /// Redis' time, which decides about messages, by the latest reading; the host's
    /// before there is one.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The same for handlers that publish.
    pub fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    /// By how many seconds the host's clock is ahead of Redis', negative if it is
    /// behind. `None` before the first reading.
    pub fn clock_skew_seconds(&self) -> Option<f64> {
        self.clock.skew_seconds()
    }

    /// Reads Redis' clock, unless somebody just has: another server may answer now.
    pub(crate) async fn refresh_clock(&self) -> Result<(), QueueError> {
        if self.clock.was_read_within(CLOCK_IS_FRESH) { Ok(()) } else { self.read_clock().await.map(drop) }
    }

    /// Reads Redis' clock and returns its time. The masters of a cluster have a
    /// clock each, of which the one that is behind counts, so that no message
    /// expires too early.
    pub async fn read_clock(&self) -> Result<Timestamp, QueueError> {
        let mut earliest = None::<RedisClock>;
        for mut master in self.masters().await? {
            let sent = Instant::now();
            let (seconds, micros): (i64, i64) = redis::cmd("TIME").query_async(&mut master.connection).await?;
            let reading = RedisClock::answered(seconds.saturating_mul(1000).saturating_add(micros / 1000), sent);
            if earliest.is_none_or(|earliest| reading.now_ms() < earliest.now_ms()) {
                earliest = Some(reading);
            }
        }
        earliest.into_iter().for_each(|reading| self.clock.add(reading));
        Ok(self.now())
    }

    /// In a cluster every master has to answer a ping of its connection: the
    /// cluster client drops a master that is away and asks only the others.
    pub async fn ping(&self) -> Health {
        match self.in_time(self.ping_masters()).await {
            Ok(()) => Health::Connected,
            Err(error) => Health::Away(Trouble::from(&error)),
        }
    }

    /// For commands that tell whether Redis serves.
    pub(crate) async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, QueueError>>,
    ) -> Result<T, QueueError> {
        let late =
            |_| QueueError::Away(format!("Redis is away: {}: no answer within {PING_TIMEOUT:?}", self.servers.name()));
        tokio::time::timeout(PING_TIMEOUT, answer).await.map_err(late)?
    }

    /// Says whether Redis is known to serve; what it does not serve has been logged then.
    pub fn set_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Relaxed);
    }

    pub(crate) fn is_away(&self) -> bool {
        self.is_away.load(Ordering::Relaxed)
    }

    /// A command has failed, perhaps because Redis does not serve any more.
    pub(crate) fn suspect(&self) {
        self.suspected.notify_one();
    }

    /// Waits until a command has failed.
    pub async fn suspected(&self) {
        self.suspected.notified().await;
    }

    async fn ping_masters(&self) -> Result<(), QueueError> {
        for mut master in self.masters().await? {
            let answer = redis::cmd("PING").query_async::<redis::Value>(&mut master.connection).await;
            answer.map_err(|error| match QueueError::from(error) {
                QueueError::Away(text) if self.servers.is_cluster() => {
                    QueueError::Away(format!("{}: {text}", master.name))
                }
                error => error,
            })?;
        }
        Ok(())
    }
}
