//! Helpers of the benchmarks: a server, a worker with guests, messages of a known size,
//! and the CPU counters of the kernel.

use gateway_worker::private_redis::PrivateRedis;
use gateway_worker::publication::{Draft, Priority, Publication};
use gateway_worker::queue::dead::{DeadLetters, Order, Origin};
use gateway_worker::queue::{Connection, Publisher, RedisTarget, TopicHandle};
use gateway_worker::topic::Topic;
use jiff::Timestamp;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

const STATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.gateway-worker");
const GUESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/test-guests");
pub(crate) const MESSAGE_BYTES: usize = 200;
/// The kernel counts a process's CPU time in hundredths of a second.
const CLOCK_TICKS: f64 = 100.0;

pub(crate) fn queue_of(server: &PrivateRedis, topic: &Topic) -> (Connection, TopicHandle) {
    let connection = Connection::to(&RedisTarget::at(&server.url()).unwrap()).unwrap();
    let queue = TopicHandle::new(&connection, "mq:", "consumer-group-{topic}", "bench", topic);
    (connection, queue)
}

pub(crate) async fn fill(queue: &TopicHandle, topic: &Topic, count: usize, priority: Priority) {
    let mut left = count;
    while left > 0 {
        let batch: Vec<_> = (0..left.min(1000)).map(|number| publication(topic, left - number, priority)).collect();
        Publisher::new(queue.clone()).publish_all(&batch).await.unwrap();
        left -= batch.len();
    }
}

/// A message whose envelope has `MESSAGE_BYTES` bytes.
pub(crate) fn publication(topic: &Topic, number: usize, priority: Priority) -> Publication {
    let seal = |data: &str| {
        let id = format!("{number:036}");
        let draft = Draft { priority, ..Draft::new(id, topic, data) };
        draft.encode(Timestamp::now()).unwrap()
    };
    let bare = seal("\"\"").body.len();
    let publication = seal(&format!("\"{}\"", "x".repeat(MESSAGE_BYTES - bare)));
    assert_eq!(publication.body.len(), MESSAGE_BYTES);
    publication
}

/// Reads the length of a stream.
pub(crate) struct Length(redis::aio::MultiplexedConnection, String);

impl Length {
    pub(crate) async fn of(server: &PrivateRedis, key: &str) -> Self {
        let client = redis::Client::open(server.url()).unwrap();
        Self(client.get_multiplexed_async_connection().await.unwrap(), key.to_owned())
    }

    pub(crate) async fn now(&self) -> usize {
        redis::cmd("XLEN").arg(&self.1).query_async(&mut self.0.clone()).await.unwrap()
    }
}

pub(crate) fn redis_server(data: &Path) -> PrivateRedis {
    PrivateRedis::start(Path::new(STATE), data, &["--appendonly", "yes", "--appendfsync", "everysec"]).unwrap()
}

pub(crate) fn sdk_guest(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(GUESTS).join(format!("{name}.wasm"))).unwrap()
}

/// A worker process with its plugins directory, killed when dropped.
pub(crate) struct Worker(
    Child,
    #[expect(dead_code, reason = "deletes the plugins directory when dropped")] tempfile::TempDir,
);

impl Worker {
    /// Each of `plugins` is a name, a component and a manifest.
    pub(crate) fn start(server: &PrivateRedis, plugins: &[(&str, &[u8], &str)], options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, wasm, manifest) in plugins {
            std::fs::write(folder.path().join(format!("{name}.toml")), manifest).unwrap();
            std::fs::write(folder.path().join(format!("{name}.wasm")), wasm).unwrap();
        }
        let child = Command::new(env!("CARGO_BIN_EXE_gateway-worker"))
            .args(["run", "--listen", "127.0.0.1:0", "--log-level", "error", "--redis-url", &server.url(), "--plugins"])
            .arg(folder.path())
            .args(options)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child, folder)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// User and system time of all threads of a process.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The process name in parentheses may contain spaces, so count the fields after it.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / CLOCK_TICKS
}

/// A message for the guest `clock`, which reports its latency: the data is the time of
/// the publication.
pub(crate) fn stamped(topic: &Topic, number: usize) -> Publication {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos().to_string();
    Draft::new(number.to_string(), topic, &now).encode(Timestamp::now()).unwrap()
}

/// Sorted milliseconds from publication to handler start, from the dead letters of
/// `clock`.
pub(crate) async fn start_latencies(queue: &TopicHandle, topic: &Topic) -> Vec<f64> {
    let ms = |error: &str| Some(error.strip_prefix("started: ")?.parse::<f64>().ok()? / 1e6);
    let mut walk = DeadLetters::new(queue.clone()).list(Origin::Ours, Order::OldestFirst).await.unwrap();
    let mut found = Vec::new();
    while let Some(page) = Some(walk.next().await.unwrap()).filter(|page| !page.is_empty()) {
        found.extend(page.iter().filter_map(|letter| ms(&letter.summary(topic).error)));
    }
    found.sort_by(f64::total_cmp);
    found
}
