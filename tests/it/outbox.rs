//! Follow-ups on their way to topics that no script of their parent reaches.

use crate::support::{Gateway, OK, Plugins, Redis, guest, until};

const OPTIONS: [&str; 2] = ["--queue-lease", "500ms"];

async fn put_out(redis: &Redis, topic: &str, due: i64, priority: &str, id: &str) {
    let mut add = redis::cmd("XADD");
    add.arg("{mq:t}:out").arg("*").arg("topic").arg(topic).arg("due").arg(due).arg("priority").arg(priority);
    add.arg("message").arg(format!(r#"{{"id":"{id}","topic":"{topic}","data":1}}"#));
    add.query_async::<String>(&mut redis.connection().await).await.unwrap();
}

async fn ids(redis: &Redis, key: &str) -> Vec<String> {
    redis.envelopes(key).await.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_worker_left_in_the_outbox_is_brought_where_it_belongs() {
    let redis = Redis::start();
    let hour = jiff::Timestamp::now().as_millisecond() + 3_600_000;
    put_out(&redis, "one", 0, "", "taken by the dead").await;
    put_out(&redis, "one", 0, "high", "urgent").await;
    redis.run::<()>("XGROUP CREATE {mq:t}:out relay 0").await;
    redis.run::<redis::Value>("XREADGROUP GROUP relay dead COUNT 2 STREAMS {mq:t}:out >").await;
    put_out(&redis, "two", 0, "", "at once").await;
    put_out(&redis, "two", hour, "low", "later").await;
    let plugins = Plugins::with("t", &guest(OK), "");
    let _gateway = Gateway::start_with(&redis.url(), &plugins, &OPTIONS);
    redis.publish("t", "wakes the lane", "{}").await;
    redis.is("the outbox is empty", "XLEN {mq:t}:out", 0).await;
    assert_eq!(ids(&redis, "mq:one").await, ["taken by the dead"]);
    assert_eq!(ids(&redis, "{mq:one}:high").await, ["urgent"]);
    assert_eq!(ids(&redis, "mq:two").await, ["at once"]);
    let later: Vec<(String, i64)> = redis.run("ZRANGE {mq:two}:later 0 -1 WITHSCORES").await;
    assert_eq!(later, [("p:low:1".to_owned(), hour)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follow_up_that_does_not_arrive_holds_up_no_other_and_is_not_lost() {
    let redis = Redis::start();
    redis.run::<()>("SET mq:broken text").await;
    put_out(&redis, "broken", 0, "", "waits").await;
    put_out(&redis, "fine", 0, "", "goes").await;
    redis.publish("t", "wakes the lane", "{}").await;
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = Gateway::start_with(&redis.url(), &plugins, &OPTIONS);
    redis.is("the other one has arrived", "XLEN mq:fine", 1).await;
    gateway.until_logged("a follow-up does not arrive", |_| true).await;
    redis.run::<i64>("DEL mq:broken").await;
    until("and so does this one", async || {
        (redis.run::<i64>("XLEN mq:broken").await == 1 && redis.run::<i64>("XLEN {mq:t}:out").await == 0).then_some(())
    })
    .await;
    assert_eq!(redis.run::<i64>("XLEN mq:fine").await, 1);
}
