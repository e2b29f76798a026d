//! Rollbacks: after a restart with an invalid file, from a version that crashes during
//! its probation, and by an operator.

use crate::support::{Gateway, OK, Plugins, Redis, TOKEN, built, command, guest, guest_with, until};
use gateway_worker::events;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

const TRAP: &str = "(unreachable)";

fn other_ok() -> Vec<u8> {
    guest_with("(data (i32.const 600) \"other\")", OK)
}

/// The files of a plugin in the version store.
fn stored_files(plugins: &Plugins, name: &str) -> Vec<PathBuf> {
    let Some(own) = fs::read_dir(plugins.cache().join("versions")).unwrap().next() else { return Vec::new() };
    fs::read_dir(own.unwrap().path().join(name)).unwrap().map(|file| file.unwrap().path()).collect()
}

/// The stored versions of a plugin.
fn stored_versions(plugins: &Plugins, name: &str) -> Vec<PathBuf> {
    stored_files(plugins, name).into_iter().filter(|path| path.extension().is_none()).collect()
}

/// The stored record of a plugin.
fn stored_record(plugins: &Plugins, name: &str) -> Value {
    let path = stored_files(plugins, name).into_iter().find(|path| path.ends_with("record.json")).unwrap();
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Makes stored versions look old, since recent ones are not deleted.
fn age(files: &[PathBuf]) {
    for path in files {
        File::options().append(true).open(path).unwrap().set_modified(UNIX_EPOCH).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_with_a_broken_file_the_last_good_version_runs() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "concurrency = 5\n");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("topic").await;
    let digest = gateway.plugin("topic").await["digest"].clone();
    gateway.stop().await;

    plugins.write("topic.wasm", b"broken");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_refused("topic").await;
    gateway.until_logged(events::VERSION_RESTORED, |line| line["level"] == "ERROR").await;
    let plugin = gateway.plugin("topic").await;
    assert_eq!((&plugin["degraded"], &plugin["digest"]), (&json!(true), &digest), "{plugin}");
    redis.publish("topic", "a", "{}").await;
    gateway.until_outcome("topic", "a", "done").await;
    // The fallback survives the next restart, and ends when the file is replaced.
    gateway.stop().await;
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_plugin("topic", "runs", |plugin| plugin["digest"] == digest).await;
    plugins.write("topic.wasm", &other_ok());
    let is_replaced = |plugin: &Value| plugin["state"] == "live" && plugin["previous"] == digest;
    gateway.until_plugin("topic", "is replaced", is_replaced).await;
    gateway.stop().await;

    // A modified stored version is not run.
    plugins.write("topic.wasm", b"broken");
    for path in stored_versions(&plugins, "topic") {
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let gateway = Gateway::start(&redis, &plugins);
    let line = gateway.until_logged(events::VERSION_NOT_RESTORED, |_| true).await;
    assert!(line["reason"].as_str().unwrap().contains("do not match its digest"), "{line}");
    assert_eq!(gateway.plugin("topic").await["state"], "refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_versions_that_can_be_restored_are_stored() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("topic").await;
    for number in 0..4 {
        plugins.write("topic.toml", format!("concurrency = {}\n", number + 1).as_bytes());
        assert_eq!(gateway.post("/api/v1/plugins/reload").await.0, 200);
    }
    let plugin = gateway.plugin("topic").await;
    assert_eq!(plugin["history"].as_array().unwrap().len(), 5, "{plugin}");
    age(&stored_versions(&plugins, "topic"));
    plugins.write("topic.toml", b"concurrency = 5\n");
    assert_eq!(gateway.post("/api/v1/plugins/reload").await.0, 200);
    assert_eq!(stored_versions(&plugins, "topic").len(), 2);
    age(&stored_versions(&plugins, "topic"));
    plugins.remove("topic.wasm");
    gateway.until_logged(events::PLUGIN_REMOVED, |_| true).await;
    assert!(stored_versions(&plugins, "topic").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_crashes_on_five_messages_is_rolled_back_and_quarantined() {
    let redis = Redis::start();
    // Enough attempts that none is dead before the fifth is published.
    let plugins = Plugins::with("topic", &guest(OK), "[retry]\nattempts = 20\n");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("topic").await;
    let good = gateway.plugin("topic").await["digest"].clone();
    plugins.write("topic.wasm", &guest(TRAP));
    let bad = gateway.until_plugin("topic", "is replaced", |plugin| plugin["digest"] != good).await;
    assert_eq!((&bad["probation"], &bad["previous"]), (&json!({ "calls": 0, "crashes": 0 }), &good));
    for id in ["a", "b", "c", "d"] {
        redis.publish("topic", id, "{}").await;
        gateway.until_outcome("topic", id, "trap").await;
    }
    gateway.until_plugin("topic", "has crashed", |plugin| plugin["probation"]["crashes"] == 4).await;
    redis.publish("topic", "e", "{}").await;
    let line = gateway.until_logged(events::VERSION_WITHDRAWN, |line| line["plugin"] == "topic").await;
    assert!(line["reason"].as_str().unwrap().contains("quarantined"), "{line}");
    // The previous version handles the retries.
    for id in ["a", "b", "c", "d", "e"] {
        gateway.until_outcome("topic", id, "done").await;
    }
    let plugin = gateway.plugin("topic").await;
    assert_eq!((&plugin["digest"], &plugin["degraded"]), (&good, &json!(true)), "{plugin}");
    assert_eq!(plugin["blocked"], json!([{ "digest": bad["digest"], "reason": "quarantined" }]));
    assert!(plugin["refusal"]["reason"].as_str().unwrap().contains("plugins unblock topic"), "{plugin}");
    let (_, metrics) = gateway.get("/metrics/prometheus").await;
    let info = format!("gateway_plugin_info{{plugin=\"topic\",digest=\"{}\"}} 1", &good.as_str().unwrap()[..12]);
    for line in ["gateway_plugins_quarantined 1", "gateway_plugin_reloads_total{result=\"quarantined\"} 1", &info] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert_eq!(metrics.matches("gateway_plugin_info{").count(), 1);

    // Neither the same file nor a restart loads it again.
    plugins.write("topic.wasm", &guest(TRAP));
    assert_eq!(gateway.post("/api/v1/plugins/reload").await.0, 200);
    assert_eq!(gateway.plugin("topic").await["digest"], good);
    gateway.stop().await;
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_plugin("topic", "runs", |plugin| plugin["digest"] == good).await;
    assert_eq!(gateway.plugin("topic").await["refusal"]["kind"], "blocked");
    // An operator can unblock it.
    assert_eq!(gateway.post("/api/v1/plugins/topic/unblock").await.0, 200);
    gateway.until_plugin("topic", "is back", |plugin| plugin["digest"] == bad["digest"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_previous_version_crashes_cause_no_rollback() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(TRAP), "[retry]\nattempts = 1\n");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("topic").await;
    for number in 0..10 {
        redis.publish("topic", &number.to_string(), "{}").await;
    }
    redis.is("all are dead", "XLEN {mq:topic}:dead", 10).await;
    let plugin = gateway.plugin("topic").await;
    assert_eq!((&plugin["state"], &plugin["blocked"]), (&json!("live"), &json!([])), "{plugin}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_its_probation_a_crashing_version_stays_live_also_over_a_restart() {
    const CALLS: usize = 1000;
    let redis = Redis::start();
    let manifest = |version| format!("[retry]\nattempts = 1\n[config]\nversion = \"{version}\"\n");
    let plugins = Plugins::with("puppet", &built("puppet"), &manifest(1));
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("puppet").await;
    plugins.write("puppet.toml", manifest(2).as_bytes());
    gateway.until_plugin("puppet", "is on probation", |plugin| plugin["probation"].is_object()).await;
    for number in 0..CALLS {
        redis.publish("puppet", &format!("good-{number}"), r#"{"do":"log","text":"","times":0}"#).await;
    }
    let plugin = gateway.until_plugin("puppet", "is proven", |plugin| plugin["probation"].is_null()).await;
    let crash = async |first: usize, gateway: &Gateway| {
        for number in first..first + 20 {
            let act =
                if number % 2 == 0 { r#"{"do":"panic","text":"no"}"# } else { r#"{"do":"log","text":"","times":0}"# };
            redis.publish("puppet", &format!("later-{number}"), act).await;
        }
        let dead = i64::try_from(first / 2 + 10).unwrap();
        redis.is("half of them are dead", "XLEN {mq:puppet}:dead", dead).await;
        redis.is("the other half is done", "XLEN mq:puppet", 0).await;
        assert_eq!(gateway.plugin("puppet").await["digest"], plugin["digest"]);
        assert!(gateway.logged(events::VERSION_WITHDRAWN).is_empty());
    };
    crash(0, &gateway).await;
    let is_recorded = async || (stored_record(&plugins, "puppet")["is_proven"] == json!(true)).then_some(());
    until("the probation is recorded as passed", is_recorded).await;
    gateway.stop().await;
    let gateway = Gateway::start(&redis, &plugins);
    let is_back = |now: &Value| now["digest"] == plugin["digest"] && now["previous"] == plugin["previous"];
    assert!(gateway.until_plugin("puppet", "is back", is_back).await["probation"].is_null());
    crash(20, &gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unproven_version_is_no_rollback_target() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("topic").await;
    let good = gateway.plugin("topic").await["digest"].clone();
    // Two bad versions in a row, the first without a message.
    for bad in ["one", "two"] {
        plugins.write("topic.wasm", &guest_with(&format!("(data (i32.const 600) \"{bad}\")"), TRAP));
        assert_eq!(gateway.post("/api/v1/plugins/reload").await.0, 200);
        let plugin = gateway.plugin("topic").await;
        assert!(plugin["digest"] != good && plugin["previous"] == good, "{bad}: {plugin}");
    }
    for id in ["a", "b", "c", "d", "e"] {
        redis.publish("topic", id, "{}").await;
    }
    gateway.until_plugin("topic", "is rolled back", |plugin| plugin["digest"] == good).await;
    redis.publish("topic", "f", "{}").await;
    gateway.until_outcome("topic", "f", "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_batch_counts_as_one_crash() {
    let redis = Redis::start();
    let manifest =
        |wait| format!("[retry]\nattempts = 1\n[batch]\nsize = 8\nwait = \"{wait}\"\n[grants]\npublish = [\"seen\"]\n");
    let plugins = Plugins::with("crew", &built("crew"), &manifest("50s"));
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("crew").await;
    plugins.write("crew.toml", manifest("60s").as_bytes());
    let new = gateway.until_plugin("crew", "is on probation", |plugin| plugin["probation"].is_object()).await;
    for number in 0..8 {
        redis.publish("crew", &format!("m-{number}"), "\"withhold\"").await;
    }
    redis.is("all are dead", "XLEN {mq:crew}:dead", 8).await;
    let plugin = gateway.plugin("crew").await;
    assert_eq!((&plugin["digest"], &plugin["probation"]), (&new["digest"], &json!({ "calls": 1, "crashes": 1 })));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_rolls_back_and_unblocks_by_command() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("topic").await;
    let first = gateway.plugin("topic").await["digest"].clone();
    let url = format!("http://{}", gateway.address().await);
    let ask = async |args: &[&str]| {
        let args: Vec<String> = [&["plugins"], args, &["--url", &url, "--admin-token", TOKEN]]
            .concat()
            .iter()
            .map(ToString::to_string)
            .collect();
        let run = move || command(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let (code, _, output) = ask(&["rollback", "topic"]).await;
    assert!(code == 1 && output.contains("topic has no previous version"), "{output}");
    let (code, _, output) = ask(&["unblock", "topic"]).await;
    assert!(code == 1 && output.contains("no version or topic of topic is blocked"), "{output}");
    let (code, _, output) = ask(&["rollback", "no/such name"]).await;
    assert!(code == 1 && output.contains("there is no plugin no/such name"), "{output}");

    plugins.write("topic.wasm", &other_ok());
    // The regular poll may load it first; either way it is live afterwards.
    let (code, output, _) = ask(&["reload"]).await;
    assert!(code == 0 && (output.contains("is live, replaces") || output == "no changes\n"), "{output}");
    let second = gateway.plugin("topic").await["digest"].clone();
    assert_ne!(first, second);
    let (code, output, _) = ask(&["rollback", "topic"]).await;
    assert!(
        code == 0 && output.contains(&first.as_str().unwrap()[..12]) && output.contains("is live again"),
        "{output}"
    );
    assert_eq!(gateway.plugin("topic").await["digest"], first);
    let (code, output, _) = ask(&["ls"]).await;
    assert!(
        code == 0 && output.contains("live (degraded)") && output.contains("rolled back by an operator"),
        "{output}"
    );
    let (code, output, _) = ask(&["ls", "--json"]).await;
    let listed: Value = serde_json::from_str(&output).unwrap();
    assert_eq!((code, &listed[0]["name"], &listed[0]["digest"]), (0, &json!("topic"), &first));
    assert_eq!(ask(&["unblock", "topic"]).await.0, 0);
    gateway.until_plugin("topic", "is back", |plugin| plugin["digest"] == second).await;

    plugins.write("topic.wasm", b"broken");
    let (code, _, output) = ask(&["reload"]).await;
    let is_known = gateway.plugin("topic").await["degraded"] == true;
    assert!(is_known && (code == 0 || (code == 1 && output.contains("1 refused"))), "{code}: {output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rollback_target_survives_a_restart() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("topic").await;
    let first = gateway.plugin("topic").await["digest"].clone();
    plugins.write("topic.wasm", &other_ok());
    gateway.until_plugin("topic", "is replaced", |plugin| plugin["previous"] == first).await;
    gateway.signal(Signal::KILL);
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_plugin("topic", "is live", |plugin| plugin["state"] == "live").await;
    let (status, answer) = gateway.post("/api/v1/plugins/topic/rollback").await;
    assert_eq!((status, &answer["restored"], &answer["result"]), (200, &first, &json!("rolled-back")), "{answer}");
    redis.publish("topic", "a", "{}").await;
    gateway.until_outcome("topic", "a", "done").await;
    let line = gateway.logged(events::HANDLED).into_iter().find(|line| line["id"] == "a").unwrap();
    assert_eq!(line["digest"], first.as_str().unwrap()[..12]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_names_the_version_that_failed() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(TRAP), "[retry]\nattempts = 1\n");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("topic").await;
    redis.publish("topic", "a", "{}").await;
    let letter = redis.dead("topic").await;
    assert_eq!(gateway.plugin("topic").await["digest"], crate::support::text(&letter, "gw-digest"));
}

#[test]
fn plugin_commands_report_an_unreachable_worker() {
    for (url, code, fragment) in [
        ("http://127.0.0.1:1", 1, "cannot connect to a worker at http://127.0.0.1:1"),
        ("https://127.0.0.1:1", 2, "the worker does not support TLS"),
        ("worker", 2, "is not a URL"),
    ] {
        let output = command(&["plugins", "ls", "--url", url]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(code) && stderr.contains(fragment), "{url}: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_store_writable_by_others_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("topic").await;
    gateway.stop().await;
    let own = fs::read_dir(plugins.cache().join("versions")).unwrap().next().unwrap().unwrap().path();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o777)).unwrap();
    plugins.write("topic.wasm", b"broken");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_logged(events::VERSIONS_NOT_STORED, |_| true).await;
    gateway.until_refused("topic").await;
    until("it is refused", async || (gateway.plugin("topic").await["state"] == "refused").then_some(())).await;
}
