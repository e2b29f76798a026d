//! The scenarios of repeated failures: messages that crash their worker, a full Redis,
//! topics that reject follow-ups.

use super::{puppet, run_ok, start};
use crate::servers::Server;
use crate::support::{Plugins, built, text, until};
use gateway_worker::events;
use std::time::Duration;

const OPTIONS: [&str; 2] = ["--queue-lease", "500ms"];

pub(super) async fn a_poison_message_is_dead_lettered_and_messages_running_with_it_are_not(server: &Server) {
    // Short runs, since an isolated message waits for running handlers to end.
    let brief = "[limits]\ntimeout = \"100ms\"\n[retry]\nattempts = 1000\nbase = \"10ms\"\ncap = \"10ms\"\n";
    let plugins = Plugins::with("puppet", &built("puppet"), "").and("other", &built("puppet"), brief);
    server.publish("puppet", "poison", r#"{"do":"sleep","ms":600000}"#).await;
    // The first crashes happen with other handlers running, the later ones in isolation.
    for loss in 1..=2 {
        let gateway = start(server, &plugins, &OPTIONS);
        server.publish("other", &format!("bystander-{loss}"), r#"{"do":"sleep","ms":600000}"#).await;
        until("other handlers run", async || (server.in_flight("other").await > 0).then_some(())).await;
        server.until_in_flight("puppet", 1).await;
        if loss > 1 {
            gateway.until_logged(events::RECLAIMED, |line| line["topic"] == "puppet" && line["crashes"] == 1).await;
        }
        gateway.kill();
    }
    for lost in 0..3 {
        let gateway = start(server, &plugins, &OPTIONS);
        gateway
            .until_logged(events::RUNNING_ISOLATED, |line| {
                line["topic"] == "puppet" && line["isolated_crashes"] == lost
            })
            .await;
        gateway.kill();
    }
    // The other messages can end now.
    plugins.write("other.toml", b"[limits]\ntimeout = \"100ms\"\n[retry]\nattempts = 1\n");
    let _gateway = start(server, &plugins, &OPTIONS);
    let dead = server.dead("puppet").await;
    assert_eq!(text(&dead, "gw-reason"), "poison-message");
    assert!(text(&dead, "gw-error").starts_with("3 workers crashed while it ran in isolation"), "{dead:?}");
    server.is("the other messages have ended", "XLEN {mq:other}:dead", 2).await;
    for letter in server.entries("{mq:other}:dead").await {
        assert_eq!(text(&letter, "gw-reason"), "timeout");
    }
    for topic in ["puppet", "other"] {
        server.is("no isolation is recorded", &format!("EXISTS {{mq:{topic}}}:isolated"), 0).await;
    }
}

const AT_ONCE: &str = r#"{"do":"sleep","ms":0}"#;

pub(super) async fn a_full_redis_blocks_only_settlements_that_need_memory(server: &Server) {
    let plugins = puppet("[retry]\nattempts = 2\nbase = \"1ms\"\n[grants]\npublish = [\"seen\"]\n");
    let first = start(server, &plugins, &[]);
    server.publish("puppet", "first", AT_ONCE).await;
    first.until_outcome("puppet", "first", "done").await;
    server.is("settled", "XLEN mq:puppet", 0).await;
    first.kill();
    let acts = [
        ("done", AT_ONCE),
        ("again", r#"{"do":"retry","reason":"r","after_ms":1}"#),
        ("dies", r#"{"do":"reject","code":"c","reason":"r"}"#),
        ("sends", r#"{"do":"echo","to":"seen"}"#),
    ];
    for number in 0..3 {
        for (kind, act) in acts {
            server.publish("puppet", &format!("{kind}-{number}"), act).await;
        }
    }
    server.publish_later("puppet", "due", AT_ONCE, Duration::from_millis(1)).await;
    for id in ["x", "y"] {
        let envelope = format!(r#"{{"id":"{id}","topic":"aside","data":1}}"#);
        server.run::<i64>(&format!("ZADD mq:delay:aside 99999999999 {envelope}")).await;
    }

    server.set_memory(1).await;
    let gateway = start(server, &plugins, &[]);
    server.is("what is done is settled", "XLEN mq:puppet", 9).await;
    gateway.until_logged(events::SETTLE_DELAYED, |line| line["waiting"] == 9).await;
    for (command, expected) in [
        ("XLEN {mq:puppet}:dead", 0),
        ("ZCARD {mq:puppet}:delayed", 1),
        ("XLEN {mq:puppet}:outbox", 0),
        ("XLEN mq:seen", 0),
    ] {
        assert_eq!(server.run::<i64>(command).await, expected, "{command}");
    }
    // Commands that free memory work too.
    assert!(run_ok(server, &["messages", "cancel", "aside", "x"]).starts_with("cancelled "));
    let purged = run_ok(server, &["topics", "purge", "aside", "--yes", "--delayed"]);
    assert_eq!(purged, "0 waiting and 1 delayed messages deleted\n");

    server.set_memory(0).await;
    server.is("the failed ones are dead", "XLEN {mq:puppet}:dead", 6).await;
    server.is("the follow-ups are sent", "XLEN mq:seen", 3).await;
    gateway.until_outcome("puppet", "due", "done").await;
    for command in ["XLEN mq:puppet", "ZCARD {mq:puppet}:delayed", "XLEN {mq:puppet}:outbox"] {
        server.is("nothing is left", command, 0).await;
    }
    // A message whose settlement failed is not run again.
    let ran = gateway.outcomes("puppet");
    for (kind, runs) in [("done", 3), ("again", 6), ("dies", 3), ("sends", 3), ("due", 1)] {
        assert_eq!(ran.iter().filter(|(id, _)| id.starts_with(kind)).count(), runs, "{kind}: {ran:?}");
    }
    assert_eq!(server.run::<i64>("XLEN mq:seen").await, 3);
}

/// On one server the run fails and is retried; in a cluster the follow-up waits in the
/// outbox. Either way it arrives once.
pub(super) async fn rejected_follow_ups_arrive_once_after_their_topic_is_repaired(server: &Server) {
    server.run::<()>("SET mq:broken text").await;
    let many_attempts = "[retry]\nattempts = 1000\nbase = \"10ms\"\ncap = \"100ms\"\n";
    let plugins = puppet(&format!("{many_attempts}[grants]\npublish = [\"broken\", \"fine\", \"other\"]\n"));
    let gateway = start(server, &plugins, &OPTIONS);
    let send = |to: &str| format!(r#"{{"do":"publish","to":"{to}","times":1,"then":null}}"#);
    let all = ["fine", "broken", "fine"].map(send).join(",");
    server.publish("puppet", "m", &format!(r#"{{"do":"all","of":[{all}]}}"#)).await;
    if server.is_cluster() {
        gateway.until_logged(events::FOLLOW_UP_REFUSED, |_| true).await;
    } else {
        let is_refused = |error: &str| error.starts_with("its follow-ups can't be published: ");
        gateway.until_logged(events::SETTLED, |line| line["error"].as_str().is_some_and(is_refused)).await;
    }
    server.publish("puppet", "beside", &send("other")).await;
    server.is("others are not blocked", "XLEN mq:other", 1).await;
    server.run::<i64>("DEL mq:broken").await;
    for (topic, count) in [("broken", 1), ("fine", 2)] {
        server.is("it has arrived", &format!("XLEN mq:{topic}"), count).await;
    }
    for key in ["mq:puppet", "{mq:puppet}:outbox"] {
        server.is("nothing is left", &format!("XLEN {key}"), 0).await;
    }
    for (key, count) in [("mq:broken", 1), ("mq:fine", 2), ("mq:other", 1), ("{mq:puppet}:dead", 0)] {
        assert_eq!(server.run::<i64>(&format!("XLEN {key}")).await, count, "{key}");
    }
    // A run whose follow-ups were refused has failed, and is not counted as done too.
    let is_done = |line: &&serde_json::Value| line["id"] == "m" && line["outcome"] == "done";
    let settled_as_done = || gateway.logged(events::SETTLED).iter().filter(is_done).count();
    until("its success is logged", async || (settled_as_done() > 0).then_some(())).await;
    assert_eq!(settled_as_done(), 1);
}
