//! Reloads: however a file is replaced, the old version stays live until the new one is,
//! and no message is lost or run twice.

use crate::guest::guest_in;
use crate::support::{Gateway, OK, Plugins, Redis, built, guest, guest_with, topic, until};
use gateway_worker::events;
use gateway_worker::publication::Draft;
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, FileTimes};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

/// A handler with its own digest and the same length as the others.
fn version(number: usize) -> Vec<u8> {
    guest_with(&format!("(data (i32.const 600) \"{number:04}\")"), OK)
}

type Replacement = (&'static str, fn(&Plugins));

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_replacement_loads_the_new_version() {
    let replacements: [Replacement; 7] = [
        ("renamed into place", |plugins| plugins.write("topic.wasm", &version(1))),
        ("overwritten in place", |plugins| fs::write(plugins.path().join("topic.wasm"), version(2)).unwrap()),
        ("overwritten, with its old times put back", |plugins| {
            let path = plugins.path().join("topic.wasm");
            let modified = fs::metadata(&path).unwrap().modified().unwrap();
            fs::write(&path, version(3)).unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        }),
        ("deleted and created again", |plugins| {
            plugins.remove("topic.wasm");
            fs::write(plugins.path().join("topic.wasm"), version(4)).unwrap();
        }),
        ("older than what it replaces", |plugins| {
            plugins.write("topic.wasm", &version(5));
            let file = File::options().write(true).open(plugins.path().join("topic.wasm")).unwrap();
            file.set_times(FileTimes::new().set_modified(UNIX_EPOCH)).unwrap();
        }),
        ("the manifest alone", |plugins| plugins.write("topic.toml", b"concurrency = 3\n")),
        ("the manifest gone", |plugins| plugins.remove("topic.toml")),
    ];
    let redis = Redis::start();
    let plugins = Plugins::empty();
    plugins.write("topic.wasm", &version(0));
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("topic").await;
    let mut digest = gateway.plugin("topic").await["digest"].clone();
    for (number, (way, replace)) in replacements.into_iter().enumerate() {
        replace(&plugins);
        let is_new = |plugin: &Value| plugin["digest"].is_string() && plugin["digest"] != digest;
        let plugin = gateway.until_plugin("topic", way, is_new).await;
        assert_eq!(plugin["state"], "live", "{way}");
        digest = plugin["digest"].clone();
        let id = format!("m-{number}");
        redis.publish("topic", &id, "{}").await;
        gateway.until_outcome("topic", &id, "done").await;
    }
    assert!(gateway.logged(events::PLUGIN_REFUSED).is_empty() && gateway.logged(events::PLUGIN_REMOVED).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requested_reload_is_answered_once_every_version_is_live_or_rejected() {
    let redis = Redis::start();
    // Behind a link, where no file system event reports a change.
    let plugins = Plugins::empty();
    fs::create_dir(plugins.path().join("..v1")).unwrap();
    for name in ["good", "bad"] {
        fs::write(plugins.path().join("..v1").join(format!("{name}.wasm")), version(0)).unwrap();
        std::os::unix::fs::symlink(format!("..v1/{name}.wasm"), plugins.path().join(format!("{name}.wasm"))).unwrap();
    }
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_ready().await;
    let before = gateway.plugin("good").await["digest"].clone();
    fs::write(plugins.path().join("..v1/good.wasm"), version(1)).unwrap();
    fs::write(plugins.path().join("..v1/bad.wasm"), b"nothing").unwrap();
    let (status, answer) = gateway.post("/api/v1/plugins/reload").await;
    assert_eq!(status, 200, "{answer}");
    let (good, bad) = (gateway.plugin("good").await, gateway.plugin("bad").await);
    assert!(good["digest"] != before && good["state"] == "live" && good["previous"] == before, "{good}");
    assert!(bad["digest"].is_string() && bad["state"] == "live" && bad["degraded"] == true, "{bad}");
    assert_eq!(bad["refusal"]["kind"], "invalid");
    let results: BTreeSet<&str> =
        answer["changes"].as_array().unwrap().iter().map(|change| change["result"].as_str().unwrap()).collect();
    // The regular poll may have loaded some of them before.
    assert!(results.is_subset(&BTreeSet::from(["loaded", "refused"])), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_rescans_the_directory() {
    let redis = Redis::start();
    let plugins = Plugins::empty();
    // Behind a link, where no file system event reports a change.
    fs::create_dir(plugins.path().join("..v1")).unwrap();
    fs::write(plugins.path().join("..v1/topic.wasm"), version(0)).unwrap();
    std::os::unix::fs::symlink("..v1/topic.wasm", plugins.path().join("topic.wasm")).unwrap();
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_ready().await;
    let before = gateway.plugin("topic").await["digest"].clone();
    fs::write(plugins.path().join("..v1/topic.wasm"), version(1)).unwrap();
    gateway.signal(Signal::HUP);
    gateway.until_logged("SIGHUP", |_| true).await;
    gateway
        .until_plugin("topic", "the new one", |plugin| plugin["digest"] != before && plugin["state"] == "live")
        .await;
    redis.publish("topic", "m", "{}").await;
    gateway.until_outcome("topic", "m", "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_plugins_come_and_go_at_once() {
    const COUNT: usize = 200;
    let redis = Redis::start();
    let plugins = Plugins::with("first", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_ready().await;
    for number in 0..COUNT {
        // One of them is invalid and blocks no other.
        let wasm = if number == 7 { b"broken".to_vec() } else { version(number) };
        plugins.write(&format!("many.{number}.wasm"), &wasm);
    }
    let count = async || {
        let (_, metrics) = gateway.json("/metrics").await;
        (metrics["consumers"]["topics"].as_array().unwrap().len(), metrics["refused"].as_array().unwrap().len())
    };
    until("all are live", async || (count().await == (COUNT, 1)).then_some(())).await;
    for name in ["many.0", "many.199", "first"] {
        redis.publish(name, "m", "{}").await;
        gateway.until_outcome(name, "m", "done").await;
    }
    for number in 0..COUNT {
        plugins.remove(&format!("many.{number}.wasm"));
    }
    until("all are removed", async || (count().await == (1, 0)).then_some(())).await;
    redis.publish("first", "n", "{}").await;
    gateway.until_outcome("first", "n", "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_readded_during_its_last_run_runs_nothing_twice() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("puppet", "long", r#"{"do":"sleep","ms":5000}"#).await;
    gateway.until_asleep("puppet", 1).await;
    plugins.remove("puppet.wasm");
    gateway.until_logged(events::PLUGIN_REMOVED, |line| line["plugin"] == "puppet").await;
    plugins.write("puppet.wasm", &built("puppet"));
    redis.publish("puppet", "next", r#"{"do":"all","of":[]}"#).await;
    gateway.until_outcome("puppet", "next", "done").await;
    gateway.until_outcome("puppet", "long", "done").await;
    redis.is("all are settled", "XLEN mq:puppet", 0).await;
    assert_eq!(gateway.asleep("puppet"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_rejected_file_is_no_longer_reported() {
    let redis = Redis::start();
    let plugins = Plugins::with("bad", b"broken", "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_refused("bad").await;
    plugins.remove("bad.wasm");
    gateway.until_plugin("bad", "is not reported", Value::is_null).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_reloads_under_load_lose_nothing_and_run_nothing_twice() {
    const RELOADS: usize = 50;
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &version(0), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("topic").await;
    let is_over = AtomicBool::new(false);
    let publishing = async {
        let mut published = 0;
        while !is_over.load(Ordering::Relaxed) {
            redis.publish("topic", &format!("m-{published}"), "{}").await;
            published += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        published
    };
    let reloading = async {
        for number in 1..=RELOADS {
            plugins.write("topic.wasm", &version(number));
            let (status, answer) = gateway.post("/api/v1/plugins/reload").await;
            assert_eq!(status, 200, "{answer}");
            // An invalid version from time to time, which changes nothing.
            if number % 10 == 0 {
                plugins.write("topic.wasm", b"broken");
                gateway.post("/api/v1/plugins/reload").await;
            }
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let (published, ()) = tokio::join!(publishing, reloading);
    redis.is("all are handled", "XLEN mq:topic", 0).await;
    until("all are logged", async || (gateway.outcomes("topic").len() >= published).then_some(())).await;
    let mut runs = BTreeMap::new();
    for (id, outcome) in gateway.outcomes("topic") {
        assert_eq!(outcome, "done", "{id}");
        *runs.entry(id).or_insert(0) += 1;
    }
    assert!(runs.values().all(|count| *count == 1), "{runs:?}");
    assert_eq!(runs.len(), published);
    // Each valid version was live once, and most of them have run messages.
    assert_eq!(gateway.logged(events::PLUGIN_LOADED).len(), RELOADS + 1);
    let digests: BTreeSet<String> =
        gateway.logged(events::HANDLED).iter().map(|line| line["digest"].to_string()).collect();
    assert!(digests.len() > RELOADS / 2, "{digests:?}");
}

/// A handler that stores its version under the message id, and rejects a message whose id
/// is stored already, which detects a second run.
fn counts(number: u8) -> Vec<u8> {
    let set_if_absent =
        r#"(import "gateway:worker/key-value@1.0.0" "set-if-absent" (func $set (param i32 i32 i32 i32 i32 i32)))"#;
    let texts = format!(r#"(data (i32.const 600) "{number}twice")"#);
    // A failed call traps, and a value that exists is rejected.
    let body = "(call $set (local.get 0) (local.get 1) (i32.const 600) (i32.const 1) (i32.const 0) (i32.const 64))
        (if (i32.load8_u (i32.const 64)) (then (unreachable)))
        (if (i32.eqz (i32.load8_u (i32.const 68))) (then
            (i32.store8 (i32.const 16) (i32.const 1)) (i32.store8 (i32.const 20) (i32.const 2))
            (i32.store (i32.const 24) (i32.const 601)) (i32.store (i32.const 28) (i32.const 5))
            (i32.store (i32.const 32) (i32.const 601)) (i32.store (i32.const 36) (i32.const 5))))
        (i32.const 16)";
    guest_in("full-handler", "", set_if_absent, &texts, body)
}

/// Publishing stays far ahead, so that the worker always has messages.
#[tokio::test(flavor = "multi_thread")]
async fn under_full_load_two_alternating_versions_run_each_message_once() {
    const SWAPS: usize = 12;
    const AHEAD: usize = 10_000;
    let redis = Redis::start_with(&[]);
    let manifest = "concurrency = 256\n[retry]\nattempts = 1\n[grants]\nkeyvalue = true\n";
    let versions = [counts(0), counts(1)];
    let plugins = Plugins::with("topic", &versions[0], manifest);
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("topic").await;
    let (to, queue) = (topic("topic"), redis.queue("topic", "publisher"));
    let publish = async |from: usize, count: usize| {
        let drafts = (from..from + count).map(|number| Draft::new(format!("m-{number}"), &to, "{}"));
        let drafts: Vec<_> = drafts.map(|draft| draft.encode(Timestamp::now()).unwrap()).collect();
        for chunk in drafts.chunks(1000) {
            queue.publisher.publish_all(chunk).await.unwrap();
        }
        from + count
    };
    let waiting = async || usize::try_from(redis.run::<i64>("XLEN mq:topic").await).unwrap();
    let mut published = publish(0, 2 * AHEAD).await;
    let mut digest = gateway.plugin("topic").await["digest"].clone();
    let (mut swaps, mut busy) = (0, 0);
    while busy < SWAPS {
        if waiting().await < AHEAD {
            published = publish(published, AHEAD).await;
        }
        swaps += 1;
        plugins.write("topic.wasm", &versions[swaps % 2]);
        let is_other = |plugin: &Value| plugin["digest"] != digest && plugin["state"] == "live";
        digest = gateway.until_plugin("topic", "is replaced", is_other).await["digest"].clone();
        // On a fast machine the backlog may be empty by then.
        busy += usize::from(waiting().await > 0);
        assert!(swaps < 10 * SWAPS, "{busy} of {swaps} under load");
    }
    redis.is("all are handled", "XLEN mq:topic", 0).await;
    // No message has failed, was run again, or is unfinished.
    for key in ["{mq:topic}:dead", "{mq:topic}:delayed", "{mq:topic}:delayed:body", "{mq:topic}:work"] {
        assert_eq!(redis.run::<i64>(&format!("EXISTS {key}")).await, 0, "{key}");
    }
    assert_eq!(redis.in_flight("topic").await, 0);
    let done = i64::try_from(published).unwrap();
    redis.is("all are done", "HGET {mq:topic}:state done", done).await;
    let mut ran = [0; 2];
    let mut connection = redis.connection().await;
    for from in (0..published).step_by(1000) {
        let keys: Vec<_> = (from..from + 1000).map(|number| format!("{{mq::kv:topic}}:m-{number}")).collect();
        let by: Vec<Option<usize>> = redis::cmd("MGET").arg(keys).query_async(&mut connection).await.unwrap();
        for (number, version) in (from..).zip(by) {
            ran[version.unwrap_or_else(|| panic!("m-{number} was never run"))] += 1;
        }
    }
    assert!(ran.iter().all(|count| *count > 0) && ran.iter().sum::<usize>() == published, "{ran:?}");
    // There is one key for each id.
    assert_eq!(redis.run::<i64>("HLEN {mq::kv:topic}-sizes").await, done + 1);
    let removed = [events::PLUGIN_REFUSED, events::PLUGIN_REMOVED, events::VERSION_WITHDRAWN];
    assert!(removed.iter().all(|message| gateway.logged(message).is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_file_does_not_remove_its_plugin() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &version(0), "concurrency = 3\n").and("other", &version(0), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_ready().await;
    let before = gateway.plugin("topic").await["digest"].clone();
    // Links to names that are too long, an error that root gets too.
    let new = plugins.path().join(".new");
    for (number, file) in ["topic.toml", "topic.wasm"].into_iter().enumerate() {
        std::os::unix::fs::symlink("x".repeat(300), &new).unwrap();
        fs::rename(&new, plugins.path().join(file)).unwrap();
        for _ in 0..3 {
            let (status, answer) = gateway.post("/api/v1/plugins/reload").await;
            assert_eq!((status, &answer["changes"]), (200, &serde_json::json!([])), "{file}");
        }
        let plugin = gateway.plugin("topic").await;
        assert!(plugin["digest"] == before && plugin["degraded"] == false, "{file}: {plugin}");
        redis.publish("topic", &format!("m-{number}"), "{}").await;
        gateway.until_outcome("topic", &format!("m-{number}"), "done").await;
    }
    assert_eq!(gateway.logged(events::PLUGIN_UNREADABLE).len(), 1);
    plugins.write("topic.toml", b"concurrency = 4\n");
    plugins.write("topic.wasm", &version(1));
    gateway.until_plugin("topic", "is replaced", |plugin| plugin["digest"] != before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requested_reload_retries_rejected_versions() {
    let redis = Redis::start();
    let granted = tempfile::tempdir().unwrap();
    let manifest =
        |folder: &str| format!("[grants]\nread = {{ \"/in\" = \"{}\" }}\n", granted.path().join(folder).display());
    let plugins = Plugins::with("api", &version(0), &manifest("api")).and("signal", &version(0), &manifest("signal"));
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_refused("api").await;
    gateway.until_refused("signal").await;
    until("every plugin is refused", async || gateway.get("/ready").await.1.contains("refused").then_some(())).await;
    fs::create_dir(granted.path().join("api")).unwrap();
    let (status, answer) = gateway.post("/api/v1/plugins/reload").await;
    assert_eq!((status, &gateway.plugin("api").await["state"]), (200, &serde_json::json!("live")), "{answer}");
    assert_eq!(gateway.plugin("signal").await["state"], "refused");
    fs::create_dir(granted.path().join("signal")).unwrap();
    gateway.signal(Signal::HUP);
    gateway.until_plugin("signal", "is live", |plugin| plugin["state"] == "live").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_never_stops_changing_delays_no_other() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &version(0), "");
    let is_over = AtomicBool::new(false);
    let writing = async {
        let path = plugins.path().join("restless.wasm");
        for number in 0_u64.. {
            fs::write(&path, number.to_le_bytes()).unwrap();
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let asking = async {
        let gateway = Gateway::start(&redis, &plugins);
        gateway.until_ready().await;
        plugins.write("topic.wasm", &version(1));
        let before = gateway.plugin("topic").await["digest"].clone();
        let (status, answer) = gateway.post("/api/v1/plugins/reload").await;
        assert_eq!(status, 200, "{answer}");
        let plugin = gateway.until_plugin("topic", "is replaced", |plugin| plugin["digest"] != before).await;
        assert_eq!(plugin["state"], "live");
        // Once it is stable it is loaded like any other.
        is_over.store(true, Ordering::Relaxed);
        gateway.until_refused("restless").await;
    };
    tokio::join!(writing, asking);
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_in_memory_are_limited_to_concurrent_loads() {
    const COUNT: u64 = 40;
    const LENGTH: u64 = 16 << 20;
    let redis = Redis::start();
    let plugins = Plugins::empty();
    for number in 0..COUNT {
        // Sparse, and rejected by its first bytes.
        let file = File::create(plugins.path().join(format!("large-{number:02}.wasm"))).unwrap();
        file.set_len(LENGTH).unwrap();
    }
    let gateway = Gateway::start(&redis, &plugins);
    let refused = || gateway.logged(events::PLUGIN_REFUSED).len() as u64;
    until("all are refused", async || (refused() == COUNT).then_some(())).await;
    let most = peak_bytes(gateway.id());
    assert!(most < COUNT * LENGTH / 2, "{} MiB", most >> 20);
}

/// The peak resident memory of a process.
fn peak_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}
