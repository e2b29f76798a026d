//! Workers that stop for a while and wake again, on either side of their
//! connection: others have their messages by then, and nothing is harmed.

use crate::batch::replies;
use crate::proxy::{Lost, Proxy, Way};
use crate::support::{Gateway, Plugins, Redis, built, topic, until};
use crate::topic_client::TopicClient;
use gateway_worker::publication::Draft;
use gateway_worker::queue::{Connection, RedisTarget};
use jiff::Timestamp;
use rustix::process::Signal;

const LEASE: [&str; 2] = ["--queue-lease", "2s"];

fn puppet(version: &str) -> Plugins {
    let manifest = format!(
        "[retry]\nattempts = 2\nbase = \"1ms\"\n[grants]\npublish = [\"seen\"]\n[config]\nversion = \"{version}\"\n"
    );
    Plugins::with("puppet", &built("puppet"), &manifest)
}

/// What the first worker does with it, and then how long the other takes
/// before it is done.
fn act(first: &str) -> String {
    let echo = r#"{"do":"echo","to":"seen"}"#;
    let first = format!(r#"{{"do":"all","of":[{{"do":"sleep","ms":4000}},{first}]}}"#);
    let other = format!(r#"{{"do":"all","of":[{{"do":"sleep","ms":9000}},{echo}]}}"#);
    format!(r#"{{"do":"by-version","of":{{"first":{first},"other":{other}}}}}"#)
}

const MESSAGES: [(&str, &str); 3] = [
    ("done", r#"{"do":"echo","to":"seen"}"#),
    ("retry", r#"{"do":"retry","reason":"r","after_ms":1}"#),
    ("reject", r#"{"do":"reject","code":"c","reason":"r"}"#),
];

/// Puts a first worker out of action with messages in hand until another has
/// them. The first then says how they ended; the other has the last word,
/// except where the first was done.
async fn out_of_action(stop: impl Fn(&Gateway, &Proxy), go_on: impl Fn(&Gateway, &Proxy)) {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let (plugins, others_plugins) = (puppet("first"), puppet("other"));
    let first = Gateway::start_with(&proxy.url(), &plugins, &LEASE);
    first.until_loaded("puppet").await;
    for (id, how) in MESSAGES {
        redis.publish("puppet", id, &act(how)).await;
    }
    first.until_asleep("puppet", 3).await;
    stop(&first, &proxy);
    let other = Gateway::start_with(&redis.url(), &others_plugins, &LEASE);
    until("the other has them", async || (other.logged("taken over").len() >= 3).then_some(())).await;
    go_on(&first, &proxy);

    for (id, outcome) in MESSAGES.map(|(id, _)| (id, id)) {
        first.until_outcome("puppet", id, outcome).await;
    }
    // Its late word counts for nothing, except that something is done.
    until("the late retry and the late rejection count for nothing", async || {
        (first.logged("settled by another, or twice").len() >= 2).then_some(())
    })
    .await;
    redis.is("all are done", "XLEN mq:puppet", 0).await;
    for id in ["retry", "reject"] {
        other.until_outcome("puppet", id, "done").await;
    }
    assert_eq!(redis.run::<Option<i64>>("HGET {mq:puppet}:state retried").await, None);
    assert_eq!(redis.run::<i64>("EXISTS {mq:puppet}:dead {mq:puppet}:delayed").await, 0);
    let mut seen: Vec<String> =
        redis.envelopes("mq:seen").await.iter().map(|one| one["data"]["id"].as_str().unwrap().to_owned()).collect();
    seen.sort_unstable();
    assert_eq!(seen, ["done", "reject", "retry"]);
    // And it goes on as before.
    drop(other);
    redis.publish("puppet", "after", r#"{"do":"sleep","ms":0}"#).await;
    first.until_outcome("puppet", "after", "done").await;
    // What others have settled takes up no room of its own any more.
    let held = "messages_in_flight{topic=\"puppet\"} 0";
    until("it holds nothing", async || first.get("/metrics/prometheus").await.1.contains(held).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_worker_that_wakes_does_no_harm() {
    out_of_action(|first, _| first.signal(Signal::STOP), |first, _| first.signal(Signal::CONT)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_stalls_for_longer_than_a_lease_does_no_harm() {
    let stall = |proxy: &Proxy, is_stalled| {
        proxy.stall(Way::ToRedis, is_stalled);
        proxy.stall(Way::ToWorker, is_stalled);
    };
    out_of_action(|_, proxy| stall(proxy, true), |_, proxy| stall(proxy, false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_whose_answer_is_lost_on_the_way_is_taken_again_and_is_no_loss() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let plugins = puppet("first");
    // With a lease of an hour nothing else could bring it back.
    let gateway = Gateway::start_with(&proxy.url(), &plugins, &["--queue-lease", "1h"]);
    // With the first message it finds the topic; the second is the one.
    redis.publish("puppet", "first", r#"{"do":"sleep","ms":0}"#).await;
    gateway.until_outcome("puppet", "first", "done").await;
    proxy.lose(Lost::With(b"swallowed".to_vec()));
    redis.publish("puppet", "swallowed", r#"{"do":"echo","to":"seen"}"#).await;
    gateway.until_outcome("puppet", "swallowed", "done").await;
    redis.is("settled", "XLEN mq:puppet", 0).await;
    assert_eq!(proxy.lost(), 1);
    assert_eq!(gateway.logged("taken again").len(), 1);
    assert!(gateway.logged("taken over").is_empty());
    assert_eq!(redis.run::<i64>("XLEN mq:seen").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_whose_answer_is_lost_on_the_way_is_found_on_an_idle_topic() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    // Somebody had it and is gone; nothing else will ever be published.
    redis.publish("puppet", "swallowed", r#"{"do":"echo","to":"seen"}"#).await;
    redis.run::<()>("XGROUP CREATE mq:puppet consumer-group-puppet 0").await;
    redis.run::<redis::Value>("XREADGROUP GROUP consumer-group-puppet gone STREAMS mq:puppet >").await;
    proxy.lose(Lost::With(b"swallowed".to_vec()));
    let plugins = puppet("first");
    let gateway = Gateway::start_with(&proxy.url(), &plugins, &LEASE);
    gateway.until_outcome("puppet", "swallowed", "done").await;
    redis.is("settled", "XLEN mq:puppet", 0).await;
    assert_eq!(proxy.lost(), 1);
    assert_eq!(gateway.logged("taken again").len(), 1);
}

/// Settling a batch takes two steps where some of it is done and some is dead. A
/// renewal in between finds that what is done is no longer ours.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_settled_is_no_lost_lease() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    proxy.slow_down(200);
    let each_second_fails = replies("(i32.store8 (i32.const 49176) (i32.const 1))");
    let manifest = "concurrency = 2\n[batch]\nsize = 2\nwait = \"1m\"\n[retry]\nattempts = 1\n";
    let plugins = Plugins::with("pairs", &each_second_fails, manifest);
    for number in 0..20 {
        redis.publish("pairs", &number.to_string(), "{}").await;
    }
    let gateway = Gateway::start_with(&proxy.url(), &plugins, &["--queue-lease", "600ms"]);
    redis.is("all are settled", "XLEN mq:pairs", 0).await;
    assert_eq!(redis.run::<i64>("XLEN {mq:pairs}:dead").await, 10);
    assert!(gateway.logged("leases lost").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_fall_silent_are_given_up() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let plugins = puppet("first");
    let gateway = Gateway::start_with(&proxy.url(), &plugins, &LEASE);
    redis.publish("puppet", "before", r#"{"do":"sleep","ms":0}"#).await;
    gateway.until_outcome("puppet", "before", "done").await;
    redis.is("settled", "XLEN mq:puppet", 0).await;
    proxy.silence();
    redis.publish("puppet", "after", r#"{"do":"echo","to":"seen"}"#).await;
    gateway.until_outcome("puppet", "after", "done").await;
    redis.is("settled", "XLEN mq:puppet", 0).await;
    assert_eq!(redis.run::<i64>("XLEN mq:seen").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_been_done_is_not_sent_again() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let connection = Connection::to(&RedisTarget::at(&proxy.url()).unwrap()).unwrap();
    let (topic, group) = (topic("t"), "consumer-group-{topic}");
    let queue = TopicClient::new(&connection, "mq:", group, "me", &topic);
    let publication = Draft::new("id".to_owned(), &topic, "1").seal(Timestamp::now()).unwrap();
    queue.publisher.publish(&publication).await.unwrap();
    proxy.lose(Lost::After(0));
    assert!(queue.publisher.publish(&publication).await.is_err());
    assert_eq!((proxy.lost(), redis.run::<i64>("XLEN mq:t").await), (1, 2));
}
