//! `make bench-queue`: the cost of queue features, each measured with its baseline in the
//! same run.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that can't go on ends, and prints")]

#[path = "../guest.rs"]
mod guest;
mod rig;

use gateway_worker::private_redis::PrivateRedis;
use gateway_worker::publication::Priority;
use gateway_worker::queue::{
    BlockingReader, Evicted, Eviction, Leases, MessageSearch, Publisher, ReclaimTimeouts, Settlements, StreamKind,
    TopicHandle, open,
};
use gateway_worker::settings::DeadLetterCaps;
use gateway_worker::topic::Topic;
use redis::aio::MultiplexedConnection;
use rig::{
    Length, MESSAGE_BYTES, Worker, cpu_seconds, fill, publication, queue_of, redis_server, sdk_guest, stamped,
    start_latencies,
};
use std::time::{Duration, Instant};

const ROUNDS: usize = 3;
const LEASE: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() {
    let count = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(100_000);
    options(count).await;
    latency_under_load().await;
    backlog().await;
    memory().await;
    idle().await;
    time_to_reclaim().await;
    reclaim_cost().await;
    operator_commands().await;
}

/// The additional cost of each option.
async fn options(count: usize) {
    const OPTIONS: [(&str, &str, &[&str]); 7] = [
        ("none", "", &[]),
        ("dedup", "[dedup]\nwindow = \"1h\"\n", &[]),
        ("rate", "[rate]\nlimit = 1000000\nper = \"100ms\"\n", &[]),
        ("global_concurrency", "global_concurrency = 100000\n", &[]),
        ("priorities", "", &[]),
        // Renewals twenty times as often as by default, and none.
        ("leases of 500ms", "", &["--queue-lease", "500ms"]),
        ("leases of 1h", "", &["--queue-lease", "1h"]),
    ];
    println!("{count} messages, the smallest handler, best of {ROUNDS} rounds\n");
    println!("{:<22}{:>12}{:>10}{:>14}{:>14}", "option", "messages/s", "of none", "worker us/msg", "Redis us/msg");
    let mut best = OPTIONS.map(|_| (0.0, 0.0, 0.0));
    for _ in 0..ROUNDS {
        for (best, (name, manifest, flags)) in best.iter_mut().zip(OPTIONS) {
            let drained = drained(name, manifest, flags, count).await;
            if drained.0 > best.0 {
                *best = drained;
            }
        }
    }
    for ((rate, worker, server), (name, ..)) in best.into_iter().zip(OPTIONS) {
        println!("{name:<22}{rate:>12.0}{:>10.2}{worker:>14.2}{server:>14.2}", rate / best[0].0);
    }
}

/// Messages per second, and CPU microseconds per message of worker and Redis.
async fn drained(name: &str, manifest: &str, flags: &[&str], count: usize) -> (f64, f64, f64) {
    let data = tempfile::tempdir().unwrap();
    let server = redis_server(data.path());
    let topic = Topic::parse("noop").unwrap();
    let (_, queue) = queue_of(&server, &topic);
    let mut keys = vec!["mq:noop"];
    if name == "priorities" {
        for priority in [Priority::High, Priority::Normal, Priority::Low] {
            fill(&queue, &topic, count / 3, priority).await;
        }
        keys.extend(["{mq:noop}:high", "{mq:noop}:low"]);
    } else {
        fill(&queue, &topic, count, Priority::Normal).await;
    }
    let mut lengths = Vec::new();
    for key in keys {
        lengths.push(Length::of(&server, key).await);
    }
    let left = async || {
        let mut left = 0;
        for length in &lengths {
            left += length.now().await;
        }
        left
    };
    let manifest = format!("concurrency = 512\n{manifest}");
    let worker = Worker::start(&server, &[("noop", &guest::guest(guest::OK), &manifest)], flags);
    let count = left().await;
    while left().await == count {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (cpu, redis_cpu) = (cpu_seconds(worker.pid()), cpu_seconds(server.pid()));
    let (started, at_start) = (Instant::now(), left().await);
    while left().await > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let each = |seconds: f64| seconds * 1e6 / at_start as f64;
    (
        at_start as f64 / started.elapsed().as_secs_f64(),
        each(cpu_seconds(worker.pid()) - cpu),
        each(cpu_seconds(server.pid()) - redis_cpu),
    )
}

/// The latency from publication to handler start at a constant rate.
async fn latency_under_load() {
    println!("\nenqueue to handler start      p50        p99      p99.9");
    for rate in [1_000, 10_000] {
        let ms = started_at_a_rate(rate, 5).await;
        let at = |share: f64| ms[((ms.len() - 1) as f64 * share) as usize];
        println!("at {rate:>6} messages/s   {:>7.2} ms {:>7.2} ms {:>7.2} ms", at(0.5), at(0.99), at(0.999));
    }
}

async fn started_at_a_rate(rate: usize, seconds: usize) -> Vec<f64> {
    let data = tempfile::tempdir().unwrap();
    let server = redis_server(data.path());
    let topic = Topic::parse("clock").unwrap();
    let (_, queue) = queue_of(&server, &topic);
    let _worker = Worker::start(&server, &[("clock", &sdk_guest("clock"), "concurrency = 512\n")], &[]);
    let dead = Length::of(&server, "{mq:clock}:dead").await;
    let publisher = Publisher::new(queue.clone());
    publisher.publish(&stamped(&topic, 0)).await.unwrap();
    while dead.now().await == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Publishes in batches each millisecond.
    let mut interval = tokio::time::interval(Duration::from_millis(1));
    let (mut sent, started) = (0, Instant::now());
    while sent < rate * seconds {
        interval.tick().await;
        let due = ((started.elapsed().as_secs_f64() * rate as f64) as usize).min(rate * seconds);
        if due > sent {
            let batch: Vec<_> = (sent..due).map(|number| stamped(&topic, number + 1)).collect();
            publisher.publish_all(&batch).await.unwrap();
            sent = due;
        }
    }
    while dead.now().await <= sent {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    start_latencies(&queue, &topic).await
}

/// The cost of a read with a small and a large backlog.
async fn backlog() {
    println!("\nbacklog      take of 64: p50        p99");
    for waiting in [1_000, 1_000_000] {
        let data = tempfile::tempdir().unwrap();
        let server = redis_server(data.path());
        let topic = Topic::parse("t").unwrap();
        let (_, queue) = queue_of(&server, &topic);
        fill(&queue, &topic, waiting, Priority::Normal).await;
        open(&queue).await.unwrap();
        let (publisher, settlements) = (Publisher::new(queue.clone()), Settlements::new(queue.clone()));
        let mut reader = BlockingReader::connect(&queue).await.unwrap();
        let mut us = Vec::new();
        for _ in 0..200 {
            let started = Instant::now();
            let (taken, _) = reader.read(StreamKind::Normal, 64, Duration::from_millis(10)).await.unwrap();
            us.push(started.elapsed().as_secs_f64() * 1e6);
            let settled: Vec<_> = taken.iter().map(|one| one.done(None, Vec::new())).collect();
            settlements.settle(&settled, Duration::ZERO).await.unwrap();
            let again: Vec<_> = (0..taken.len()).map(|number| publication(&topic, number, Priority::Normal)).collect();
            publisher.publish_all(&again).await.unwrap();
        }
        us.sort_by(f64::total_cmp);
        println!("{waiting:>9}      {:>10.0} us {:>7.0} us", us[us.len() / 2], us[us.len() * 99 / 100]);
    }
}

/// Redis memory of a waiting message, compared with a raw entry of the same bytes.
async fn memory() {
    const COUNT: usize = 100_000;
    let data = tempfile::tempdir().unwrap();
    let server = redis_server(data.path());
    let topic = Topic::parse("t").unwrap();
    let (_, queue) = queue_of(&server, &topic);
    let mut connection = connect(&server).await;
    let empty = used(&mut connection).await;
    fill(&queue, &topic, COUNT, Priority::Normal).await;
    let ours = used(&mut connection).await - empty;
    let mut pipe = redis::pipe();
    for number in 0..COUNT {
        let body = publication(&topic, COUNT - number, Priority::Normal).body;
        pipe.cmd("XADD").arg("raw").arg("*").arg("message").arg(body).ignore();
    }
    pipe.query_async::<()>(&mut connection).await.unwrap();
    let raw = used(&mut connection).await - empty - ours;
    let each = |bytes: f64| bytes / COUNT as f64;
    println!(
        "\nmemory of a waiting message: {:.0} bytes; a raw entry: {:.0}; ratio {:.2}",
        each(ours),
        each(raw),
        ours / raw
    );
}

/// The cost of an idle worker with five handlers.
async fn idle() {
    const SECONDS: u64 = 20;
    let data = tempfile::tempdir().unwrap();
    let server = redis_server(data.path());
    let wasm = sdk_guest("puppet");
    let names = ["a", "b", "c", "d", "e"];
    let plugins: Vec<(&str, &[u8], &str)> = names.iter().map(|name| (*name, wasm.as_slice(), "")).collect();
    for name in names {
        let topic = Topic::parse(name).unwrap();
        Publisher::new(queue_of(&server, &topic).1).publish(&publication(&topic, 1, Priority::Normal)).await.unwrap();
    }
    let worker = Worker::start(&server, &plugins, &[]);
    tokio::time::sleep(Duration::from_secs(15)).await;
    let mut connection = connect(&server).await;
    let (before, cpu) = (commands(&mut connection).await, cpu_seconds(worker.pid()));
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    let commands = (commands(&mut connection).await - before) as f64 / SECONDS as f64;
    let cpu = (cpu_seconds(worker.pid()) - cpu) / SECONDS as f64;
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().trim().to_owned();
    println!(
        "\nidle worker, five handlers built with the SDK: {resident} resident, {:.1} % of a core, {:.1} commands/s for each topic",
        cpu * 100.0,
        commands / names.len() as f64
    );
}

/// The duration of operator commands on a million messages, and how long they block
/// Redis at once.
async fn operator_commands() {
    const COUNT: usize = 1_000_000;
    let data = tempfile::tempdir().unwrap();
    let server = redis_server(data.path());
    let topic = Topic::parse("t").unwrap();
    let (_, queue) = queue_of(&server, &topic);
    let mut connection = connect(&server).await;
    println!("\n{COUNT} of {MESSAGE_BYTES} bytes               took   longest block of Redis");
    fill(&queue, &topic, COUNT, Priority::Normal).await;
    reset_slowlog(&mut connection).await;
    let started = Instant::now();
    assert!(MessageSearch::new(queue.clone()).find("nobody", &mut |_| ()).await.unwrap().is_empty());
    report("find an unknown id", started, &mut connection).await;

    let mut rename = redis::cmd("RENAME");
    rename.arg("mq:t").arg("{mq:t}:dead").query_async::<()>(&mut connection).await.unwrap();
    let mut usage = redis::cmd("MEMORY");
    usage.arg("USAGE").arg("{mq:t}:dead").arg("SAMPLES").arg(0);
    let bytes: u64 = usage.query_async(&mut connection).await.unwrap();
    reset_slowlog(&mut connection).await;
    let started = Instant::now();
    let within = DeadLetterCaps { age: Some(Duration::from_secs(86_400)), bytes: Some(bytes) };
    let eviction = Eviction::new(queue.clone());
    assert_eq!(eviction.evict(within).await.unwrap(), Evicted::default());
    report("dead letters within their caps", started, &mut connection).await;
    reset_slowlog(&mut connection).await;
    let (started, mut evicted) = (Instant::now(), 0);
    let half = DeadLetterCaps { age: None, bytes: Some(bytes / 2) };
    loop {
        match eviction.evict(half).await.unwrap() {
            Evicted { by_age: 0, by_bytes: 0 } => break,
            batch => evicted += batch.by_age + batch.by_bytes,
        }
    }
    report(&format!("{evicted} evicted, over a cap"), started, &mut connection).await;
}

/// Empties the slow log and makes it record every command of at least 100 us.
async fn reset_slowlog(connection: &mut MultiplexedConnection) {
    for (name, value) in [("slowlog-log-slower-than", "100"), ("slowlog-max-len", "100000")] {
        redis::cmd("CONFIG").arg("SET").arg(name).arg(value).query_async::<()>(connection).await.unwrap();
    }
    redis::cmd("SLOWLOG").arg("RESET").query_async::<()>(connection).await.unwrap();
}

async fn report(what: &str, started: Instant, connection: &mut MultiplexedConnection) {
    let took = started.elapsed().as_secs_f64();
    let log: Vec<Vec<redis::Value>> = redis::cmd("SLOWLOG").arg("GET").arg(-1).query_async(connection).await.unwrap();
    let spans = log.iter().filter_map(|entry| match entry.get(2) {
        Some(redis::Value::Int(us)) => Some(*us as f64 / 1000.0),
        _ => None,
    });
    println!("{what:<32}{took:>9.2} s{:>15.1} ms", spans.fold(0.0, f64::max));
}

/// The time until the messages of a killed worker have run on another.
async fn time_to_reclaim() {
    const MESSAGES: usize = 64;
    let data = tempfile::tempdir().unwrap();
    let server = redis_server(data.path());
    let topic = Topic::parse("t").unwrap();
    let (_, queue) = queue_of(&server, &topic);
    let options = ["--queue-lease", "2s"];
    let endless = guest::guest("(loop $forever (br $forever)) (unreachable)");
    let stuck = "concurrency = 64\n[limits]\ncpu = \"1h\"\ntimeout = \"1h\"\n";
    let victim = Worker::start(&server, &[("t", &endless, stuck)], &options);
    fill(&queue, &topic, MESSAGES, Priority::Normal).await;
    let mut connection = connect(&server).await;
    while pending(&mut connection).await < MESSAGES {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let _other = Worker::start(&server, &[("t", &guest::guest(guest::OK), "")], &options);
    // After the grace period of a new worker, so that only the lease matters.
    tokio::time::sleep(LEASE * 2).await;
    let length = Length::of(&server, "mq:t").await;
    drop(victim);
    let killed = Instant::now();
    while length.now().await > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!(
        "\n{MESSAGES} messages of a killed worker had run again {:.2} s after its death; its lease was {} s",
        killed.elapsed().as_secs_f64(),
        LEASE.as_secs()
    );
}

/// The cost of reclaiming the messages of a lost worker with a small and a large
/// backlog.
async fn reclaim_cost() {
    const MESSAGES: usize = 64;
    println!("\nbacklog      reclaim of {MESSAGES}: p50          p99");
    for waiting in [1_000, 1_000_000] {
        let data = tempfile::tempdir().unwrap();
        let server = redis_server(data.path());
        let topic = Topic::parse("t").unwrap();
        let (connection, lost) = queue_of(&server, &topic);
        fill(&lost, &topic, waiting, Priority::Normal).await;
        open(&lost).await.unwrap();
        let mut reader = BlockingReader::connect(&lost).await.unwrap();
        reader.read(StreamKind::Normal, MESSAGES, Duration::from_millis(10)).await.unwrap();
        let at_once = ReclaimTimeouts { lease: Duration::ZERO, legacy: LEASE, connected: LEASE };
        let mut us = Vec::new();
        for round in 0..200 {
            // Each consumer reclaims from the previous one.
            let me = format!("worker-{round}");
            let queue = TopicHandle::new(&connection, "mq:", "consumer-group-{topic}", &me, &topic);
            let started = Instant::now();
            let found = Leases::new(queue).reclaim(StreamKind::Normal, at_once, None, MESSAGES).await.unwrap();
            us.push(started.elapsed().as_secs_f64() * 1e6);
            assert_eq!(found.deliveries.len(), MESSAGES);
        }
        us.sort_by(f64::total_cmp);
        println!("{waiting:>9}      {:>15.0} us {:>7.0} us", us[us.len() / 2], us[us.len() * 99 / 100]);
    }
}

async fn connect(server: &PrivateRedis) -> MultiplexedConnection {
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let client = redis::Client::open(server.url()).unwrap();
    client.get_multiplexed_async_connection_with_config(&config).await.unwrap()
}

async fn pending(connection: &mut MultiplexedConnection) -> usize {
    let mut command = redis::cmd("XPENDING");
    let reply = command.arg("mq:t").arg("consumer-group-t").query_async::<redis::Value>(connection).await;
    let Ok(redis::Value::Array(summary)) = reply else { return 0 };
    let Some(redis::Value::Int(pending)) = summary.first() else { return 0 };
    usize::try_from(*pending).unwrap()
}

async fn used(connection: &mut MultiplexedConnection) -> f64 {
    let info: String = redis::cmd("INFO").arg("memory").query_async(connection).await.unwrap();
    info.lines().find_map(|line| line.strip_prefix("used_memory_dataset:")).unwrap().trim().parse().unwrap()
}

/// The number of commands, including those in scripts, without `INFO`.
async fn commands(connection: &mut MultiplexedConnection) -> u64 {
    let info: String = redis::cmd("INFO").arg("commandstats").query_async(connection).await.unwrap();
    let calls = |line: &str| line.split_once(":calls=")?.1.split(',').next()?.parse::<u64>().ok();
    info.lines().filter(|line| !line.starts_with("cmdstat_info")).filter_map(calls).sum()
}
