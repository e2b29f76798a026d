//! Batches: several messages in one call, each settled individually.

use crate::guest::encode;
use crate::http_server::Server;
use crate::support::{Gateway, OK, Plugins, Redis, built, guest, text, until};
use gateway_worker::events;
use rustix::process::Signal;
use serde_json::json;

const GRANT: &str = "[grants]\npublish = [\"seen\"]\n[retry]\nattempts = 1\n";

pub(crate) fn crew(size: usize, wait: &str) -> Plugins {
    let manifest = format!("{GRANT}[batch]\nsize = {size}\nwait = \"{wait}\"\n");
    Plugins::with("crew", &built("crew"), &manifest)
}

/// The batch size that each handled message reported.
async fn batch_sizes(redis: &Redis) -> Vec<u64> {
    redis.envelopes("mq:seen").await.iter().map(|one| one["data"].as_u64().unwrap()).collect()
}

async fn publish(redis: &Redis, acts: &[&str]) {
    for (at, act) in acts.iter().enumerate() {
        redis.publish("crew", &format!("m-{at}"), &format!("\"{act}\"")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_messages_are_batched_up_to_the_size() {
    let redis = Redis::start();
    publish(&redis, &["count"; 10]).await;
    let plugins = crew(4, "3s");
    let gateway = Gateway::start(&redis, &plugins);
    // The last two wait for more messages until the batch times out.
    redis.is("all are done", "XLEN mq:crew", 0).await;
    let mut sizes = batch_sizes(&redis).await;
    sizes.sort_unstable();
    assert_eq!(sizes, [2, 2, 4, 4, 4, 4, 4, 4, 4, 4]);
    assert_eq!(gateway.outcomes("crew").len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_number_of_replies_is_a_bad_reply_for_all() {
    let redis = Redis::start();
    publish(&redis, &["count", "withhold"]).await;
    let plugins = crew(2, "2s");
    let _gateway = Gateway::start(&redis, &plugins);
    redis.is("all are settled", "XLEN mq:crew", 0).await;
    let dead = redis.entries("{mq:crew}:dead").await;
    assert_eq!(dead.len(), 2);
    for letter in dead {
        let (reason, error) = (text(&letter, "gw-reason"), text(&letter, "gw-error"));
        assert_eq!((reason.as_str(), error.as_str()), ("bad-reply", "1 replies to a batch of 2"));
    }
    assert_eq!(redis.run::<i64>("EXISTS mq:seen").await, 0);
}

/// A batch handler that replies ok to each message, unless `body` changes that: the
/// pointer to the replies is at 16, their number at 20, and the replies, 24 bytes
/// each, begin at 49152.
pub(crate) fn replies(body: &str) -> Vec<u8> {
    let module = format!(
        r#"(module
        (memory (export "memory") 1)
        (data (i32.const 512) "\ff\fe")
        (global $heap (mut i32) (i32.const 1024))
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
            (global.set $heap (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
            (global.get $heap)
            (global.set $heap (i32.add (global.get $heap) (local.get 3))))
        (func (export "gateway:worker/batch-handler@1.0.0#handle-batch") (param i32 i32) (result i32)
            (i32.store (i32.const 16) (i32.const 49152))
            (i32.store (i32.const 20) (local.get 1))
            {body}
            (i32.const 16)))"#
    );
    let wit = include_str!("../../wit/gateway.wit").replacen("  export handler;", "  export batch-handler;", 1);
    encode(&module, "batch.wit", Some(&wit))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_reply_of_another_length_fails_every_message() {
    let count = |count: &str| replies(&format!("(i32.store (i32.const 20) {count})"));
    // A list as long as memory allows, and a reason that is not UTF-8.
    let flood = "(drop (memory.grow (i32.const 1000))) (i32.store (i32.const 20) (i32.const 2700000))";
    let bad = "(i32.store8 (i32.const 49176) (i32.const 1)) (i32.store (i32.const 49184) (i32.const 512))
               (i32.store (i32.const 49188) (i32.const 2))";
    let cases = [
        ("none", count("(i32.const 0)"), "bad-reply", "0 replies to a batch of 2"),
        ("fewer", count("(i32.const 1)"), "bad-reply", "1 replies to a batch of 2"),
        ("more", count("(i32.const 3)"), "bad-reply", "3 replies to a batch of 2"),
        ("flood", replies(flood), "host-call-limit", "limits.host_call_bytes"),
        ("bad", replies(bad), "bad-reply", "utf-8"),
    ];
    let redis = Redis::start();
    let plugins = Plugins::empty();
    let manifest = "[batch]\nsize = 2\nwait = \"1m\"\n[retry]\nattempts = 1\n";
    plugins.put("equal", &replies(""), manifest);
    for (name, wasm, ..) in &cases {
        plugins.put(name, wasm, manifest);
    }
    let gateway = Gateway::start(&redis, &plugins);
    for (name, _, reason, fragment) in cases {
        for id in ["a", "b"] {
            redis.publish(name, id, "{}").await;
        }
        redis.is("both are dead", &format!("XLEN {{mq:{name}}}:dead"), 2).await;
        for letter in redis.entries(&format!("{{mq:{name}}}:dead")).await {
            let error = text(&letter, "gw-error");
            assert!(text(&letter, "gw-reason") == reason && error.contains(fragment), "{name}: {error}");
        }
    }
    for id in ["a", "b"] {
        redis.publish("equal", id, "{}").await;
    }
    for id in ["a", "b"] {
        gateway.until_outcome("equal", id, "done").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handler_and_manifest_must_agree_on_batches() {
    let redis = Redis::start();
    let plugins =
        Plugins::with("crew", &built("crew"), "").and("plain", &guest(OK), "[batch]\nsize = 2\nwait = \"1s\"\n");
    let gateway = Gateway::start(&redis, &plugins);
    let reason = gateway.until_refused("crew").await;
    assert!(reason.contains("write [batch] with size and wait"), "{reason}");
    let reason = gateway.until_refused("plain").await;
    assert!(reason.contains("must export gateway:worker/batch-handler@1.0.0"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_does_not_wait_for_a_batch_to_fill() {
    let redis = Redis::start();
    publish(&redis, &["count"]).await;
    let plugins = crew(3, "60s");
    let gateway = Gateway::start(&redis, &plugins);
    redis.until_in_flight("crew", 1).await;
    assert!(gateway.stop().await.success());
    assert_eq!(redis.in_flight("crew").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_message_joins_no_batch() {
    for is_first in [true, false] {
        let redis = Redis::start();
        publish(&redis, &["count"]).await;
        // Redis has counted two crashed workers for it.
        redis.run::<()>("XGROUP CREATE mq:crew consumer-group-crew 0").await;
        redis.run::<redis::Value>("XREADGROUP GROUP consumer-group-crew lost COUNT 1 STREAMS mq:crew >").await;
        let pending: Vec<(String, String, i64, i64)> = redis.run("XPENDING mq:crew consumer-group-crew - + 1").await;
        let claim = format!("XCLAIM mq:crew consumer-group-crew lost 0 {} IDLE 100000 RETRYCOUNT 2", pending[0].0);
        redis.run::<redis::Value>(&format!("{claim} JUSTID")).await;
        let others = ["count"; 2];
        if !is_first {
            publish(&redis, &others).await;
        }
        let plugins = crew(3, "4s");
        let gateway = Gateway::start_with(&redis.url(), &plugins, &["--queue-lease", "500ms"]);
        if is_first {
            gateway.until_logged(events::RECLAIMED, |_| true).await;
            publish(&redis, &others).await;
        }
        redis.is("all are done", "XLEN mq:crew", 0).await;
        let mut sizes = batch_sizes(&redis).await;
        sizes.sort_unstable();
        assert_eq!(sizes, [1, 2, 2], "first: {is_first}");
        assert_eq!(gateway.logged(events::RUNNING_ISOLATED).len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_starts_no_batch_that_is_still_filling() {
    let redis = Redis::start();
    publish(&redis, &["count"]).await;
    let plugins = crew(3, "40s");
    let gateway = Gateway::start(&redis, &plugins);
    redis.until_in_flight("crew", 1).await;
    redis.run::<i64>("HSET {mq:crew}:state paused 1").await;
    redis.until_requeued("crew", 1).await;
    assert!(gateway.outcomes("crew").is_empty());
    publish(&redis, &["count"; 2]).await;
    redis.run::<i64>("HDEL {mq:crew}:state paused").await;
    redis.is("all are done", "XLEN mq:crew", 0).await;
    assert_eq!(batch_sizes(&redis).await, [3, 3, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_collected_for_the_old_version_runs_in_the_form_of_the_new_one() {
    let command = wat::parse_str("(module (memory (export \"memory\") 1) (func (export \"_start\")))").unwrap();
    let echo = r#"{"do":"echo","to":"seen"}"#;
    let smaller = "[batch]\nsize = 2\nwait = \"60s\"\n";
    // The new version is a batch handler, a handler, a command; with the number of
    // follow-ups.
    let cases = [(built("crew"), smaller, "\"count\"", 6), (built("puppet"), "", echo, 6), (command, "", "{}", 0)];
    for (wasm, batch, data, published) in cases {
        let redis = Redis::start();
        let plugins = crew(6, "60s");
        let gateway = Gateway::start(&redis, &plugins);
        gateway.until_loaded("crew").await;
        let old = gateway.plugin("crew").await["digest"].clone();
        let publish = async |ids: std::ops::Range<u32>| {
            for id in ids {
                redis.publish("crew", &format!("m-{id}"), data).await;
            }
        };
        publish(0..3).await;
        redis.until_in_flight("crew", 3).await;
        plugins.write("crew.toml", format!("{GRANT}{batch}").as_bytes());
        plugins.write("crew.wasm", &wasm);
        let is_new = |plugin: &serde_json::Value| plugin["digest"] != old && plugin["state"] == "live";
        gateway.until_plugin("crew", "is replaced", is_new).await;
        publish(3..6).await;
        redis.is("all are settled", "XLEN mq:crew", 0).await;
        let outcomes = gateway.outcomes("crew");
        assert!(outcomes.len() == 6 && outcomes.iter().all(|(_, outcome)| outcome == "done"), "{outcomes:?}");
        assert_eq!(redis.run::<i64>("XLEN mq:seen").await, published);
        if !batch.is_empty() {
            assert_eq!(batch_sizes(&redis).await, [2; 6]);
        }
    }
}

/// A batch that is split stops between its parts: messages that have not started are
/// requeued.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_or_a_shutdown_starts_no_further_part_of_a_split_batch() {
    for is_stop in [false, true] {
        let redis = Redis::start();
        let server = Server::start().await;
        let plugins = crew(3, "60s");
        let mut gateway = Gateway::start(&redis, &plugins);
        gateway.until_loaded("crew").await;
        let old = gateway.plugin("crew").await["digest"].clone();
        // The server answers each request when a second one has arrived.
        let act = json!({ "do": "send", "url": format!("{}/pair", server.origin()) }).to_string();
        let publish = async |id: &str| redis.publish("crew", id, &act).await;
        publish("m-0").await;
        publish("m-1").await;
        redis.until_in_flight("crew", 2).await;
        // The new version handles one message at a time.
        let granted = format!("[grants]\npublish = [\"results\"]\nhttp = [\"{}\"]\n", server.origin());
        plugins.put("crew", &built("fetch"), &granted);
        let is_new = |plugin: &serde_json::Value| plugin["digest"] != old && plugin["kind"] == "handler";
        gateway.until_plugin("crew", "is replaced", is_new).await;
        publish("m-2").await;
        until("the first part runs", async || (server.seen().len() == 1).then_some(())).await;
        if is_stop {
            gateway.signal(Signal::TERM);
            gateway.until_logged(events::SHUTTING_DOWN, |_| true).await;
            until("no reader is blocked", async || {
                redis.run::<String>("INFO clients").await.contains("blocked_clients:0\r").then_some(())
            })
            .await;
        } else {
            redis.run::<i64>("HSET {mq:crew}:state paused 1").await;
            gateway.until_logged(events::TOPIC_PAUSED, |line| line["topic"] == "crew").await;
        }
        let mut other = tokio::net::TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut other, b"GET /pair HTTP/1.1\r\n\r\n").await.unwrap();
        gateway.until_outcome("crew", "m-0", "done").await;
        redis.until_requeued("crew", 2).await;
        assert_eq!((gateway.outcomes("crew").len(), server.seen().len()), (1, 2), "stop: {is_stop}");
        gateway = if is_stop {
            until("the worker exits", async || (!gateway.is_running()).then_some(())).await;
            Gateway::start(&redis, &plugins)
        } else {
            redis.run::<i64>("HDEL {mq:crew}:state paused").await;
            gateway
        };
        for id in ["m-1", "m-2"] {
            gateway.until_outcome("crew", id, "done").await;
        }
        redis.is("all are settled", "XLEN mq:crew", 0).await;
        assert_eq!(server.seen().len(), 4);
    }
}
