//! Nothing is lost and nothing is made up, whatever happens: workers and Redis
//! are killed, frozen, cut off, filled up and made to forget, while publishers
//! publish. Then it is calm, and every message that Redis ever acknowledged
//! has to be in exactly one place.
//!
//! The disturbances follow from a seed: their order and kind, not their exact
//! moment. `make chaos SECONDS=600 SEED=7` runs for longer, and with `SENTINEL=1`
//! masters die and hand over.

mod account;
mod census;
mod disturbed;
mod published;
mod site;

use account::Account;
use census::Census;
use disturbed::{Disturbance, Scene};
use fastrand::Rng;
use jiff::Timestamp;
use published::{Ledger, Publishers};
use serde_json::Value;
use site::Kind;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECONDS: u64 = 15;

/// How long everything may take to be worked off once it is calm. A busy
/// machine needs some of it; what is stuck would take for ever.
const CALM: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_whatever_happens() {
    run(1, SECONDS, Kind::Alone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_whatever_happens_with_another_seed_each_time() {
    run(seed(), asked("CHAOS_SECONDS").unwrap_or(SECONDS), Kind::Alone).await;
}

/// What a replica had when Redis acknowledged it.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_where_masters_die_and_hand_over() {
    run(seed(), asked("CHAOS_SECONDS").unwrap_or(SECONDS), Kind::Watched).await;
}

fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn seed() -> u64 {
    asked("CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000))
}

async fn run(seed: u64, seconds: u64, kind: Kind) {
    let mut rng = Rng::with_seed(seed);
    // One alone has nobody to find what it lost on the way.
    let workers = rng.usize(1..=3);
    let sentinel = if kind == Kind::Watched { " SENTINEL=1" } else { "" };
    let replay = format!("make chaos SECONDS={seconds} SEED={seed}{sentinel}");
    println!("{workers} workers; to replay: {replay}");
    let mut scene = Scene::set(workers, kind).await;
    let ledger = Arc::new(Ledger::default());
    let door = scene.site.door();

    let publishers = Publishers::start(&door, &ledger, "wild", seed);
    let began = Instant::now();
    // However few there is time for, these are among them.
    let mut first = match kind {
        Kind::Alone => Vec::new(),
        Kind::Watched => vec![Disturbance::KillRedis(500), Disturbance::HandOver],
    };
    while began.elapsed() < Duration::from_secs(seconds) || !first.is_empty() {
        let drawn = Disturbance::draw(&mut rng, workers, kind);
        let (disturbance, pause) = (first.pop().unwrap_or(drawn), rng.u64(50..1000));
        println!("{:6.2} s {disturbance:?}", began.elapsed().as_secs_f64());
        scene.disturb(disturbance).await;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        scene.undo(false).await;
    }
    publishers.end().await;
    scene.undo(true).await;
    println!("{:6.2} s calm", began.elapsed().as_secs_f64());
    let is_drained = drained(&scene).await;

    // What puts off a message makes none run twice.
    let mild_since = Timestamp::now();
    let publishers = Publishers::start(&door, &ledger, account::MILD, seed);
    // The memory is full when there is much in hand.
    for disturbance in [Disturbance::Pause("plain", 1000), Disturbance::ForgetScripts, Disturbance::FillUp(1500)] {
        scene.disturb(disturbance).await;
        tokio::time::sleep(Duration::from_millis(1000)).await;
        scene.undo(false).await;
    }
    publishers.end().await;
    scene.undo(true).await;
    let is_drained = is_drained && drained(&scene).await;

    // Copies of what has finished find the mark that it left.
    let before = Census::take(&scene.site).await;
    let finished = before.places.iter().filter(|(key, places)| key.starts_with("dedup-") && places.seen > 0);
    let copies = published::copies(&door, finished.map(|(key, _)| key)).await;
    let is_drained = is_drained && drained(&scene).await;
    let standing = census::standing(&scene.site).await;
    let census = Census::take(&scene.site).await;
    let mut account = Account::of(ledger.read(), census);
    account.again(&before);
    let logs: Vec<Value> = scene.end().await.into_iter().flatten().collect();
    account.check(&logs, &scene.events, mild_since);
    println!(
        "{} ({copies} copies of finished messages dropped); {:.0} s",
        account.summary(),
        began.elapsed().as_secs_f64()
    );
    let faults = account.faults.join("\n");
    assert!(is_drained && account.faults.is_empty(), "{faults}\nstill there: {standing:#?}\nto replay: {replay}");
}

/// Waits until nothing is on its way any more.
async fn drained(scene: &Scene) -> bool {
    let began = Instant::now();
    while began.elapsed() < CALM {
        if census::standing(&scene.site).await.is_empty() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    false
}
