//! Outages of Redis and the loss of volatile data: the worker reports them and recovers
//! without a restart.

use crate::support::{Gateway, OK, Plugins, Redis, built, guest, until};
use gateway_worker::events;
use rustix::process::Signal;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_waits_for_a_redis_that_is_not_running_yet() {
    let mut redis = Redis::start();
    redis.kill();
    let plugins = Plugins::with("topic", &guest(OK), "");
    let mut gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("topic").await;
    let body = until("the reason is reported", async || {
        let (status, body) = gateway.json("/ready").await;
        (status == 503 && body["status"] == "not_ready").then_some(body)
    })
    .await;
    assert!(body["reasons"][0].as_str().unwrap().starts_with("Redis is away: "), "{body}");
    assert_eq!(body["consumers"], "stopped");
    assert_eq!(gateway.get("/healthz").await.0, 200);
    redis.restart();
    redis.publish("topic", "a", "{}").await;
    gateway.until_outcome("topic", "a", "done").await;
    gateway.until_ready().await;
    assert!(gateway.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_redis_loses_no_message_and_runs_none_twice() {
    let mut redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "[grants]\npublish = [\"seen\"]\n");
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--queue-lease", "500ms"]);
    gateway.until_loaded("puppet").await;
    // These handlers end during the outage, so they cannot be settled.
    for number in 0..10 {
        redis.publish("puppet", &format!("m-{number}"), r#"{"do":"sleep","ms":5000}"#).await;
    }
    redis.until_in_flight("puppet", 10).await;
    redis.kill();
    until("all have run", async || (gateway.outcomes("puppet").len() == 10).then_some(())).await;
    until("not ready", async || (gateway.get("/ready").await.0 == 503).then_some(())).await;
    redis.restart();
    redis.is("all are settled", "XLEN mq:puppet", 0).await;
    gateway.until_ready().await;
    redis.publish("puppet", "after", r#"{"do":"echo","to":"seen"}"#).await;
    redis.is("the worker continues", "XLEN mq:seen", 1).await;
    assert_eq!(gateway.outcomes("puppet").len(), 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_group_is_created_again_and_scripts_are_reloaded() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("topic", "a", "{}").await;
    gateway.until_outcome("topic", "a", "done").await;
    redis.is("settled", "XLEN mq:topic", 0).await;
    redis.run::<()>("SCRIPT FLUSH").await;
    redis.run::<i64>("XGROUP DESTROY mq:topic consumer-group-topic").await;
    redis.publish("topic", "b", "{}").await;
    gateway.until_outcome("topic", "b", "done").await;
    redis.run::<()>("FLUSHALL").await;
    redis.publish("topic", "c", "{}").await;
    gateway.until_outcome("topic", "c", "done").await;
    redis.is("settled", "XLEN mq:topic", 0).await;
    assert_eq!(gateway.outcomes("topic").len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_lost_under_a_running_message_runs_it_only_once() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("puppet", "long", r#"{"do":"sleep","ms":1500}"#).await;
    redis.until_in_flight("puppet", 1).await;
    redis.run::<i64>("XGROUP DESTROY mq:puppet consumer-group-puppet").await;
    gateway.until_logged(events::GROUP_LOST, |_| true).await;
    // This one starts after the new group has delivered the first again, and outlasts it.
    redis.publish("puppet", "after", r#"{"do":"sleep","ms":3000}"#).await;
    gateway.until_outcome("puppet", "after", "done").await;
    redis.is("settled", "XLEN mq:puppet", 0).await;
    assert_eq!(gateway.outcomes("puppet").iter().filter(|(id, _)| id == "long").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_connections_are_reopened() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    for round in 0..5 {
        redis.run::<i64>("CLIENT KILL TYPE normal SKIPME yes").await;
        let id = format!("m-{round}");
        redis.publish("topic", &id, "{}").await;
        gateway.until_outcome("topic", &id, "done").await;
    }
    redis.is("settled", "XLEN mq:topic", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_still_settles_finished_messages() {
    let redis = Redis::start();
    let plugins =
        Plugins::with("puppet", &built("puppet"), "[retry]\nbase = \"1ms\"\n[grants]\npublish = [\"seen\"]\n");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("puppet").await;
    for id in ["done", "retry", "echo"] {
        let act = match id {
            "done" => r#"{"do":"sleep","ms":500}"#,
            "retry" => r#"{"do":"retry","reason":"r","after_ms":500}"#,
            _ => r#"{"do":"echo","to":"seen"}"#,
        };
        redis.publish("puppet", id, act).await;
        if id == "done" {
            redis.until_in_flight("puppet", 1).await;
        }
    }
    redis.run::<()>("CONFIG SET maxmemory 1").await;
    gateway.until_outcome("puppet", "done", "done").await;
    redis.run::<()>("CONFIG SET maxmemory 0").await;
    redis.is("the follow-up is sent", "XLEN mq:seen", 1).await;
    redis.dead("puppet").await;
    redis.is("all are settled", "XLEN mq:puppet", 0).await;
    assert_eq!(gateway.outcomes("puppet").iter().filter(|(id, _)| id == "retry").count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_settlement_blocks_no_other() {
    let redis = Redis::start();
    let plugins =
        Plugins::with("puppet", &built("puppet"), "concurrency = 1000\n[retry]\nattempts = 2\nbase = \"1ms\"\n");
    let gateway = Gateway::start(&redis, &plugins);
    redis.run::<()>("SET {mq:puppet}:delayed text").await;
    // More than are settled at once.
    for number in 0..300 {
        redis.publish("puppet", &format!("refused-{number}"), r#"{"do":"retry","reason":"r","after_ms":1}"#).await;
    }
    let are_refused = |line: &serde_json::Value| line["waiting"] == 300;
    let line = gateway.until_logged(events::SETTLE_DELAYED, are_refused).await;
    assert!(line["error"].as_str().unwrap().contains("{mq:puppet}:delayed holds a string"), "{line}");
    for number in 0..100 {
        redis.publish("puppet", &format!("done-{number}"), r#"{"do":"sleep","ms":0}"#).await;
    }
    redis.is("the others are settled", "XLEN mq:puppet", 300).await;
    redis.run::<i64>("DEL {mq:puppet}:delayed").await;
    redis.is("the failed settlements succeed", "XLEN {mq:puppet}:dead", 300).await;
    redis.is("all are settled", "XLEN mq:puppet", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settlements_behind_many_failing_ones_are_still_tried() {
    let redis = Redis::start();
    let manifest = "concurrency = 1000\n[retry]\nattempts = 2\nbase = \"1h\"\ncap = \"1h\"\n";
    let plugins = Plugins::with("puppet", &built("puppet"), manifest);
    for key in ["dead", "delayed"] {
        redis.run::<()>(&format!("SET {{mq:puppet}}:{key} text")).await;
    }
    let gateway = Gateway::start(&redis, &plugins);
    // More than are retried at once.
    for (id, count, act) in [
        ("dies", 260, r#"{"do":"reject","code":"c","reason":"r"}"#),
        ("again", 5, r#"{"do":"retry","reason":"r","after_ms":3600000}"#),
    ] {
        for number in 0..count {
            redis.publish("puppet", &format!("{id}-{number}"), act).await;
        }
        let waiting = if id == "dies" { 260 } else { 265 };
        gateway.until_logged(events::SETTLE_DELAYED, |line| line["waiting"] == waiting).await;
    }
    redis.run::<i64>("DEL {mq:puppet}:delayed").await;
    redis.is("the later ones are settled", "ZCARD {mq:puppet}:delayed", 5).await;
    assert_eq!(redis.run::<i64>("XLEN mq:puppet").await, 260);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_that_always_fails_slows_down_no_other() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "concurrency = 2\n[retry]\nattempts = 1\n");
    let gateway = Gateway::start(&redis, &plugins);
    redis.run::<()>("SET {mq:puppet}:dead text").await;
    redis.publish("puppet", "refused", r#"{"do":"retry","reason":"r","after_ms":1}"#).await;
    gateway.until_logged(events::SETTLE_DELAYED, |line| line["waiting"] == 1).await;
    // With one free slot they run one after the other. With a backoff for each this would
    // take minutes.
    for number in 0..300 {
        redis.publish("puppet", &number.to_string(), r#"{"do":"sleep","ms":0}"#).await;
    }
    redis.is("all others are settled", "XLEN mq:puppet", 1).await;
    redis.run::<i64>("DEL {mq:puppet}:dead").await;
    redis.is("the failed settlement succeeds", "XLEN {mq:puppet}:dead", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn finished_messages_free_memory_in_a_full_redis() {
    let redis = Redis::start();
    let plugins =
        Plugins::with("puppet", &built("puppet"), "concurrency = 1000\n[retry]\nbase = \"1h\"\ncap = \"1h\"\n");
    // All start before the first has ended.
    let again = r#"{"do":"all","of":[{"do":"sleep","ms":10000},{"do":"retry","reason":"r","after_ms":3600000}]}"#;
    for number in 0..300 {
        redis.publish("puppet", &format!("again-{number}"), again).await;
    }
    for number in 0..20 {
        redis.publish("puppet", &format!("done-{number}"), r#"{"do":"sleep","ms":11000}"#).await;
    }
    let _gateway = Gateway::start(&redis, &plugins);
    redis.until_in_flight("puppet", 320).await;
    redis.run::<()>("CONFIG SET maxmemory 1").await;
    redis.is("the done ones are settled", "XLEN mq:puppet", 300).await;
    assert_eq!(redis.run::<i64>("EXISTS {mq:puppet}:delayed").await, 0);
    redis.run::<()>("CONFIG SET maxmemory 0").await;
    redis.is("the failed settlements succeed", "ZCARD {mq:puppet}:delayed", 300).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_with_a_full_redis_frees_memory() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "");
    redis.publish("topic", "before", "{}").await;
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_outcome("topic", "before", "done").await;
    gateway.kill();
    for number in 0..10 {
        redis.publish("topic", &number.to_string(), "{}").await;
    }
    redis.run::<()>("CONFIG SET maxmemory 1").await;
    let _gateway = Gateway::start(&redis, &plugins);
    redis.is("all are settled", "XLEN mq:topic", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_password_is_reported_and_the_worker_keeps_running() {
    let redis = Redis::start_with(&["--requirepass", "secret"]);
    let plugins = Plugins::with("topic", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    until("the reason is reported", async || {
        let (_, body) = gateway.get("/ready").await;
        let is_reported =
            body.contains("not_ready") && body.contains("refuses") && body.to_lowercase().contains("auth");
        is_reported.then_some(())
    })
    .await;
    assert_eq!(gateway.get("/healthz").await.0, 200);
    drop(gateway);

    let url = redis.url().replace("redis://", "redis://:secret@");
    let gateway = Gateway::start_with(&url, &plugins, &[]);
    gateway.until_ready().await;
    let line = gateway.until_logged("gateway-worker starting", |_| true).await;
    assert!(!line.to_string().contains("secret"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_type_is_reported_and_consumed_once_it_is_a_stream() {
    let redis = Redis::start();
    redis.run::<()>("SET mq:topic text").await;
    let plugins = Plugins::with("topic", &guest(OK), "").and("other", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway
        .until_logged(events::NOT_CONSUMING, |line| line["error"].as_str().unwrap().contains("holds a string"))
        .await;
    redis.publish("other", "a", "{}").await;
    gateway.until_outcome("other", "a", "done").await;
    redis.run::<i64>("DEL mq:topic").await;
    redis.publish("topic", "b", "{}").await;
    gateway.until_outcome("topic", "b", "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_policy_that_loses_queues_is_warned_about() {
    let redis = Redis::start_with(&["--maxmemory-policy", "allkeys-lru"]);
    let plugins = Plugins::empty();
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_logged("Redis may evict whole queues", |line| line["level"] == "WARN").await;
}

/// The pending entries of a stream with owner and delivery count.
async fn owners(redis: &Redis, topic: &str) -> Vec<(String, String, i64)> {
    let pending = format!("XPENDING mq:{topic} consumer-group-{topic} - + 100");
    let rows: Vec<(String, String, i64, i64)> = redis.run(&pending).await;
    rows.into_iter().map(|(id, owner, _, deliveries)| (id, owner, deliveries)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_outage_no_worker_reclaims_from_one_that_reconnects_later() {
    const LEGACY_CONSUMER: &str = "consumer-1795419923585502180";
    let mut redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "concurrency = 1\n");
    let options = ["--queue-lease", "60s"];
    let act = r#"{"do":"sleep","ms":10000}"#;
    redis.publish("puppet", "quick", act).await;
    let quick = Gateway::start_with(&redis.url(), &plugins, &options);
    redis.until_in_flight("puppet", 1).await;
    redis.publish("puppet", "slow", act).await;
    let slow = Gateway::start_with(&redis.url(), &plugins, &options);
    redis.until_in_flight("puppet", 2).await;
    // A legacy worker has one pending too.
    redis.publish("puppet", "theirs", act).await;
    let take = format!("XREADGROUP GROUP consumer-group-puppet {LEGACY_CONSUMER} COUNT 1 STREAMS mq:puppet >");
    redis.run::<redis::Value>(&take).await;
    redis.until_in_flight("puppet", 3).await;
    for worker in [&quick, &slow] {
        worker.signal(Signal::STOP);
    }
    redis.kill();
    redis.restart();
    let before = owners(&redis, "puppet").await;
    // As after an outage of ten minutes. A requeued message shows that the worker has
    // checked the leases.
    for (id, owner, _) in &before {
        let claim = format!("XCLAIM mq:puppet consumer-group-puppet {owner} 0 {id} IDLE 600000 JUSTID");
        redis.run::<redis::Value>(&claim).await;
    }
    let requeued = redis.add("puppet", br#"{"id":"given","topic":"puppet","data":{"do":"sleep","ms":0}}"#).await;
    redis.run::<redis::Value>("XREADGROUP GROUP consumer-group-puppet gone COUNT 1 STREAMS mq:puppet >").await;
    let claim = format!("XCLAIM mq:puppet consumer-group-puppet gone 0 {requeued} IDLE 86401000 RETRYCOUNT 0 JUSTID");
    redis.run::<redis::Value>(&claim).await;
    quick.signal(Signal::CONT);
    quick.until_outcome("puppet", "given", "done").await;
    let theirs: Vec<_> = before.iter().filter(|(id, ..)| *id != before[0].0).cloned().collect();
    let left: Vec<_> =
        owners(&redis, "puppet").await.into_iter().filter(|(id, ..)| *id != before[0].0 && *id != requeued).collect();
    assert_eq!(left, theirs);
    slow.signal(Signal::CONT);
    redis.is("all but the legacy message are done", "XLEN mq:puppet", 1).await;
    assert_eq!(owners(&redis, "puppet").await, theirs[1..]);
    for worker in [&quick, &slow] {
        assert!(worker.logged(events::RECLAIMED).is_empty() && worker.logged(events::LEASES_LOST).is_empty());
    }
    let ran = quick.outcomes("puppet").len() + slow.outcomes("puppet").len();
    assert_eq!(ran, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_can_not_read_reclaims_nothing() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--queue-lease", "500ms"]);
    redis.publish("t", "first", "{}").await;
    gateway.until_outcome("t", "first", "done").await;
    redis.is("settled", "XLEN mq:t", 0).await;
    redis.run::<()>("ACL SETUSER default -xreadgroup").await;
    redis.run::<i64>("CLIENT KILL TYPE normal SKIPME yes").await;
    gateway.until_logged(events::NOT_CONSUMING, |line| line["topic"] == "t").await;
    redis.publish("t", "theirs", "{}").await;
    let id: Vec<redis::Value> = redis.run("XREVRANGE mq:t + - COUNT 1").await;
    let (id, _): (String, redis::Value) = redis::from_redis_value(id.into_iter().next().unwrap()).unwrap();
    redis.run::<redis::Value>("XGROUP CREATECONSUMER mq:t consumer-group-t other").await;
    // As if another worker had read it.
    let claim = format!("XCLAIM mq:t consumer-group-t other 0 {id} IDLE 600000 FORCE JUSTID LASTID {id}");
    redis.run::<redis::Value>(&claim).await;
    let theirs = owners(&redis, "t").await;
    assert_eq!(theirs.len(), 1);
    // Due messages are promoted before leases are checked.
    for due in 1..=3 {
        redis.publish_later("t", &due.to_string(), "{}", Duration::from_millis(1)).await;
        redis.is("it is promoted", "XLEN mq:t", 1 + due).await;
    }
    assert_eq!(owners(&redis, "t").await, theirs);
    redis.run::<()>("ACL SETUSER default +xreadgroup").await;
    gateway.until_outcome("t", "theirs", "done").await;
}

/// A topic that has no connection of its own is polled.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_whose_reader_can_not_connect_is_served_nevertheless() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &guest(OK), "");
    redis.run::<()>("ACL SETUSER default -client|id").await;
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("t", "first", "{}").await;
    gateway.until_outcome("t", "first", "done").await;
    assert!(gateway.logged(events::SEAT_TAKEN).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnected_worker_renews_its_leases_first() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "");
    // The regular renewal is twenty minutes away.
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--queue-lease", "1h"]);
    redis.publish("puppet", "long", r#"{"do":"sleep","ms":600000}"#).await;
    gateway.until_asleep("puppet", 1).await;
    let in_flight = owners(&redis, "puppet").await;
    let (id, owner, _) = &in_flight[0];
    let claim = format!("XCLAIM mq:puppet consumer-group-puppet {owner} 0 {id} IDLE 3000000 JUSTID");
    redis.run::<redis::Value>(&claim).await;
    redis.run::<i64>("CLIENT KILL TYPE normal SKIPME yes").await;
    let silent = "XPENDING mq:puppet consumer-group-puppet IDLE 3000000 - + 10";
    until("renewed", async || redis.run::<Vec<redis::Value>>(silent).await.is_empty().then_some(())).await;
    assert_eq!(owners(&redis, "puppet").await, in_flight);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_waits_until_finished_messages_are_settled() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "[retry]\nattempts = 1\n");
    let mut gateway = Gateway::start_with(&redis.url(), &plugins, &["--shutdown-timeout", "1h"]);
    redis.run::<()>("SET {mq:puppet}:dead text").await;
    redis.publish("puppet", "refused", r#"{"do":"retry","reason":"r","after_ms":1}"#).await;
    gateway.until_logged(events::SETTLE_DELAYED, |line| line["waiting"] == 1).await;
    gateway.signal(Signal::TERM);
    gateway.until_logged(events::SHUTTING_DOWN, |_| true).await;
    until("no reader is blocked", async || {
        redis.run::<String>("INFO clients").await.contains("blocked_clients:0\r").then_some(())
    })
    .await;
    redis.run::<i64>("DEL {mq:puppet}:dead").await;
    until("the worker has exited", async || (!gateway.is_running()).then_some(())).await;
    assert_eq!(redis.run::<i64>("XLEN {mq:puppet}:dead").await, 1);
    assert_eq!(redis.run::<i64>("XLEN mq:puppet").await, 0);
}
