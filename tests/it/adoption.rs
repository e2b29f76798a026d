//! Taking over from the original's workers, which acknowledge only what went
//! well: what they copied is not run again, what they dropped is.

use crate::support::{Gateway, Plugins, Redis, built, until};
use gateway_worker::queue::{BlockingReader, StreamKind};
use serde_json::Value;
use std::time::Duration;

pub(crate) const GO: &str = "consumer-1795419923585502180";

pub(crate) fn envelope(id: &str, retry: u32) -> String {
    format!(
        r#"{{"id":"{id}","topic":"puppet","data":{{"do":"echo","to":"seen"}},"timestamp":"2026-11-23T07:45:23.585502861Z","retry":{retry},"max_retry":3}}"#
    )
}

/// Adds a message and lets a worker of the original take it.
async fn go_takes(redis: &Redis, message: &[u8], consumer: &str) {
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

/// What these tell that was seen: id and attempt.
pub(crate) fn seen_in(envelopes: &[Value]) -> Vec<(String, u64)> {
    let seen = |one: &Value| (one["data"]["id"].as_str().unwrap().to_owned(), one["data"]["attempt"].as_u64().unwrap());
    envelopes.iter().map(seen).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_living_worker_of_the_original_keeps_what_it_works_on() {
    let redis = Redis::start();
    redis.run::<()>("XGROUP CREATE mq:puppet consumer-group-puppet 0 MKSTREAM").await;
    go_takes(&redis, envelope("theirs", 0).as_bytes(), GO).await;
    redis.add("puppet", envelope("ours", 0).as_bytes()).await;
    // A lease of ours is out long before; theirs is asked for after an hour.
    let options = ["--queue-adopt-after", "1h", "--queue-lease", "500ms"];
    let plugins = plugins();
    let gateway = Gateway::start_with(&redis.url(), &plugins, &options);
    gateway.until_outcome("puppet", "ours", "done").await;
    let other = Gateway::start_with(&redis.url(), &plugins, &options);
    other.until_ready().await;
    redis.publish("puppet", "later", r#"{"do":"sleep","ms":1500}"#).await;
    redis.is("all but theirs", "XLEN mq:puppet", 1).await;
    assert_eq!(redis.in_flight("puppet").await, 1);
    // Not "nothing at all": on a busy machine a renewal of ours may come late.
    for worker in [&gateway, &other] {
        assert!(worker.logged("taken over").iter().all(|line| line["owner"] != GO));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_we_publish_a_consumer_of_the_original_can_read() {
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

/// Adds a message and lets a worker of the original take it in the same moment,
/// before any of ours can.
async fn go_takes_first(redis: &Redis, message: &str, consumer: &str) {
    let script = "redis.call('XADD', KEYS[1], '*', 'message', ARGV[1]) \
                  return redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'STREAMS', KEYS[1], '>')";
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(1).arg("mq:puppet").arg(message).arg("consumer-group-puppet").arg(consumer);
    command.query_async::<redis::Value>(&mut redis.connection().await).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_living_worker_of_the_original_fails_at_beside_us_is_run_once_again() {
    let redis = Redis::start();
    let plugins = plugins();
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--queue-adopt-after", "500ms"]);
    redis.publish("puppet", "ours", r#"{"do":"echo","to":"seen"}"#).await;
    gateway.until_outcome("puppet", "ours", "done").await;
    go_takes_first(&redis, &envelope("failed", 0), GO).await;
    // It fails, and then with the copy too, which it takes itself.
    go_takes_first(&redis, &envelope("failed", 1), GO).await;
    redis.add("puppet", envelope("failed", 2).as_bytes()).await;
    gateway.until_outcome("puppet", "failed", "done").await;
    redis.until_in_flight("puppet", 0).await;
    assert_eq!(seen(&redis).await, [("ours".to_owned(), 1), ("failed".to_owned(), 3)]);
    assert!(gateway.logged("taken over").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_original_buries_beside_us_is_not_run_again_and_what_it_drops_is() {
    let redis = Redis::start();
    let plugins = plugins();
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--queue-adopt-after", "500ms"]);
    redis.publish("puppet", "ours", r#"{"do":"echo","to":"seen"}"#).await;
    gateway.until_outcome("puppet", "ours", "done").await;
    // Before history is swept it is looked at too; the next time is a minute off.
    redis.is("swept", "HEXISTS {mq:puppet}:state floor", 1).await;
    let bury = |id: &str| {
        format!(
            r#"XADD mq:dead-letter:puppet * message {{"error":"boom","original_message":{{"id":"{id}","retry":3}}}}"#
        )
    };
    // Once a message of this id was buried, and it is published anew.
    redis.run::<String>(&bury("again")).await;
    until("a later moment", async || {
        let (now, _): (u64, u64) = redis.run("TIME").await;
        let last: Vec<(String, Vec<String>)> = redis.run("XREVRANGE mq:dead-letter:puppet + - COUNT 1").await;
        let buried: u64 = last[0].0.split('-').next().unwrap().parse().unwrap();
        (now * 1000 > buried).then_some(())
    })
    .await;
    go_takes_first(&redis, &envelope("buried", 2), GO).await;
    redis.run::<String>(&bury("buried")).await;
    go_takes_first(&redis, &envelope("again", 0), GO).await;
    redis.until_in_flight("puppet", 0).await;
    assert_eq!(seen(&redis).await, [("ours".to_owned(), 1), ("again".to_owned(), 1)]);
}

#[tokio::test]
async fn a_copy_that_has_run_is_not_swept_before_it_has_told() {
    let redis = Redis::start();
    let queue = redis.queue("puppet", "me");
    redis.run::<()>("XGROUP CREATE mq:puppet consumer-group-puppet 0 MKSTREAM").await;
    go_takes(&redis, envelope("failed", 0).as_bytes(), GO).await;
    go_takes(&redis, envelope("failed", 1).as_bytes(), GO).await;
    let entries: Vec<(String, Vec<String>)> = redis.run("XRANGE mq:puppet - +").await;
    redis.run::<i64>(&format!("XACK mq:puppet consumer-group-puppet {}", entries[1].0)).await;
    let mut from = None;
    loop {
        from = queue.legacy_history.sweep(from.as_ref()).await.unwrap();
        if from.is_none() {
            break;
        }
    }
    assert_eq!((redis.run::<i64>("XLEN mq:puppet").await, redis.in_flight("puppet").await), (0, 0));
}

#[tokio::test]
async fn what_only_has_the_same_id_is_no_copy() {
    let redis = Redis::start();
    let queue = redis.queue("puppet", "me");
    redis.run::<()>("XGROUP CREATE mq:puppet consumer-group-puppet 0 MKSTREAM").await;
    // Published anew, published twice, and in the hands of a worker of ours.
    for (id, retry, owner) in [("anew", 2, GO), ("anew", 0, GO), ("twice", 1, GO), ("ours", 0, "one-of-ours")] {
        go_takes(&redis, envelope(id, retry).as_bytes(), owner).await;
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
