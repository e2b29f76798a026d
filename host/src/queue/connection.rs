//! The way to Redis, be it one server, what sentinels say is the master, or a
//! cluster: one shared connection that finds its own way back, and a fresh one
//! for each blocking reader, which must not hold up anybody else.

mod blocking;
mod policy;
mod servers;
mod shared;
mod slots;

pub(super) use blocking::Seat;
pub use policy::check_policy;
pub(super) use shared::Shared;

use super::QueueError;
use crate::settings::RedisTarget;
use blocking::Readers;
use redis::aio::MultiplexedConnection;
use redis::cluster_routing::Slot;
use servers::Servers;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

#[derive(Clone)]
pub struct Connection {
    servers: Arc<Servers>,
    shared: Shared,
    readers: Arc<Readers>,
    /// Those of a cluster's masters that were ever spoken to by themselves.
    masters: Arc<Mutex<HashMap<String, Shared>>>,
}

/// A server that takes longer to answer a ping is away.
const PING_PATIENCE: Duration = Duration::from_secs(5);

/// What a ping found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Connected,
    Away(String),
}

/// A server that takes writes, and its name for people.
pub(super) struct Master {
    pub(super) name: String,
    pub(super) connection: Shared,
}

impl Connection {
    /// Makes the connection known; it is made when it is first used, so that a
    /// Redis which is away keeps nobody from starting. An error means that the
    /// settings are none.
    pub fn to(target: &RedisTarget) -> Result<Self, QueueError> {
        let servers = Arc::new(Servers::new(target)?);
        Ok(Self { shared: Shared::new(servers.clone()), servers, readers: Arc::default(), masters: Arc::default() })
    }

    pub(super) fn shared(&self) -> Shared {
        self.shared.clone()
    }

    /// A connection of its own for blocking reads of this key. It has no
    /// response timeout: with one, the crate gives up on a read that Redis goes
    /// on with, and the message that it then delivers is lost on the way.
    pub(super) async fn blocking(&self, key: &str) -> Result<(MultiplexedConnection, Seat), QueueError> {
        let node = self.servers.owner_of(key, &mut self.shared()).await?;
        // Where readers go, the others must not stay with who was master before.
        self.shared.leave_unless_at(&node);
        Seat::take(node, &self.readers).await
    }

    /// Ends the blocking read that the reader of this id has under way.
    pub(super) async fn unblock(&self, reader_id: i64) -> Result<(), QueueError> {
        self.readers.unblock(reader_id, &mut self.shared()).await
    }

    /// Whether one script may use both keys.
    pub(super) fn share_slot(&self, one: &str, other: &str) -> bool {
        !self.servers.is_cluster() || Slot::for_key(one) == Slot::for_key(other)
    }

    /// Whether it is for one server to say what time it is.
    pub(super) fn has_one_clock(&self) -> bool {
        !self.servers.is_cluster()
    }

    /// Every server that holds a part of the keys.
    pub(super) async fn masters(&self) -> Result<Vec<Master>, QueueError> {
        if !self.servers.is_cluster() {
            return Ok(vec![Master { name: self.servers.name(), connection: self.shared() }]);
        }
        let nodes = slots::masters(&self.servers, &mut self.shared()).await?;
        let mut known = self.masters.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|name, _| nodes.iter().any(|node| node.name == *name));
        let master = |node: servers::Node| {
            let name = node.name.clone();
            let connection = known.entry(name.clone()).or_insert_with(|| Shared::new(Arc::new(node.into())));
            Master { connection: connection.clone(), name }
        };
        Ok(nodes.into_iter().map(master).collect())
    }

    /// In a cluster every master has to answer, each asked by itself: the
    /// crate's client forgets one that is away and asks the others.
    pub async fn ping(&self) -> Health {
        match tokio::time::timeout(PING_PATIENCE, self.ping_masters()).await {
            Ok(Ok(())) => Health::Connected,
            Ok(Err(reason)) => Health::Away(reason),
            Err(_) => Health::Away(format!("Redis is away: no answer within {PING_PATIENCE:?}")),
        }
    }

    async fn ping_masters(&self) -> Result<(), String> {
        for mut master in self.masters().await.map_err(|error| error.to_string())? {
            let answer = redis::cmd("PING").query_async::<redis::Value>(&mut master.connection).await;
            answer.map_err(|error| match QueueError::from(error) {
                error if self.servers.is_cluster() => format!("{}: {error}", master.name),
                error => error.to_string(),
            })?;
        }
        Ok(())
    }
}
