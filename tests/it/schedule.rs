//! Schedules: one message for each fire time, over all workers and restarts.

use crate::proxy::Proxy;
use crate::support::{Gateway, OK, Plugins, Redis, built, guest, topic, until};
use gateway_worker::events;
use gateway_worker::publication::{Draft, Publication};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const EACH_SECOND: &str = "[schedule]\ncron = \"* * * * * *\"\ncatch_up = \"all\"\n";
/// A schedule that does not fire during a test.
const SELDOM: &str = "0 0 29 2 * UTC";

/// The fire times in the ids of a topic's messages, in stream order.
async fn fired(redis: &Redis, key: &str) -> Vec<Timestamp> {
    let time = |envelope: Value| {
        let time = |text: &str| text.parse::<Timestamp>().unwrap();
        let fire = time(envelope["id"].as_str().unwrap().strip_prefix("cron:t:").unwrap());
        assert_eq!(time(envelope["timestamp"].as_str().unwrap()), fire);
        fire
    };
    redis.envelopes(key).await.into_iter().map(time).collect()
}

async fn until_fired(redis: &Redis, count: usize) -> Vec<Timestamp> {
    until(&format!("{count} fired"), async || {
        let fired = fired(redis, "mq:t").await;
        (fired.len() >= count).then_some(fired)
    })
    .await
}

/// Checks that there is exactly one for each second.
fn assert_consecutive(fired: &[Timestamp]) {
    for pair in fired.windows(2) {
        assert_eq!(pair[1].duration_since(pair[0]), SignedDuration::from_secs(1), "{fired:?}");
    }
}

async fn last(redis: &Redis, name: &str) -> Option<Timestamp> {
    let mut command = redis::cmd("HGET");
    let ms: Option<i64> =
        command.arg("{mq:t}:cron").arg(name).query_async(&mut redis.connection().await).await.unwrap();
    ms.map(|ms| Timestamp::from_millisecond(ms).unwrap())
}

/// Sets the last fire time of a schedule.
async fn set_last(redis: &Redis, name: &str, at: Timestamp) {
    let mut command = redis::cmd("HSET");
    command.arg("{mq:t}:cron").arg(name).arg(at.as_millisecond());
    command.query_async::<i64>(&mut redis.connection().await).await.unwrap();
}

/// The current second. Redis uses the same clock.
fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap()
}

fn seconds(count: i64) -> SignedDuration {
    SignedDuration::from_secs(count)
}

fn message(at: Timestamp) -> (Timestamp, Publication) {
    let topic = topic("t");
    (at, Draft::new(format!("cron:t:{at}"), &topic, "{}").encode(at).unwrap())
}

/// A paused topic keeps its messages, so that they can be counted.
async fn pause(redis: &Redis) {
    redis.run::<i64>("HSET {mq:t}:state paused 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fire_time_has_one_message_over_two_replicas() {
    let redis = Redis::start();
    pause(&redis).await;
    let plugins = Plugins::with("t", &guest(OK), EACH_SECOND);
    let first = Gateway::start(&redis, &plugins);
    let second = Gateway::start(&redis, &plugins);
    first.until_loaded("t").await;
    second.until_loaded("t").await;
    let before = fired(&redis, "mq:t").await.len();
    let before = until_fired(&redis, before + 4).await.len();
    // Also after one of the workers has crashed.
    first.kill();
    assert_consecutive(&until_fired(&redis, before + 3).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_of_a_schedule_reaches_the_handler_as_written() {
    let redis = Redis::start();
    let manifest = r#"topics = ["t"]
        [schedule]
        cron = "* * * * * *"
        [schedule.data]
        do = "echo"
        to = "seen"
        full = true
        since = 2026-01-02T03:04:05Z
        list = [1, 2.5, "x"]
        [grants]
        publish = ["seen"]
        "#;
    let plugins = Plugins::with("puppet", &built("puppet"), manifest);
    let _gateway = Gateway::start(&redis, &plugins);
    let seen = until("a message was handled", async || redis.envelopes("mq:seen").await.pop()).await;
    let seen = &seen["data"];
    assert_eq!(
        seen["data"],
        json!({ "do": "echo", "to": "seen", "full": true, "since": "2026-01-02T03:04:05Z", "list": [1, 2.5, "x"] })
    );
    let fire: Timestamp = seen["id"].as_str().unwrap().strip_prefix("cron:t:").unwrap().parse().unwrap();
    assert_eq!(seen["published_at"].as_str().unwrap().parse::<Timestamp>().unwrap(), fire);
    assert_eq!((&seen["topic"], &seen["headers"]), (&json!("t"), &json!([])));
}

#[tokio::test(flavor = "multi_thread")]
async fn missed_fire_times_are_caught_up_as_the_manifest_says() {
    for (catch_up, hours_ago) in [("none", &[][..]), ("one", &[0]), ("all", &[3, 2, 1, 0])] {
        let redis = Redis::start();
        pause(&redis).await;
        // Fires once an hour, five minutes ago for the last time.
        let last_fire = now() - seconds(300);
        let (minute, second) = (last_fire.as_second() / 60 % 60, last_fire.as_second() % 60);
        let name = format!("{second} {minute} * * * * UTC");
        set_last(&redis, &name, last_fire - SignedDuration::from_hours(4)).await;
        let manifest = format!("[schedule]\ncron = \"{second} {minute} * * * *\"\ncatch_up = \"{catch_up}\"\n");
        let plugins = Plugins::with("t", &guest(OK), &manifest);
        let gateway = Gateway::start(&redis, &plugins);
        until("the schedule is checked", async || last(&redis, &format!("seen:{name}")).await).await;
        let expected: Vec<Timestamp> =
            hours_ago.iter().map(|hours| last_fire - SignedDuration::from_hours(*hours)).collect();
        until_fired(&redis, expected.len()).await;
        // The next worker does not catch up again.
        assert!(gateway.stop().await.success());
        let seen = last(&redis, &format!("seen:{name}")).await;
        let _gateway = Gateway::start(&redis, &plugins);
        until("the schedule is checked again", async || {
            (last(&redis, &format!("seen:{name}")).await > seen).then_some(())
        })
        .await;
        assert_eq!(fired(&redis, "mq:t").await, expected, "{catch_up}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_overtaken_while_catching_up_fires_nothing() {
    let redis = Redis::start();
    pause(&redis).await;
    let name = "* * * * * * UTC";
    // More than go into one script.
    set_last(&redis, name, now() - seconds(500)).await;
    let proxy = Proxy::start(&redis).await;
    proxy.set_latency(1000);
    let plugins = Plugins::with("t", &guest(OK), EACH_SECOND);
    let _gateway = Gateway::start_with(&proxy.url(), &plugins, &[]);
    until("the schedule is checked", async || last(&redis, &format!("seen:{name}")).await).await;
    // Another worker fires all of them before this one can fire the first.
    let others_last = now();
    set_last(&redis, name, others_last).await;
    proxy.set_latency(0);
    let fired = until_fired(&redis, 1).await;
    assert!(fired[0] > others_last, "{fired:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_and_an_outage_skip_no_fire_time() {
    let mut redis = Redis::start();
    pause(&redis).await;
    let plugins = Plugins::with("t", &guest(OK), EACH_SECOND);
    let gateway = Gateway::start(&redis, &plugins);
    let before = until_fired(&redis, 2).await.len();
    assert!(gateway.stop().await.success());
    let _gateway = Gateway::start(&redis, &plugins);
    let before = until_fired(&redis, before + 2).await.len();
    redis.kill();
    _gateway.until_logged(events::SCHEDULE_FAILED, |line| line["error"].as_str().unwrap().contains("away")).await;
    redis.restart();
    assert_consecutive(&until_fired(&redis, before + 3).await);
    assert_eq!(last(&redis, "* * * * * * UTC").await.map(|at| at.subsec_nanosecond()), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_follows_its_manifest_without_a_restart() {
    let redis = Redis::start();
    pause(&redis).await;
    let started = now();
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("t").await;
    plugins.write("t.toml", b"[schedule]\ncron = \"0 0 29 2 *\"\n");
    until("the schedule is checked", async || last(&redis, SELDOM).await).await;
    // The first schedule would not fire during the test.
    plugins.write("t.toml", EACH_SECOND.as_bytes());
    let before = until_fired(&redis, 1).await;
    assert!(before[0] > started, "a new schedule starts now");
    // Both records are kept for a while.
    assert!(last(&redis, SELDOM).await.is_some() && last(&redis, "* * * * * * UTC").await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_that_never_fires_is_rejected() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("t").await;
    plugins.write("t.toml", b"[schedule]\ncron = \"0 0 30 2 *\"\n");
    let reason = gateway.until_refused("t").await;
    assert!(reason.contains("line 2, column 8") && reason.contains("never fires"), "{reason}");
    redis.publish("t", "a", "{}").await;
    gateway.until_outcome("t", "a", "done").await;
}

#[tokio::test]
async fn of_two_concurrent_callers_one_publishes() {
    let redis = Redis::start();
    let (one, other) = (redis.queue("t", "one"), redis.queue("t", "other"));
    let start = one.schedules.last_fire("s UTC").await.unwrap();
    assert_eq!((start.published, start.last.duration_since(start.now).is_positive()), (0, false));
    assert_eq!(last(&redis, "s UTC").await, Some(start.last));
    let from = now() - seconds(100);
    let fires = [message(from + seconds(10)), message(from + seconds(20))];
    set_last(&redis, "s UTC", from).await;
    let (a, b) = tokio::join!(one.schedules.fire("s UTC", from, &fires), other.schedules.fire("s UTC", from, &fires));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a.published + b.published, 2);
    assert_eq!((a.last, b.last), (fires[1].0, fires[1].0));
    // The same request again publishes nothing.
    assert_eq!(one.schedules.fire("s UTC", from, &fires).await.unwrap().published, 0);
    assert_eq!(fired(&redis, "mq:t").await, [fires[0].0, fires[1].0]);
}

#[tokio::test]
async fn nothing_fires_before_its_time_by_the_clock_of_redis() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    let start = queue.schedules.last_fire("s UTC").await.unwrap();
    let future = Timestamp::from_second(start.now.as_second() + 3600).unwrap();
    let seen =
        queue.schedules.fire("s UTC", start.last, &[message(now() - seconds(1)), message(future)]).await.unwrap();
    assert_eq!((seen.published, seen.last), (0, start.last));
    assert_eq!(redis.run::<i64>("EXISTS mq:t").await, 0);
}

#[tokio::test]
async fn a_clock_set_back_delays_a_schedule_for_an_hour_at_most() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    for (ahead, is_delayed) in [(3500, true), (3700, false)] {
        set_last(&redis, "s UTC", now() + seconds(ahead)).await;
        let seen = queue.schedules.last_fire("s UTC").await.unwrap();
        assert_eq!(seen.last > seen.now, is_delayed, "{ahead}");
    }
    // An invalid record does not block the schedule either.
    for nonsense in ["x", "-5", "nan", "1e99", "99999999999999999999999"] {
        redis.run::<i64>(&format!("HSET {{mq:t}}:cron sUTC {nonsense}")).await;
        let seen = queue.schedules.last_fire("sUTC").await.unwrap();
        assert!(seen.last <= seen.now && seen.now.duration_since(seen.last) < SignedDuration::from_secs(60));
    }
}

#[tokio::test]
async fn a_new_schedule_is_never_recorded_as_just_fired() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    // The first check happens exactly at the fire time of another version.
    until("a check at a whole second", async || {
        for _ in 0..1000 {
            let seen = queue.schedules.last_fire("sUTC").await.unwrap();
            redis.run::<i64>("HDEL {mq:t}:cron sUTC").await;
            assert_ne!(seen.last.subsec_millisecond(), 0);
            if seen.now.subsec_millisecond() == 0 {
                return Some(());
            }
        }
        None
    })
    .await;
}

#[tokio::test]
async fn two_versions_of_a_manifest_share_a_fire_time() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    let from = now() - seconds(100);
    let (shared, later) = (message(from + seconds(10)), message(from + seconds(20)));
    for name in ["old UTC", "new UTC"] {
        queue.schedules.last_fire(name).await.unwrap();
        set_last(&redis, name, from).await;
    }
    assert_eq!(queue.schedules.fire("old UTC", from, std::slice::from_ref(&shared)).await.unwrap().published, 1);
    let seen = queue.schedules.fire("new UTC", from, &[shared.clone(), later.clone()]).await.unwrap();
    assert_eq!((seen.published, seen.last), (1, later.0));
    assert_eq!(last(&redis, "old UTC").await, Some(shared.0));
    let ids: BTreeSet<Timestamp> = fired(&redis, "mq:t").await.into_iter().collect();
    assert_eq!((ids.len(), redis.run::<i64>("XLEN mq:t").await), (2, 2));
}

#[tokio::test]
async fn an_unused_schedule_is_removed() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    for (name, unseen) in [("young UTC", 500), ("old UTC", 700)] {
        queue.schedules.last_fire(name).await.unwrap();
        set_last(&redis, &format!("seen:{name}"), now() - seconds(unseen)).await;
    }
    // A schedule that no other version has replaced keeps its missed fire times.
    let before = last(&redis, "old UTC").await;
    queue.schedules.last_fire("old UTC").await.unwrap();
    assert_eq!(last(&redis, "old UTC").await, before);
    set_last(&redis, "seen:old UTC", now() - seconds(700)).await;
    queue.schedules.last_fire("new UTC").await.unwrap();
    assert!(last(&redis, "young UTC").await.is_some());
    assert_eq!((last(&redis, "old UTC").await, last(&redis, "seen:old UTC").await), (None, None));
}

#[tokio::test]
async fn a_schedule_publishes_to_the_key_that_its_topic_reads() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    let from = now() - seconds(100);
    let (first, second) = (message(from + seconds(10)), message(from + seconds(20)));
    redis.run::<i64>("RPUSH mq:t x").await;
    set_last(&redis, "s UTC", from).await;
    queue.schedules.fire("s UTC", from, std::slice::from_ref(&first)).await.unwrap();
    assert_eq!(fired(&redis, "{mq:t}:work").await, [first.0]);
    // After a failure the fire time is not recorded.
    redis.run::<i64>("DEL mq:t").await;
    redis.run::<()>("SET mq:t text").await;
    let known = last(&redis, "s UTC").await.unwrap();
    assert!(queue.schedules.fire("s UTC", known, std::slice::from_ref(&second)).await.is_err());
    assert_eq!(last(&redis, "s UTC").await, Some(known));
    redis.run::<i64>("DEL mq:t").await;
    redis.run::<()>("CONFIG SET maxmemory 1").await;
    assert!(queue.schedules.fire("s UTC", known, std::slice::from_ref(&second)).await.is_err());
    redis.run::<()>("CONFIG SET maxmemory 0").await;
    assert_eq!(last(&redis, "s UTC").await, Some(known));
    assert_eq!(queue.schedules.fire("s UTC", known, std::slice::from_ref(&second)).await.unwrap().published, 1);
}
