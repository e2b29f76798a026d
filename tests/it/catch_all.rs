//! The catch-all plugin, `topics = ["*"]`: it consumes topics that no other plugin names,
//! and never those of a plugin that is missing or rejected.

use crate::limits::waits_at_its_start;
use crate::support::{Gateway, OK, Plugins, Redis, guest, topic, until};
use gateway_worker::events;
use gateway_worker::queue::{Connection, RedisTarget, TopicDiscovery};
use std::collections::BTreeSet;
use std::time::Duration;

const CATCH_ALL: &str = "topics = [\"*\"]\n";
const RETRY: &str = "(i32.store8 (i32.const 16) (i32.const 1)) (i32.store (i32.const 24) (i32.const 512)) (i32.store (i32.const 28) (i32.const 4)) (i32.const 16)";

#[tokio::test(flavor = "multi_thread")]
async fn the_catch_all_consumes_topics_that_no_other_plugin_names() {
    let redis = Redis::start();
    // The outcomes distinguish the two handlers.
    let plugins = Plugins::with("rest", &guest(OK), CATCH_ALL).and("own", &guest(RETRY), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("rest").await;
    redis.publish("own", "a", "{}").await;
    for name in ["new.one", "new.two"] {
        redis.publish(name, "a", "{}").await;
    }
    let _: i64 = redis.run("RPUSH mq:a.list {}").await;
    redis.publish_later("delayed", "a", "{}", Duration::from_millis(300)).await;
    let _: String = redis.run("SET mq:no.topic text").await;
    for name in ["new.one", "new.two", "delayed"] {
        gateway.until_outcome(name, "a", "done").await;
    }
    gateway.until_logged(events::SETTLED, |line| line["topic"] == "a.list" && line["outcome"] == "done").await;
    gateway.until_outcome("own", "a", "retry").await;
    let (_, metrics) = gateway.json("/metrics").await;
    let topics = serde_json::json!(["a.list", "delayed", "new.one", "new.two", "own"]);
    assert_eq!(metrics["consumers"]["topics"], topics);
    assert_eq!(gateway.plugin("rest").await["topics"], serde_json::json!(["*"]));

    // A plugin that names a topic consumes it from then on.
    plugins.write("new.one.wasm", &guest(RETRY));
    gateway.until_loaded("new.one").await;
    redis.publish("new.one", "b", "{}").await;
    gateway.until_outcome("new.one", "b", "retry").await;
}

/// A scan may take long where other programs have many keys, so it is not what finds
/// the topics that our publishers make.
#[tokio::test(flavor = "multi_thread")]
async fn published_topics_are_registered_before_they_exist() {
    let redis = Redis::start();
    let connection = Connection::to(&RedisTarget::at(&redis.url()).unwrap()).unwrap();
    let mut discovery = TopicDiscovery::new(&connection, "mq:");
    assert!(discovery.newly_registered().await.unwrap().is_empty());
    let publishes = |name: &str| {
        let arguments = ["publish", name, "--redis-url", &redis.url(), "--data", "{}"];
        assert_eq!(crate::support::run_command(&arguments).0, 0);
    };
    publishes("by.command");
    assert_eq!(discovery.newly_registered().await.unwrap(), [topic("by.command")]);
    // What a handler publishes is registered too.
    let plugins = Plugins::with("puppet", &crate::support::built("puppet"), "[grants]\npublish = [\"follow.up\"]\n");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("puppet", "a", r#"{"do":"publish","to":"follow.up","times":1,"then":null}"#).await;
    gateway.until_outcome("puppet", "a", "done").await;
    assert!(discovery.newly_registered().await.unwrap().contains(&topic("follow.up")));
    // A topic whose keys were deleted is none.
    let _: i64 = redis.run("DEL mq:by.command").await;
    let mut anew = TopicDiscovery::new(&connection, "mq:");
    assert!(!anew.newly_registered().await.unwrap().contains(&topic("by.command")));
    publishes("by.command");
    assert!(anew.newly_registered().await.unwrap().contains(&topic("by.command")));
}

/// A publisher that may not write to the registry publishes nevertheless.
#[tokio::test(flavor = "multi_thread")]
async fn the_registry_is_only_a_hint() {
    let redis = Redis::start();
    let _: String = redis.run("SET mq::topics no.registry").await;
    let plugins = Plugins::with("rest", &guest(OK), CATCH_ALL);
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("rest").await;
    let arguments = ["publish", "new", "--redis-url", &redis.url(), "--id", "a", "--data", "{}"];
    assert_eq!(crate::support::run_command(&arguments).0, 0);
    gateway.until_outcome("new", "a", "done").await;
}

/// A thousand topics that were used once, and are empty, keep no other from being
/// served, also where the worker is new.
#[tokio::test(flavor = "multi_thread")]
async fn topics_that_were_used_once_keep_no_other_from_being_served() {
    let redis = Redis::start();
    let script = "for n = 1, 1000 do redis.call('XADD', 'mq:used' .. n, '1-1', 'message', '{}') redis.call('XDEL', 'mq:used' .. n, '1-1') end";
    let mut connection = redis.connection().await;
    redis::cmd("EVAL").arg(script).arg(0).query_async::<redis::Value>(&mut connection).await.unwrap();
    let plugins = Plugins::with("rest", &guest(OK), CATCH_ALL);
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("rest").await;
    until("all are consumed", async || {
        (gateway.json("/metrics").await.1["consumers"]["topics"].as_array()?.len() == 1000).then_some(())
    })
    .await;
    redis.publish("z.new", "a", "{}").await;
    gateway.until_outcome("z.new", "a", "done").await;
}

/// The topics of a plugin are unknown until its manifest is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_a_plugin_that_is_still_loading_is_not_given_to_the_catch_all() {
    let redis = Redis::start();
    redis.publish("other", "a", "{}").await;
    let plugins = Plugins::with("a", &guest(OK), CATCH_ALL).and("z", &guest(RETRY), "topics = [\"other\"]\n");
    // As many plugins as are loaded concurrently, so that `z` has to wait.
    for name in ["b", "c", "d", "e"] {
        plugins.put(name, &waits_at_its_start(), "[limits]\ntimeout = \"1h\"\n");
    }
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("z").await;
    assert!(!gateway.logged(events::PLUGIN_REFUSED).is_empty(), "a load has ended before");
    gateway.until_outcome("other", "a", "retry").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_lost_its_plugin_waits_until_an_operator_unblocks_it() {
    let redis = Redis::start();
    let plugins = Plugins::with("rest", &guest(OK), CATCH_ALL).and("own", &guest(OK), "").and("bad", b"broken", "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("rest").await;
    gateway.until_loaded("own").await;
    plugins.remove("own.wasm");
    gateway.until_logged(events::PLUGIN_REMOVED, |line| line["plugin"] == "own").await;
    redis.publish("own", "waits", "{}").await;
    // A topic of a rejected plugin belongs to it.
    redis.publish("bad", "waits", "{}").await;
    let passed = async |gateway: &Gateway, name: &str| {
        redis.publish(name, "a", "{}").await;
        gateway.until_outcome(name, "a", "done").await;
    };
    // At the earliest after the next discovery of topics.
    passed(&gateway, "other").await;
    assert!(gateway.outcomes("own").is_empty() && gateway.outcomes("bad").is_empty());
    gateway.stop().await;
    let gateway = Gateway::start(&redis, &plugins);
    passed(&gateway, "another").await;
    assert!(gateway.outcomes("own").is_empty() && gateway.outcomes("bad").is_empty());
    assert_eq!(gateway.post("/api/v1/plugins/own/unblock").await.0, 200);
    gateway.until_outcome("own", "waits", "done").await;
    assert_eq!(gateway.post("/api/v1/plugins/nobody/unblock").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_catch_all_is_rejected_with_both_names() {
    let redis = Redis::start();
    let plugins = Plugins::with("a", &guest(OK), CATCH_ALL).and("b", &guest(RETRY), CATCH_ALL);
    let gateway = Gateway::start(&redis, &plugins);
    let reason = gateway.until_refused("b").await;
    assert!(reason.contains("a.wasm") && reason.contains("b.toml") && reason.contains('*'), "{reason}");
    redis.publish("any", "m", "{}").await;
    gateway.until_outcome("any", "m", "done").await;
    plugins.remove("a.wasm");
    gateway.until_loaded("b").await;
    redis.publish("any", "n", "{}").await;
    gateway.until_outcome("any", "n", "retry").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_no_legal_topic_is_warned_about_once() {
    let redis = Redis::start();
    redis.run::<String>("XADD mq:a{b} * message {}").await;
    let plugins = Plugins::with("rest", &guest(OK), CATCH_ALL);
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_logged(events::UNSERVABLE_KEY, |line| line["key"] == "mq:a{b}").await;
    redis.publish("other", "a", "{}").await;
    gateway.until_outcome("other", "a", "done").await;
    assert_eq!(gateway.logged(events::UNSERVABLE_KEY).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_keys_that_hold_messages_make_a_topic() {
    let redis = Redis::start();
    let connection = Connection::to(&RedisTarget::at(&redis.url()).unwrap()).unwrap();
    for command in [
        "XADD mq:stream * message {}",
        "LPUSH mq:list {}",
        "ZADD mq:delay:legacy 1 {}",
        "XADD {mq:urgent}:high * message {}",
        "ZADD {mq:later}:delayed 1 x",
        "SET mq:text x",
        "HSET {mq:known}:state done 1",
        "XADD {mq:dead}:dead * message {}",
        "XADD mq:dead-letter:old * message {}",
        "SADD mq::workers x",
    ] {
        redis.run::<redis::Value>(command).await;
    }
    let found = TopicDiscovery::new(&connection, "mq:").topics_with_messages().await.unwrap();
    let expected = ["stream", "list", "legacy", "urgent", "later"].map(topic);
    assert_eq!(found, BTreeSet::from(expected));
}
