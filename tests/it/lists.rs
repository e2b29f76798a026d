//! Topics that plain clients fill with `LPUSH` or `RPUSH`.

use crate::support::{Gateway, OK, Plugins, Redis, guest, text, until};
use gateway_worker::events;
use gateway_worker::queue::{ListEnd, QueueError, StreamKind, TopicKind};
use std::collections::BTreeSet;

fn envelope(id: &str) -> String {
    format!(r#"{{"id":"{id}","topic":"t","data":{{}}}}"#)
}

async fn push(redis: &Redis, how: &str, id: &str) {
    redis.run::<i64>(&format!("{how} mq:t {}", envelope(id))).await;
}

async fn is_drained(redis: &Redis) {
    redis.is("the list is drained", "EXISTS mq:t", 0).await;
    redis.is("the intake list is empty", "EXISTS {mq:t}:in", 0).await;
    redis.is("all are settled", "XLEN {mq:t}:work", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_worker_discovers_a_list() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_ready().await;
    for number in 0..300 {
        push(&redis, "RPUSH", &number.to_string()).await;
    }
    gateway.until_outcome("t", "299", "done").await;
    is_drained(&redis).await;
    let ran: BTreeSet<String> = gateway.outcomes("t").into_iter().map(|(id, _)| id).collect();
    assert_eq!((ran.len(), gateway.outcomes("t").len()), (300, 300));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_intake_of_a_lost_worker_is_consumed() {
    let redis = Redis::start();
    redis.run::<i64>(&format!("LPUSH {{mq:t}}:in {}", envelope("aside"))).await;
    push(&redis, "LPUSH", "waits").await;
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_outcome("t", "aside", "done").await;
    gateway.until_outcome("t", "waits", "done").await;
    is_drained(&redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_list_that_becomes_a_stream_is_consumed_as_one() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &guest(OK), "");
    push(&redis, "LPUSH", "list").await;
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_outcome("t", "list", "done").await;
    is_drained(&redis).await;
    redis.add("t", envelope("stream").as_bytes()).await;
    gateway.until_outcome("t", "stream", "done").await;
    redis.is("settled", "XLEN mq:t", 0).await;
    // And back to a list.
    redis.run::<i64>("DEL mq:t").await;
    push(&redis, "RPUSH", "again").await;
    gateway.until_outcome("t", "again", "done").await;
    is_drained(&redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_json_in_a_list_is_dead_lettered_with_its_bytes() {
    let redis = Redis::start();
    redis.run::<i64>("LPUSH mq:t {broken").await;
    push(&redis, "LPUSH", "fine").await;
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_outcome("t", "fine", "done").await;
    let dead = redis.dead("t").await;
    assert_eq!((text(&dead, "message").as_str(), text(&dead, "gw-reason").as_str()), ("{broken", "decode"));
    assert!(text(&dead, "gw-source").starts_with("t:work/"));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_pop_side_configured_the_oldest_goes_first() {
    for (how, head) in [("LPUSH", "right"), ("RPUSH", "left")] {
        let redis = Redis::start();
        for number in 0..600 {
            push(&redis, how, &format!("{number:03}")).await;
        }
        let plugins = Plugins::with("t", &guest(OK), "concurrency = 1\n");
        let gateway = Gateway::start_with(&redis.url(), &plugins, &["--queue-list-pop-side", head]);
        until("all are done", async || (gateway.outcomes("t").len() == 600).then_some(())).await;
        let ran: Vec<String> = gateway.outcomes("t").into_iter().map(|(id, _)| id).collect();
        assert_eq!(ran, (0..600).map(|number| format!("{number:03}")).collect::<Vec<_>>(), "{how}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_pop_side_both_ends_are_popped_in_turn() {
    let redis = Redis::start();
    // Each message fills a batch.
    let large = "x".repeat(600_000);
    for id in ["a", "b", "c", "d"] {
        redis.run::<i64>(&format!(r#"RPUSH mq:t {{"id":"{id}","topic":"t","data":"{large}"}}"#)).await;
    }
    let plugins = Plugins::with("t", &guest(OK), "concurrency = 1\n");
    let gateway = Gateway::start(&redis, &plugins);
    is_drained(&redis).await;
    let ran: Vec<String> = gateway.outcomes("t").into_iter().map(|(id, _)| id).collect();
    assert_eq!(ran, ["d", "a", "c", "b"]);
}

#[tokio::test]
async fn ingesting_keeps_the_order_of_each_end() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    let mut pushed = redis::cmd("RPUSH");
    pushed.arg("mq:t");
    (0..1000).for_each(|number| {
        pushed.arg(envelope(&number.to_string()));
    });
    pushed.query_async::<i64>(&mut redis.connection().await).await.unwrap();
    assert_eq!(queue.list_intake.move_batch(ListEnd::Left).await.unwrap(), 256);
    assert_eq!(queue.list_intake.move_batch(ListEnd::Right).await.unwrap(), 256);
    let ids: Vec<u32> =
        redis.envelopes("{mq:t}:work").await.iter().map(|one| one["id"].as_str().unwrap().parse().unwrap()).collect();
    assert_eq!(ids, (0..256).chain((744..1000).rev()).collect::<Vec<_>>());
    assert_eq!(redis.run::<i64>("LLEN mq:t").await, 488);
    let opened = queue.open().await.unwrap();
    assert_eq!((opened.kind, opened.streams), (TopicKind::List, vec![StreamKind::Work]));
}

#[tokio::test]
async fn an_ingested_batch_is_limited_in_bytes_but_never_empty() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    for _ in 0..3 {
        let mut push = redis::cmd("RPUSH");
        push.arg("mq:t").arg("x".repeat(700_000));
        push.query_async::<i64>(&mut redis.connection().await).await.unwrap();
    }
    let mut push = redis::cmd("RPUSH");
    push.arg("mq:t").arg("x".repeat(3 << 20));
    push.query_async::<i64>(&mut redis.connection().await).await.unwrap();
    let mut moved = Vec::new();
    for _ in 0..5 {
        moved.push(queue.list_intake.move_batch(ListEnd::Left).await.unwrap());
    }
    assert_eq!(moved, [1, 1, 1, 1, 0]);
}

#[tokio::test]
async fn a_failed_ingest_loses_nothing() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    push(&redis, "LPUSH", "a").await;
    redis.run::<()>("CONFIG SET maxmemory 1").await;
    queue.list_intake.move_batch(ListEnd::Left).await.unwrap_err();
    redis.run::<()>("CONFIG SET maxmemory 0").await;
    redis.run::<()>("SET {mq:t}:work text").await;
    assert!(matches!(queue.list_intake.move_batch(ListEnd::Left).await, Err(QueueError::WrongType(_))));
    assert_eq!(redis.run::<i64>("LLEN mq:t").await, 1);
    redis.run::<i64>("DEL {mq:t}:work").await;
    assert_eq!(queue.list_intake.move_batch(ListEnd::Left).await.unwrap(), 1);
    until("it is ingested", async || (redis.run::<i64>("XLEN {mq:t}:work").await == 1).then_some(())).await;
}

#[tokio::test]
async fn an_empty_work_stream_is_not_read_once_the_key_is_a_stream() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    push(&redis, "LPUSH", "list").await;
    queue.list_intake.move_batch(ListEnd::Left).await.unwrap();
    redis.add("t", envelope("stream").as_bytes()).await;
    assert_eq!(queue.open().await.unwrap().streams, [StreamKind::Normal, StreamKind::Work]);
    let entries: Vec<(String, redis::Value)> = redis.run("XRANGE {mq:t}:work - +").await;
    redis.run::<i64>(&format!("XDEL {{mq:t}}:work {}", entries[0].0)).await;
    // With one stream the cheaper plain read is used.
    assert_eq!(queue.open().await.unwrap().streams, [StreamKind::Normal]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_list_ingest_backs_off() {
    for broken in ["CONFIG SET maxmemory 1", "SET {mq:t}:work text", "SET {mq:t}:in text"] {
        let redis = Redis::start();
        push(&redis, "LPUSH", "waits").await;
        redis.run::<()>(broken).await;
        let plugins = Plugins::with("t", &guest(OK), "");
        let gateway = Gateway::start(&redis, &plugins);
        let tried = async |count: usize| {
            let lines = async || gateway.logged(events::LIST_INTAKE_FAILED).len();
            until("it was retried", async || (lines().await >= count).then_some(())).await;
        };
        tried(1).await;
        redis.run::<()>("CONFIG RESETSTAT").await;
        tried(3).await;
        let stats: String = redis.run("INFO commandstats").await;
        let calls = |line: &str| line.split_once(":calls=")?.1.split(',').next()?.parse::<u64>().ok();
        let spent: u64 = stats.lines().filter_map(calls).sum();
        assert!(spent < 1000, "{broken}: {stats}");
        redis.run::<()>("CONFIG SET maxmemory 0").await;
        for (command, key) in [("SET", "work"), ("SET", "in")] {
            if broken.starts_with(&format!("{command} {{mq:t}}:{key} ")) {
                redis.run::<i64>(&format!("DEL {{mq:t}}:{key}")).await;
            }
        }
        gateway.until_outcome("t", "waits", "done").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_intake_is_consumed_after_the_key_became_a_stream() {
    let redis = Redis::start();
    redis.run::<i64>(&format!("LPUSH {{mq:t}}:in {}", envelope("aside"))).await;
    redis.add("t", envelope("stream").as_bytes()).await;
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_outcome("t", "stream", "done").await;
    gateway.until_outcome("t", "aside", "done").await;
}
