//! Existing handlers keep working: one that was built against 1.0.0 runs, and
//! the contract still has everything that 1.0.0 had.

use crate::support::{Gateway, Plugins, Redis, until};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const WASM: &[u8] = include_bytes!("../golden/golden-1.0.0.wasm");
const PINNED: &str = include_str!("../golden/gateway-1.0.0.wit");
const CURRENT: &str = include_str!("../../wit/gateway.wit");

const MANIFEST: &str =
    "[grants]\npublish = [\"results\"]\n[retry]\nattempts = 1\n[config]\ncolor = \"red\"\nother = \"x\"\n";

/// The results that the handler published, by message id.
async fn results(redis: &Redis) -> BTreeMap<String, Value> {
    let data = |one: Value| (one["data"]["id"].as_str().unwrap().to_owned(), one["data"].clone());
    redis.envelopes("mq:results").await.into_iter().map(data).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_built_against_the_first_contract_runs() {
    let redis = Redis::start();
    let plugins = Plugins::with("golden", WASM, MANIFEST);
    let gateway = Gateway::start(&redis, &plugins);
    let message = r#"{"id":"first","topic":"golden","data":{"n":1},"timestamp":"2026-11-23T07:45:23.585Z","headers":{"color":"blue"}}"#;
    redis.add("golden", message.as_bytes()).await;
    for ending in ["retry", "postpone", "reject"] {
        redis.publish("golden", ending, &format!("\"{ending}\"")).await;
        gateway.until_outcome("golden", ending, ending).await;
    }
    gateway.until_outcome("golden", "first", "done").await;
    // Only the run that ended ok has published.
    assert_eq!(
        results(&redis).await["first"],
        json!({
            "id": "first", "data": "{\"n\":1}", "published_at_bytes": "24", "max_attempts": "1",
            "header": "blue", "config": "red", "config_all": "2",
            "get": "denied", "set": "denied", "set_if_absent": "denied", "compare_and_swap": "denied",
            "delete": "denied",
            "secret": "denied", "mail": "denied",
        })
    );
    assert_eq!(results(&redis).await.len(), 1);
    let published = redis.envelopes("mq:results").await.remove(0);
    assert_eq!((&published["headers"]["color"], &published["dedup_key"]), (&json!("gold"), &json!("results/first")));
    assert!(published["expires_at"].is_string(), "{published}");
    let line = gateway.until_logged("golden with fields", |_| true).await;
    assert_eq!((line["topic"].as_str(), line["level"].as_str()), (Some("golden"), Some("WARN")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_handler_built_against_the_first_contract_runs() {
    let redis = Redis::start();
    for id in ["a", "b"] {
        redis.publish("golden", id, "{}").await;
    }
    let plugins = Plugins::with("golden", WASM, &format!("{MANIFEST}[batch]\nsize = 2\nwait = \"1s\"\n"));
    let gateway = Gateway::start(&redis, &plugins);
    for id in ["a", "b"] {
        gateway.until_outcome("golden", id, "done").await;
    }
    until("both have published", async || (results(&redis).await.len() == 2).then_some(())).await;
}

/// The text of every interface without its comments.
fn interfaces(wit: &str) -> BTreeMap<String, String> {
    let mut resolve = wit_parser::Resolve::default();
    let package = resolve.push_str("gateway.wit", wit).unwrap();
    let print = |name: &str, id| {
        let mut printer = wit_component::WitPrinter::default();
        printer.emit_docs(false).print_interface_outer(&resolve, id, name).unwrap();
        printer.print_interface(&resolve, id).unwrap();
        printer.output.to_string()
    };
    let package = &resolve.packages[package];
    package.interfaces.iter().map(|(name, id)| (format!("{}/{name}", package.name), print(name, *id))).collect()
}

#[test]
fn the_contract_still_has_every_interface_unchanged() {
    let (pinned, current) = (interfaces(PINNED), interfaces(CURRENT));
    assert_eq!(pinned.len(), 10);
    for (name, text) in pinned {
        assert_eq!(Some(&text), current.get(&name), "{name} is frozen: what is new comes as a new interface");
    }
}

#[test]
fn the_check_finds_changes_and_accepts_new_interfaces_and_comments() {
    let differs = |from: &str, to: &str| {
        let changed = CURRENT.replacen(from, to, 1);
        assert_ne!(changed, CURRENT, "{from}");
        interfaces(PINNED).iter().any(|(name, text)| interfaces(&changed).get(name) != Some(text))
    };
    assert!(differs("    attempt: u32,", "    attempt: u64,"));
    assert!(differs("    attempt: u32,", "    attempt: u32,\n    more: u32,"));
    assert!(differs("    retry(retry-options),", "    repeat(retry-options),"));
    assert!(differs("  log: func(", "  flush: func();\n  log: func("));
    assert!(differs("@1.0.0;", "@1.1.0;"));
    assert!(!differs("interface config {", "/// New.\ninterface more { go: func(); }\ninterface config {"));
    assert!(!differs("  /// Handles one message.", "  /// Processes one message."));
}
