//! The Redis under test: one server behind a proxy, or a master and its replica with
//! sentinels.

use crate::proxy::Proxy;
use crate::servers::{Server, parse_command};
use crate::support::{Entry, Redis, connect_without_timeout, try_connection, until};
use redis::FromRedisValue;
use redis::aio::MultiplexedConnection;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long the test waits for a reply.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a failover may take before it is requested again.
const FAILOVER_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Standalone,
    Sentinel,
}

pub(super) enum RedisSetup {
    Standalone(Box<Redis>, Box<Proxy>),
    Sentinel(Box<Server>),
}

/// Where publishers connect: not through the proxy, and with several nodes to the one
/// that accepts writes.
#[derive(Debug, Clone)]
pub(super) struct PublisherTarget {
    pub(super) url: String,
    pub(super) nodes: Vec<String>,
}

impl RedisSetup {
    pub(super) async fn start(kind: Kind) -> Self {
        match kind {
            Kind::Standalone => {
                let redis = Redis::start();
                let proxy = Proxy::start(&redis).await;
                Self::Standalone(Box::new(redis), Box::new(proxy))
            }
            Kind::Sentinel => Self::Sentinel(Box::new(Server::start_sentinel_with_fast_failover().await)),
        }
    }

    /// The URL of the workers.
    pub(super) fn url(&self) -> String {
        match self {
            Self::Standalone(_, proxy) => proxy.url(),
            Self::Sentinel(server) => server.url.clone(),
        }
    }

    pub(super) fn target(&self) -> PublisherTarget {
        match self {
            Self::Standalone(redis, _) => PublisherTarget { url: redis.url(), nodes: Vec::new() },
            Self::Sentinel(server) => {
                let nodes = server.nodes.iter().map(|node| node.url()).collect();
                PublisherTarget { url: server.url.clone(), nodes }
            }
        }
    }

    pub(super) fn proxy(&self) -> &Proxy {
        match self {
            Self::Standalone(_, proxy) => proxy,
            Self::Sentinel(_) => panic!("this fault needs a proxy"),
        }
    }

    /// A connection to the master. Only valid while no fault is active.
    pub(super) async fn connection(&self) -> MultiplexedConnection {
        match self {
            Self::Standalone(redis, _) => redis.connection().await,
            Self::Sentinel(server) => {
                let master = until("a master", async || agreed_master(server).await).await;
                connect_without_timeout(&server.nodes[master].url()).await
            }
        }
    }

    pub(super) async fn run<T: FromRedisValue>(&self, command: &str) -> T {
        let answer = parse_command(command).query_async(&mut self.connection().await).await;
        answer.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// The fields of a stream's entries.
    pub(super) async fn entries(&self, key: &str) -> Vec<Entry> {
        let entries: Vec<(String, Entry)> = self.run(&format!("XRANGE {key} - +")).await;
        entries.into_iter().map(|(_, fields)| fields).collect()
    }

    /// Sends a command to every node and ignores errors.
    pub(super) async fn run_on_all_nodes(&self, command: &str) {
        let target = self.target();
        let all = if target.nodes.is_empty() { vec![target.url] } else { target.nodes };
        for url in all {
            let _: Option<redis::Value> = ask(&url, command).await;
        }
    }

    /// Kills Redis and restarts it with its data on disk. With a replica, waits for the
    /// failover before and for the resynchronization after that.
    pub(super) async fn kill_redis(&mut self, away: Duration) {
        match self {
            Self::Standalone(redis, _) => {
                redis.kill();
                tokio::time::sleep(away).await;
                redis.restart();
            }
            Self::Sentinel(server) => {
                let old = until("a master", async || agreed_master(server).await).await;
                server.nodes[old].kill();
                until("its replica is the master", async || (agreed_master(server).await? == 1 - old).then_some(()))
                    .await;
                tokio::time::sleep(away).await;
                server.nodes[old].restart();
                until_failover_complete(server).await;
            }
        }
    }

    /// Makes the replica the master. The failover is requested once and awaited: a
    /// second request during it would promote a replica that is not yet up to date.
    pub(super) async fn failover(&self) {
        let Self::Sentinel(server) = self else { panic!("a failover needs a replica") };
        until("the failover", async || {
            let old = agreed_master(server).await?;
            // Rejected while the sentinels do not know the replica yet.
            ask::<redis::Value>(&server.sentinels[0].url(), "SENTINEL FAILOVER mymaster").await?;
            let asked = Instant::now();
            while asked.elapsed() < FAILOVER_TIMEOUT {
                if agreed_master(server).await == Some(1 - old) {
                    return Some(());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            until_failover_complete(server).await;
            None
        })
        .await;
        until_failover_complete(server).await;
    }
}

/// The reply, if there is one in time.
async fn ask<T: FromRedisValue>(url: &str, command: &str) -> Option<T> {
    let answer = async {
        let mut connection = try_connection(url).await?;
        parse_command(command).query_async(&mut connection).await
    };
    tokio::time::timeout(REPLY_TIMEOUT, answer).await.ok()?.ok()
}

/// The node that every sentinel and the node itself call the master.
async fn agreed_master(server: &Server) -> Option<usize> {
    let mut ports = Vec::new();
    for sentinel in &server.sentinels {
        let (_, port): (String, u16) = ask(&sentinel.url(), "SENTINEL GET-MASTER-ADDR-BY-NAME mymaster").await?;
        ports.push(port);
    }
    let at = server.nodes.iter().position(|node| ports.iter().all(|port| *port == node.port))?;
    let role: Vec<redis::Value> = ask(&server.nodes[at].url(), "ROLE").await?;
    (role.first() == Some(&redis::Value::BulkString(b"master".to_vec()))).then_some(at)
}

/// Waits for one master, a synchronized replica, and sentinels that know both and
/// run no failover: only then may the next fault follow.
async fn until_failover_complete(server: &Server) {
    until("the replica follows and the sentinels know", async || {
        let at = agreed_master(server).await?;
        let master: String = ask(&server.nodes[at].url(), "INFO replication").await?;
        let replica: String = ask(&server.nodes[1 - at].url(), "INFO replication").await?;
        let number = |info: &str, name: &str| -> Option<u64> {
            info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?.trim().parse().ok()
        };
        replica.contains("master_link_status:up").then_some(())?;
        (number(&replica, "slave_repl_offset")? >= number(&master, "master_repl_offset")?).then_some(())?;
        for sentinel in &server.sentinels {
            let master_info: BTreeMap<String, String> = ask(&sentinel.url(), "SENTINEL MASTER mymaster").await?;
            let replicas: Vec<BTreeMap<String, String>> = ask(&sentinel.url(), "SENTINEL REPLICAS mymaster").await?;
            (master_info["flags"] == "master" && replicas.len() == 1 && replicas[0]["flags"] == "slave")
                .then_some(())?;
        }
        Some(())
    })
    .await;
}
