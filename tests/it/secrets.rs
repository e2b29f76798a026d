//! Secrets: readable with a grant only, counted, replaced without a restart, and redacted
//! in all output.

use crate::http_rig::{Rig, status_or_error};
use crate::http_server::Server;
use crate::key_value::{manifest, run_actions};
use crate::support::{BINARY, Gateway, Plugins, Redis, built, command, text, until};
use gateway_worker::events;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

const GRANTS: &str = "secrets = [\"api-key\", \"FROM_OUTSIDE\", \"missing\", \"tiny\"]";

fn start(redis: &Redis, plugins: &Plugins, dir: &Path) -> Gateway {
    let mut command = Command::new(BINARY);
    command.args(["run", "--listen", "127.0.0.1:0", "--log-level", "debug", "--redis-url", &redis.url()]);
    command.arg("--plugins").arg(plugins.path()).arg("--secrets-dir").arg(dir);
    Gateway::spawn(command.env("GATEWAY_SECRET_FROM_OUTSIDE", "outside-value").env("GATEWAY_SECRET_TINY", "abc"))
}

fn read(name: &str) -> Value {
    json!({ "do": "secret", "name": name })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_granted_secret_is_read_and_counted_and_others_are_denied() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("api-key"), "first-value\n").unwrap();
    std::fs::write(dir.path().join("ungranted"), "hidden-value").unwrap();
    let plugins = Plugins::with("store", &built("store"), &manifest(GRANTS, ""));
    let gateway = start(&redis, &plugins, dir.path());
    let missing = gateway.until_logged(events::SECRET_UNAVAILABLE, |line| line["secret"] == "missing").await;
    assert!(missing["message"].as_str().unwrap().contains("GATEWAY_SECRET_MISSING"), "{missing}");
    assert_eq!(missing["level"], "WARN");
    gateway.until_logged("less than 4 bytes", |line| line["secret"] == "tiny").await;
    assert_eq!(gateway.logged(events::SECRET_UNAVAILABLE).len(), 1);

    let names = ["api-key", "FROM_OUTSIDE", "missing", "ungranted", "../api-key", ""];
    let answers = run_actions(&redis, "store", "a", names.map(read).into()).await;
    assert_eq!(answers[..2], [json!({ "ok": "first-value" }), json!({ "ok": "outside-value" })]);
    assert_eq!(answers[2]["fault"], "unavailable");
    assert!(answers[3..].iter().all(|answer| answer["fault"] == "denied"), "{answers:?}");
    assert!(answers[3]["reason"].as_str().unwrap().contains("write secrets = [\"ungranted\"]"), "{answers:?}");

    std::fs::write(dir.path().join("api-key"), "second-value").unwrap();
    let answers = run_actions(&redis, "store", "b", json!([read("api-key")])).await;
    assert_eq!(answers, [json!({ "ok": "second-value" })]);
    gateway.until_logged(events::SECRET_READ, |line| line["plugin"] == "store" && line["secret"] == "api-key").await;
    let (_, metrics) = gateway.get("/metrics/prometheus").await;
    for (secret, count) in [("api-key", 2), ("FROM_OUTSIDE", 1)] {
        let line = format!("gateway_secret_reads_total{{plugin=\"store\",secret=\"{secret}\"}} {count}\n");
        assert!(metrics.contains(&line), "{metrics}");
    }
    assert!(!metrics.contains("secret=\"missing\""), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_redacted_in_logs_and_dead_letters() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let value = "sesame!open";
    std::fs::write(dir.path().join("api-key"), value).unwrap();
    let plugins = Plugins::with("store", &built("store"), &manifest(GRANTS, ""));
    let gateway = start(&redis, &plugins, dir.path());
    gateway.until_loaded("store").await;
    let secret = "it is {secret:api-key}.";
    let actions = json!([
        { "do": "log", "text": format!("logged: {secret}"), "fields": [["key", "{secret:api-key}"], ["tiny", "{secret:tiny}"]] },
        { "do": "print", "text": format!("printed: {secret}") },
    ]);
    for end in ["retry", "postpone", "reject", "panic"] {
        let acts = json!({ "acts": actions, "end": end, "reason": format!("ended: {secret}") });
        redis.publish("store", end, &acts.to_string()).await;
        gateway.until_outcome("store", end, end.replace("panic", "trap").as_str()).await;
    }
    let redacted = "it is [secret:api-key].";
    for line in ["logged: ", "printed: "] {
        let lines = gateway.logged(line);
        assert_eq!(lines.len(), 4);
        assert!(lines.iter().all(|found| found["message"] == format!("{line}{redacted}")), "{lines:?}");
    }
    assert_eq!(gateway.logged("logged: ")[0]["fields"], "key=[secret:api-key] tiny=abc");
    let dead = until("three are dead", async || {
        let dead = redis.entries("{mq:store}:dead").await;
        (dead.len() == 3).then_some(dead)
    })
    .await;
    for letter in &dead {
        assert!(text(letter, "gw-error").contains(&format!("ended: {redacted}")), "{letter:?}");
    }
    let log = gateway.kill_and_read_log();
    assert!(!log.iter().any(|line| line.to_string().contains(value)), "{log:?}");
}

/// A server may echo the header, and a handler may log the response.
#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_a_header_is_counted_and_redacted() {
    let server = Server::start().await;
    let origin = server.origin();
    let grants = format!("http = [\"{origin}\"]\n[http_headers.\"{origin}\"]\nX-Key = \"Bearer ${{secret:KEY}}\"");
    let rig = Rig::with_env(&grants, &[("GATEWAY_SECRET_KEY", "sesame!open")]).await;
    let result = rig.run(json!({ "do": "show", "url": format!("{origin}/echo") })).await;
    assert_eq!(status_or_error(&result), "200");
    assert!(result["body"].as_str().unwrap().contains("Bearer sesame!open"), "{result}");
    let line = rig.gateway.until_logged("the server replied", |_| true).await;
    let text = line["message"].as_str().unwrap();
    assert!(text.contains("Bearer [secret:KEY]") && !text.contains("sesame"), "{text}");
    let (_, metrics) = rig.gateway.get("/metrics/prometheus").await;
    assert!(metrics.contains("gateway_secret_reads_total{plugin=\"fetch\",secret=\"KEY\"} 1\n"), "{metrics}");
}

#[test]
fn a_missing_secrets_directory_is_a_settings_error() {
    let output = command(&["run", "--secrets-dir", "/nowhere", "--redis-url", "redis://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("--secrets-dir (secrets.dir): /nowhere is not a directory")
    );
}
