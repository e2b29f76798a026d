//! The scenarios of who goes first, how many at once, not now, and not twice.

use super::{puppet, start};
use crate::servers::Server;
use crate::support::{OK, Plugins, command, guest, until};

fn publish(server: &Server, args: &[&str]) {
    let output = command(&[&["publish"], args, &["--redis-url", &server.url], &server.flags()].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(super) async fn a_list_of_plain_clients_is_drained_again_and_again(server: &Server) {
    let plugins = Plugins::with("quiet", &guest(OK), "");
    for id in ["a", "b"] {
        server.run::<i64>(&format!(r#"LPUSH mq:quiet {{"id":"{id}","topic":"quiet","data":1}}"#)).await;
    }
    let gateway = start(server, &plugins, &[]);
    for id in ["a", "b"] {
        gateway.until_outcome("quiet", id, "done").await;
    }
    server.is("the list is drained", "EXISTS mq:quiet", 0).await;
    server.run::<i64>(r#"RPUSH mq:quiet {"id":"c","topic":"quiet","data":1}"#).await;
    gateway.until_outcome("quiet", "c", "done").await;
    // Ours goes beside it, so that the key stays a list for the others.
    server.publish("quiet", "ours", "{}").await;
    gateway.until_outcome("quiet", "ours", "done").await;
    server.is("settled", "XLEN {mq:quiet}:work", 0).await;
    assert_eq!(server.run::<i64>("EXISTS mq:quiet {mq:quiet}:in").await, 0);
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

pub(super) async fn copies_are_published_and_run_once(server: &Server) {
    let plugins = Plugins::with("quiet", &guest(OK), "[dedup]\nwindow = \"1h\"\n");
    let gateway = start(server, &plugins, &[]);
    for _ in 0..3 {
        publish(server, &["quiet", "--id", "once", "--once", "1h"]);
    }
    gateway.until_outcome("quiet", "once", "done").await;
    server.is("settled", "XLEN mq:quiet", 0).await;
    assert_eq!(server.run::<i64>("HGET {mq:quiet}:state done").await, 1);
    for _ in 0..2 {
        server.publish("quiet", "once", "{}").await;
        server.is("settled", "XLEN mq:quiet", 0).await;
    }
    assert_eq!(server.run::<i64>("HGET {mq:quiet}:state duplicate").await, 2);
    assert_eq!(server.run::<i64>("HGET {mq:quiet}:state done").await, 1);
}

pub(super) async fn a_paused_topic_waits_for_its_resumption(server: &Server) {
    let plugins = Plugins::with("quiet", &guest(OK), "");
    let gateway = start(server, &plugins, &[]);
    server.publish("quiet", "before", "{}").await;
    gateway.until_outcome("quiet", "before", "done").await;
    server.run::<i64>("HSET {mq:quiet}:state paused 1").await;
    server.publish("quiet", "meanwhile", "{}").await;
    gateway.until_logged("paused", |_| true).await;
    server.is("it waits", "XLEN mq:quiet", 1).await;
    assert_eq!(gateway.outcomes("quiet").len(), 1);
    server.run::<i64>("HDEL {mq:quiet}:state paused").await;
    gateway.until_outcome("quiet", "meanwhile", "done").await;
}

pub(super) async fn rate_and_total_hold_over_two_workers(server: &Server) {
    let plugins = puppet("concurrency_total = 2\n[rate]\nlimit = 50\nper = \"1s\"\n");
    for number in 0..8 {
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
}

/// What people do about messages, by command.
pub(super) async fn messages_are_found_cancelled_and_replayed(server: &Server) {
    let run = |args: &[&str]| {
        let output = command(&[args, &["--redis-url", &server.url], &server.flags()].concat());
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(output.stderr));
        text(output.stdout)
    };
    publish(server, &["quiet", "--id", "waits"]);
    publish(server, &["quiet", "--id", "delayed", "--delay", "1h", "--priority", "high"]);
    server.run::<i64>(r#"ZADD mq:delay:quiet 99999999999 {"id":"legacy","topic":"quiet","data":1}"#).await;
    for id in ["waits", "delayed", "legacy"] {
        assert!(run(&["messages", "find", id]).contains("quiet"), "{id}");
        run(&["messages", "cancel", "quiet", id]);
    }
    for command in ["XLEN mq:quiet", "ZCARD {mq:quiet}:later", "HLEN {mq:quiet}:later:body", "ZCARD mq:delay:quiet"] {
        assert_eq!(server.run::<i64>(command).await, 0, "{command}");
    }
    let envelope = r#"{"id":"dead","topic":"quiet","data":1,"retry":3,"max_retry":3}"#;
    server
        .run::<String>(&format!("XADD {{mq:quiet}}:dead * message {envelope} gw-reason retry gw-source quiet/1-1"))
        .await;
    let legacy = format!(r#"{{"error":"boom","failed_at":"2026-11-23T07:46:17Z","original_message":{envelope}}}"#);
    server.run::<String>(&format!("XADD mq:dead-letter:quiet * message {legacy}")).await;
    run(&["dead", "replay", "quiet", "--all"]);
    assert_eq!(server.run::<i64>("XLEN mq:quiet").await, 2);
    let plugins = Plugins::with("quiet", &guest(OK), "");
    let gateway = start(server, &plugins, &[]);
    until("both are run", async || (gateway.outcomes("quiet").len() == 2).then_some(())).await;
    run(&["topics", "show", "quiet"]);
}
