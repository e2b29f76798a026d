//! The scenario of the commands for dead letters.

use super::{json, puppet, run, run_ok, start};
use crate::servers::Server;
use crate::support::text;
use serde_json::Value;

/// Adds a legacy dead letter, which a cluster stores in another slot.
async fn add_legacy_dead_letter(server: &Server, id: &str) -> String {
    let message = format!(r#"{{"id":"{id}","topic":"puppet","data":{{"do":"sleep","ms":0}},"retry":3,"max_retry":3}}"#);
    let body = format!(r#"{{"error":"boom","failed_at":"2026-11-23T07:46:17Z","original_message":{message}}}"#);
    server.run(&format!("XADD mq:dead-letter:puppet * message {body}")).await
}

pub(super) async fn dead_letters_are_listed_shown_edited_replayed_and_purged(server: &Server) {
    server.run::<String>("XADD {mq:puppet}:dead 1000-1 message 1 gw-reason trap").await;
    let plugins = puppet("");
    let gateway = start(server, &plugins, &[]);
    let act = r#"{"do":"reject","code":"c","reason":"r"}"#;
    for id in ["mine", "stays"] {
        server.publish("puppet", id, act).await;
        gateway.until_outcome("puppet", id, "reject").await;
    }
    server.is("they are dead", "XLEN {mq:puppet}:dead", 3).await;
    add_legacy_dead_letter(server, "theirs").await;
    let old = add_legacy_dead_letter(server, "old").await;

    let listed = |args: &[&str]| -> Vec<Option<String>> {
        let listed = json(server, &[&["dead", "ls", "puppet"], args].concat());
        let mut ids: Vec<_> =
            listed.as_array().unwrap().iter().map(|one| one["id"].as_str().map(str::to_owned)).collect();
        ids.sort();
        ids
    };
    assert_eq!(listed(&[]).len(), 5);
    assert_eq!(listed(&["--reason", "reject"]), ["mine", "stays"].map(|id| Some(id.to_owned())));
    let shown = json(server, &["dead", "show", "puppet", "mine"]);
    assert_eq!((&shown["reason"], &shown["data"]), (&Value::from("reject"), &serde_json::from_str(act).unwrap()));
    assert!(run_ok(server, &["dead", "show", "puppet", "theirs"]).contains("(legacy)"));

    // The edited message succeeds.
    let entry = shown["entry"].as_str().unwrap();
    let new = run_ok(server, &["dead", "edit", "puppet", entry, "--data", r#"{"do":"sleep","ms":0}"#]);
    assert_eq!(run_ok(server, &["dead", "replay", "puppet", new.trim()]), "1 replayed\n");
    gateway.until_outcome("puppet", "mine", "done").await;
    let (code, _, error) = run(server, &["dead", "edit", "puppet", &old, "--data", "1"]);
    assert!(code == 1 && error.contains("is a legacy dead letter"), "{error}");
    assert_eq!(run_ok(server, &["dead", "replay", "puppet", "--search", "theirs"]), "1 replayed\n");
    gateway.until_outcome("puppet", "theirs", "done").await;

    let purge = |args: &[&str]| run_ok(server, &[&["dead", "purge", "puppet", "--yes"], args].concat());
    assert_eq!(purge(&["--older-than", "30d"]), "1 purged\n");
    assert_eq!(purge(&[&old]), "1 purged\n");
    server.is("the others remain", "XLEN {mq:puppet}:dead", 1).await;
    assert_eq!(text(&server.dead("puppet").await, "gw-error"), "c: r");
    for id in ["one", "two"] {
        add_legacy_dead_letter(server, id).await;
    }
    // Replays native and legacy dead letters.
    assert_eq!(run_ok(server, &["dead", "replay", "puppet", "--all"]), "3 replayed\n");
    server.is("one of them dies again", "XLEN {mq:puppet}:dead", 1).await;
    add_legacy_dead_letter(server, "last").await;
    assert_eq!(purge(&["--all"]), "2 purged\n");
    for key in ["mq:puppet", "{mq:puppet}:dead", "mq:dead-letter:puppet"] {
        server.is("nothing is left", &format!("XLEN {key}"), 0).await;
    }
}
