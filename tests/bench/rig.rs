//! What the benchmarks are made of: a server, a worker with guests, messages of
//! a known size, and the counters of the kernel.

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

/// A message whose envelope has the bytes that were promised.
pub(crate) fn publication(topic: &Topic, number: usize, priority: Priority) -> Publication {
    let seal = |data: &str| {
        let id = format!("{number:036}");
        let draft = Draft { priority, ..Draft::new(id, topic, data) };
        draft.seal(Timestamp::now()).unwrap()
    };
    let bare = seal("\"\"").body.len();
    let publication = seal(&format!("\"{}\"", "x".repeat(MESSAGE_BYTES - bare)));
    assert_eq!(publication.body.len(), MESSAGE_BYTES);
    publication
}

/// Looks how long a stream is.
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

/// The worker's own binary, with its guests; ended with it.
pub(crate) struct Worker(Child, #[expect(dead_code, reason = "keeps the folder")] tempfile::TempDir);

impl Worker {
    /// `plugins` are a name, a component and a manifest each.
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

/// User and system time of a process, all its threads together.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in parentheses may contain anything, so count from its end.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / CLOCK_TICKS
}

/// A message for the guest `clock`, which tells when it began by its own: it
/// carries the moment of its publication.
pub(crate) fn stamped(topic: &Topic, number: usize) -> Publication {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos().to_string();
    Draft::new(number.to_string(), topic, &now).seal(Timestamp::now()).unwrap()
}

/// Milliseconds from publication to start of all that `clock` has told of,
/// the shortest first.
pub(crate) async fn started_after(queue: &TopicHandle, topic: &Topic) -> Vec<f64> {
    let ms = |error: &str| Some(error.strip_prefix("started: ")?.parse::<f64>().ok()? / 1e6);
    let mut walk = DeadLetters::new(queue.clone()).list(Origin::Ours, Order::OldestFirst).await.unwrap();
    let mut found = Vec::new();
    while let Some(piece) = Some(walk.next().await.unwrap()).filter(|piece| !piece.is_empty()) {
        found.extend(piece.iter().filter_map(|letter| ms(&letter.told(topic).error)));
    }
    found.sort_by(f64::total_cmp);
    found
}
