//! Workers with leases of different length share a topic, as they do while the setting
//! is rolled out.

use crate::clock::add_taken_by;
use crate::support::{Gateway, Plugins, Redis, built, until};
use crate::topic_client::TopicClient;
use gateway_worker::events;
use gateway_worker::queue::{Delivery, ReclaimTimeouts, StreamKind, consumer_name};
use rustix::process::Signal;
use std::time::{Duration, Instant};
use uuid::Uuid;

const SECOND: Duration = Duration::from_secs(1);
const UUID: &str = "0b0e7d3c-3c2f-4a51-9a53-3d8a4a9b6c11";

/// Sets for how long the entries of a consumer have been idle.
async fn set_idle(redis: &Redis, consumer: &str, idle: Duration) {
    let rows: Vec<(String, String, i64, i64)> =
        redis.run(&format!("XPENDING mq:t consumer-group-t - + 100 {consumer}")).await;
    for (id, ..) in rows {
        let idle = idle.as_millis();
        redis.run::<redis::Value>(&format!("XCLAIM mq:t consumer-group-t {consumer} 0 {id} IDLE {idle} JUSTID")).await;
    }
}

async fn reclaim(queue: &TopicClient, lease: Duration, connected: Duration) -> Vec<(Delivery, String)> {
    let timeouts = ReclaimTimeouts { lease, legacy: 3600 * SECOND, connected };
    queue.leases.reclaim(StreamKind::Normal, timeouts, None, 100).await.unwrap().deliveries
}

async fn group(redis: &Redis) -> TopicClient {
    redis.run::<()>("XGROUP CREATE mq:t consumer-group-t 0 MKSTREAM").await;
    redis.queue("t", &consumer_name(SECOND))
}

#[tokio::test]
async fn the_lease_of_the_holder_counts_and_not_our_own() {
    let redis = Redis::start();
    let queue = group(&redis).await;
    let holder = consumer_name(8 * SECOND);
    assert!(Uuid::parse_str(&holder[..36]).is_ok() && &holder[36..] == ".lease-8000", "{holder}");
    add_taken_by(&redis, "a", &holder).await;
    set_idle(&redis, &holder, 7 * SECOND).await;
    assert!(reclaim(&queue, 2 * SECOND, 3600 * SECOND).await.is_empty(), "a shorter lease steals nothing");
    set_idle(&redis, &holder, 9 * SECOND).await;
    // Since a reconnect of ours its holder has had no whole lease to renew it.
    assert!(reclaim(&queue, 2 * SECOND, 7 * SECOND).await.is_empty());
    assert_eq!(reclaim(&queue, 2 * SECOND, 8 * SECOND).await[0].1, holder);

    // And a longer lease of ours does not keep what a dead worker with a short one had.
    let holder = consumer_name(2 * SECOND);
    add_taken_by(&redis, "b", &holder).await;
    set_idle(&redis, &holder, Duration::from_millis(2100)).await;
    assert_eq!(reclaim(&queue, 3600 * SECOND, 3 * SECOND).await[0].1, holder);
}

#[tokio::test]
async fn no_other_name_tells_a_lease() {
    let redis = Redis::start();
    let queue = group(&redis).await;
    let names = [
        UUID.to_owned(),
        format!("{UUID}.lease-"),
        format!("{UUID}.lease-0"),
        format!("{UUID}.lease-499"),
        format!("{UUID}.lease-3600001"),
        format!("{UUID}.lease-99999999"),
        format!("{UUID}.lease-{}", "9".repeat(400)),
        format!("{UUID}.lease--9000"),
        format!("{UUID}.lease-09000"),
        format!("{UUID}.lease-9e3"),
        format!("{UUID}.lease-9000.5"),
        format!("{UUID}.lease-0x9000"),
        format!("{UUID}.lease-9000s"),
        format!("{UUID}.lease-9000.lease-9000"),
        format!("{UUID}xlease-9000"),
        format!("{UUID}.LEASE-9000"),
        format!("{}.lease-9000", UUID.to_uppercase()),
        format!("{}.lease-9000", &UUID[1..]),
        format!("0{UUID}.lease-9000"),
        format!("{}.lease-9000", UUID.replace('-', "0")),
        format!("{}.lease-9000", "g".repeat(36)),
        "x.lease-99999999".to_owned(),
        ".lease-9000".to_owned(),
        "x".repeat(5000),
    ];
    for name in &names {
        add_taken_by(&redis, "a", name).await;
        set_idle(&redis, name, Duration::from_millis(2100)).await;
        assert!(reclaim(&queue, 3 * SECOND, 3600 * SECOND).await.is_empty(), "{name}");
        assert_eq!(reclaim(&queue, 2 * SECOND, 3600 * SECOND).await[0].1, *name);
    }
    // The longest and the shortest lease that can be set.
    for (ms, idle) in [(500, 500), (3_600_000, 3_600_000)] {
        let name = format!("{UUID}.lease-{ms}");
        add_taken_by(&redis, "a", &name).await;
        set_idle(&redis, &name, Duration::from_millis(idle - 100)).await;
        assert!(reclaim(&queue, Duration::ZERO, 3600 * SECOND).await.is_empty(), "{name}");
        set_idle(&redis, &name, Duration::from_millis(idle)).await;
        assert_eq!(reclaim(&queue, 7200 * SECOND, 7200 * SECOND).await[0].1, name);
    }
}

#[tokio::test]
async fn a_legacy_name_is_judged_first() {
    let redis = Redis::start();
    let queue = group(&redis).await;
    add_taken_by(&redis, "a", "consumer-1795419923585502180").await;
    set_idle(&redis, "consumer-1795419923585502180", 60 * SECOND).await;
    assert!(reclaim(&queue, 2 * SECOND, 3600 * SECOND).await.is_empty());
}

#[tokio::test]
async fn a_look_tells_the_shortest_lease_of_the_others() {
    let redis = Redis::start();
    let queue = group(&redis).await;
    let look = async || {
        let timeouts = ReclaimTimeouts { lease: 60 * SECOND, legacy: 60 * SECOND, connected: 60 * SECOND };
        queue.leases.reclaim(StreamKind::Normal, timeouts, None, 100).await.unwrap().shortest_lease
    };
    assert_eq!(look().await, None);
    for name in ["x.lease-700", queue.handle.consumer(), &consumer_name(8 * SECOND), &consumer_name(2 * SECOND)] {
        redis.run::<i64>(&format!("XGROUP CREATECONSUMER mq:t consumer-group-t {name}")).await;
    }
    assert_eq!(look().await, Some(2 * SECOND));
}

const SLEEP: &str = r#"{"do":"sleep","ms":6000}"#;

/// A worker with the handler that does what the data says.
fn worker(redis: &Redis, plugins: &Plugins, lease: &str) -> Gateway {
    Gateway::start_with(&redis.url(), plugins, &["--queue-lease", lease])
}

/// Waits until the worker has been connected for longer than its lease, and reclaims.
async fn until_it_reclaims(redis: &Redis, gateway: &Gateway) {
    gateway.until_logged(events::TOPIC_OPENED, |_| true).await;
    add_taken_by(redis, "probe", "dead").await;
    set_idle(redis, "dead", 3600 * SECOND).await;
    gateway.until_logged(events::RECLAIMED, |line| line["owner"] == "dead").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_a_short_lease_steals_nothing_from_a_living_one() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &built("puppet"), "");
    let long = worker(&redis, &plugins, "8s");
    redis.publish("t", "a", SLEEP).await;
    long.until_asleep("t", 1).await;
    let short = worker(&redis, &plugins, "1s");
    until_it_reclaims(&redis, &short).await;
    long.until_outcome("t", "a", "done").await;
    assert!(short.logged(events::RECLAIMED).iter().all(|line| line["owner"] == "dead"));
    assert!(long.logged(events::LEASES_LOST).is_empty());
    assert!(!short.outcomes("t").iter().any(|(id, _)| id == "a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_a_long_lease_reclaims_from_a_dead_one_within_its_holders_lease() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &built("puppet"), "");
    let short = worker(&redis, &plugins, "1s");
    redis.publish("t", "a", r#"{"do":"sleep","ms":60000}"#).await;
    short.until_asleep("t", 1).await;
    let long = worker(&redis, &plugins, "1h");
    long.until_logged(events::TOPIC_OPENED, |_| true).await;
    short.kill();
    // Far less than the hour of its own lease; only a hanging machine needs longer.
    let started = Instant::now();
    long.until_logged(events::RECLAIMED, |line| {
        line["owner"].as_str().is_some_and(|name| name.ends_with(".lease-1000"))
    })
    .await;
    assert!(started.elapsed() < 60 * SECOND);
}

/// A lost lease counts where it was lost, also if its worker ends the message first;
/// and the worker that has it then has lost nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_is_counted_once_by_the_worker_that_lost_it() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &built("puppet"), "");
    let first = worker(&redis, &plugins, "1s");
    redis.publish("t", "a", SLEEP).await;
    first.until_asleep("t", 1).await;
    first.signal(Signal::STOP);
    let second = worker(&redis, &plugins, "1s");
    second.until_asleep("t", 1).await;
    first.signal(Signal::CONT);
    first.until_outcome("t", "a", "done").await;
    second.until_outcome("t", "a", "done").await;
    until("the second has settled it", async || redis.in_flight("t").await.eq(&0).then_some(())).await;
    let lost = async |gateway: &Gateway| {
        let (_, text) = gateway.get("/metrics/prometheus").await;
        let name = "gateway_leases_lost_total{topic=\"t\"} ";
        text.lines().find_map(|line| line.strip_prefix(name)?.parse::<u64>().ok())
    };
    assert_eq!((lost(&first).await, lost(&second).await), (Some(1), Some(0)));
}
