//! The scenarios with other users of a topic's keys: GinForge workers and publishers,
//! and other consumer groups.

use super::{options, run, start};
use crate::legacy::{LEGACY_CONSUMER, envelope, plugins, seen_in};
use crate::servers::Server;
use crate::support::{Gateway, OK, Plugins, SkewedClock, guest, text, until};
use gateway_worker::events;
use std::collections::BTreeSet;
use std::time::Duration;

/// Adds a message and lets a legacy worker read it.
async fn legacy_worker_reads(server: &Server, message: &str) {
    server.run::<String>(&format!("XADD mq:puppet * message {message}")).await;
    let take = format!("XREADGROUP GROUP consumer-group-puppet {LEGACY_CONSUMER} COUNT 1 STREAMS mq:puppet >");
    server.run::<redis::Value>(&take).await;
}

pub(super) async fn stuck_legacy_messages_are_handled_and_their_copied_sources_are_not(server: &Server) {
    server.run::<()>("XGROUP CREATE mq:puppet consumer-group-puppet 0 MKSTREAM").await;
    // Handled and acknowledged: history, which a legacy worker never deletes.
    legacy_worker_reads(server, &envelope("history", 0)).await;
    let ids: Vec<(String, Vec<(String, String)>)> = server.run("XRANGE mq:puppet - +").await;
    server.run::<i64>(&format!("XACK mq:puppet consumer-group-puppet {}", ids[0].0)).await;
    // Failed, and copied with an increased retry count; the copy still waits.
    legacy_worker_reads(server, &envelope("failed", 0)).await;
    // Failed for the last time and copied to the dead letters.
    legacy_worker_reads(server, &envelope("buried", 2)).await;
    let dead_letter = r#"{"error":"boom","failed_at":"2026-11-23T07:46:17Z","original_message":{"id":"buried","topic":"puppet","data":{},"timestamp":"2026-11-23T07:46:17Z","retry":3,"max_retry":3}}"#;
    server.run::<String>(&format!("XADD mq:dead-letter:puppet * message {dead_letter}")).await;
    // Undecodable.
    legacy_worker_reads(server, "{broken").await;
    // In flight when the legacy worker died.
    legacy_worker_reads(server, &envelope("abandoned", 1)).await;
    server.run::<String>(&format!("XADD mq:puppet * message {}", envelope("failed", 1))).await;
    server.run::<String>(&format!("XADD mq:puppet * message {}", envelope("waiting", 0))).await;

    let plugins = plugins();
    let gateway = start(server, &plugins, &["--legacy-reclaim-after", "500ms"]);
    server.is("all is settled", "XLEN mq:puppet", 0).await;
    let expected: BTreeSet<(String, u64)> =
        [("failed", 2), ("abandoned", 2), ("waiting", 1)].map(|(id, attempt)| (id.to_owned(), attempt)).into();
    server.is("each run has published", "XLEN mq:seen", 3).await;
    let seen = seen_in(&server.envelopes("mq:seen").await);
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), expected);
    assert_eq!(text(&server.dead("puppet").await, "gw-reason"), "decode");
    assert_eq!(server.run::<i64>("XLEN mq:dead-letter:puppet").await, 1);
    assert_eq!(gateway.logged(events::RECLAIMED).len(), 2);
}

/// How many entries the group `audit` has not read.
async fn left_for_audit(server: &Server) -> usize {
    let read = "XREADGROUP GROUP audit me COUNT 1000 STREAMS mq:quiet >";
    let streams: Option<Vec<(String, Vec<redis::Value>)>> = server.run(read).await;
    streams.map_or(0, |streams| streams[0].1.len())
}

pub(super) async fn messages_unread_by_another_group_are_left_to_it(server: &Server) {
    for id in ["a", "b"] {
        server.publish("quiet", id, "{}").await;
    }
    server.run::<()>("XGROUP CREATE mq:quiet audit 0").await;
    let plugins = Plugins::with("quiet", &guest(OK), "");
    let gateway = start(server, &plugins, &[]);
    server.publish("quiet", "c", "{}").await;
    server.is("all are done", "HGET {mq:quiet}:state done", 3).await;
    assert_eq!((server.in_flight("quiet").await, server.run::<i64>("XLEN mq:quiet").await), (0, 3));
    assert_eq!(run(server, &["topics", "purge", "quiet", "--yes"]).1, "0 waiting messages deleted\n");
    gateway.kill();
    // Acknowledged entries that remain are history: a recreated group begins after
    // them.
    let gateway = start(server, &plugins, &[]);
    let last: Vec<(String, Vec<String>)> = server.run("XREVRANGE mq:quiet + - COUNT 1").await;
    until("the floor is known", async || {
        (server.run::<Option<String>>("HGET {mq:quiet}:state floor").await? == last[0].0).then_some(())
    })
    .await;
    server.run::<i64>("XGROUP DESTROY mq:quiet consumer-group-quiet").await;
    server.publish("quiet", "d", "{}").await;
    gateway.until_outcome("quiet", "d", "done").await;
    server.is("it is done", "HGET {mq:quiet}:state done", 4).await;
    assert_eq!(gateway.outcomes("quiet").len(), 1);
    assert_eq!(left_for_audit(server).await, 4);
    gateway.kill();
    // Without the other group the history can be deleted.
    server.run::<i64>("XGROUP DESTROY mq:quiet audit").await;
    let gateway = start(server, &plugins, &[]);
    server.is("history is swept", "XLEN mq:quiet", 0).await;
    assert!(gateway.outcomes("quiet").is_empty());
}

const HOUR: Duration = Duration::from_secs(3600);

async fn delay(server: &Server, id: &str, due: i64) {
    let envelope = format!(r#"{{"id":"{id}","topic":"quiet","data":1}}"#);
    server.run::<i64>(&format!("ZADD mq:delay:quiet {due} {envelope}")).await;
}

/// Regardless of the worker's clock.
pub(super) async fn legacy_delayed_messages_are_due_by_the_clock_of_redis(server: &Server) {
    let slot = async |key: &str| server.run::<u16>(&format!("CLUSTER KEYSLOT {key}")).await;
    // In a cluster the keys are in different slots, so no script can access both.
    assert!(!server.is_cluster() || slot("mq:quiet").await != slot("mq:delay:quiet").await);
    let (now, _): (i64, i64) = server.run("TIME").await;
    let plugins = Plugins::with("quiet", &guest(OK), "");
    let clock = SkewedClock::create();
    for (set_clock, id) in
        [(SkewedClock::set_ahead as fn(&SkewedClock, Duration), "ahead"), (SkewedClock::set_behind, "behind")]
    {
        set_clock(&clock, HOUR);
        delay(server, id, now - 1).await;
        delay(server, "not-yet", now + 1800).await;
        server.publish_later("quiet", &format!("{id}-ours"), "{}", Duration::from_millis(100)).await;
        server.publish_later("quiet", &format!("{id}-not-yet"), "{}", HOUR / 2).await;
        let gateway = Gateway::start_with_clock(&clock, &server.url, &plugins, &options(server, &[]));
        gateway.until_outcome("quiet", id, "done").await;
        gateway.until_outcome("quiet", &format!("{id}-ours"), "done").await;
        assert_eq!(gateway.outcomes("quiet").len(), 2);
    }
    assert_eq!(server.run::<i64>("ZCARD mq:delay:quiet").await, 1);
    assert_eq!(server.run::<i64>("ZCARD {mq:quiet}:delayed").await, 2);
}

pub(super) async fn legacy_delayed_messages_run_once_over_two_workers(server: &Server) {
    const COUNT: i64 = 200;
    let plugins = Plugins::with("quiet", &guest(OK), "");
    let workers = [start(server, &plugins, &[]), start(server, &plugins, &[])];
    for worker in &workers {
        worker.until_loaded("quiet").await;
    }
    let (now, _): (i64, i64) = server.run("TIME").await;
    // In one command, so that both workers find them.
    let mut add = "ZADD mq:delay:quiet".to_owned();
    for number in 0..COUNT {
        add += &format!(r#" {} {{"id":"{number}","topic":"quiet","data":1}}"#, now - 1);
    }
    server.run::<i64>(&add).await;
    server.is("none is left", "ZCARD mq:delay:quiet", 0).await;
    server.is("all are settled", "XLEN mq:quiet", 0).await;
    let ran: Vec<String> = workers.iter().flat_map(|worker| worker.outcomes("quiet")).map(|(id, _)| id).collect();
    assert_eq!((ran.len(), ran.iter().collect::<BTreeSet<_>>().len()), (200, 200));
}
