//! Workers that are suspended or disconnected for longer than a lease and resume: other
//! workers have reclaimed their messages by then, and no message is lost or settled
//! twice.

use crate::batch::replies;
use crate::proxy::{Direction, DropReply, Proxy};
use crate::support::{Gateway, Plugins, Redis, built, topic, until};
use crate::topic_client::TopicClient;
use gateway_worker::events;
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

/// What the first worker does with the message, and a longer run on the other worker.
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

/// Stops a worker with messages in flight until another one has reclaimed them, and
/// resumes it. Its late settlements are ignored, except for successful ones.
async fn stall_first_worker(stop: impl Fn(&Gateway, &Proxy), resume: impl Fn(&Gateway, &Proxy)) {
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
    until("the other worker has reclaimed them", async || (other.logged(events::RECLAIMED).len() >= 3).then_some(()))
        .await;
    resume(&first, &proxy);

    for (id, outcome) in MESSAGES.map(|(id, _)| (id, id)) {
        first.until_outcome("puppet", id, outcome).await;
    }
    // A late retry or rejection is ignored, a late success is accepted.
    until("the late retry and the late rejection are ignored", async || {
        (first.logged(events::SETTLE_IGNORED).len() >= 2).then_some(())
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
    // The first worker continues.
    drop(other);
    redis.publish("puppet", "after", r#"{"do":"sleep","ms":0}"#).await;
    first.until_outcome("puppet", "after", "done").await;
    // Messages that another worker has settled no longer use its concurrency.
    let in_flight = "messages_in_flight{topic=\"puppet\"} 0";
    until("nothing is in flight", async || first.get("/metrics/prometheus").await.1.contains(in_flight).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_worker_that_resumes_does_no_harm() {
    stall_first_worker(|first, _| first.signal(Signal::STOP), |first, _| first.signal(Signal::CONT)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_stalls_for_longer_than_a_lease_does_no_harm() {
    let stall = |proxy: &Proxy, is_stalled| {
        proxy.stall(Direction::ToRedis, is_stalled);
        proxy.stall(Direction::ToWorker, is_stalled);
    };
    stall_first_worker(|_, proxy| stall(proxy, true), |_, proxy| stall(proxy, false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_with_a_lost_reply_is_recovered_and_not_counted() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let plugins = puppet("first");
    // With a lease of an hour it cannot be reclaimed.
    let gateway = Gateway::start_with(&proxy.url(), &plugins, &["--queue-lease", "1h"]);
    // The first message makes the worker discover the topic.
    redis.publish("puppet", "first", r#"{"do":"sleep","ms":0}"#).await;
    gateway.until_outcome("puppet", "first", "done").await;
    proxy.drop_next_reply(DropReply::With(b"swallowed".to_vec()));
    redis.publish("puppet", "swallowed", r#"{"do":"echo","to":"seen"}"#).await;
    gateway.until_outcome("puppet", "swallowed", "done").await;
    redis.is("settled", "XLEN mq:puppet", 0).await;
    assert_eq!(proxy.dropped_replies(), 1);
    assert_eq!(gateway.logged(events::RECOVERED).len(), 1);
    assert!(gateway.logged(events::RECLAIMED).is_empty());
    assert_eq!(redis.run::<i64>("XLEN mq:seen").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reclaim_with_a_lost_reply_is_recovered_on_an_idle_topic() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    // A lost consumer has it pending, and nothing else is published.
    redis.publish("puppet", "swallowed", r#"{"do":"echo","to":"seen"}"#).await;
    redis.run::<()>("XGROUP CREATE mq:puppet consumer-group-puppet 0").await;
    redis.run::<redis::Value>("XREADGROUP GROUP consumer-group-puppet gone STREAMS mq:puppet >").await;
    proxy.drop_next_reply(DropReply::With(b"swallowed".to_vec()));
    let plugins = puppet("first");
    let gateway = Gateway::start_with(&proxy.url(), &plugins, &LEASE);
    gateway.until_outcome("puppet", "swallowed", "done").await;
    redis.is("settled", "XLEN mq:puppet", 0).await;
    assert_eq!(proxy.dropped_replies(), 1);
    assert_eq!(gateway.logged(events::RECOVERED).len(), 1);
}

/// A batch with done and dead messages is settled in two steps. A renewal between them
/// no longer finds the done ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_in_progress_is_not_reported_as_a_lost_lease() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    proxy.set_latency(200);
    let each_second_fails = replies("(i32.store8 (i32.const 49176) (i32.const 1))");
    let manifest = "concurrency = 2\n[batch]\nsize = 2\nwait = \"1m\"\n[retry]\nattempts = 1\n";
    let plugins = Plugins::with("pairs", &each_second_fails, manifest);
    for number in 0..20 {
        redis.publish("pairs", &number.to_string(), "{}").await;
    }
    let gateway = Gateway::start_with(&proxy.url(), &plugins, &["--queue-lease", "600ms"]);
    redis.is("all are settled", "XLEN mq:pairs", 0).await;
    assert_eq!(redis.run::<i64>("XLEN {mq:pairs}:dead").await, 10);
    assert!(gateway.logged(events::LEASES_LOST).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_are_abandoned() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let plugins = puppet("first");
    let gateway = Gateway::start_with(&proxy.url(), &plugins, &LEASE);
    redis.publish("puppet", "before", r#"{"do":"sleep","ms":0}"#).await;
    gateway.until_outcome("puppet", "before", "done").await;
    redis.is("settled", "XLEN mq:puppet", 0).await;
    proxy.blackhole();
    redis.publish("puppet", "after", r#"{"do":"echo","to":"seen"}"#).await;
    gateway.until_outcome("puppet", "after", "done").await;
    redis.is("settled", "XLEN mq:puppet", 0).await;
    assert_eq!(redis.run::<i64>("XLEN mq:seen").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_may_have_run_is_not_sent_again() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis).await;
    let connection = Connection::to(&RedisTarget::at(&proxy.url()).unwrap()).unwrap();
    let (topic, group) = (topic("t"), "consumer-group-{topic}");
    let queue = TopicClient::new(&connection, "mq:", group, "me", &topic);
    let publication = Draft::new("id".to_owned(), &topic, "1").encode(Timestamp::now()).unwrap();
    queue.publisher.publish(&publication).await.unwrap();
    proxy.drop_next_reply(DropReply::After(0));
    assert!(queue.publisher.publish(&publication).await.is_err());
    assert_eq!((proxy.dropped_replies(), redis.run::<i64>("XLEN mq:t").await), (1, 2));
}
