//! The scenarios of priorities, concurrency, rates, pauses and deduplication.

use super::{json, puppet, run, run_ok, start};
use crate::messages::envelope;
use crate::servers::Server;
use crate::support::{OK, Plugins, guest, until};
use gateway_worker::events;
use serde_json::json;

fn publish(server: &Server, args: &[&str]) {
    run_ok(server, &[&["publish"], args].concat());
}

async fn push(server: &Server, how: &str, id: &str) {
    server.run::<i64>(&format!("{how} mq:t {}", envelope(id))).await;
}

async fn is_drained(server: &Server) {
    server.is("the list is drained", "EXISTS mq:t", 0).await;
    server.is("the intake list is empty", "EXISTS {mq:t}:in", 0).await;
    server.is("all are settled", "XLEN {mq:t}:work", 0).await;
}

pub(super) async fn a_list_is_consumed_and_consumed_again_after_it_was_drained(server: &Server) {
    let plugins = Plugins::with("t", &guest(OK), "");
    // The message is published before the worker starts.
    push(server, "LPUSH", "first").await;
    let gateway = start(server, &plugins, &[]);
    gateway.until_outcome("t", "first", "done").await;
    is_drained(server).await;
    // Pushes on either end.
    for (how, id) in [("LPUSH", "left"), ("RPUSH", "right")] {
        push(server, how, id).await;
        gateway.until_outcome("t", id, "done").await;
        is_drained(server).await;
    }
    // Publishing through the queue keeps the key a list for plain clients.
    server.publish("t", "ours", "{}").await;
    gateway.until_outcome("t", "ours", "done").await;
    push(server, "LPUSH", "after").await;
    gateway.until_outcome("t", "after", "done").await;
    is_drained(server).await;
}

pub(super) async fn every_priority_is_served(server: &Server) {
    let plugins = Plugins::with("quiet", &guest(OK), "");
    let gateway = start(server, &plugins, &[]);
    server.publish("quiet", "first", "{}").await;
    gateway.until_outcome("quiet", "first", "done").await;
    for priority in ["low", "normal", "high"] {
        publish(server, &["quiet", "--id", priority, "--priority", priority]);
        gateway.until_outcome("quiet", priority, "done").await;
    }
    publish(server, &["quiet", "--id", "later", "--priority", "high", "--delay", "200ms"]);
    gateway.until_outcome("quiet", "later", "done").await;
    for key in ["mq:quiet", "{mq:quiet}:high", "{mq:quiet}:low"] {
        server.is("settled", &format!("XLEN {key}"), 0).await;
    }
}

pub(super) async fn a_message_published_twice_within_its_window_exists_once(server: &Server) {
    for _ in 0..3 {
        publish(server, &["quiet", "--id", "once", "--once", "1h"]);
    }
    assert_eq!(server.run::<i64>("XLEN mq:quiet").await, 1);
}

pub(super) async fn a_copy_of_a_finished_message_is_not_run(server: &Server) {
    let manifest = "[dedup]\nwindow = \"1h\"\n[grants]\npublish = [\"seen\"]\n";
    let plugins = puppet(manifest);
    let gateway = start(server, &plugins, &[]);
    // Messages without and with a follow-up, and one that fails.
    for (id, data) in [
        ("plain", r#"{"do":"sleep","ms":0}"#),
        ("parent", r#"{"do":"echo","to":"seen"}"#),
        ("fails", r#"{"do":"reject","code":"c","reason":"r"}"#),
    ] {
        for copy in 1..=2 {
            server.publish("puppet", id, data).await;
            server.is("settled", "XLEN mq:puppet", 0).await;
            let ran =
                gateway.outcomes("puppet").iter().filter(|(ran, outcome)| ran == id && outcome != "duplicate").count();
            assert_eq!(ran, if id == "fails" { copy } else { 1 }, "{id}");
        }
    }
    server.is("its follow-up", "XLEN mq:seen", 1).await;
    assert_eq!(server.run::<i64>("HGET {mq:puppet}:state duplicate").await, 2);
    let (_, metrics) = gateway.json("/metrics").await;
    assert!(metrics.to_string().contains(r#""duplicate":2"#), "{metrics}");
    // With a deduplication key the id does not matter.
    for id in ["one", "two"] {
        let body = json!({"id": id, "topic": "puppet", "data": {"do": "sleep", "ms": 0}, "dedup_key": "k"});
        server.run::<String>(&format!("XADD mq:puppet * message {body}")).await;
        server.is("settled", "XLEN mq:puppet", 0).await;
    }
    assert_eq!(server.run::<i64>("HGET {mq:puppet}:state duplicate").await, 3);
    // The markers are in slices of the window, each of which lives for two to three.
    let keys: Vec<String> = server.run_everywhere::<Vec<String>>("KEYS {mq:puppet}:dedup:*").await.concat();
    let mut markers = 0;
    for slice in keys.iter().filter(|key| !key.ends_with(":claims")) {
        markers += server.run::<i64>(&format!("HLEN {slice}")).await;
        assert!((1..=3 * 3_600_000).contains(&server.run::<i64>(&format!("PTTL {slice}")).await));
    }
    assert_eq!(markers, 3);
}

pub(super) async fn a_topic_is_paused_and_resumed_by_command(server: &Server) {
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = start(server, &plugins, &[]);
    server.publish("t", "before", "{}").await;
    gateway.until_outcome("t", "before", "done").await;
    let (code, out, _) = run(server, &["topics", "pause", "t"]);
    assert!(code == 0 && out.contains("t paused"), "{out}");
    assert!(run(server, &["topics", "pause", "t"]).1.contains("already"));
    server.publish("t", "aside", "{}").await;
    until("the worker has paused", async || gateway.logged(events::TOPIC_PAUSED).into_iter().next()).await;
    let (_, table, _) = run(server, &["topics", "ls"]);
    assert!(table.contains("paused"), "{table}");
    assert_eq!(json(server, &["topics", "show", "t"])["is_paused"], true);
    assert!(!gateway.outcomes("t").iter().any(|(id, _)| id == "aside"));
    let (code, out, _) = run(server, &["topics", "resume", "t"]);
    assert!(code == 0 && out.contains("resumed"), "{out}");
    gateway.until_outcome("t", "aside", "done").await;
    // A purge of a topic with active workers warns about them.
    until("the worker is registered", async || {
        run(server, &["topics", "purge", "t", "--yes"]).2.contains("active workers").then_some(())
    })
    .await;
}

pub(super) async fn rate_and_global_concurrency_hold_over_two_workers(server: &Server) {
    let plugins = puppet("global_concurrency = 2\n[rate]\nlimit = 50\nper = \"1s\"\n");
    plugins.put("slow", &guest(OK), "[rate]\nlimit = 4\nper = \"1h\"\n");
    for number in 0..8 {
        server.publish("slow", &number.to_string(), "{}").await;
        server.publish("puppet", &number.to_string(), r#"{"do":"sleep","ms":100}"#).await;
    }
    let _workers = [start(server, &plugins, &[]), start(server, &plugins, &[])];
    let mut most = 0;
    until("all are done", async || {
        most = most.max(server.in_flight("puppet").await);
        (server.run::<Option<i64>>("HGET {mq:puppet}:state done").await == Some(8)).then_some(())
    })
    .await;
    assert!(most <= 2, "{most}");
    assert!(server.run::<i64>("HEXISTS {mq:puppet}:state rate").await == 1);
    server.is("the rate limit is used up", "HGET {mq:slow}:state done", 4).await;
    assert_eq!((server.in_flight("slow").await, server.run::<i64>("XLEN mq:slow").await), (0, 4));
}
