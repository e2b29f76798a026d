//! The path of a message: published, delivered, handled and settled, without loss.

use crate::support::{Gateway, OK, Plugins, Redis, built, field, guest, text, until};
use gateway_worker::events;
use rustix::process::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

const PUPPET: &str = "[grants]\npublish = [\"seen\", \"other\"]\n[config]\nversion = \"1\"\n";

fn puppet(manifest: &str) -> Plugins {
    Plugins::with("puppet", &built("puppet"), manifest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_message_reaches_its_handler_byte_for_byte() {
    let redis = Redis::start();
    let plugins = puppet(PUPPET);
    let gateway = Gateway::start(&redis, &plugins);
    let data =
        r#"{"do":"echo","to":"seen", "big": 9007199254740993,"z":1,"a":1.0,"e":1E2,"u":"请及时","esc":"\u003c"}"#;
    let envelope = format!(
        r#"{{"id":"1795419923585502180-1795419923","topic":"other.name","data":{data},"timestamp":"2026-11-23T15:48:13.040738509+08:00","retry":1,"max_retry":3}}"#
    );
    redis.add("puppet", envelope.as_bytes()).await;
    redis.is("the follow-up", "XLEN mq:seen", 1).await;

    let raw = String::from_utf8(field(&redis.entries("mq:seen").await[0], "message")).unwrap();
    assert!(raw.contains(data), "{raw}");
    let seen = &redis.envelopes("mq:seen").await[0];
    assert_eq!(seen["topic"], "seen");
    assert_eq!((&seen["retry"], &seen["max_retry"]), (&json!(0), &json!(3)));
    let message = &seen["data"];
    assert_eq!(message["id"], "1795419923585502180-1795419923");
    assert_eq!(message["topic"], "puppet");
    assert_eq!((&message["attempt"], &message["max_attempts"]), (&json!(2), &json!(3)));
    assert_eq!(message["published_at"], "2026-11-23T07:48:13.040Z");
    assert_eq!(message["version"], "1");
    redis.is("settled", "XLEN mq:puppet", 0).await;
    assert_eq!(redis.in_flight("puppet").await, 0);
    drop(gateway);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_from_before_the_worker_is_drained() {
    let redis = Redis::start();
    for number in 0..500 {
        redis.publish("quiet", &number.to_string(), "{}").await;
    }
    let plugins = Plugins::with("quiet", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    redis.is("drained", "XLEN mq:quiet", 0).await;
    let ids: BTreeSet<String> = gateway.outcomes("quiet").into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), 500);
    assert_eq!(redis.run::<i64>("HGET {mq:quiet}:state done").await, 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_message_runs_again_and_is_dead_after_its_last_attempt() {
    let redis = Redis::start();
    let plugins = puppet("[retry]\nbase = \"1ms\"\n");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("puppet", "m-1", r#"{"do":"retry","reason":"not today","after_ms":null}"#).await;
    let dead = redis.dead("puppet").await;
    assert_eq!(gateway.outcomes("puppet"), vec![("m-1".to_owned(), "retry".to_owned()); 3]);
    assert_eq!((text(&dead, "gw-reason"), text(&dead, "gw-error")), ("retry".to_owned(), "not today".to_owned()));
    assert_eq!(text(&dead, "gw-attempts"), "3");
    assert_eq!(text(&dead, "gw-digest").len(), 64);
    let envelope: serde_json::Value = serde_json::from_slice(&field(&dead, "message")).unwrap();
    assert_eq!((&envelope["id"], &envelope["retry"]), (&json!("m-1"), &json!(0)));
    redis.is("nothing is delayed", "ZCARD {mq:puppet}:delayed", 0).await;
    redis.is("no body is left", "HLEN {mq:puppet}:delayed:body", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_counted_without_an_envelope() {
    let redis = Redis::start();
    let plugins = puppet("[grants]\npublish = [\"seen\"]\n[retry]\nbase = \"1ms\"\nattempts = 2\n");
    let gateway = Gateway::start(&redis, &plugins);
    let entry = redis.add("puppet", br#"{"do":"retry","reason":"again","after_ms":1}"#).await;
    let dead = redis.dead("puppet").await;
    // The id stays the same, though each attempt has another entry.
    assert_eq!(gateway.outcomes("puppet"), vec![(entry.clone(), "retry".to_owned()); 2]);
    assert_eq!(text(&dead, "gw-id"), entry);
    assert_eq!(field(&dead, "message"), br#"{"do":"retry","reason":"again","after_ms":1}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postponed_message_costs_no_attempt() {
    let redis = Redis::start();
    let plugins = puppet("[retry]\nattempts = 1\nbase = \"1ms\"\n");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("puppet", "p", r#"{"do":"postpone","reason":"closed","after_ms":1}"#).await;
    until("postponed often", async || (gateway.outcomes("puppet").len() > 5).then_some(())).await;
    assert!(gateway.outcomes("puppet").iter().all(|(_, outcome)| outcome == "postpone"));
    redis.is("none is dead", "XLEN {mq:puppet}:dead", 0).await;
}

/// Postponements end after seven days, however long a handler asks for.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_postponed_for_seven_days_and_no_longer() {
    const DAY: i64 = 24 * 60 * 60 * 1000;
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_ready().await;
    let now = jiff::Timestamp::now().as_millisecond();
    for (id, since) in [("within", now - 6 * DAY), ("beyond", now - 7 * DAY)] {
        let act = json!({ "do": "postpone", "reason": "closed", "after_ms": u32::MAX });
        let body = json!({ "id": id, "topic": "puppet", "data": act, "timestamp": "2026-11-23T07:45:23.585Z", "retry": 0, "max_retry": 3 });
        let mut command = redis::cmd("XADD");
        command.arg("mq:puppet").arg("*").arg("message").arg(body.to_string());
        command.arg("gw-postponed").arg(9).arg("gw-postponed-since").arg(since);
        command.query_async::<()>(&mut redis.connection().await).await.unwrap();
    }
    let dead = redis.dead("puppet").await;
    assert_eq!((text(&dead, "gw-reason").as_str(), text(&dead, "gw-error").as_str()), ("postponed-too-long", "closed"));
    assert!(text(&dead, "message").contains("beyond"));
    redis.is("the other is postponed", "ZCARD {mq:puppet}:delayed", 1).await;
    // It is due at the end of the seven days, not after the requested month.
    let due: Vec<(String, f64)> = redis.run("ZRANGE {mq:puppet}:delayed 0 -1 WITHSCORES").await;
    let late = due[0].1 as i64 - (now + DAY);
    assert!((0..DAY).contains(&late), "{late} ms");
    // The time of the first postponement is kept.
    let bodies: Vec<Vec<u8>> = redis.run("HVALS {mq:puppet}:delayed:body").await;
    assert!(String::from_utf8_lossy(&bodies[0]).contains(&(now - 6 * DAY).to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undecodable_message_is_dead_lettered_with_its_bytes() {
    let redis = Redis::start();
    let plugins = puppet(PUPPET);
    let _gateway = Gateway::start_with(&redis.url(), &plugins, &["--queue-max-message", "2KiB"]);
    let large = format!(r#"{{"id":"l","topic":"puppet","data":"{}"}}"#, "x".repeat(4096));
    for (bytes, reason, fragment) in [
        (&b"{\"id\":\"x\","[..], "decode", "bad JSON"),
        (&[0xff, 0xfe, 0x00], "decode", "not UTF-8"),
        (br#"{"id":true,"topic":"puppet","data":{}}"#, "decode", "id: got true"),
        (large.as_bytes(), "too-large", "queue.max_message is 2KiB"),
    ] {
        redis.run::<()>("DEL {mq:puppet}:dead").await;
        redis.add("puppet", bytes).await;
        let dead = redis.dead("puppet").await;
        assert_eq!(text(&dead, "gw-reason"), reason);
        assert!(text(&dead, "gw-error").contains(fragment), "{dead:?}");
        assert_eq!(field(&dead, "message"), bytes);
    }
    redis.publish("puppet", "fine", r#"{"do":"echo","to":"seen"}"#).await;
    redis.is("the next one is handled", "XLEN mq:seen", 1).await;
    redis.is("all are settled", "XLEN mq:puppet", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_is_no_object_is_left_to_the_handler() {
    let redis = Redis::start();
    let (wasm, manifest) = crate::support::predefined("order.reminder");
    let plugins = Plugins::with("order.reminder", &wasm, &manifest);
    let _gateway = Gateway::start(&redis, &plugins);
    redis.publish("order.reminder", "a", "[1,2]").await;
    let dead = redis.dead("order.reminder").await;
    assert_eq!(text(&dead, "gw-reason"), "reject");
    assert_eq!(text(&dead, "gw-error"), "bad-data: data: got [1,2], allowed: a JSON object");
}

#[tokio::test(flavor = "multi_thread")]
async fn follow_ups_are_sent_only_by_a_successful_run() {
    let redis = Redis::start();
    let plugins = puppet("[grants]\npublish = [\"other\"]\n[retry]\nattempts = 1\n");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("puppet", "bad", r#"{"do":"publish","to":"other","times":2,"then":"retry"}"#).await;
    gateway.until_outcome("puppet", "bad", "retry").await;
    redis.publish("puppet", "worse", r#"{"do":"publish","to":"other","times":2,"then":"trap"}"#).await;
    gateway.until_outcome("puppet", "worse", "trap").await;
    redis.publish("puppet", "good", r#"{"do":"publish","to":"other","times":3,"then":null}"#).await;
    redis.is("three follow-ups", "XLEN mq:other", 3).await;
    let ids: BTreeSet<String> =
        redis.envelopes("mq:other").await.iter().map(|envelope| envelope["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 3, "{ids:?}");
    assert!(ids.iter().all(|id| id.starts_with("puppet/")), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follow_up_that_was_not_granted_is_denied_with_the_line_to_write() {
    let redis = Redis::start();
    let plugins = puppet("");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("puppet", "a", r#"{"do":"publish","to":"other","times":1,"then":null}"#).await;
    let dead = redis.dead("puppet").await;
    let error = text(&dead, "gw-error");
    assert!(
        error.starts_with("denied: ") && error.contains("puppet.toml") && error.contains("publish = [\"other\"]"),
        "{error}"
    );
    assert!(!gateway.logged("publishing to other denied").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_follow_up_waits_and_then_arrives_with_its_headers() {
    let redis = Redis::start();
    let plugins = puppet("[grants]\npublish = [\"puppet\", \"seen\"]\n");
    let _gateway = Gateway::start(&redis, &plugins);
    redis.publish("puppet", "a", r#"{"do":"delay","to":"seen","seconds":3600}"#).await;
    redis.is("it is delayed", "ZCARD {mq:seen}:delayed", 1).await;
    redis.is("with its body", "HLEN {mq:seen}:delayed:body", 1).await;
    redis.is("and not there yet", "XLEN mq:seen", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn native_and_legacy_delayed_messages_are_promoted_when_due() {
    let redis = Redis::start();
    let plugins = puppet(PUPPET);
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("puppet").await;
    redis.publish_later("puppet", "ours", r#"{"do":"echo","to":"seen"}"#, Duration::from_millis(300)).await;
    redis.publish_later("puppet", "far", r#"{"do":"echo","to":"seen"}"#, Duration::from_secs(3600)).await;
    // With GinForge these would never be promoted, since their publisher is gone.
    let due = jiff::Timestamp::now().as_second();
    for (id, due) in [("legacy", due), ("legacy-far", due + 3600)] {
        let envelope =
            format!(r#"{{"id":"{id}","topic":"puppet","data":{{"do":"echo","to":"seen"}},"retry":0,"max_retry":3}}"#);
        redis.run::<()>(&format!("ZADD mq:delay:puppet {due} {envelope}")).await;
    }
    redis.is("both that are due", "XLEN mq:seen", 2).await;
    let envelopes = redis.envelopes("mq:seen").await;
    let ids: BTreeSet<&str> = envelopes.iter().map(|envelope| envelope["data"]["id"].as_str().unwrap()).collect();
    assert_eq!(ids, BTreeSet::from(["legacy", "ours"]));
    redis.is("the other is still delayed", "ZCARD {mq:puppet}:delayed", 1).await;
    redis.is("the legacy one too", "ZCARD mq:delay:puppet", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_message_blocks_no_other_of_its_topic() {
    let redis = Redis::start();
    let plugins = puppet("concurrency = 8\n[grants]\npublish = [\"seen\"]\n");
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--handler-threads", "1"]);
    for number in 0..4 {
        redis.publish("puppet", &format!("slow-{number}"), r#"{"do":"sleep","ms":20000}"#).await;
    }
    for number in 0..40 {
        redis.publish("puppet", &format!("quick-{number}"), r#"{"do":"echo","to":"seen"}"#).await;
    }
    redis.is("the quick ones are done", "XLEN mq:seen", 40).await;
    assert!(!gateway.outcomes("puppet").iter().any(|(id, _)| id.starts_with("slow")));
}

#[tokio::test(flavor = "multi_thread")]
async fn finished_messages_are_settled_while_others_still_run() {
    let redis = Redis::start();
    for (id, act) in [("quick", r#"{"do":"all","of":[]}"#), ("slow", r#"{"do":"sleep","ms":600000}"#)] {
        for number in 0..8 {
            redis.publish("puppet", &format!("{id}-{number}"), act).await;
        }
    }
    let plugins = puppet("[limits]\ntimeout = \"1h\"\n");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_asleep("puppet", 8).await;
    redis.is("those that have ended are settled", "XLEN mq:puppet", 8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_takes_no_more_messages_than_it_can_run() {
    let redis = Redis::start();
    let plugins = puppet("concurrency = 3\n");
    for number in 0..10 {
        redis.publish("puppet", &number.to_string(), r#"{"do":"sleep","ms":1000}"#).await;
    }
    let _gateway = Gateway::start(&redis, &plugins);
    let mut most = 0;
    until("all are done", async || {
        most = most.max(redis.in_flight("puppet").await);
        (redis.run::<i64>("XLEN mq:puppet").await == 0).then_some(())
    })
    .await;
    assert_eq!(most, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_messages_of_a_killed_worker_run_on_another() {
    let redis = Redis::start();
    let plugins = puppet(PUPPET);
    let options = ["--queue-lease", "1s"];
    let first = Gateway::start_with(&redis.url(), &plugins, &options);
    for number in 0..20 {
        redis.publish("puppet", &number.to_string(), r#"{"do":"sleep","ms":600000}"#).await;
    }
    redis.until_in_flight("puppet", 20).await;
    // The handler of the second worker ends at once.
    let plugins = Plugins::with("puppet", &guest(OK), "");
    let second = Gateway::start_with(&redis.url(), &plugins, &options);
    second.until_ready().await;
    assert!(second.outcomes("puppet").is_empty());
    first.kill();
    redis.is("all are done", "XLEN mq:puppet", 0).await;
    let done: BTreeSet<String> = second.outcomes("puppet").into_iter().map(|(id, _)| id).collect();
    assert_eq!(done.len(), 20);
    assert_eq!(second.logged(events::RECLAIMED).len(), 20);
}

/// Publishes messages that a lost consumer has pending.
async fn publish_pending_of_lost_consumer(redis: &Redis, count: usize, data: &str) {
    for number in 0..count {
        redis.publish("puppet", &number.to_string(), data).await;
    }
    redis.run::<()>("XGROUP CREATE mq:puppet consumer-group-puppet 0").await;
    redis.run::<redis::Value>("XREADGROUP GROUP consumer-group-puppet gone STREAMS mq:puppet >").await;
}

async fn pending_of_lost_consumer(redis: &Redis) -> usize {
    redis.run::<Vec<redis::Value>>("XPENDING mq:puppet consumer-group-puppet - + 100 gone").await.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_reclaims_no_more_messages_than_it_can_run() {
    let redis = Redis::start();
    publish_pending_of_lost_consumer(&redis, 5, r#"{"do":"sleep","ms":600000}"#).await;
    let plugins = puppet("concurrency = 2\n");
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--queue-lease", "500ms"]);
    gateway.until_asleep("puppet", 2).await;
    assert_eq!((pending_of_lost_consumer(&redis).await, gateway.logged(events::RECLAIMED).len()), (3, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_reclaimed_on_a_paused_topic() {
    let redis = Redis::start();
    publish_pending_of_lost_consumer(&redis, 1, r#"{"do":"sleep","ms":0}"#).await;
    redis.run::<i64>("HSET {mq:puppet}:state paused 1").await;
    let plugins = puppet("");
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--queue-lease", "500ms"]);
    // Due messages are promoted before leases are checked.
    for due in 1..=3 {
        redis.publish_later("puppet", &due.to_string(), r#"{"do":"sleep","ms":0}"#, Duration::from_millis(1)).await;
        redis.is("it is promoted", "XLEN mq:puppet", 1 + due).await;
    }
    assert_eq!((pending_of_lost_consumer(&redis).await, gateway.logged(events::RECLAIMED).len()), (1, 0));
    redis.run::<i64>("HDEL {mq:puppet}:state paused").await;
    redis.is("all are done", "XLEN mq:puppet", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_renewed_however_long_a_handler_takes() {
    let redis = Redis::start();
    let plugins = puppet(PUPPET);
    let options = ["--queue-lease", "2s"];
    let first = Gateway::start_with(&redis.url(), &plugins, &options);
    first.until_loaded("puppet").await;
    redis.publish("puppet", "long", r#"{"do":"sleep","ms":7000}"#).await;
    redis.until_in_flight("puppet", 1).await;
    let second = Gateway::start_with(&redis.url(), &plugins, &options);
    first.until_outcome("puppet", "long", "done").await;
    redis.is("settled", "XLEN mq:puppet", 0).await;
    assert!(second.logged(events::RECLAIMED).is_empty());
    assert!(second.outcomes("puppet").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_finishes_running_messages_and_requeues_the_others() {
    let redis = Redis::start();
    let plugins = puppet("concurrency = 2\n");
    let gateway = Gateway::start(&redis, &plugins);
    for number in 0..6 {
        redis.publish("puppet", &number.to_string(), r#"{"do":"sleep","ms":4000}"#).await;
    }
    gateway.until_asleep("puppet", 2).await;
    assert!(gateway.stop().await.success());
    assert_eq!(redis.run::<i64>("XLEN mq:puppet").await, 4);
    assert_eq!(redis.in_flight("puppet").await, 0);
    let consumers: Vec<redis::Value> = redis.run("XINFO CONSUMERS mq:puppet consumer-group-puppet").await;
    assert!(consumers.is_empty(), "{consumers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_cut_off_by_the_shutdown_is_requeued_and_reclaimed_at_once() {
    let redis = Redis::start();
    let plugins = puppet("");
    let first = Gateway::start_with(&redis.url(), &plugins, &["--shutdown-timeout", "100ms"]);
    redis.publish("puppet", "slow", r#"{"do":"sleep","ms":2000}"#).await;
    first.until_asleep("puppet", 1).await;
    first.stop().await;
    // With a lease of an hour only requeued messages are available at once.
    let second = Gateway::start_with(&redis.url(), &plugins, &["--queue-lease", "1h"]);
    second.until_outcome("puppet", "slow", "done").await;
    assert!(second.logged(events::RECLAIMED).is_empty(), "a requeued message is counted as lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_worker_at_once() {
    let redis = Redis::start();
    let plugins = puppet("");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("puppet", "slow", r#"{"do":"sleep","ms":25000}"#).await;
    gateway.until_asleep("puppet", 1).await;
    gateway.signal(Signal::TERM);
    gateway.until_logged(events::SHUTTING_DOWN, |_| true).await;
    let (status, body) = gateway.json("/ready").await;
    assert_eq!((status, &body["status"]), (503, &json!("draining")));
    gateway.stop().await;
    redis.is("the message is still there", "XLEN mq:puppet", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_message_is_not_run() {
    let redis = Redis::start();
    let plugins = puppet(PUPPET);
    let gateway = Gateway::start(&redis, &plugins);
    let envelope = |id: &str, at: &str| {
        format!(r#"{{"id":"{id}","topic":"puppet","data":{{"do":"echo","to":"seen"}},"expires_at":"{at}"}}"#)
    };
    redis.add("puppet", envelope("old", "2020-01-01T00:00:00Z").as_bytes()).await;
    redis.add("puppet", envelope("young", "2120-01-01T00:00:00Z").as_bytes()).await;
    gateway.until_outcome("puppet", "young", "done").await;
    gateway.until_outcome("puppet", "old", "expired").await;
    redis.is("one follow-up", "XLEN mq:seen", 1).await;
    redis.is("settled", "XLEN mq:puppet", 0).await;
}

/// The number of entries that the group `audit` can read.
async fn read_by_audit(redis: &Redis) -> usize {
    let read = "XREADGROUP GROUP audit me COUNT 1000 STREAMS mq:t >";
    let redis::Value::Array(streams) = redis.run(read).await else { return 0 };
    let redis::Value::Array(stream) = &streams[0] else { panic!("{streams:?}") };
    let redis::Value::Array(entries) = &stream[1] else { panic!("{stream:?}") };
    entries.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_consumer_group_loses_no_message() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &guest(OK), "");
    for start in 0..3 {
        for number in 0..100 {
            redis.publish("t", &format!("{start}-{number}"), "{}").await;
        }
        if start == 0 {
            redis.run::<()>("XGROUP CREATE mq:t audit 0").await;
        }
        let gateway = Gateway::start(&redis, &plugins);
        until("all are done", async || (gateway.outcomes("t").len() == 100).then_some(())).await;
        redis.is("all are settled", "HGET {mq:t}:state done", 100 * (start + 1)).await;
        gateway.kill();
    }
    assert_eq!(read_by_audit(&redis).await, 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_consumer_group_loses_no_message_once_it_is_detected() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("t", "before", "{}").await;
    gateway.until_outcome("t", "before", "done").await;
    // The first sweep also checks the groups; the next one is a minute later.
    gateway.until_logged(events::TOPIC_OPENED, |line| line["streams"] == "[Normal]").await;
    redis.is("swept", "HEXISTS {mq:t}:state floor", 1).await;
    redis.run::<()>("XGROUP CREATE mq:t audit $").await;
    let created = redis.run::<(i64, i64)>("TIME").await.0;
    gateway.until_logged(events::OTHER_GROUPS, |line| line["stream"] == "t").await;
    assert!(redis.run::<(i64, i64)>("TIME").await.0 - created < 40, "only the next sweep has detected it");
    for number in 0..20 {
        let id = number.to_string();
        redis.publish("t", &id, "{}").await;
        gateway.until_outcome("t", &id, "done").await;
    }
    redis.is("settled", "HGET {mq:t}:state done", 21).await;
    assert_eq!(read_by_audit(&redis).await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_follow_ups_cannot_be_sent_fails_and_sends_none() {
    let redis = Redis::start();
    let plugins = puppet("[grants]\npublish = [\"fine\", \"broken\"]\n[retry]\nattempts = 3\nbase = \"1ms\"\n");
    let gateway = Gateway::start(&redis, &plugins);
    let to = |act: &str| format!(r#"{{"do":"all","of":[{{"do":"publish","to":"fine","times":2,"then":null}},{act}]}}"#);
    for (key, kind, act) in [
        ("mq:broken", "not a stream", r#"{"do":"publish","to":"broken","times":1,"then":null}"#),
        ("{mq:broken}:delayed", "not a zset", r#"{"do":"delay","to":"broken","seconds":9}"#),
        ("{mq:broken}:delayed:body", "not a hash", r#"{"do":"delay","to":"broken","seconds":9}"#),
    ] {
        redis.run::<()>(&format!("SET {key} text")).await;
        redis.publish("puppet", key, &to(act)).await;
        let dead = redis.dead("puppet").await;
        assert_eq!((text(&dead, "gw-reason"), text(&dead, "gw-attempts")), ("retry".to_owned(), "3".to_owned()));
        assert_eq!(text(&dead, "gw-error"), format!("its follow-ups can't be published: {key} holds a string, {kind}"));
        // It ran with all its attempts, and no follow-up was sent.
        let runs = gateway.outcomes("puppet").into_iter().filter(|(id, _)| id == key).count();
        assert_eq!(runs, 3, "{key}");
        assert_eq!(redis.run::<i64>("EXISTS mq:fine").await, 0, "{key}");
        redis.is("settled", "XLEN mq:puppet", 0).await;
        redis.run::<i64>(&format!("DEL {key} {{mq:puppet}}:dead")).await;
    }
    redis.publish("puppet", "now", &to(r#"{"do":"delay","to":"broken","seconds":3600}"#)).await;
    redis.is("all are sent", "XLEN mq:fine", 2).await;
    redis.is("the delayed one too", "ZCARD {mq:broken}:delayed", 1).await;
    let (_, metrics) = gateway.json("/metrics").await;
    let outcomes = metrics.to_string();
    assert!(outcomes.contains(r#""retry":9"#), "{outcomes}");
}
