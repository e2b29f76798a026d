//! The scenario of what is done with dead letters by command.

use super::{json, puppet, run, start, told};
use crate::servers::Server;
use crate::support::text;
use serde_json::Value;

/// A letter of the original's, which a cluster keeps elsewhere.
async fn bury_legacy(server: &Server, id: &str) -> String {
    let original =
        format!(r#"{{"id":"{id}","topic":"puppet","data":{{"do":"sleep","ms":0}},"retry":3,"max_retry":3}}"#);
    let body = format!(r#"{{"error":"boom","failed_at":"2026-11-23T07:46:17Z","original_message":{original}}}"#);
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
    bury_legacy(server, "theirs").await;
    let old = bury_legacy(server, "old").await;

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
    assert!(told(server, &["dead", "show", "puppet", "theirs"]).contains("(legacy)"));

    // The handler has more luck with what it is edited to.
    let entry = shown["entry"].as_str().unwrap();
    let new = told(server, &["dead", "edit", "puppet", entry, "--data", r#"{"do":"sleep","ms":0}"#]);
    assert_eq!(told(server, &["dead", "replay", "puppet", new.trim()]), "1 replayed\n");
    gateway.until_outcome("puppet", "mine", "done").await;
    let (code, _, error) = run(server, &["dead", "edit", "puppet", &old, "--data", "1"]);
    assert!(code == 1 && error.contains("is a legacy dead letter"), "{error}");
    assert_eq!(told(server, &["dead", "replay", "puppet", "--search", "theirs"]), "1 replayed\n");
    gateway.until_outcome("puppet", "theirs", "done").await;

    let purge = |args: &[&str]| told(server, &[&["dead", "purge", "puppet", "--yes"], args].concat());
    assert_eq!(purge(&["--older-than", "30d"]), "1 purged\n");
    assert_eq!(purge(&[&old]), "1 purged\n");
    server.is("the others stay", "XLEN {mq:puppet}:dead", 1).await;
    assert_eq!(text(&server.dead("puppet").await, "gw-error"), "c: r");
    for id in ["one", "two"] {
        bury_legacy(server, id).await;
    }
    // Of both kinds.
    assert_eq!(told(server, &["dead", "replay", "puppet", "--all"]), "3 replayed\n");
    server.is("and one dies again", "XLEN {mq:puppet}:dead", 1).await;
    bury_legacy(server, "last").await;
    assert_eq!(purge(&["--all"]), "2 purged\n");
    for key in ["mq:puppet", "{mq:puppet}:dead", "mq:dead-letter:puppet"] {
        server.is("nothing is left", &format!("XLEN {key}"), 0).await;
    }
}
