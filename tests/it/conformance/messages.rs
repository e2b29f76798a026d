//! The scenarios of the commands for messages and topics: find, cancel, peek, show and
//! purge.

use super::{json, run};
use crate::messages::{envelope, locations_in, take};
use crate::servers::Server;
use crate::support::topic;
use gateway_worker::message::Fields;
use gateway_worker::publication::{Draft, Priority};
use gateway_worker::queue::StreamKind;
use jiff::Timestamp;
use serde_json::Value;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

/// The locations where the command finds a message, each with its stream if it has
/// one.
fn locations(server: &Server, id: &str) -> Vec<String> {
    locations_in(&json(server, &["messages", "find", id]), id)
}

async fn publish(server: &Server, id: &str, priority: Priority, delay: Duration) {
    let topic = topic("t");
    server.publish_draft(Draft { priority, delay, ..Draft::new(id.to_owned(), &topic, "{}") }).await;
}

/// Adds a message to each location, with the location as its id, and others.
async fn fill(server: &Server) {
    // One is in flight, one dead and one delayed for a retry.
    for id in ["flies", "dies", "again"] {
        server.publish("t", id, "{}").await;
    }
    let queue = server.queue("t", "me");
    let taken = take(&queue, StreamKind::Normal, 3).await;
    let set = |name: &str, value: &str| -> Fields { vec![(name.into(), value.into())] };
    queue.settlements.settle(&[taken[1].dead_letter(set("gw-reason", "boom"))], HOUR).await.unwrap();
    queue.settlements.settle(&[taken[2].run_again(HOUR, set("gw-attempt", "2"))], HOUR).await.unwrap();
    for (id, priority, delay) in [
        ("stream", Priority::Normal, Duration::ZERO),
        ("high", Priority::High, Duration::ZERO),
        ("low", Priority::Low, Duration::ZERO),
        ("later", Priority::High, HOUR),
    ] {
        publish(server, id, priority, delay).await;
        publish(server, &format!("{id}-other"), priority, delay).await;
    }
    server.run::<String>(&format!("XADD {{mq:t}}:work * message {}", envelope("work"))).await;
    server.run::<i64>(&format!("RPUSH {{mq:t}}:in {}", envelope("in"))).await;
    server.run::<i64>(&format!("ZADD mq:delay:t 4102444800 {}", envelope("legacy"))).await;
    let dead_letter = format!(r#"{{"error":"x","failed_at":"x","original_message":{}}}"#, envelope("buried"));
    server.run::<String>(&format!("XADD mq:dead-letter:t * message {dead_letter}")).await;
}

pub(super) async fn a_message_is_found_wherever_it_is(server: &Server) {
    fill(server).await;
    for (id, location) in [
        ("stream", "waiting normal"),
        ("high", "waiting high"),
        ("low", "waiting low"),
        ("work", "waiting work"),
        ("in", "list-out"),
        ("later", "delayed"),
        ("again", "delayed"),
        ("legacy", "legacy-delayed"),
        ("flies", "in-flight normal"),
        ("dies", "dead"),
        ("buried", "legacy-dead"),
    ] {
        assert_eq!(locations(server, id), [location], "{id}");
    }
    let found = &json(server, &["messages", "find", "flies"])[0];
    assert_eq!((&found["consumer"], &found["deliveries"]), (&"me".into(), &1.into()));
    let (code, table, _) = run(server, &["messages", "find", "dies", "--topic", "t"]);
    assert!(code == 0 && table.contains("dead") && table.contains("boom"), "{table}");
    let (code, out, error) = run(server, &["messages", "find", "nobody"]);
    assert!(code == 1 && out.is_empty() && error.contains("no message nobody found"), "{out}{error}");
    let (code, _, error) = run(server, &["messages", "find", "dies", "--topic", "other"]);
    assert_eq!(code, 1, "{error}");
}

pub(super) async fn waiting_messages_are_cancelled_and_others_are_located(server: &Server) {
    fill(server).await;
    let before = server.run::<i64>("XLEN mq:t").await;
    let waiting = ["stream", "high", "low", "work", "in", "later", "again", "legacy"];
    for id in waiting {
        let (code, out, error) = run(server, &["messages", "cancel", "t", id]);
        assert!(code == 0 && out.starts_with("cancelled "), "{id}: {out}{error}");
        assert_eq!(locations(server, id), [""; 0], "{id}");
    }
    assert_eq!(server.run::<usize>("HGET {mq:t}:state cancelled").await, waiting.len());
    // No other message was removed.
    assert_eq!(server.run::<i64>("XLEN mq:t").await, before - 1);
    for key in ["{mq:t}:high", "{mq:t}:low"] {
        assert_eq!(server.run::<i64>(&format!("XLEN {key}")).await, 1, "{key}");
    }
    assert_eq!(server.run::<i64>("ZCARD {mq:t}:delayed").await, 1);
    assert_eq!(server.run::<i64>("HLEN {mq:t}:delayed:body").await, 1);
    for (id, fragment) in [("flies", "only in flight"), ("dies", "no message dies waits"), ("nobody", "messages find")]
    {
        let (code, out, error) = run(server, &["messages", "cancel", "t", id]);
        assert!(code == 1 && out.is_empty() && error.contains(fragment), "{id}: {out}{error}");
    }
    assert_eq!(server.in_flight("t").await, 1);
    assert_eq!(locations(server, "dies"), ["dead"]);
}

pub(super) async fn a_purge_needs_confirmation_and_keeps_delayed_messages_by_default(server: &Server) {
    let (code, _, error) = run(server, &["topics", "purge", "t"]);
    assert!(code == 2 && error.contains("--yes"), "{error}");
    fill(server).await;
    let (code, out, error) = run(server, &["topics", "purge", "t", "--yes"]);
    assert_eq!((code, out.as_str(), error.as_str()), (0, "8 waiting messages deleted\n", ""));
    for (id, location) in [
        ("later", "delayed"),
        ("again", "delayed"),
        ("legacy", "legacy-delayed"),
        ("flies", "in-flight normal"),
        ("dies", "dead"),
    ] {
        assert_eq!(locations(server, id), [location], "{id}");
    }
    let (_, out, _) = run(server, &["topics", "purge", "t", "--yes", "--delayed"]);
    assert_eq!(out, "0 waiting and 4 delayed messages deleted\n");
    assert_eq!(server.run::<i64>("HGET {mq:t}:state purged").await, 12);
    let (_, out, _) = run(server, &["topics", "purge", "t", "--yes", "--dead"]);
    assert_eq!(out, "0 waiting messages deleted\n2 dead letters deleted\n");
    assert_eq!(locations(server, "flies"), ["in-flight normal"]);
    // Other groups that read the stream are named before the purge.
    server.run::<()>("XGROUP CREATE mq:t audit 0").await;
    assert!(run(server, &["topics", "purge", "t", "--yes"]).2.contains("other consumer groups"));
}

pub(super) async fn a_topic_is_shown_with_exact_counts(server: &Server) {
    fill(server).await;
    run(server, &["messages", "cancel", "t", "stream"]);
    let shown = json(server, &["topics", "show", "t"]);
    let waiting = serde_json::json!({ "normal": 1, "high": 2, "low": 2, "work": 1, "list": 1 });
    assert_eq!(shown["waiting"], waiting);
    let numbers =
        ["delayed", "legacy_delayed", "dead", "legacy_dead", "outbox"].map(|key| shown[key].as_u64().unwrap());
    assert_eq!(numbers, [3, 1, 1, 1, 0]);
    let counter = |name: &str| shown["counters"][name].as_u64().unwrap();
    assert_eq!(["retried", "dead", "cancelled", "done"].map(counter), [1, 1, 1, 0]);
    assert_eq!((&shown["in_flight"][0]["name"], &shown["in_flight"][0]["in_flight"]), (&"me".into(), &1.into()));
    assert_eq!(
        (&shown["kind"], &shown["has_handler"], &shown["is_paused"]),
        (&"stream".into(), &false.into(), &false.into())
    );
    let due: Timestamp = shown["next_due"].as_str().unwrap().parse().unwrap();
    assert!(due > Timestamp::now() && due < "2099-01-01T00:00:00Z".parse().unwrap(), "{due}");
    let oldest: Timestamp = shown["oldest_waiting"].as_str().unwrap().parse().unwrap();
    assert!(oldest <= Timestamp::now());
    let (_, text, _) = run(server, &["topics", "show", "t"]);
    assert!(text.contains("no handler: waits") && text.contains("cancelled"), "{text}");
    // `topics ls` reports the same counts.
    let listed = &json(server, &["topics", "ls"])["topics"][0];
    let counts = ["waiting", "in_flight", "delayed", "dead"].map(|key| listed[key].as_u64().unwrap());
    assert_eq!(counts, [7, 1, 4, 2]);
    // An unknown topic is an error, and a key of another type is named.
    let (code, _, error) = run(server, &["topics", "show", "nobody"]);
    assert!(code == 1 && error.contains("unknown topic nobody"), "{error}");
    server.run::<()>("SET mq:foreign text").await;
    assert_eq!(json(server, &["topics", "show", "foreign"])["kind"], "string");
    assert_eq!(run(server, &["messages", "find", "nobody"]).0, 1);
}

pub(super) async fn a_peek_shows_waiting_messages_and_takes_none(server: &Server) {
    fill(server).await;
    let peek = |limit: &str| json(server, &["messages", "ls", "t", "--limit", limit]);
    let ids = |found: &Value| -> Vec<String> {
        found.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&peek("1")), ["in", "high", "stream", "work", "low", "again", "legacy"]);
    let all = peek("20");
    assert_eq!(ids(&all).len(), 12);
    assert_eq!(ids(&peek("20")), ids(&all));
    let due: Vec<&str> = all.as_array().unwrap().iter().filter_map(|one| one["due"].as_str()).collect();
    assert!(due.is_sorted(), "{due:?}");
    assert_eq!(server.in_flight("t").await, 1);
    let (code, table, _) = run(server, &["messages", "ls", "t"]);
    assert!(code == 0 && table.contains("stream-other"), "{table}");
}
