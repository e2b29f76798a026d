//! Reclaiming messages from GinForge workers, which acknowledge only successful
//! messages: a message that they copied for a retry is not run again, one that they
//! dropped is.

use crate::support::{Gateway, OK, Plugins, Redis, built, guest, run_command, until};
use gateway_worker::events;
use gateway_worker::queue::{BlockingReader, StreamKind};
use jiff::Timestamp;
use serde_json::Value;
use std::time::Duration;

pub(crate) const LEGACY_CONSUMER: &str = "consumer-1795419923585502180";

pub(crate) fn envelope(id: &str, retry: u32) -> String {
    format!(
        r#"{{"id":"{id}","topic":"puppet","data":{{"do":"echo","to":"seen"}},"timestamp":"2026-11-23T07:45:23.585502861Z","retry":{retry},"max_retry":3}}"#
    )
}

/// Adds a message and lets a legacy worker read it.
async fn legacy_worker_reads(redis: &Redis, message: &[u8], consumer: &str) {
    redis.add("puppet", message).await;
    redis
        .run::<redis::Value>(&format!("XREADGROUP GROUP consumer-group-puppet {consumer} COUNT 1 STREAMS mq:puppet >"))
        .await;
}

pub(crate) fn plugins() -> Plugins {
    Plugins::with("puppet", &built("puppet"), "[grants]\npublish = [\"seen\"]\n")
}

async fn seen(redis: &Redis) -> Vec<(String, u64)> {
    seen_in(&redis.envelopes("mq:seen").await)
}

/// The ids and attempts in the follow-ups of the handler.
pub(crate) fn seen_in(envelopes: &[Value]) -> Vec<(String, u64)> {
    let seen = |one: &Value| (one["data"]["id"].as_str().unwrap().to_owned(), one["data"]["attempt"].as_u64().unwrap());
    envelopes.iter().map(seen).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_legacy_worker_keeps_its_messages() {
    let redis = Redis::start();
    redis.run::<()>("XGROUP CREATE mq:puppet consumer-group-puppet 0 MKSTREAM").await;
    legacy_worker_reads(&redis, envelope("theirs", 0).as_bytes(), LEGACY_CONSUMER).await;
    redis.add("puppet", envelope("ours", 0).as_bytes()).await;
    // Native leases expire long before legacy messages are reclaimed.
    let options = ["--legacy-reclaim-after", "1h", "--queue-lease", "500ms"];
    let plugins = plugins();
    let gateway = Gateway::start_with(&redis.url(), &plugins, &options);
    gateway.until_outcome("puppet", "ours", "done").await;
    let other = Gateway::start_with(&redis.url(), &plugins, &options);
    other.until_ready().await;
    redis.publish("puppet", "later", r#"{"do":"sleep","ms":1500}"#).await;
    redis.is("all but the legacy worker's message", "XLEN mq:puppet", 1).await;
    assert_eq!(redis.in_flight("puppet").await, 1);
    // On a busy machine a native lease may expire, so only the legacy owner is excluded.
    for worker in [&gateway, &other] {
        assert!(worker.logged(events::RECLAIMED).iter().all(|line| line["owner"] != LEGACY_CONSUMER));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_consumer_can_read_our_messages() {
    let redis = Redis::start();
    redis.publish("puppet", "a", r#"{"k": 1}"#).await;
    redis.run::<()>("XGROUP CREATE mq:puppet consumer-group-puppet 0 MKSTREAM").await;
    let entry = redis.envelopes("mq:puppet").await.remove(0);
    let keys: Vec<&String> = entry.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["data", "id", "max_retry", "retry", "timestamp", "topic"]);
    assert_eq!(
        (entry["topic"].as_str(), entry["max_retry"].as_u64(), entry["retry"].as_u64()),
        (Some("puppet"), Some(3), Some(0))
    );
    entry["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
}

/// Adds a message and lets a legacy worker read it in the same script, before a
/// native worker can.
async fn legacy_worker_reads_first(redis: &Redis, message: &str, consumer: &str) {
    let script = "redis.call('XADD', KEYS[1], '*', 'message', ARGV[1]) \
                  return redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'STREAMS', KEYS[1], '>')";
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(1).arg("mq:puppet").arg(message).arg("consumer-group-puppet").arg(consumer);
    command.query_async::<redis::Value>(&mut redis.connection().await).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_a_live_legacy_worker_fails_is_run_once_more() {
    let redis = Redis::start();
    let plugins = plugins();
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--legacy-reclaim-after", "500ms"]);
    redis.publish("puppet", "ours", r#"{"do":"echo","to":"seen"}"#).await;
    gateway.until_outcome("puppet", "ours", "done").await;
    legacy_worker_reads_first(&redis, &envelope("failed", 0), LEGACY_CONSUMER).await;
    // The legacy worker fails with the message and with its first copy.
    legacy_worker_reads_first(&redis, &envelope("failed", 1), LEGACY_CONSUMER).await;
    redis.add("puppet", envelope("failed", 2).as_bytes()).await;
    gateway.until_outcome("puppet", "failed", "done").await;
    redis.until_in_flight("puppet", 0).await;
    assert_eq!(seen(&redis).await, [("ours".to_owned(), 1), ("failed".to_owned(), 3)]);
    assert!(gateway.logged(events::RECLAIMED).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_dead_letter_is_not_run_and_a_dropped_message_is() {
    let redis = Redis::start();
    let plugins = plugins();
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--legacy-reclaim-after", "500ms"]);
    redis.publish("puppet", "ours", r#"{"do":"echo","to":"seen"}"#).await;
    gateway.until_outcome("puppet", "ours", "done").await;
    // The first sweep also probes the stream; the next one is a minute later.
    redis.is("swept", "HEXISTS {mq:puppet}:state floor", 1).await;
    let add_legacy_dead_letter = |id: &str| {
        format!(
            r#"XADD mq:dead-letter:puppet * message {{"error":"boom","original_message":{{"id":"{id}","retry":3}}}}"#
        )
    };
    // A message of this id died before, and is then published again.
    redis.run::<String>(&add_legacy_dead_letter("again")).await;
    until("a later moment", async || {
        let (now, _): (u64, u64) = redis.run("TIME").await;
        let last: Vec<(String, Vec<String>)> = redis.run("XREVRANGE mq:dead-letter:puppet + - COUNT 1").await;
        let died_at: u64 = last[0].0.split('-').next().unwrap().parse().unwrap();
        (now * 1000 > died_at).then_some(())
    })
    .await;
    legacy_worker_reads_first(&redis, &envelope("buried", 2), LEGACY_CONSUMER).await;
    redis.run::<String>(&add_legacy_dead_letter("buried")).await;
    legacy_worker_reads_first(&redis, &envelope("again", 0), LEGACY_CONSUMER).await;
    redis.until_in_flight("puppet", 0).await;
    assert_eq!(seen(&redis).await, [("ours".to_owned(), 1), ("again".to_owned(), 1)]);
}

#[tokio::test]
async fn a_finished_copy_is_not_swept_before_its_source_is_settled() {
    let redis = Redis::start();
    let queue = redis.queue("puppet", "me");
    redis.run::<()>("XGROUP CREATE mq:puppet consumer-group-puppet 0 MKSTREAM").await;
    legacy_worker_reads(&redis, envelope("failed", 0).as_bytes(), LEGACY_CONSUMER).await;
    legacy_worker_reads(&redis, envelope("failed", 1).as_bytes(), LEGACY_CONSUMER).await;
    let entries: Vec<(String, Vec<String>)> = redis.run("XRANGE mq:puppet - +").await;
    redis.run::<i64>(&format!("XACK mq:puppet consumer-group-puppet {}", entries[1].0)).await;
    queue.sweep_all(StreamKind::Normal).await;
    assert_eq!((redis.run::<i64>("XLEN mq:puppet").await, redis.in_flight("puppet").await), (0, 0));
}

#[tokio::test]
async fn an_entry_that_only_shares_the_id_is_no_copy() {
    let redis = Redis::start();
    let queue = redis.queue("puppet", "me");
    redis.run::<()>("XGROUP CREATE mq:puppet consumer-group-puppet 0 MKSTREAM").await;
    // Published again, published twice, and in flight at a native worker.
    for (id, retry, owner) in [
        ("again", 2, LEGACY_CONSUMER),
        ("again", 0, LEGACY_CONSUMER),
        ("twice", 1, LEGACY_CONSUMER),
        ("ours", 0, "one-of-ours"),
    ] {
        legacy_worker_reads(&redis, envelope(id, retry).as_bytes(), owner).await;
    }
    for id in ["twice", "ours"] {
        redis.add("puppet", envelope(id, 1).as_bytes()).await;
    }
    assert_eq!(queue.legacy_pending.acknowledge_copied(Duration::ZERO).await.unwrap(), 0);
    let mut reader = BlockingReader::connect(&queue.handle).await.unwrap();
    let (taken, _) = reader.read(StreamKind::Normal, 10, Duration::from_millis(50)).await.unwrap();
    assert_eq!((taken.len(), queue.legacy_pending.acknowledge_superseded_by(&taken).await.unwrap()), (2, 0));
    assert_eq!(redis.in_flight("puppet").await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn delayed_messages_scored_in_milliseconds_are_warned_about() {
    let redis = Redis::start();
    let now = Timestamp::now().as_millisecond();
    // The end of the year 9999 is the last due time that can be meant.
    for (id, score) in [("ms", now), ("us", now * 1000), ("far", 253_402_300_800), ("legal", 253_402_300_799)] {
        redis.run::<i64>(&format!(r#"ZADD mq:delay:t {score} {{"id":"{id}","topic":"t","data":{{}}}}"#)).await;
    }
    redis.run::<i64>(r#"ZADD mq:delay:quiet 253402300799 {"id":"legal","topic":"quiet","data":{}}"#).await;
    let plugins = Plugins::with("t", &guest(OK), "").and("quiet", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    let line = gateway.until_logged(events::LEGACY_DUE_FAR, |_| true).await;
    assert_eq!((line["topic"].as_str(), line["count"].as_i64()), (Some("t"), Some(3)), "{line}");
    assert_eq!(line["key"], "mq:delay:t");
    let show = |topic: &str| run_command(&["topics", "show", topic, "--redis-url", &redis.url()]).1;
    let shown = show("t");
    assert!(shown.contains("3, due after the year 9999"), "{shown}");
    assert!(!show("quiet").contains("9999,"), "{}", show("quiet"));
    assert_eq!(gateway.logged(events::LEGACY_DUE_FAR).len(), 1);
}
