//! `make bench`: the cost of a message, compared with a bare consumer.
//!
//! One run measures everything that it compares, so that the ratios hold on a noisy
//! machine where absolute numbers do not: the worker with a fresh instance for each
//! message, and the bare operations (read, decode, acknowledge) on the same kind of
//! server with the same messages.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that can't go on ends, and prints")]

#[path = "../guest.rs"]
mod guest;
mod rig;

use gateway_worker::message;
use gateway_worker::private_redis::PrivateRedis;
use gateway_worker::publication::Priority;
use gateway_worker::queue::{BlockingReader, Publisher, Settlements, StreamKind, TopicHandle, open};
use gateway_worker::topic::Topic;
use rig::{
    Length, MESSAGE_BYTES, Worker, cpu_seconds, fill, queue_of, redis_server, sdk_guest, stamped, start_latencies,
};
use std::time::{Duration, Instant};

const ROUNDS: usize = 3;
const LATENCY_MESSAGES: usize = 500;

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
    /// A handler of a few instructions, without WASI, which measures the host.
    Smallest,
    /// A handler built with the SDK and the standard library.
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

/// Drains a server with `count` waiting messages.
async fn drained(drain: Drain, count: usize) -> Drained {
    let data = tempfile::tempdir().unwrap();
    let server = redis_server(data.path());
    let topic = Topic::parse("noop").unwrap();
    let (_, queue) = queue_of(&server, &topic);
    fill(&queue, &topic, count, Priority::Normal).await;

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

/// The minimum that any consumer has to do.
async fn drain_bare(queue: &TopicHandle, topic: &Topic, count: usize) {
    open(queue).await.unwrap();
    let settlements = Settlements::new(queue.clone());
    let mut reader = BlockingReader::connect(queue).await.unwrap();
    let mut left = count;
    while left > 0 {
        let (batch, _) = reader.read(StreamKind::Normal, 256, Duration::from_secs(1)).await.unwrap();
        let settled: Vec<_> = batch
            .iter()
            .map(|taken| {
                std::hint::black_box(message::read(topic, &taken.entry.id, &taken.fields).unwrap());
                taken.done(None, Vec::new())
            })
            .collect();
        settlements.settle(&settled, Duration::ZERO).await.unwrap();
        left -= batch.len();
    }
}

/// Seconds and CPU seconds from the first settled message to the last.
async fn drain_with_worker(server: &PrivateRedis, wasm: &[u8], count: usize) -> (f64, f64) {
    let worker = Worker::start(server, &[("noop", wasm, "concurrency = 512\n")], &[]);
    let length = Length::of(server, "mq:noop").await;
    while length.now().await == count {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The start of the worker is not measured.
    let (cpu_before, started, left) = (cpu_seconds(worker.pid()), Instant::now(), length.now().await);
    while length.now().await > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let share = count as f64 / left as f64;
    (started.elapsed().as_secs_f64() * share, (cpu_seconds(worker.pid()) - cpu_before) * share)
}

/// p50 and p99 in ms from publication to handler start, one message at a time.
async fn latency() -> (f64, f64) {
    let data = tempfile::tempdir().unwrap();
    let server = redis_server(data.path());
    let topic = Topic::parse("clock").unwrap();
    let (_, queue) = queue_of(&server, &topic);
    let publisher = Publisher::new(queue.clone());
    let _worker = Worker::start(&server, &[("clock", &sdk_guest("clock"), "concurrency = 512\n")], &[]);
    let dead = Length::of(&server, "{mq:clock}:dead").await;
    for number in 0..LATENCY_MESSAGES {
        publisher.publish(&stamped(&topic, number)).await.unwrap();
        while dead.now().await <= number {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let ms = start_latencies(&queue, &topic).await;
    assert_eq!(ms.len(), LATENCY_MESSAGES);
    (ms[ms.len() / 2], ms[ms.len() * 99 / 100])
}
