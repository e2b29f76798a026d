//! `make bench`: what a message costs, beside what it costs without us.
//!
//! One run measures everything it compares, so that its ratios hold on a noisy
//! machine where its absolute numbers do not: the worker with a fresh instance
//! for each message, and bare primitives (read, decode, acknowledge) against
//! the same server with the same messages.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that can't go on ends, and prints")]

#[path = "../guest.rs"]
mod guest;

use gateway_worker::message;
use gateway_worker::private_redis::PrivateRedis;
use gateway_worker::publication::{Draft, Publication};
use gateway_worker::queue::{Connection, Reader, RedisTarget, Source, TopicQueue, inspect};
use gateway_worker::topic::Topic;
use jiff::Timestamp;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const STATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.gateway-worker");
const GUESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/test-guests");
const MESSAGE_BYTES: usize = 200;
const ROUNDS: usize = 3;
const LATENCY_MESSAGES: usize = 500;
/// The kernel counts a process's CPU time in hundredths of a second.
const CLOCK_TICKS: f64 = 100.0;

#[tokio::main]
async fn main() {
    let count = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(100_000);
    println!("{count} messages of {MESSAGE_BYTES} bytes, AOF everysec, best of {ROUNDS} rounds\n");
    println!("{:<34}{:>12}{:>14}{:>14}", "", "messages/s", "client us/msg", "Redis us/msg");
    let mut best: [Option<Drained>; 3] = [None, None, None];
    for _ in 0..ROUNDS {
        for (best, drain) in best.iter_mut().zip(DRAINS) {
            let drained = drained(drain, count).await;
            println!("  {:<32}{drained}", drain.name());
            if best.as_ref().is_none_or(|best| best.rate < drained.rate) {
                *best = Some(drained);
            }
        }
    }
    println!("\nbest");
    let best = best.map(Option::unwrap);
    for (drain, drained) in DRAINS.iter().zip(&best) {
        println!("  {:<32}{drained}{:>10.2} of bare", drain.name(), drained.rate / best[0].rate);
    }

    let (p50, p99) = latency().await;
    println!(
        "\nenqueue to handler start, one message at a time: p50 {p50:.2} ms, p99 {p99:.2} ms ({LATENCY_MESSAGES} messages)"
    );
}

#[derive(Clone, Copy)]
enum Drain {
    Bare,
    /// A handler of a few instructions, without WASI: what the host costs.
    Smallest,
    /// A handler built with the SDK, standard library and all.
    Sdk,
}

const DRAINS: [Drain; 3] = [Drain::Bare, Drain::Smallest, Drain::Sdk];

impl Drain {
    fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare: read, decode, acknowledge",
            Self::Smallest => "worker, smallest handler",
            Self::Sdk => "worker, SDK handler (Rust)",
        }
    }
}

struct Drained {
    rate: f64,
    client_us: f64,
    redis_us: f64,
}

impl std::fmt::Display for Drained {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>12.0}{:>14.2}{:>14.2}", self.rate, self.client_us, self.redis_us)
    }
}

/// A server with `count` messages waiting, emptied in one of two ways.
async fn drained(drain: Drain, count: usize) -> Drained {
    let data = tempfile::tempdir().unwrap();
    let server = redis_server(data.path());
    let topic = Topic::parse("noop").unwrap();
    let connection = Connection::to(&RedisTarget::at(&server.url()).unwrap()).unwrap();
    let queue = TopicQueue::new(&connection, "mq:", "consumer-group-{topic}", "bench", &topic);
    fill(&queue, &topic, count).await;

    let redis_before = cpu_seconds(server.pid());
    let (seconds, client_cpu) = match drain {
        Drain::Bare => {
            let (cpu_before, started) = (cpu_seconds(std::process::id()), Instant::now());
            drain_bare(&queue, &topic, count).await;
            (started.elapsed().as_secs_f64(), cpu_seconds(std::process::id()) - cpu_before)
        }
        Drain::Smallest => drain_with_worker(&server, &guest::guest(guest::OK), count).await,
        Drain::Sdk => drain_with_worker(&server, &sdk_guest("noop"), count).await,
    };
    let redis_cpu = cpu_seconds(server.pid()) - redis_before;
    let each = |cpu: f64| cpu * 1e6 / count as f64;
    Drained { rate: count as f64 / seconds, client_us: each(client_cpu), redis_us: each(redis_cpu) }
}

async fn fill(queue: &TopicQueue, topic: &Topic, count: usize) {
    let mut left = count;
    while left > 0 {
        let batch: Vec<_> = (0..left.min(1000)).map(|number| publication(topic, left - number)).collect();
        queue.publish_all(&batch).await.unwrap();
        left -= batch.len();
    }
}

/// A message whose envelope has the bytes that were promised.
fn publication(topic: &Topic, number: usize) -> Publication {
    let seal = |data: &str| {
        let id = format!("{number:036}");
        let draft = Draft::new(id, topic, data);
        draft.seal(Timestamp::now()).unwrap()
    };
    let bare = seal("\"\"").body.len();
    let publication = seal(&format!("\"{}\"", "x".repeat(MESSAGE_BYTES - bare)));
    assert_eq!(publication.body.len(), MESSAGE_BYTES);
    publication
}

/// What any consumer in this language has to do, and no more.
async fn drain_bare(queue: &TopicQueue, topic: &Topic, count: usize) {
    queue.open().await.unwrap();
    let mut reader = Reader::connect(queue).await.unwrap();
    let mut left = count;
    while left > 0 {
        let (batch, _) = reader.read(queue, Source::Normal, 256, Duration::from_secs(1)).await.unwrap();
        let settled: Vec<_> = batch
            .iter()
            .map(|taken| {
                std::hint::black_box(message::read(topic, &taken.entry.id, &taken.fields).unwrap());
                taken.done(None, Vec::new(), Vec::new())
            })
            .collect();
        queue.settle(&settled, Duration::ZERO).await.unwrap();
        left -= batch.len();
    }
}

/// Seconds from the first message done to the last, and CPU over the whole.
async fn drain_with_worker(server: &PrivateRedis, wasm: &[u8], count: usize) -> (f64, f64) {
    let worker = Worker::start(server, "noop", wasm);
    let length = Length::of(server, "mq:noop").await;
    while length.now().await == count {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Starting up is not draining.
    let (cpu_before, started, left) = (cpu_seconds(worker.0.id()), Instant::now(), length.now().await);
    while length.now().await > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let share = count as f64 / left as f64;
    (started.elapsed().as_secs_f64() * share, (cpu_seconds(worker.0.id()) - cpu_before) * share)
}

/// Looks how long a stream is.
struct Length(redis::aio::MultiplexedConnection, String);

impl Length {
    async fn of(server: &PrivateRedis, key: &str) -> Self {
        let client = redis::Client::open(server.url()).unwrap();
        Self(client.get_multiplexed_async_connection().await.unwrap(), key.to_owned())
    }

    async fn now(&self) -> usize {
        redis::cmd("XLEN").arg(&self.1).query_async(&mut self.0.clone()).await.unwrap()
    }
}

/// One message at a time, each by the clock of its publisher and its handler.
async fn latency() -> (f64, f64) {
    let data = tempfile::tempdir().unwrap();
    let server = redis_server(data.path());
    let topic = Topic::parse("clock").unwrap();
    let connection = Connection::to(&RedisTarget::at(&server.url()).unwrap()).unwrap();
    let queue = TopicQueue::new(&connection, "mq:", "consumer-group-{topic}", "bench", &topic);
    let _worker = Worker::start(&server, "clock", &sdk_guest("clock"));
    let dead = Length::of(&server, "{mq:clock}:dead").await;
    for number in 0..LATENCY_MESSAGES {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos().to_string();
        let draft = Draft::new(number.to_string(), &topic, &now);
        queue.publish(&draft.seal(Timestamp::now()).unwrap()).await.unwrap();
        while dead.now().await <= number {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let dead = inspect::dead_letters(&connection, "mq:", &topic, LATENCY_MESSAGES).await.unwrap();
    let started = |error: &str| error.strip_prefix("started: ").and_then(|ns| ns.parse::<f64>().ok());
    let mut ms: Vec<f64> = dead.iter().filter_map(|letter| started(&letter.error)).map(|ns| ns / 1e6).collect();
    assert_eq!(ms.len(), LATENCY_MESSAGES);
    ms.sort_by(f64::total_cmp);
    (ms[ms.len() / 2], ms[ms.len() * 99 / 100])
}

fn redis_server(data: &Path) -> PrivateRedis {
    PrivateRedis::start(Path::new(STATE), data, &["--appendonly", "yes", "--appendfsync", "everysec"]).unwrap()
}

fn sdk_guest(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(GUESTS).join(format!("{name}.wasm"))).unwrap()
}

/// The worker's own binary, with one guest; ended with it.
struct Worker(Child, #[expect(dead_code, reason = "keeps the folder")] tempfile::TempDir);

impl Worker {
    fn start(server: &PrivateRedis, topic: &str, wasm: &[u8]) -> Self {
        let plugins = tempfile::tempdir().unwrap();
        std::fs::write(plugins.path().join(format!("{topic}.toml")), "concurrency = 512\n").unwrap();
        std::fs::write(plugins.path().join(format!("{topic}.wasm")), wasm).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_gateway-worker"))
            .args(["run", "--listen", "127.0.0.1:0", "--log-level", "error", "--redis-url", &server.url(), "--plugins"])
            .arg(plugins.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child, plugins)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// User and system time of a process, all its threads together.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in parentheses may contain anything, so count from its end.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / CLOCK_TICKS
}
