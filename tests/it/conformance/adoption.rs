//! The scenarios of who else uses a topic's keys: the original's workers and
//! publishers, and groups that are none of ours.

use super::{options, run, start};
use crate::adoption::{GO, envelope, plugins, seen_in};
use crate::servers::Server;
use crate::support::{Gateway, OK, Plugins, WrongClock, guest, text, until};
use std::collections::BTreeSet;
use std::time::Duration;

/// Adds a message and lets a worker of the original take it.
async fn go_takes(server: &Server, message: &str) {
    server.run::<String>(&format!("XADD mq:puppet * message {message}")).await;
    let take = format!("XREADGROUP GROUP consumer-group-puppet {GO} COUNT 1 STREAMS mq:puppet >");
    server.run::<redis::Value>(&take).await;
}

pub(super) async fn what_the_original_left_stuck_is_handled_and_what_it_had_copied_is_not(server: &Server) {
    server.run::<()>("XGROUP CREATE mq:puppet consumer-group-puppet 0 MKSTREAM").await;
    // Handled and acknowledged: history, which it never deletes.
    go_takes(server, &envelope("history", 0)).await;
    let ids: Vec<(String, Vec<(String, String)>)> = server.run("XRANGE mq:puppet - +").await;
    server.run::<i64>(&format!("XACK mq:puppet consumer-group-puppet {}", ids[0].0)).await;
    // Failed, copied with its retry one higher, and the copy still waits.
    go_takes(server, &envelope("failed", 0)).await;
    // Failed for the last time, and a dead letter.
    go_takes(server, &envelope("buried", 2)).await;
    let buried = r#"{"error":"boom","failed_at":"2026-11-23T07:46:17Z","original_message":{"id":"buried","topic":"puppet","data":{},"timestamp":"2026-11-23T07:46:17Z","retry":3,"max_retry":3}}"#;
    server.run::<String>(&format!("XADD mq:dead-letter:puppet * message {buried}")).await;
    // It could not be read.
    go_takes(server, "{broken").await;
    // Its worker died with it in hand.
    go_takes(server, &envelope("abandoned", 1)).await;
    server.run::<String>(&format!("XADD mq:puppet * message {}", envelope("failed", 1))).await;
    server.run::<String>(&format!("XADD mq:puppet * message {}", envelope("waiting", 0))).await;

    let plugins = plugins();
    let gateway = start(server, &plugins, &["--queue-adopt-after", "500ms"]);
    server.is("all is settled", "XLEN mq:puppet", 0).await;
    let expected: BTreeSet<(String, u64)> =
        [("failed", 2), ("abandoned", 2), ("waiting", 1)].map(|(id, attempt)| (id.to_owned(), attempt)).into();
    server.is("all that ran was seen", "XLEN mq:seen", 3).await;
    let seen = seen_in(&server.envelopes("mq:seen").await);
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), expected);
    assert_eq!(text(&server.dead("puppet").await, "gw-reason"), "decode");
    assert_eq!(server.run::<i64>("XLEN mq:dead-letter:puppet").await, 1);
    assert_eq!(gateway.logged("taken over").len(), 2);
}

/// How many entries another group has still to read.
async fn left_for_audit(server: &Server) -> usize {
    let read = "XREADGROUP GROUP audit me COUNT 1000 STREAMS mq:quiet >";
    let streams: Option<Vec<(String, Vec<redis::Value>)>> = server.run(read).await;
    streams.map_or(0, |streams| streams[0].1.len())
}

pub(super) async fn what_another_group_has_still_to_read_is_left_to_it(server: &Server) {
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
    // What is acknowledged and stands is history: a group that is lost does not
    // begin before it.
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
    // Without the other group there is nobody to keep it for.
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

/// Whatever a worker's own clock shows.
pub(super) async fn the_originals_delayed_messages_are_due_by_redis_clock(server: &Server) {
    let slot = async |key: &str| server.run::<u16>(&format!("CLUSTER KEYSLOT {key}")).await;
    // No script can reach both.
    assert!(!server.is_cluster() || slot("mq:quiet").await != slot("mq:delay:quiet").await);
    let (now, _): (i64, i64) = server.run("TIME").await;
    let plugins = Plugins::with("quiet", &guest(OK), "");
    let clock = WrongClock::wind_up();
    for (way, id) in [(WrongClock::set_ahead as fn(&WrongClock, Duration), "ahead"), (WrongClock::set_behind, "behind")]
    {
        way(&clock, HOUR);
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

pub(super) async fn the_originals_delayed_messages_come_once_over_two_workers(server: &Server) {
    const COUNT: i64 = 200;
    let plugins = Plugins::with("quiet", &guest(OK), "");
    let workers = [start(server, &plugins, &[]), start(server, &plugins, &[])];
    for worker in &workers {
        worker.until_loaded("quiet").await;
    }
    let (now, _): (i64, i64) = server.run("TIME").await;
    // All at once, so that both workers find them.
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
