//! The clock of Redis is changed while messages are in flight, and the clocks of workers
//! and publishers differ from it.

use crate::support::{BINARY, Gateway, OK, Plugins, Redis, SkewedClock, built, guest, run_command, text, until};
use gateway_worker::events;
use gateway_worker::queue::{BlockingReader, FlowControl, LeaseReset, ReclaimTimeouts, RedisClock, StreamKind, Take};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

const HOUR: i64 = 3600;
const OPTIONS: [&str; 2] = ["--queue-lease", "2s"];

async fn idle_ms(redis: &Redis) -> i64 {
    let rows: Vec<(String, String, i64, i64)> = redis.run("XPENDING mq:t consumer-group-t - + 10").await;
    rows[0].2
}

/// Makes the state that a clock set back by an hour leaves: the delivery time of the
/// only pending message lies in the future.
async fn deliver_in_the_future(redis: &Redis) {
    let rows: Vec<(String, String, i64, i64)> = redis.run("XPENDING mq:t consumer-group-t - + 10").await;
    // A time that is easy to find in the dump of the key.
    let (id, owner, marker) = (&rows[0].0, &rows[0].1, Timestamp::now().as_millisecond() - 1_234_567);
    redis.run::<redis::Value>(&format!("XCLAIM mq:t consumer-group-t {owner} 0 {id} TIME {marker} JUSTID")).await;
    let mut dump: Vec<u8> = redis.run("DUMP mq:t").await;
    let future = (Timestamp::now().as_millisecond() + HOUR * 1000).to_le_bytes();
    let marker = marker.to_le_bytes();
    let positions: Vec<usize> = (0..dump.len() - 8).filter(|at| dump[*at..*at + 8] == marker).collect();
    assert_eq!(positions.len(), 1);
    dump[positions[0]..positions[0] + 8].copy_from_slice(&future);
    // The checksum of the changed dump is wrong.
    redis.run::<()>("DEBUG SET-SKIP-CHECKSUM-VALIDATION 1").await;
    let mut restore = redis::cmd("RESTORE");
    restore.arg("mq:t").arg(0).arg(dump).arg("REPLACE");
    restore.query_async::<()>(&mut redis.connection().await).await.unwrap();
    assert_eq!(idle_ms(redis).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_back_leaves_no_message_with_a_dead_worker() {
    let redis = Redis::start_with(&["--enable-debug-command", "yes"]);
    let endless = "[limits]\ncpu = \"1h\"\ntimeout = \"1h\"\n";
    let plugins = Plugins::with("t", &guest("(loop $forever (br $forever)) (unreachable)"), endless);
    let first = Gateway::start_with(&redis.url(), &plugins, &OPTIONS);
    redis.publish("t", "a", "{}").await;
    redis.until_in_flight("t", 1).await;
    first.kill();
    deliver_in_the_future(&redis).await;
    let plugins = Plugins::with("t", &guest(OK), "");
    let second = Gateway::start_with(&redis.url(), &plugins, &OPTIONS);
    second.until_outcome("t", "a", "done").await;
    assert_eq!(second.logged(events::RECLAIMED).len(), 1);
}

#[tokio::test]
async fn after_a_clock_step_nothing_is_reclaimed_and_leases_are_reset() {
    let redis = Redis::start();
    redis.publish("t", "a", "{}").await;
    let (me, other) = (redis.queue("t", "me"), redis.queue("t", "other"));
    me.open().await.unwrap();
    let mut reader = BlockingReader::connect(&me.handle).await.unwrap();
    let taken = reader.take(&[StreamKind::Normal], FlowControl::default(), 1).await.unwrap();
    assert!(matches!(&taken, Take::Taken(taken) if taken.len() == 1), "{taken:?}");
    let entry: Vec<(String, String, i64, i64)> = redis.run("XPENDING mq:t consumer-group-t - + 1").await;
    let id = &entry[0].0;
    redis.run::<redis::Value>(&format!("XCLAIM mq:t consumer-group-t me 0 {id} IDLE 100000 JUSTID")).await;

    let lease = Duration::from_secs(9);
    let patience = ReclaimTimeouts { lease, legacy: lease, connected: Duration::from_secs(60) };
    let now = Timestamp::now().as_millisecond();
    for off in [-HOUR * 1000, -4000, 4000, HOUR * 1000] {
        let found =
            other.leases.reclaim(StreamKind::Normal, patience, Some(RedisClock::showing(now + off)), 10).await.unwrap();
        assert!(found.clock_stepped && found.deliveries.is_empty(), "{off}");
    }
    // A reset of future delivery times leaves those in the past unchanged.
    assert!(idle_ms(&redis).await >= 100_000);
    other.leases.reset(StreamKind::Normal, LeaseReset::Future).await.unwrap();
    assert!(idle_ms(&redis).await >= 100_000);
    assert_eq!(other.leases.reset(StreamKind::Normal, LeaseReset::All).await.unwrap(), 1);
    assert!(idle_ms(&redis).await < 100_000);
    let rows: Vec<(String, String, i64, i64)> = redis.run("XPENDING mq:t consumer-group-t - + 10").await;
    assert_eq!((rows[0].1.as_str(), rows[0].3), ("me", 1));
    // A difference that a busy machine can cause is no clock step.
    redis.run::<redis::Value>(&format!("XCLAIM mq:t consumer-group-t me 0 {id} IDLE 100000 JUSTID")).await;
    until("it is reclaimed", async || {
        let clock = RedisClock::showing(Timestamp::now().as_millisecond() + 1000);
        let found = other.leases.reclaim(StreamKind::Normal, patience, Some(clock), 10).await.unwrap();
        (found.deliveries.len() == 1).then_some(())
    })
    .await;
}

/// Adds a message that this consumer reads in the same script.
pub(crate) async fn add_taken_by(redis: &Redis, id: &str, consumer: &str) {
    let script = "redis.call('XADD', KEYS[1], '*', 'message', ARGV[1]) \
                  return redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'STREAMS', KEYS[1], '>')";
    let envelope = format!(r#"{{"id":"{id}","topic":"t","data":{{}}}}"#);
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(1).arg("mq:t").arg(envelope).arg("consumer-group-t").arg(consumer);
    command.query_async::<redis::Value>(&mut redis.connection().await).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_forward_reclaims_nothing_from_a_live_worker() {
    let (redis, clock) = Redis::start_with_clock();
    redis.run::<()>("XGROUP CREATE mq:t consumer-group-t 0 MKSTREAM").await;
    add_taken_by(&redis, "lost", "dead").await;
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--queue-lease", "5s"]);
    // From now on the worker reclaims expired leases and has compared the clocks.
    gateway.until_outcome("t", "lost", "done").await;
    add_taken_by(&redis, "held", "living").await;
    clock.set_ahead(Duration::from_secs(3600));
    gateway.until_logged(events::CLOCK_STEPPED, |_| true).await;
    until("its lease is reset and has the same owner", async || {
        let rows: Vec<(String, String, i64, i64)> = redis.run("XPENDING mq:t consumer-group-t - + 10").await;
        (rows.len() == 1 && rows[0].1 == "living" && rows[0].2 < HOUR * 1000).then_some(())
    })
    .await;
    // The lease expires at last.
    gateway.until_outcome("t", "held", "done").await;
    assert_eq!(gateway.logged(events::RECLAIMED).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_delayed_message_is_due_by_the_clock_of_redis() {
    let (redis, clock) = Redis::start_with_clock();
    clock.set_ahead(Duration::from_secs(3600));
    let now = Timestamp::now().as_second();
    for (id, due) in [("due", now + HOUR / 2), ("not-yet", now + 2 * HOUR)] {
        redis.run::<i64>(&format!(r#"ZADD mq:delay:t {due} {{"id":"{id}","topic":"t","data":{{}}}}"#)).await;
    }
    let queue = redis.queue("t", "me");
    assert_eq!((queue.legacy_delayed.promote().await.unwrap(), queue.legacy_delayed.promote().await.unwrap()), (1, 0));
    assert_eq!(redis.envelopes("mq:t").await[0]["id"], "due");
}

/// A message that expires by Redis' clock after this time.
async fn add_expiring(redis: &Redis, id: &str, after: i64) {
    let (now, _): (i64, i64) = redis.run("TIME").await;
    let at = Timestamp::from_second(now + after).unwrap();
    let envelope = json!({ "id": id, "topic": "t", "data": {}, "expires_at": at.to_string() });
    redis.add("t", envelope.to_string().as_bytes()).await;
}

/// The seconds that the metric of this worker shows.
async fn skew(gateway: &Gateway) -> Option<f64> {
    let (_, text) = gateway.get("/metrics/prometheus").await;
    text.lines().find_map(|line| line.strip_prefix("gateway_clock_skew_seconds ")?.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_expire_by_the_clock_of_redis() {
    let redis = Redis::start();
    let (plugins, clock) = (Plugins::with("t", &guest(OK), ""), SkewedClock::create());
    for (id, set) in
        [("ahead", SkewedClock::set_ahead as fn(&SkewedClock, Duration)), ("behind", SkewedClock::set_behind)]
    {
        set(&clock, Duration::from_secs(3600));
        // They wait when the worker starts, so that its first decision counts too.
        add_expiring(&redis, &format!("{id}-valid"), 600).await;
        add_expiring(&redis, &format!("{id}-expired"), -600).await;
        let gateway = Gateway::start_with_clock(&clock, &redis.url(), &plugins, &[]);
        gateway.until_outcome("t", &format!("{id}-valid"), "done").await;
        gateway.until_outcome("t", &format!("{id}-expired"), "expired").await;
        let expected = if id == "ahead" { 3600.0 } else { -3600.0 };
        let line = gateway.until_logged(events::CLOCK_SKEWED, |_| true).await;
        assert!((line["skew_seconds"].as_f64().unwrap() - expected).abs() < 60.0, "{line}");
        assert!((skew(&gateway).await.unwrap() - expected).abs() < 60.0);
        let (code, body) = gateway.json("/ready").await;
        assert!(code == 200 && body["degraded"].to_string().contains("the clock of this host"), "{body}");
        clock.set_ahead(Duration::ZERO);
        gateway.until_logged(events::CLOCKS_AGREE, |_| true).await;
        assert_eq!(gateway.logged(events::CLOCK_SKEWED).len(), 1, "once per change");
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_while_the_worker_runs_expires_nothing() {
    let (redis, redis_clock) = Redis::start_with_clock();
    let (plugins, clock) = (Plugins::with("t", &guest(OK), ""), SkewedClock::create());
    let gateway = Gateway::start_with_clock(&clock, &redis.url(), &plugins, &[]);
    redis.publish("t", "first", "{}").await;
    gateway.until_outcome("t", "first", "done").await;
    assert!(gateway.logged(events::CLOCK_SKEWED).is_empty());
    // The host's clock is set: it decides nothing.
    clock.set_ahead(Duration::from_secs(7200));
    add_expiring(&redis, "valid", 600).await;
    gateway.until_outcome("t", "valid", "done").await;
    gateway.until_logged(events::CLOCK_SKEWED, |_| true).await;
    // Redis' clock is set, and is read again: the clocks agree once more.
    redis_clock.set_ahead(Duration::from_secs(7200));
    gateway.until_logged(events::CLOCKS_AGREE, |_| true).await;
    add_expiring(&redis, "still-valid", 600).await;
    add_expiring(&redis, "expired", -600).await;
    gateway.until_outcome("t", "still-valid", "done").await;
    gateway.until_outcome("t", "expired", "expired").await;
}

/// Runs a command of the worker under this clock.
fn under(clock: &SkewedClock, redis: &Redis, args: &[&str]) -> (String, String) {
    let mut command = Command::new(BINARY);
    command.args(args).args(["--redis-url", &redis.url()]).env_clear().envs(clock.environment()).current_dir("/");
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    assert!(output.status.success(), "{output:?}");
    (text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn published_times_are_those_of_redis_and_presence_too() {
    let redis = Redis::start();
    let clock = SkewedClock::create();
    clock.set_behind(Duration::from_secs(3600));
    let plugins = Plugins::with("t", &guest(OK), "");
    for args in [&["--expires-in", "10m"][..], &["--expires-in", "10m", "--count", "3"]] {
        under(&clock, &redis, &[&["publish", "t"], args].concat());
    }
    let now: Vec<i64> = redis.run("TIME").await;
    let now = Timestamp::from_second(now[0]).unwrap();
    let near = |at: &str, expected: Timestamp| {
        let off = at.parse::<Timestamp>().unwrap().duration_since(expected).abs();
        assert!(off < SignedDuration::from_secs(300), "{at} {expected}");
    };
    let envelopes: Vec<Value> = redis.envelopes("mq:t").await;
    assert_eq!(envelopes.len(), 4);
    for envelope in envelopes {
        near(envelope["timestamp"].as_str().unwrap(), now);
        near(envelope["expires_at"].as_str().unwrap(), now + SignedDuration::from_secs(600));
        // The id begins with the milliseconds since 1970.
        let id = envelope["id"].as_str().unwrap().replace('-', "");
        let ms = i64::from_str_radix(&id[..12], 16).unwrap();
        near(&Timestamp::from_millisecond(ms).unwrap().to_string(), now);
    }
    // A worker whose clock is wrong is seen, and sees others.
    let gateway = Gateway::start_with_clock(&clock, &redis.url(), &plugins, &[]);
    let run = |args: &[&str]| run_command(&[args, &["--redis-url", &redis.url()]].concat());
    until("it is seen", async || run(&["topics", "ls"]).1.contains("handled").then_some(())).await;
    let (_, _, warning) = run(&["publish", "t"]);
    assert!(!warning.contains("no active worker"), "{warning}");
    let (listed, _) = under(&clock, &redis, &["topics", "ls"]);
    assert!(listed.contains("handled"), "{listed}");
    gateway.stop().await;
    // An age is the time since then by Redis' clock.
    redis.publish("t", "waits", "{}").await;
    let (shown, _) = under(&clock, &redis, &["topics", "show", "t"]);
    let oldest = shown.lines().find_map(|line| line.trim().strip_prefix("oldest")?.trim().split_once(" ago"));
    let (age, _) = oldest.unwrap_or_else(|| panic!("{shown}"));
    assert!(humantime::parse_duration(age).unwrap() < Duration::from_secs(300), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_handler_publishes_and_what_dies_has_the_time_of_redis() {
    let redis = Redis::start();
    let clock = SkewedClock::create();
    clock.set_ahead(Duration::from_secs(3600));
    let manifest = "[retry]\nattempts = 1\n[grants]\npublish = [\"next\"]\n";
    let plugins = Plugins::with("t", &built("puppet"), manifest);
    let gateway = Gateway::start_with_clock(&clock, &redis.url(), &plugins, &[]);
    redis.publish("t", "parent", r#"{"do":"echo","to":"next"}"#).await;
    redis.publish("t", "bad", r#"{"do":"reject","code":"c","reason":"r"}"#).await;
    gateway.until_outcome("t", "parent", "done").await;
    let letter = redis.dead("t").await;
    let children =
        until("the follow-up", async || Some(redis.envelopes("mq:next").await).filter(|all| !all.is_empty())).await;
    let now: Vec<i64> = redis.run("TIME").await;
    for at in [children[0]["timestamp"].as_str().unwrap(), &text(&letter, "gw-died-at")] {
        let off = at.parse::<Timestamp>().unwrap().as_second() - now[0];
        assert!(off.abs() < 300, "{at}");
    }
}
