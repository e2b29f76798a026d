//! The live plugins directory: plugins are added, replaced and removed while messages are
//! processed, and invalid files are rejected with a remedy.

use crate::support::{Gateway, OK, Plugins, Redis, built, encode, guest, guest_with, until};
use gateway_worker::events;
use rustix::process::Signal;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

const TRAP: &str = "(unreachable)";

/// Replies with `retry`.
const RETRY: &str = "(i32.store8 (i32.const 16) (i32.const 1)) (i32.store (i32.const 24) (i32.const 512)) (i32.store (i32.const 28) (i32.const 4)) (i32.const 16)";

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_dropped_in_serves_its_topic() {
    let redis = Redis::start();
    let plugins = Plugins::empty();
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_ready().await;
    redis.publish("late", "a", "{}").await;
    plugins.write("late.wasm", &guest(OK));
    gateway.until_outcome("late", "a", "done").await;
    let (_, metrics) = gateway.json("/metrics").await;
    assert_eq!(metrics["consumers"], json!({ "active": 1, "topics": ["late"] }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_is_removed_drains_and_its_messages_wait() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("puppet", "in-flight", r#"{"do":"sleep","ms":800}"#).await;
    gateway.until_asleep("puppet", 1).await;
    plugins.remove("puppet.wasm");
    gateway.until_logged(events::PLUGIN_REMOVED, |line| line["plugin"] == "puppet").await;
    redis.publish("puppet", "waits", r#"{"do":"sleep","ms":0}"#).await;
    gateway.until_outcome("puppet", "in-flight", "done").await;
    gateway.until_logged(events::TOPIC_LEFT, |_| true).await;
    assert_eq!((redis.run::<i64>("XLEN mq:puppet").await, redis.in_flight("puppet").await), (1, 0));
    plugins.write("puppet.wasm", &built("puppet"));
    gateway.until_outcome("puppet", "waits", "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_under_load_runs_every_message_once() {
    const MESSAGES: usize = 1000;
    let redis = Redis::start();
    let manifest = |version: usize| format!("[grants]\npublish = [\"seen\"]\n[config]\nversion = \"{version}\"\n");
    let plugins = Plugins::with("puppet", &built("puppet"), &manifest(0));
    let gateway = Gateway::start(&redis, &plugins);
    let mut digests = BTreeSet::from([gateway.until_loaded("puppet").await]);
    let publishing = async {
        for number in 0..MESSAGES {
            redis.publish("puppet", &format!("m-{number}"), r#"{"do":"echo","to":"seen"}"#).await;
        }
    };
    // Replaces the plugin while messages are processed.
    let replacing = async {
        for version in 1..=4 {
            plugins.write("puppet.toml", manifest(version).as_bytes());
            let is_new =
                |line: &serde_json::Value| line["digest"].as_str().is_some_and(|digest| !digests.contains(digest));
            let line = gateway.until_logged(events::PLUGIN_LOADED, is_new).await;
            digests.insert(line["digest"].as_str().unwrap().to_owned());
        }
    };
    tokio::join!(publishing, replacing);
    redis.is("all are handled", "XLEN mq:puppet", 0).await;
    let runs = gateway.outcomes("puppet");
    let mut count = BTreeMap::new();
    for (id, outcome) in &runs {
        assert_eq!(outcome, "done");
        *count.entry(id.clone()).or_insert(0) += 1;
    }
    assert_eq!(count.len(), MESSAGES);
    assert!(count.values().all(|count| *count == 1));
    let envelopes = redis.envelopes("mq:seen").await;
    let seen: BTreeSet<&str> = envelopes.iter().map(|envelope| envelope["data"]["id"].as_str().unwrap()).collect();
    assert_eq!((envelopes.len(), seen.len()), (MESSAGES, MESSAGES));
    let versions: BTreeSet<&str> =
        envelopes.iter().map(|envelope| envelope["data"]["version"].as_str().unwrap()).collect();
    assert!(versions.len() > 1, "one version ran them all: {versions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_in_flight_finish_on_the_version_they_started_on() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "concurrency = 1\n");
    let gateway = Gateway::start(&redis, &plugins);
    let old = gateway.until_loaded("puppet").await;
    redis.publish("puppet", "old", r#"{"do":"sleep","ms":1500}"#).await;
    gateway.until_asleep("puppet", 1).await;
    plugins.write("puppet.toml", b"concurrency = 2\n");
    let line = gateway.until_logged(events::PLUGIN_LOADED, |line| line["digest"] != old.as_str()).await;
    redis.publish("puppet", "new", r#"{"do":"sleep","ms":0}"#).await;
    gateway.until_outcome("puppet", "new", "done").await;
    gateway.until_outcome("puppet", "old", "done").await;
    let digest =
        |id: &str| gateway.logged(events::HANDLED).into_iter().find(|line| line["id"] == id).unwrap()["digest"].clone();
    assert_eq!((digest("old"), digest("new")), (json!(old), line["digest"].clone()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_file_is_rejected_and_the_last_good_version_keeps_running() {
    let redis = Redis::start();
    let good = guest(OK);
    let plugins = Plugins::with("topic", &good, "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("topic").await;
    let mut half = good[..good.len() / 2].to_vec();
    half[7] = good[7];
    let older = "package gateway:worker@1.0.0; interface types { record message { id: string } } interface handler { use types.{message}; handle: func(message: message) -> result; } world message-handler { export handler; }";
    let types = encode(
        r#"(module (memory (export "memory") 1) (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
            (func (export "gateway:worker/handler@1.0.0#handle") (param i32 i32) (result i32) (i32.const 0)))"#,
        "old.wit",
        Some(older),
    );
    let needs = "package other:thing@0.1.0; interface missing { go: func(); } interface run { run: func(); } world message-handler { import missing; export run; }";
    let needs = encode(
        r#"(module (import "other:thing/missing@0.1.0" "go" (func)) (func (export "other:thing/run@0.1.0#run")))"#,
        "needs.wit",
        Some(needs),
    );
    let other = "package other:thing@0.1.0; interface run { run: func(); } world message-handler { export run; }";
    let other = encode(r#"(module (func (export "other:thing/run@0.1.0#run")))"#, "other.wit", Some(other));
    let loops = guest_with("(func $start (loop $forever (br $forever))) (start $start)", OK);
    let cases: [(&[u8], &str); 11] = [
        (b"", "incomplete"),
        (&good[..5], "incomplete"),
        (&half, "not valid WebAssembly (is it complete?)"),
        (b"not wasm at all", "it is not WebAssembly"),
        (b"\0asm\x01\0\0\0", "build a handler for wasm32-wasip2"),
        (b"\x7fELF\x02\x01\x01\0", "precompiled components are not taken"),
        (b"\0asm\x0e\0\x01\0", "unsupported WebAssembly version"),
        (&types, "its export gateway:worker/handler@1.0.0 has another type"),
        (&needs, "other:thing/missing@0.1.0"),
        (&other, "it exports other:thing/run@0.1.0; a handler exports gateway:worker/handler@1.0.0"),
        (&loops, "cpu-limit"),
    ];
    for (number, (bytes, fragment)) in cases.into_iter().enumerate() {
        plugins.write("topic.wasm", bytes);
        let what = format!("refused: {fragment}");
        let reason = until(&what, async || {
            let refused = gateway.logged(events::PLUGIN_REFUSED);
            refused.get(number).map(|line| (line["reason"].as_str().unwrap().to_owned(), line["active_digest"].clone()))
        });
        let (reason, keeps) = reason.await;
        assert!(reason.contains(fragment), "{fragment}: {reason}");
        assert!(keeps.is_string(), "{fragment}");
        let id = format!("m-{number}");
        redis.publish("topic", &id, "{}").await;
        gateway.until_outcome("topic", &id, "done").await;
    }
    let (_, metrics) = gateway.json("/metrics").await;
    assert_eq!(metrics["refused"][0]["plugin"], "topic");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_manifest_is_rejected_with_line_and_column() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "[limits]\ncpuu = \"1s\"\n");
    let gateway = Gateway::start(&redis, &plugins);
    let reason = gateway.until_refused("topic").await;
    assert!(
        reason.contains("topic.toml") && reason.contains("line 2, column 1") && reason.contains("cpuu"),
        "{reason}"
    );
    plugins.write("topic.toml", b"[limits]\ncpu = \"1s\"\n");
    gateway.until_loaded("topic").await;
    // A rejected file does not make the worker unready.
    gateway.until_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_copy_is_waited_for() {
    let redis = Redis::start();
    let plugins = Plugins::empty();
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_ready().await;
    redis.publish("slow", "a", "{}").await;
    let wasm = built("noop");
    let mut file = fs::File::create(plugins.path().join("slow.wasm")).unwrap();
    let (mut written, mut longest) = (Instant::now(), Duration::ZERO);
    for chunk in wasm.chunks(wasm.len() / 10 + 1) {
        file.write_all(chunk).unwrap();
        longest = longest.max(written.elapsed());
        written = Instant::now();
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    drop(file);
    gateway.until_outcome("slow", "a", "done").await;
    // On a busy machine a late chunk makes the partial file look complete.
    if longest < Duration::from_millis(120) {
        assert!(gateway.logged(events::PLUGIN_REFUSED).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubernetes_swap_of_a_linked_directory_is_detected() {
    let redis = Redis::start();
    let plugins = Plugins::empty();
    let link = |version: &str| {
        let new = plugins.path().join("..data_tmp");
        std::os::unix::fs::symlink(version, &new).unwrap();
        fs::rename(new, plugins.path().join("..data")).unwrap();
    };
    for (version, body) in [("..v1", OK), ("..v2", TRAP)] {
        fs::create_dir(plugins.path().join(version)).unwrap();
        fs::write(plugins.path().join(version).join("topic.wasm"), guest(body)).unwrap();
    }
    link("..v1");
    std::os::unix::fs::symlink("..data/topic.wasm", plugins.path().join("topic.wasm")).unwrap();
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("topic", "a", "{}").await;
    gateway.until_outcome("topic", "a", "done").await;
    link("..v2");
    gateway.until_logged(events::PLUGIN_LOADED, |line| line["replaced"].is_string()).await;
    redis.publish("topic", "b", "{}").await;
    gateway.until_outcome("topic", "b", "trap").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_out_of_the_directory_is_rejected() {
    let redis = Redis::start();
    let elsewhere = Plugins::with("topic", &guest(OK), "");
    let plugins = Plugins::empty();
    std::os::unix::fs::symlink(elsewhere.path().join("topic.wasm"), plugins.path().join("topic.wasm")).unwrap();
    let gateway = Gateway::start(&redis, &plugins);
    assert!(
        gateway
            .until_refused("topic")
            .await
            .contains("it is a link out of the plugins directory: links must be relative")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_pipe_in_the_directory_blocks_nothing() {
    let redis = Redis::start();
    let plugins = Plugins::with("good", &guest(OK), "");
    let status = std::process::Command::new("mkfifo").arg(plugins.path().join("pipe.wasm")).status().unwrap();
    assert!(status.success());
    let gateway = Gateway::start(&redis, &plugins);
    assert!(gateway.until_refused("pipe").await.contains("not a regular file"));
    gateway.until_loaded("good").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_handler_of_a_topic_is_rejected_with_both_names() {
    let redis = Redis::start();
    let plugins =
        Plugins::with("b", &guest(OK), "topics = [\"shared\"]\n").and("a", &guest(TRAP), "topics = [\"shared\"]\n");
    let gateway = Gateway::start(&redis, &plugins);
    // At a cold start the first plugin by name gets the topic.
    gateway.until_loaded("a").await;
    let reason = gateway.until_refused("b").await;
    assert!(reason.contains("shared") && reason.contains("a.wasm") && reason.contains("from b"), "{reason}");
    plugins.remove("a.wasm");
    gateway.until_loaded("b").await;
    redis.publish("shared", "m", "{}").await;
    gateway.until_outcome("shared", "m", "done").await;
    // A live plugin keeps its topic.
    plugins.write("a.wasm", &guest(TRAP));
    until("a is refused", async || {
        gateway.logged(events::PLUGIN_REFUSED).iter().any(|line| line["plugin"] == "a").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vanished_plugins_directory_removes_no_plugin() {
    let redis = Redis::start();
    let parent = tempfile::tempdir().unwrap();
    let (folder, away) = (parent.path().join("plugins"), parent.path().join("away"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("topic.wasm"), guest(OK)).unwrap();
    let mut command = std::process::Command::new(crate::support::BINARY);
    command.args(["run", "--listen", "127.0.0.1:0", "--log-level", "debug", "--redis-url", &redis.url(), "--plugins"]);
    let gateway = Gateway::spawn(command.arg(&folder));
    gateway.until_loaded("topic").await;
    fs::rename(&folder, &away).unwrap();
    gateway.signal(Signal::HUP);
    gateway.until_logged(events::PLUGINS_DIR_UNREADABLE, |_| true).await;
    redis.publish("topic", "a", "{}").await;
    gateway.until_outcome("topic", "a", "done").await;
    fs::write(away.join("second.wasm"), guest(OK)).unwrap();
    fs::rename(&away, &folder).unwrap();
    gateway.until_loaded("second").await;
    assert!(gateway.logged(events::PLUGIN_REMOVED).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_only_touched_is_not_loaded_again() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(RETRY), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("topic").await;
    plugins.write("topic.wasm", &guest(RETRY));
    plugins.write("other.wasm", &guest(OK));
    gateway.until_loaded("other").await;
    assert_eq!(gateway.logged(events::PLUGIN_LOADED).len(), 2);
}
