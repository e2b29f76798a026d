//! Redis setups: a single Redis or Valkey, one with TLS and ACL users, a master and a
//! replica with sentinels, and a cluster of three masters.

use crate::certificates::Certificates;
use crate::process::{Process, free_port, redis as redis_server, valkey};
use crate::support::{Entry, connect_without_timeout, field, topic, try_connection, until};
use crate::topic_client::TopicClient;
use gateway_worker::publication::Draft;
use gateway_worker::queue::Connection;
use gateway_worker::settings::RawRedis;
use jiff::Timestamp;
use redis::FromRedisValue;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Redis,
    Valkey,
    Tls,
    Sentinel,
    Cluster,
    TlsSentinel,
    TlsCluster,
}

/// Limits the number of setups with several processes that run at the same time.
static MULTI_PROCESS_PERMITS: Semaphore = Semaphore::const_new(4);

/// The ACL rights that a worker and the commands need.
pub(crate) const RIGHTS: &str = "~mq:* ~{mq:* %R~*:workers +@read +@write +@connection -@dangerous \
    +evalsha +script|load +time +info +role +client|unblock +cluster|slots";
const ADMIN: &str = "admin:admin@";

pub(crate) struct Server {
    mode: Mode,
    /// The `--redis-url` of a worker, and its other options.
    pub(crate) url: String,
    pub(crate) options: Vec<String>,
    /// The data nodes.
    pub(crate) nodes: Vec<Process>,
    pub(crate) sentinels: Vec<Process>,
    connection: Connection,
    cache: Arc<TempDir>,
    _certificates: Option<Certificates>,
    _permit: Option<SemaphorePermit<'static>>,
}

impl Server {
    pub(crate) async fn start(mode: Mode) -> Self {
        let large = !matches!(mode, Mode::Redis | Mode::Valkey | Mode::Tls);
        let permit = if large { Some(MULTI_PROCESS_PERMITS.acquire().await.unwrap()) } else { None };
        let mut server = match mode {
            Mode::Redis => Self::single(mode, plain(&redis_server())),
            Mode::Valkey => Self::single(mode, plain(&valkey())),
            Mode::Tls => tls(),
            Mode::Sentinel => sentinel_setup(60_000, IN_MEMORY, None),
            Mode::Cluster => cluster(None).await,
            Mode::TlsSentinel => sentinel_setup(60_000, IN_MEMORY, Some(Certificates::new("authority"))),
            Mode::TlsCluster => cluster(Some(Certificates::new("authority"))).await,
        };
        server._permit = permit;
        server
    }

    /// Sentinels that detect a dead master within a second.
    pub(crate) async fn start_sentinel_with_fast_failover() -> Self {
        let permit = MULTI_PROCESS_PERMITS.acquire().await.unwrap();
        let mut server = sentinel_setup(1000, PERSISTENT, None);
        server._permit = Some(permit);
        let all_discovered = async || {
            for sentinel in &server.sentinels {
                let mut connection = connect_without_timeout(&sentinel.url()).await;
                for (command, expected) in [("SENTINELS", 2), ("REPLICAS", 1)] {
                    let command = redis::cmd("SENTINEL").arg(command).arg("mymaster").to_owned();
                    let known: Vec<BTreeMap<String, String>> = command.query_async(&mut connection).await.ok()?;
                    let is_up = |one: &BTreeMap<String, String>| {
                        !one["flags"].contains("down") && !one["flags"].contains("disconnected")
                    };
                    (known.len() == expected && known.iter().all(is_up)).then_some(())?;
                }
            }
            Some(())
        };
        until("the sentinels know each other and the replica", all_discovered).await;
        server
    }

    fn single(mode: Mode, process: Process) -> Self {
        Self::of(mode, process.url(), None, vec![process], Vec::new())
    }

    fn of(
        mode: Mode,
        url: String,
        certificates: Option<Certificates>,
        nodes: Vec<Process>,
        sentinels: Vec<Process>,
    ) -> Self {
        let options = certificates.as_ref().map(Certificates::flags).unwrap_or_default();
        let option = |name: &str| options.iter().position(|option| option == name).map(|at| options[at + 1].clone());
        let typed = RawRedis {
            redis_url: Some(url.clone()),
            redis_tls_ca: option("--redis-tls-ca"),
            redis_tls_cert: option("--redis-tls-cert"),
            redis_tls_key: option("--redis-tls-key"),
            ..RawRedis::default()
        };
        let mut faults = Vec::new();
        let target = typed.check(&mut faults);
        assert!(faults.is_empty(), "{faults:?}");
        let connection = Connection::to(&target).unwrap();
        let cache = shared_cache();
        Self { mode, url, options, nodes, sentinels, connection, cache, _certificates: certificates, _permit: None }
    }

    /// A cache of compiled plugins that the workers of several tests share.
    pub(crate) fn cache(&self) -> &str {
        self.cache.path().to_str().unwrap()
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.mode == Mode::Cluster
    }

    /// Runs one command on the node of its key. Words are separated by spaces.
    pub(crate) async fn run<T: FromRedisValue>(&self, command: &str) -> T {
        until(&format!("an answer to {command}"), async || {
            for node in &self.nodes {
                if let Some(value) = self.ask(node, command).await {
                    return Some(redis::from_redis_value(value).unwrap_or_else(|error| panic!("{command}: {error}")));
                }
            }
            None
        })
        .await
    }

    /// Runs a command on each master and returns the replies.
    pub(crate) async fn run_everywhere<T: FromRedisValue>(&self, command: &str) -> Vec<T> {
        let mut answers = Vec::new();
        for node in &self.nodes {
            answers.extend(self.ask(node, command).await.map(|value| redis::from_redis_value(value).unwrap()));
        }
        answers
    }

    /// Sets `maxmemory` on each master; 0 is unlimited.
    pub(crate) async fn set_memory(&self, bytes: u64) {
        self.run_everywhere::<()>(&format!("CONFIG SET maxmemory {bytes}")).await;
    }

    /// The reply of the node; None if another node has to be asked.
    async fn ask(&self, node: &Process, command: &str) -> Option<redis::Value> {
        let mut connection = try_connection(&node.url()).await.ok()?;
        if self.mode == Mode::Sentinel {
            let role: Vec<redis::Value> = redis::cmd("ROLE").query_async(&mut connection).await.ok()?;
            (role.first() == Some(&redis::Value::BulkString(b"master".to_vec()))).then_some(())?;
        }
        let built = parse_command(command);
        match built.query_async(&mut connection).await {
            Ok(value) => Some(value),
            Err(error) if matches!(error.code(), Some("MOVED" | "TRYAGAIN" | "CLUSTERDOWN")) => None,
            Err(error) if error.code() == Some("ASK") => {
                let (address, _) = error.redirect_node().unwrap();
                let mut connection = try_connection(&format!("redis://{address}")).await.ok()?;
                let mut both = redis::pipe();
                both.cmd("ASKING").ignore().add_command(built);
                both.query_async::<Vec<redis::Value>>(&mut connection).await.ok()?.pop()
            }
            Err(error) if error.is_io_error() || error.is_cluster_error() => None,
            Err(error) => panic!("{command}: {error}"),
        }
    }

    pub(crate) async fn is(&self, what: &str, command: &str, expected: i64) {
        until(what, async || (self.run::<Option<i64>>(command).await == Some(expected)).then_some(())).await;
    }

    pub(crate) async fn in_flight(&self, topic: &str) -> i64 {
        let groups: Vec<BTreeMap<String, redis::Value>> = self.run(&format!("XINFO GROUPS mq:{topic}")).await;
        match groups.first().and_then(|group| group.get("pending")) {
            Some(redis::Value::Int(pending)) => *pending,
            _ => 0,
        }
    }

    pub(crate) async fn until_in_flight(&self, topic: &str, count: i64) {
        let is_there = async || self.run::<i64>(&format!("EXISTS mq:{topic}")).await == 1;
        until(&format!("{count} in flight"), async || {
            (is_there().await && self.in_flight(topic).await == count).then_some(())
        })
        .await;
    }

    pub(crate) async fn entries(&self, key: &str) -> Vec<Entry> {
        let entries: Vec<(String, Entry)> = self.run(&format!("XRANGE {key} - +")).await;
        entries.into_iter().map(|(_, fields)| fields).collect()
    }

    /// The envelopes in a stream.
    pub(crate) async fn envelopes(&self, key: &str) -> Vec<Value> {
        let parse = |fields: &Entry| serde_json::from_slice(&field(fields, "message")).unwrap();
        self.entries(key).await.iter().map(parse).collect()
    }

    /// Waits for a dead letter of a topic and returns it.
    pub(crate) async fn dead(&self, topic: &str) -> Entry {
        let key = format!("{{mq:{topic}}}:dead");
        until(&format!("a dead letter of {topic}"), async || self.entries(&key).await.pop()).await
    }

    /// A topic's queue as the worker `consumer` uses it.
    pub(crate) fn queue(&self, name: &str, consumer: &str) -> TopicClient {
        TopicClient::new(&self.connection, "mq:", "consumer-group-{topic}", consumer, &topic(name))
    }

    pub(crate) async fn publish(&self, name: &str, id: &str, data: &str) {
        self.publish_later(name, id, data, Duration::ZERO).await;
    }

    pub(crate) async fn publish_later(&self, name: &str, id: &str, data: &str, delay: Duration) {
        let topic = topic(name);
        self.publish_draft(Draft { delay, ..Draft::new(id.to_owned(), &topic, data) }).await;
    }

    /// Publishes with retries: the message has an id, so that a duplicate is harmless.
    pub(crate) async fn publish_draft(&self, draft: Draft<'_>) {
        let queue = self.queue(draft.topic.as_str(), "publisher");
        let publication = draft.encode(Timestamp::now()).unwrap();
        until("published", async || {
            queue.publisher.publish(&publication).await.map_err(|error| println!("not published: {error}")).ok()
        })
        .await;
    }
}

/// A cache of compiled plugins, since compiling takes longer than most scenarios. It is
/// shared by tests that run at the same time, and removed with the last of them.
fn shared_cache() -> Arc<TempDir> {
    static CACHE: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());
    let mut cache = CACHE.lock().unwrap();
    cache.upgrade().unwrap_or_else(|| {
        let new = Arc::new(tempfile::tempdir().unwrap());
        *cache = Arc::downgrade(&new);
        new
    })
}

pub(crate) fn parse_command(command: &str) -> redis::Cmd {
    let mut words = command.split_whitespace();
    let mut built = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        built.arg(word);
    });
    built
}

const PERSISTENT: &str = "save \"\"\nappendonly yes\nappendfsync always\n";
const IN_MEMORY: &str = "save \"\"\n";

fn plain(program: &Path) -> Process {
    Process::start(program, &[], "", |_, _| PERSISTENT.to_owned())
}

// --------------------------------------------------------------- TLS and users

/// Workers need a certificate and a user; the plain port is for the test.
fn tls() -> Server {
    let certificates = Certificates::new("authority");
    let users = format!("user default off\nuser admin on >admin ~* &* +@all\nuser gateway on >s3cret/@ {RIGHTS}\n");
    let process =
        Process::start(&redis_server(), &[], ADMIN, |_, _| format!("{IN_MEMORY}{}{users}", certificates.lines()));
    let url = format!("rediss://gateway:s3cret%2F%40@127.0.0.1:{}", process.setting("tls-port"));
    Server::of(Mode::Tls, url, Some(certificates), vec![process], Vec::new())
}

/// The port for clients.
fn client_port(process: &Process, tls: Option<&Certificates>) -> String {
    if tls.is_some() { process.setting("tls-port") } else { process.port.to_string() }
}

fn lines(tls: Option<&Certificates>) -> String {
    tls.map(Certificates::lines).unwrap_or_default()
}

fn scheme(tls: Option<&Certificates>) -> &'static str {
    if tls.is_some() { "rediss" } else { "redis" }
}

// ------------------------------------------------------------------- Sentinel

/// A master, its replica, and three sentinels.
fn sentinel_setup(down_after_ms: u32, disk: &str, certificates: Option<Certificates>) -> Server {
    let tls = certificates.as_ref();
    let quick = || format!("{disk}repl-diskless-sync-delay 0\n{}", lines(tls));
    let master = Process::start(&redis_server(), &[], "", |_, _| quick());
    let at = client_port(&master, tls);
    let replica = Process::start(&redis_server(), &[], "", |_, _| format!("{}replicaof 127.0.0.1 {at}\n", quick()));
    let sentinel = |_| {
        Process::start(&redis_server(), &["--sentinel"], "", |_, _| {
            format!(
                "{}sentinel monitor mymaster 127.0.0.1 {at} 2\nsentinel down-after-milliseconds mymaster {down_after_ms}\n\
                 sentinel failover-timeout mymaster 3000\n",
                lines(tls)
            )
        })
    };
    let sentinels: Vec<Process> = (0..3).map(sentinel).collect();
    let hosts: Vec<String> =
        sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", client_port(sentinel, tls))).collect();
    let url = format!("{}+sentinel://{}/mymaster", scheme(tls), hosts.join(","));
    Server::of(Mode::Sentinel, url, certificates, vec![master, replica], sentinels)
}

// -------------------------------------------------------------------- Cluster

/// Three masters, with a third of the slots each.
async fn cluster(certificates: Option<Certificates>) -> Server {
    let tls = certificates.as_ref();
    let node = |_| {
        Process::start(&redis_server(), &[], "", |_, _| {
            format!(
                "{IN_MEMORY}cluster-enabled yes\ncluster-port {}\ncluster-node-timeout 15000\n{}",
                free_port(),
                lines(tls)
            )
        })
    };
    let nodes: Vec<Process> = (0..3).map(node).collect();
    for (node, slots) in nodes.iter().zip(["0 5460", "5461 10922", "10923 16383"]) {
        let mut connection = connect_without_timeout(&node.url()).await;
        parse_command(&format!("CLUSTER ADDSLOTSRANGE {slots}")).query_async::<()>(&mut connection).await.unwrap();
        for other in nodes.iter().filter(|other| other.port != node.port) {
            let meet = format!("CLUSTER MEET 127.0.0.1 {} {}", client_port(other, tls), other.setting("cluster-port"));
            parse_command(&meet).query_async::<()>(&mut connection).await.unwrap();
        }
    }
    until("the cluster is whole", async || {
        for node in &nodes {
            let mut connection = connect_without_timeout(&node.url()).await;
            let info: String = parse_command("CLUSTER INFO").query_async(&mut connection).await.ok()?;
            (info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")).then_some(())?;
            let slots: Vec<redis::Value> = parse_command("CLUSTER SLOTS").query_async(&mut connection).await.ok()?;
            (slots.len() == 3).then_some(())?;
        }
        Some(())
    })
    .await;
    // A client discovers the third node from the first two.
    let (one, other) = (client_port(&nodes[0], tls), client_port(&nodes[1], tls));
    let url = format!("{}+cluster://127.0.0.1:{one},127.0.0.1:{other}", scheme(tls));
    Server::of(Mode::Cluster, url, certificates, nodes, Vec::new())
}

impl Server {
    /// The flags with which a worker or a command connects.
    pub(crate) fn flags(&self) -> Vec<&str> {
        self.options.iter().map(String::as_str).collect()
    }

    /// Checks, in the setup with ACL users, that Redis has denied nothing.
    pub(crate) async fn assert_no_acl_denials(&self) {
        if self.mode == Mode::Tls {
            let refused: Vec<BTreeMap<String, redis::Value>> = self.run("ACL LOG").await;
            assert!(refused.is_empty(), "{refused:?}");
        }
    }
}
