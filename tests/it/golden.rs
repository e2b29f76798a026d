//! Compatibility with existing handlers: a component built against 1.0.0 runs, and its
//! contract has not changed.

use crate::support::{Gateway, Plugins, Redis, until};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const WASM: &[u8] = include_bytes!("../golden/golden-1.0.0.wasm");
const THEN: &str = include_str!("../golden/gateway-1.0.0.wit");
const NOW: &str = include_str!("../../wit/gateway.wit");

const MANIFEST: &str =
    "[grants]\npublish = [\"told\"]\n[retry]\nattempts = 1\n[config]\ncolor = \"red\"\nother = \"x\"\n";

/// The data that the handler published, by the id of its message.
async fn published_by_id(redis: &Redis) -> BTreeMap<String, Value> {
    let by_id = |envelope: Value| (envelope["data"]["id"].as_str().unwrap().to_owned(), envelope["data"].clone());
    redis.envelopes("mq:told").await.into_iter().map(by_id).collect()
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
    // Only the successful run has published.
    assert_eq!(
        published_by_id(&redis).await["first"],
        json!({
            "id": "first", "data": "{\"n\":1}", "published_at_bytes": "24", "max_attempts": "1",
            "header": "blue", "config": "red", "config_all": "2",
            "get": "denied", "set": "denied", "add": "denied", "swap": "denied", "delete": "denied",
            "secret": "denied", "mail": "denied",
        })
    );
    assert_eq!(published_by_id(&redis).await.len(), 1);
    assert_eq!(redis.envelopes("mq:told").await[0]["headers"]["color"], "gold");
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
    until("both have published", async || (published_by_id(&redis).await.len() == 2).then_some(())).await;
}

/// Every interface in a normalized form without documentation.
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
fn the_contract_has_no_breaking_change() {
    let (then, now) = (interfaces(THEN), interfaces(NOW));
    assert_eq!(then.len(), 10);
    for (name, text) in then {
        assert_eq!(Some(&text), now.get(&name), "{name} is frozen: add a new interface instead");
    }
}

#[test]
fn a_changed_interface_is_detected_and_an_additional_one_is_allowed() {
    let differs = |from: &str, to: &str| {
        let changed = NOW.replacen(from, to, 1);
        assert_ne!(changed, NOW, "{from}");
        interfaces(THEN).iter().any(|(name, text)| interfaces(&changed).get(name) != Some(text))
    };
    assert!(differs("    attempt: u32,", "    attempt: u64,"));
    assert!(differs("    attempt: u32,", "    attempt: u32,\n    more: u32,"));
    assert!(differs("    retry(again),", "    again(again),"));
    assert!(differs("  log: func(", "  flush: func();\n  log: func("));
    assert!(differs("@1.0.0;", "@1.1.0;"));
    assert!(!differs("interface config {", "/// New.\ninterface more { go: func(); }\ninterface config {"));
    assert!(!differs("  /// Handles one message.", "  /// Takes care of one message."));
}
