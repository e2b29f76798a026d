//! Fault injection: no message is lost or invented while workers and Redis are
//! killed, suspended, disconnected, out of memory, without their scripts or their logs, and
//! publishers publish. After the faults every message that Redis acknowledged has to
//! be in exactly one location.
//!
//! A seed determines the order and kind of the faults, not their exact time.
//! `make chaos SECONDS=600 SEED=7` runs for longer, and with `SENTINEL=1` masters die
//! and fail over.

mod audit;
mod census;
mod faults;
mod publishers;
mod redis_setup;

use audit::Audit;
use census::Census;
use fastrand::Rng;
use faults::{Fault, Testbed};
use jiff::Timestamp;
use publishers::{Ledger, Publishers};
use redis_setup::Kind;
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECONDS: u64 = 15;

/// How long the backlog may take to drain after the faults, on a busy machine.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_whatever_happens() {
    run(1, SECONDS, Kind::Standalone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_whatever_happens_with_another_seed_each_time() {
    run(seed(), variable("CHAOS_SECONDS").unwrap_or(SECONDS), Kind::Standalone).await;
}

/// Publishers wait until the replica has acknowledged each message.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_where_masters_die_and_hand_over() {
    run(seed(), variable("CHAOS_SECONDS").unwrap_or(SECONDS), Kind::Sentinel).await;
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn seed() -> u64 {
    variable("CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000))
}

async fn run(seed: u64, seconds: u64, kind: Kind) {
    let mut rng = Rng::with_seed(seed);
    // With one worker no other can reclaim its messages.
    let workers = rng.usize(1..=3);
    let sentinel = if kind == Kind::Sentinel { " SENTINEL=1" } else { "" };
    let replay = format!("make chaos SECONDS={seconds} SEED={seed}{sentinel}");
    println!("{workers} workers; to replay: {replay}");
    let mut testbed = Testbed::set(workers, kind).await;
    let ledger = Arc::new(Ledger::default());
    let target = testbed.redis.target();

    let publishers = Publishers::start(&target, &ledger, "wild", seed);
    let began = Instant::now();
    // These are injected even in a short run.
    let mut first = match kind {
        Kind::Standalone => Vec::new(),
        Kind::Sentinel => vec![Fault::KillRedis(500), Fault::Failover],
    };
    while began.elapsed() < Duration::from_secs(seconds) || !first.is_empty() {
        let drawn = Fault::draw(&mut rng, workers, kind);
        let (fault, pause) = (first.pop().unwrap_or(drawn), rng.u64(50..1000));
        println!("{:6.2} s {fault:?}", began.elapsed().as_secs_f64());
        testbed.inject(fault).await;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        testbed.revert(false).await;
    }
    publishers.end().await;
    testbed.revert(true).await;
    println!("{:6.2} s end of faults", began.elapsed().as_secs_f64());
    let is_drained = drained(&testbed).await;

    // Faults that only delay messages make none run twice.
    let mild_since = Timestamp::now();
    let publishers = Publishers::start(&target, &ledger, audit::MILD, seed);
    // Memory runs out after a pause, when many messages are in flight.
    for fault in [Fault::Pause("plain", 1000), Fault::ForgetScripts, Fault::FillUp(1500)] {
        testbed.inject(fault).await;
        tokio::time::sleep(Duration::from_millis(1000)).await;
        testbed.revert(false).await;
    }
    publishers.end().await;
    testbed.revert(true).await;
    let is_drained = is_drained && drained(&testbed).await;

    // Copies of finished messages find the deduplication key.
    let before = Census::take(&testbed.redis).await;
    let finished = before.locations.iter().filter(|(key, locations)| key.starts_with("dedup-") && locations.seen > 0);
    let copies = publishers::copies(&target, finished.map(|(key, _)| key)).await;
    let is_drained = is_drained && drained(&testbed).await;
    let unfinished = census::unfinished(&testbed.redis).await;
    let census = Census::take(&testbed.redis).await;
    let mut audit = Audit::new(ledger.read(), census, testbed.deleted.clone());
    audit.check_finished_messages(&before);
    let logs: Vec<Value> = testbed.end().await.into_iter().flatten().collect();
    audit.check(&logs, &testbed.events, mild_since);
    println!(
        "{} ({copies} copies of finished messages dropped); {:.0} s",
        audit.summary(),
        began.elapsed().as_secs_f64()
    );
    let violations = audit.violations.join("\n");
    assert!(
        is_drained && audit.violations.is_empty(),
        "{violations}\nunfinished: {unfinished:#?}\nto replay: {replay}"
    );
}

/// Waits until no message is unfinished.
async fn drained(testbed: &Testbed) -> bool {
    let began = Instant::now();
    while began.elapsed() < DRAIN_TIMEOUT {
        if census::unfinished(&testbed.redis).await.is_empty() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    false
}
