//! The scenarios of batches, whose messages are settled individually.

use super::start;
use crate::batch::crew;
use crate::servers::Server;
use crate::support::text;
use gateway_worker::events;
use serde_json::Value;

async fn publish(server: &Server, acts: &[&str]) {
    for (at, act) in acts.iter().enumerate() {
        server.publish("crew", &format!("m-{at}"), &format!("\"{act}\"")).await;
    }
}

/// The ids of the two follow-ups and the batch sizes that they report.
async fn batch_sizes_of_two(server: &Server) -> Vec<(String, u64)> {
    server.is("two have published", "XLEN mq:seen", 2).await;
    let id_and_size = |one: &Value| (one["id"].as_str().unwrap().to_owned(), one["data"].as_u64().unwrap());
    server.envelopes("mq:seen").await.iter().map(id_and_size).collect()
}

pub(super) async fn each_message_of_a_batch_has_its_own_outcome(server: &Server) {
    publish(server, &["count", "fail", "orphan", "count", "no such act"]).await;
    server.run::<String>("XADD mq:crew * message {broken").await;
    let plugins = crew(6, "2s");
    let _gateway = start(server, &plugins, &[]);
    server.is("all are settled", "XLEN mq:crew", 0).await;
    let dead = server.entries("{mq:crew}:dead").await;
    let mut reasons: Vec<_> = dead.iter().map(|one| (text(one, "gw-reason"), text(one, "gw-error"))).collect();
    reasons.sort();
    let expected = [
        ("decode", "bad JSON"),
        ("reject", "bad-data"),
        ("reject", "invalid: name the parent"),
        ("reject", "requested: by the message"),
    ];
    assert_eq!(reasons.len(), expected.len(), "{reasons:?}");
    for ((reason, error), (expected, fragment)) in reasons.iter().zip(expected) {
        assert!(reason == expected && error.starts_with(fragment), "{reason} {error}");
    }
    // Only successful messages publish, and the ids name the message.
    let sizes = batch_sizes_of_two(server).await;
    assert!(sizes.iter().all(|(id, count)| *count == 5 && id.starts_with("crew/") && id.ends_with("/1")), "{sizes:?}");
    assert_ne!(sizes[0].0, sizes[1].0);
}

pub(super) async fn a_trap_in_a_batch_costs_only_its_own_message(server: &Server) {
    publish(server, &["count", "panic", "count"]).await;
    let plugins = crew(3, "2s");
    let gateway = start(server, &plugins, &[]);
    server.is("all are settled", "XLEN mq:crew", 0).await;
    assert_eq!(text(&server.dead("crew").await, "gw-reason"), "trap");
    assert_eq!(server.run::<i64>("XLEN {mq:crew}:dead").await, 1);
    assert!(batch_sizes_of_two(server).await.iter().all(|(_, count)| *count == 1));
    assert_eq!(gateway.logged(events::BATCH_SPLIT).len(), 1);
}
