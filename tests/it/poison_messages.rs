//! Messages that repeatedly crash their worker, and their isolation.

use crate::batch::crew;
use crate::support::{Gateway, OK, Plugins, Redis, built, guest, until};
use gateway_worker::events;
use redis::Value;
use std::time::Duration;

const OPTIONS: [&str; 2] = ["--queue-lease", "500ms"];

/// Adds a message that has crashed two workers a minute ago.
async fn publish_poison(redis: &Redis, topic: &str) {
    publish_poison_idle(redis, topic, Duration::from_secs(60)).await;
}

async fn publish_poison_idle(redis: &Redis, topic: &str, idle: Duration) {
    publish_poison_with(redis, topic, idle, "{}").await;
}

async fn publish_poison_with(redis: &Redis, topic: &str, idle: Duration, data: &str) {
    redis.publish(topic, "suspect", data).await;
    redis.run::<()>(&format!("XGROUP CREATE mq:{topic} consumer-group-{topic} 0")).await;
    let take = format!("XREADGROUP GROUP consumer-group-{topic} lost COUNT 1 STREAMS mq:{topic} >");
    redis.run::<Value>(&take).await;
    let entries: Vec<(String, Vec<String>)> = redis.run(&format!("XRANGE mq:{topic} - +")).await;
    let (entry, idle) = (&entries[0].0, idle.as_millis());
    let claim = format!("XCLAIM mq:{topic} consumer-group-{topic} lost 0 {entry} IDLE {idle} RETRYCOUNT 2");
    redis.run::<Value>(&claim).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_message_runs_with_a_full_redis() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &guest(OK), "");
    publish_poison(&redis, "t").await;
    // This message cannot be promoted, which must block nothing else.
    redis.publish_later("t", "due", "{}", Duration::from_millis(1)).await;
    redis.run::<()>("CONFIG SET maxmemory 1").await;
    let gateway = Gateway::start_with(&redis.url(), &plugins, &OPTIONS);
    gateway.until_outcome("t", "suspect", "done").await;
    assert_eq!(gateway.logged(events::RUNNING_ISOLATED).len(), 1);
    redis.is("settled", "XLEN mq:t", 0).await;
    redis.is("the isolation is cleared", "EXISTS {mq:t}:isolated", 0).await;
    redis.run::<()>("CONFIG SET maxmemory 0").await;
    gateway.until_outcome("t", "due", "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolation_that_cannot_be_recorded_blocks_nothing() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &guest(OK), "").and("other", &guest(OK), "");
    publish_poison(&redis, "t").await;
    redis.run::<()>("SET {mq:t}:isolated text").await;
    let options = [&OPTIONS[..], &["--shutdown-timeout", "1h"]].concat();
    let gateway = Gateway::start_with(&redis.url(), &plugins, &options);
    gateway.until_logged(events::ISOLATION_DELAYED, |line| line["topic"] == "t").await;
    for id in ["a", "b", "c"] {
        redis.publish("t", id, "{}").await;
        redis.publish("other", id, "{}").await;
        gateway.until_outcome("t", id, "done").await;
        gateway.until_outcome("other", id, "done").await;
    }
    // No message has follow-ups, so the missing outbox is no error.
    assert!(gateway.logged(events::OUTBOX_FAILED).is_empty());
    assert!(gateway.stop().await.success());
    // With this lease only a requeued message is reclaimed at once.
    redis.run::<()>("DEL {mq:t}:isolated").await;
    let second = Gateway::start_with(&redis.url(), &plugins, &["--queue-lease", "1h"]);
    second.until_outcome("t", "suspect", "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_message_is_in_no_batch() {
    for others_first in [true, false] {
        let redis = Redis::start();
        publish_poison_with(&redis, "crew", Duration::from_hours(25), "\"count\"").await;
        let others = async || {
            for id in ["a", "b", "c"] {
                redis.publish("crew", id, "\"count\"").await;
            }
        };
        if others_first {
            others().await;
        }
        let plugins = crew(4, "3s");
        let gateway = Gateway::start_with(&redis.url(), &plugins, &OPTIONS);
        gateway.until_logged(events::RECLAIMED, |line| line["topic"] == "crew").await;
        if !others_first {
            others().await;
        }
        redis.is("all are done", "XLEN mq:crew", 0).await;
        let seen = redis.envelopes("mq:seen").await;
        let mut sizes: Vec<u64> = seen.iter().map(|one| one["data"].as_u64().unwrap()).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [1, 3, 3, 3], "come first: {others_first}");
    }
}

const LONG: &str = "[limits]\ntimeout = \"1h\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_message_waiting_for_isolation_does_not_start_on_a_paused_topic() {
    // The running handler outlasts the wait for isolation, or ends within it.
    for ms in [600_000, 9_500] {
        let mut tries = 0;
        while !was_paused_in_time(ms).await {
            tries += 1;
            assert!(tries < 4, "this machine is too slow for this test");
        }
    }
}

/// Whether the topics were paused in time: while a handler ran for `ms` milliseconds
/// and the poison message waited for its end.
async fn was_paused_in_time(ms: u32) -> bool {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &guest(OK), "").and("t", &guest(OK), "").and("long", &built("puppet"), LONG);
    redis.publish("long", "first", &format!(r#"{{"do":"sleep","ms":{ms}}}"#)).await;
    // Requeued, so that no lease has to expire. With a long lease the wait for isolation
    // takes ten seconds, long enough to pause.
    publish_poison_idle(&redis, "puppet", Duration::from_hours(25)).await;
    redis.run::<i64>("HSET {mq:puppet}:state paused 1").await;
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--queue-lease", "1h", "--shutdown-timeout", "10ms"]);
    let paused = async |topic: &str, count: usize| {
        let lines = || gateway.logged(events::TOPIC_PAUSED).iter().filter(|line| line["topic"] == topic).count();
        until("paused", async || (lines() == count).then_some(())).await;
    };
    redis.until_in_flight("long", 1).await;
    paused("puppet", 1).await;
    redis.run::<i64>("HDEL {mq:puppet}:state paused").await;
    // The poison message waits for the long handler, and another message waits for both.
    gateway.until_logged(events::WAITING_FOR_ISOLATION, |line| line["topic"] == "puppet").await;
    redis.publish("t", "waits", "{}").await;
    let has_ended = || !gateway.outcomes("long").is_empty();
    until("taken", async || (has_ended() || redis.in_flight("t").await == 1).then_some(())).await;
    for topic in ["puppet", "t"] {
        redis.run::<i64>(&format!("HSET {{mq:{topic}}}:state paused 1")).await;
    }
    paused("puppet", 2).await;
    paused("t", 1).await;
    if has_ended() || !gateway.logged(events::ISOLATION_TIMED_OUT).is_empty() {
        return false;
    }
    redis.until_requeued("puppet", 1).await;
    redis.until_requeued("t", 1).await;
    assert!(gateway.logged(events::RUNNING_ISOLATED).is_empty() && gateway.outcomes("t").is_empty());
    redis.run::<i64>("HDEL {mq:t}:state paused").await;
    gateway.until_outcome("t", "waits", "done").await;
    true
}

/// Starts a worker that receives the poison message while a long handler runs.
async fn start_with_a_long_running_handler(redis: &Redis, plugins: &Plugins, ms: u32) -> Gateway {
    publish_poison(redis, "t").await;
    redis.run::<i64>("HSET {mq:t}:state paused 1").await;
    redis.publish("puppet", "long", &format!(r#"{{"do":"sleep","ms":{ms}}}"#)).await;
    let gateway = Gateway::start_with(&redis.url(), plugins, &OPTIONS);
    redis.until_in_flight("puppet", 1).await;
    redis.run::<i64>("HDEL {mq:t}:state paused").await;
    gateway
}

#[tokio::test(flavor = "multi_thread")]
async fn isolation_gives_up_on_a_long_handler_and_another_worker_takes_the_message() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), LONG).and("t", &guest(OK), "").and("other", &guest(OK), "");
    let first = start_with_a_long_running_handler(&redis, &plugins, 600_000).await;
    first.until_logged(events::ISOLATION_TIMED_OUT, |_| true).await;
    for id in ["a", "b"] {
        for topic in ["t", "other"] {
            redis.publish(topic, id, "{}").await;
            first.until_outcome(topic, id, "done").await;
        }
    }
    assert_eq!(redis.in_flight("puppet").await, 1);
    assert!(!first.outcomes("t").iter().any(|(id, _)| id == "suspect"));
    // The requeue does not increase the crash count.
    let plugins = Plugins::with("t", &guest(OK), "");
    let second = Gateway::start_with(&redis.url(), &plugins, &OPTIONS);
    second.until_logged(events::RUNNING_ISOLATED, |line| line["crashes"] == 2 && line["isolated_crashes"] == 0).await;
    second.until_outcome("t", "suspect", "done").await;
    redis.is("settled", "XLEN mq:t", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeued_poison_message_returns_to_the_only_worker() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), LONG).and("t", &guest(OK), "");
    let gateway = start_with_a_long_running_handler(&redis, &plugins, 10_000).await;
    gateway.until_logged(events::REQUEUED_NOT_ISOLATED, |line| line["crashes"] == 2).await;
    gateway.until_logged(events::RUNNING_ISOLATED, |line| line["crashes"] == 2 && line["isolated_crashes"] == 0).await;
    gateway.until_outcome("t", "suspect", "done").await;
    redis.is("settled", "XLEN mq:t", 0).await;
    // It is requeued once for each failed wait, and not taken in between.
    let requeued = gateway.logged(events::REQUEUED_NOT_ISOLATED).len();
    assert_eq!(requeued, gateway.logged(events::ISOLATION_TIMED_OUT).len());
    assert!(gateway.logged(events::RECOVERED).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_is_not_counted_as_a_crash_of_the_isolated_message() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), LONG).and("other", &guest(OK), "");
    publish_poison_with(&redis, "puppet", Duration::from_secs(60), r#"{"do":"sleep","ms":600000}"#).await;
    redis.publish("other", "a", "{}").await;
    let options = [&OPTIONS[..], &["--shutdown-timeout", "1s"]].concat();
    for _ in 0..2 {
        let gateway = Gateway::start_with(&redis.url(), &plugins, &options);
        gateway.until_logged(events::RUNNING_ISOLATED, |line| line["isolated_crashes"] == 0).await;
        // The consumer of the other topic stops first and must not change this record.
        gateway.stop().await;
    }
    assert_eq!(redis.run::<i64>("EXISTS {mq:puppet}:isolated").await, 0);
}
