//! Dead letters: show, edit, replay, purge and caps.

use crate::servers::{Mode, Server};
use crate::support::{BINARY, Gateway, Plugins, Redis, field, guest, run_command, text, until};
use crate::topic_client::TopicClient;
use gateway_worker::events;
use gateway_worker::queue::dead::{DeadLetterEntry, Order, Origin, Replayed};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::{Command, Stdio};

/// Exit code, stdout, stderr of `dead ...`.
fn dead_at(url: &str, args: &[&str]) -> (i32, String, String) {
    run_command(&[&["dead"], args, &["--redis-url", url]].concat())
}

fn dead(redis: &Redis, args: &[&str]) -> (i32, String, String) {
    dead_at(&redis.url(), args)
}

fn envelope(id: &str) -> String {
    format!(
        r#"{{"id":"{id}","topic":"t","data":{{"n":1}},"timestamp":"2026-11-23T07:45:23Z","retry":3,"max_retry":3}}"#
    )
}

/// Adds a dead letter as a settlement does. Returns its entry id.
async fn add_dead_letter(redis: &Redis, body: &[u8], more: &[(&str, &[u8])]) -> String {
    let mut command = redis::cmd("XADD");
    command.arg("{mq:t}:dead").arg("*").arg("message").arg(body);
    for (name, value) in DEATH.iter().map(|(name, value)| (*name, value.as_bytes())) {
        if more.iter().all(|(other, _)| *other != name) {
            command.arg(name).arg(value);
        }
    }
    for (name, value) in more {
        command.arg(name).arg(*value);
    }
    command.query_async(&mut redis.connection().await).await.unwrap()
}

const DEATH: [(&str, &str); 10] = [
    ("gw-reason", "trap"),
    ("gw-error", "it broke"),
    ("gw-attempts", "3"),
    ("gw-source", "t/1795419923585-7"),
    ("gw-published-at", "2026-11-23T07:45:23.585Z"),
    ("gw-died-at", "2026-11-23T07:46:23.585Z"),
    ("gw-digest", "abc"),
    ("gw-attempt", "3"),
    ("gw-postponed", "2"),
    ("gw-postponed-since", "1795419923585"),
];

async fn add_dead_letters(redis: &Redis, count: usize) {
    let mut pipe = redis::pipe();
    for number in 0..count {
        pipe.cmd("XADD").arg("{mq:t}:dead").arg("*").arg("message").arg(envelope(&number.to_string()));
        pipe.arg("gw-reason").arg("trap").ignore();
    }
    pipe.query_async::<()>(&mut redis.connection().await).await.unwrap();
}

async fn add_legacy_dead_letter(redis: &Redis, message: &str) -> String {
    let body = format!(r#"{{"error":"boom","failed_at":"2026-11-23T07:46:17Z","original_message":{message}}}"#);
    let mut command = redis::cmd("XADD");
    command.arg("mq:dead-letter:t").arg("*").arg("message").arg(body);
    command.query_async(&mut redis.connection().await).await.unwrap()
}

async fn ids(redis: &Redis, key: &str) -> Vec<String> {
    redis.envelopes(key).await.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

async fn letters(queue: &TopicClient) -> Vec<DeadLetterEntry> {
    queue.dead_letters.list(Origin::Ours, Order::OldestFirst).await.unwrap().next().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_dead_letter_is_its_message_without_the_failure_fields() {
    let redis = Redis::start();
    let body = envelope("a");
    let entry = add_dead_letter(&redis, body.as_bytes(), &[("note", b"\xff")]).await;
    add_dead_letter(&redis, envelope("stays").as_bytes(), &[]).await;
    assert_eq!(dead(&redis, &["replay", "t", &entry]).1, "1 replayed\n");
    let bytes = |text: &str| text.as_bytes().to_vec();
    let expected = [("message", bytes(&body)), ("note", b"\xff".to_vec()), ("gw-fresh", bytes("1"))];
    assert_eq!(redis.entries("mq:t").await, [expected.map(|(name, value)| (name.to_owned(), value))]);
    assert_eq!(ids(&redis, "{mq:t}:dead").await, ["stays"]);
    // A second replay of it fails.
    let (code, out, error) = dead(&redis, &["replay", "t", &entry]);
    assert_eq!((code, out.as_str()), (1, "0 replayed\n"));
    assert!(error.contains(&entry) && error.contains("no such dead letter"), "{error}");
    redis.is("it was replayed once", "XLEN mq:t", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_without_an_id_keeps_its_assigned_id_on_replay() {
    let redis = Redis::start();
    add_dead_letter(&redis, b"[1]", &[]).await;
    add_dead_letter(&redis, b"[2]", &[("gw-id", b"first-entry")]).await;
    assert_eq!(dead(&redis, &["replay", "t", "--all"]).1, "2 replayed\n");
    let entries = redis.entries("mq:t").await;
    assert_eq!(text(&entries[0], "gw-id"), "1795419923585-7");
    assert_eq!(text(&entries[1], "gw-id"), "first-entry");
    for entry in &entries {
        assert_eq!(text(entry, "gw-published-at"), "2026-11-23T07:45:23.585Z");
        let names: Vec<_> = entry.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["message", "gw-fresh", "gw-id", "gw-published-at"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_select_beyond_the_newest_page() {
    let redis = Redis::start();
    add_dead_letter(&redis, envelope("needle").as_bytes(), &[("gw-reason", b"decode")]).await;
    add_dead_letter(&redis, b"\xff needle in no envelope", &[]).await;
    add_dead_letters(&redis, 250).await;
    let (_, json, _) = dead(&redis, &["ls", "t", "--search", "needle", "--limit", "1", "--json"]);
    let listed: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert!(listed[0]["message"].as_str().unwrap().contains("in no envelope"), "{json}");
    let (_, json, _) = dead(&redis, &["ls", "t", "--search", "needle", "--reason", "decode", "--json"]);
    let listed: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["id"]), (1, &json!("needle")));

    assert_eq!(dead(&redis, &["replay", "t", "--reason", "decode", "--search", "needle"]).1, "1 replayed\n");
    assert_eq!(ids(&redis, "mq:t").await, ["needle"]);
    redis.is("the others remain", "XLEN {mq:t}:dead", 251).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_and_repeated_replay_leaves_each_message_exactly_once() {
    let redis = Redis::start();
    add_dead_letters(&redis, 2000).await;
    let (queue, url) = (redis.queue("t", ""), redis.url());
    // The same page twice, as after a lost reply.
    let page = letters(&queue).await;
    assert_eq!(page.len(), 100);
    assert!(queue.replay.replay(&page).await.unwrap().iter().all(|result| *result == Replayed::Ok));
    assert!(queue.replay.replay(&page).await.unwrap().iter().all(|result| *result == Replayed::Gone));
    // Two concurrent commands, killed during the replay.
    for _ in 0..3 {
        let start = || {
            let mut command = Command::new(BINARY);
            command.args(["dead", "replay", "t", "--all", "--redis-url", &url]);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        let before = redis.run::<i64>("XLEN {mq:t}:dead").await;
        let mut commands = [start(), start()];
        until("the replay has begun", async || {
            (redis.run::<i64>("XLEN {mq:t}:dead").await < before.max(1)).then_some(())
        })
        .await;
        for command in &mut commands {
            command.kill().unwrap();
            command.wait().unwrap();
        }
    }
    let (code, _, error) = dead(&redis, &["replay", "t", "--all"]);
    assert_eq!(code, 0, "{error}");
    redis.is("all are replayed", "XLEN {mq:t}:dead", 0).await;
    let ids = ids(&redis, "mq:t").await;
    assert_eq!((ids.len(), ids.iter().collect::<BTreeSet<_>>().len()), (2000, 2000));
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_restart_at_one_and_a_message_that_dies_again_stays_dead() {
    let redis = Redis::start();
    // The attempts are logged; the second follows after 1 ms.
    let plugins = Plugins::with("t", &guest("(unreachable)"), "[retry]\nattempts = 2\nbase = \"1ms\"\n");
    for id in ["a", "b", "c"] {
        add_dead_letter(&redis, envelope(id).as_bytes(), &[]).await;
    }
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_ready().await;
    assert_eq!(dead(&redis, &["replay", "t", "--all"]).1, "3 replayed\n");
    redis.is("dead again", "XLEN {mq:t}:dead", 3).await;
    for id in ["a", "b", "c"] {
        let attempts: Vec<i64> = gateway
            .logged(events::HANDLED)
            .iter()
            .filter(|line| line["id"] == id)
            .map(|line| line["attempt"].as_i64().unwrap())
            .collect();
        assert_eq!(attempts, [1, 2], "{id}");
    }
    for letter in redis.entries("{mq:t}:dead").await {
        assert_eq!(text(&letter, "gw-attempts"), "2");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_keeps_the_priority_and_follows_the_kind_of_the_topic() {
    let redis = Redis::start();
    for source in ["t:high/1-1", "t:low/1-1", "t:work/1-1", "t/1-1"] {
        add_dead_letter(&redis, envelope(source).as_bytes(), &[("gw-source", source.as_bytes())]).await;
    }
    assert_eq!(dead(&redis, &["replay", "t", "--all"]).1, "4 replayed\n");
    assert_eq!(ids(&redis, "{mq:t}:high").await, ["t:high/1-1"]);
    assert_eq!(ids(&redis, "{mq:t}:low").await, ["t:low/1-1"]);
    assert_eq!(ids(&redis, "mq:t").await, ["t:work/1-1", "t/1-1"]);
    assert_eq!(redis.run::<Vec<i64>>("HMGET {mq:t}:state high low").await, [1, 1]);

    redis.run::<i64>("DEL mq:t").await;
    redis.run::<i64>("RPUSH mq:t plain").await;
    add_dead_letter(&redis, envelope("to-a-list").as_bytes(), &[]).await;
    assert_eq!(dead(&redis, &["replay", "t", "--all"]).1, "1 replayed\n");
    assert_eq!(ids(&redis, "{mq:t}:work").await, ["to-a-list"]);

    redis.run::<i64>("DEL mq:t").await;
    redis.run::<String>("SET mq:t other").await;
    add_dead_letter(&redis, envelope("nowhere").as_bytes(), &[]).await;
    let (code, _, error) = dead(&redis, &["replay", "t", "--all"]);
    assert!(code == 1 && error.contains("WRONGTYPE"), "{error}");
    redis.is("it remains", "XLEN {mq:t}:dead", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packed_dead_letters_are_replayed_unpacked_or_stay() {
    let redis = Redis::start();
    let pack = async |fields: usize, id: &str| {
        let script = redis::Script::new(
            "local f = {'gw-reason', 'too-large', 'gw-source', ARGV[2]}
             for i = 1, ARGV[1] do f[#f + 1] = 'f' .. i f[#f + 1] = i .. '' end
             return redis.call('XADD', KEYS[1], '*', 'gw-packed', cmsgpack.pack(f))",
        );
        let mut script = script.key("{mq:t}:dead");
        script.arg(fields).arg(id).invoke_async::<String>(&mut redis.connection().await).await.unwrap()
    };
    let (fits, large) = (pack(3490, "t/1-1").await, pack(4000, "t/2-2").await);
    let (_, shown, _) = dead(&redis, &["show", "t", &fits]);
    assert!(shown.contains("gw-reason: too-large") && shown.contains("f3490: 3490"), "{shown}");
    let (code, out, error) = dead(&redis, &["replay", "t", "--all"]);
    assert_eq!((code, out.as_str()), (1, "1 replayed\n"));
    assert!(error.contains(&large) && error.contains("too many fields"), "{error}");
    let entries = redis.entries("mq:t").await;
    assert_eq!(text(&entries[0], "f3490"), "3490");
    assert_eq!((text(&entries[0], "gw-id"), entries[0].len()), ("1-1".to_owned(), 3493));
    redis.is("the large one remains", "XLEN {mq:t}:dead", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn legacy_dead_letters_are_replayed_byte_for_byte() {
    let redis = Redis::start();
    let message = r#"{"id":"old", "topic":"t","data":{"n":9007199254740993, "a":1.0},"retry":3,"max_retry":3}"#;
    let entry = add_legacy_dead_letter(&redis, message).await;
    let (_, shown, _) = dead(&redis, &["show", "t", "old"]);
    assert!(shown.contains(&entry) && shown.contains("(legacy)"), "{shown}");
    add_legacy_dead_letter(&redis, r#"{"id":"other"}"#).await;
    let mut broken = redis::cmd("XADD");
    broken.arg("mq:dead-letter:t").arg("*").arg("message").arg("no JSON");
    broken.query_async::<String>(&mut redis.connection().await).await.unwrap();

    assert_eq!(dead(&redis, &["replay", "t", "--search", "9007199254740993"]).1, "1 replayed\n");
    let entries = redis.entries("mq:t").await;
    assert_eq!((text(&entries[0], "message"), text(&entries[0], "gw-fresh")), (message.to_owned(), "1".to_owned()));
    let (code, out, error) = dead(&redis, &["replay", "t", "--all"]);
    assert_eq!((code, out.as_str()), (1, "1 replayed\n"));
    assert!(error.contains("original_message"), "{error}");
    redis.is("the undecodable one remains", "XLEN mq:dead-letter:t", 1).await;
    assert_eq!(dead(&redis, &["purge", "t", "--all", "--yes"]).1, "1 purged\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_die_meanwhile_are_not_part_of_a_walk_or_a_purge() {
    let redis = Redis::start();
    let queue = redis.queue("t", "");
    add_dead_letters(&redis, 150).await;
    let mut walk = queue.dead_letters.list(Origin::Ours, Order::OldestFirst).await.unwrap();
    let mut newest = None;
    add_dead_letters(&redis, 1).await;
    let (first, second) = (walk.next().await.unwrap(), walk.next().await.unwrap());
    assert_eq!((first.len() + second.len(), walk.next().await.unwrap().len()), (150, 0));
    assert_eq!(queue.dead_purge.all(Origin::Ours, &mut newest).await.unwrap(), 100);
    add_dead_letters(&redis, 2).await;
    while queue.dead_purge.all(Origin::Ours, &mut newest).await.unwrap() > 0 {}
    assert_eq!(redis.run::<i64>("XLEN {mq:t}:dead").await, 2);
}

/// In a cluster the keys are in different slots, so no script can publish and remove.
#[tokio::test(flavor = "multi_thread")]
async fn legacy_entries_in_another_slot_are_removed_only_once_they_are_published() {
    let server = Server::start(Mode::Cluster).await;
    let slot = async |key: &str| server.run::<u16>(&format!("CLUSTER KEYSLOT {key}")).await;
    for key in ["mq:delay:t", "mq:dead-letter:t"] {
        assert_ne!(slot(key).await, slot("mq:t").await);
    }
    server.run::<i64>(r#"ZADD mq:delay:t 1 {"id":"due"}"#).await;
    server.run::<String>(r#"XADD mq:dead-letter:t * message {"original_message":{"id":"dead"}}"#).await;
    let queue = server.queue("t", "me");
    let letters = queue.dead_letters.list(Origin::Legacy, Order::OldestFirst).await.unwrap().next().await.unwrap();
    server.run::<()>("SET mq:t text").await;
    assert!(queue.legacy_delayed.promote().await.is_err() && queue.replay.replay(&letters).await.is_err());
    let left = (server.run::<i64>("ZCARD mq:delay:t").await, server.run::<i64>("XLEN mq:dead-letter:t").await);
    assert_eq!(left, (1, 1));
    server.run::<i64>("DEL mq:t").await;
    assert_eq!(queue.replay.replay(&letters).await.unwrap(), [Replayed::Ok]);
    // The same request again, as after a lost reply.
    assert_eq!(queue.replay.replay(&letters).await.unwrap(), [Replayed::Gone]);
    assert_eq!(server.run::<i64>("XLEN mq:t").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_changes_the_data_and_no_other_byte() {
    let redis = Redis::start();
    let body = r#"{ "id":"a","topic" : "t","data":{"n": 1.0},"extra":[1e2],"retry":3 }"#;
    let entry = add_dead_letter(&redis, body.as_bytes(), &[("note", b"\xfe")]).await;
    let (code, new, error) = dead(&redis, &["edit", "t", &entry, "--data", r#"{"n": 9007199254740993}"#]);
    assert_eq!(code, 0, "{error}");
    let letter = redis.dead("t").await;
    let edited = r#"{ "id":"a","topic" : "t","data":{"n": 9007199254740993},"extra":[1e2],"retry":3 }"#;
    assert_eq!(text(&letter, "message"), edited);
    assert_eq!((text(&letter, "gw-reason"), field(&letter, "note")), ("trap".to_owned(), b"\xfe".to_vec()));
    assert_eq!(letter.len(), 12);
    redis.is("the edit adds no entry", "XLEN {mq:t}:dead", 1).await;
    let (code, _, error) = dead(&redis, &["edit", "t", &entry, "--data", "1"]);
    assert!(code == 1 && error.contains(&entry), "{error}");
    assert_eq!(dead(&redis, &["replay", "t", new.trim()]).1, "1 replayed\n");
    assert_eq!(text(&redis.entries("mq:t").await[0], "message"), edited);

    // A message without an envelope becomes exactly the given data.
    let entry = add_dead_letter(&redis, b"\xff", &[]).await;
    assert_eq!(dead(&redis, &["edit", "t", &entry, "--data", &envelope("mended")]).0, 0);
    let plain: String = redis.run("XADD {mq:t}:dead * color red gw-source t/5-5").await;
    assert_eq!(dead(&redis, &["edit", "t", &plain, "--data", "[2]"]).0, 0);
    let letters = redis.entries("{mq:t}:dead").await;
    assert_eq!(text(&letters[0], "message"), envelope("mended"));
    let names: Vec<_> = letters[1].iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["message", "gw-source"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_dead_letter_cannot_be_edited_and_alternatives_are_named() {
    let redis = Redis::start();
    let letter = format!(r#"{{"error":"x","failed_at":"x","original_message":{}}}"#, envelope("a")).replace(' ', "");
    redis.run::<String>(&format!("XADD mq:dead-letter:t 1000-1 message {letter}")).await;
    let (code, out, error) = dead(&redis, &["edit", "t", "1000-1", "--data", "1"]);
    assert!(code == 1 && out.is_empty(), "{out}{error}");
    for fragment in ["is a legacy dead letter", "can't be edited", "publish t --id ID --data", "dead purge t 1000-1"] {
        assert!(error.contains(fragment), "{fragment}: {error}");
    }
    assert_eq!(text(&redis.entries("mq:dead-letter:t").await[0], "message"), letter);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_takes_named_or_old_or_all_dead_letters() {
    let redis = Redis::start();
    let fresh = add_dead_letter(&redis, envelope("fresh").as_bytes(), &[]).await;
    redis.run::<i64>("DEL {mq:t}:dead").await;
    redis.run::<String>("XADD {mq:t}:dead 1000-1 message 1").await;
    redis.run::<String>("XADD {mq:t}:dead 1000-2 message 2").await;
    redis.run::<String>("XADD mq:dead-letter:t 1000-3 message 3").await;
    add_dead_letters(&redis, 150).await;
    for args in [&["purge", "t", "--all"][..], &["purge", "t", "1000-1"]] {
        let (code, _, error) = dead(&redis, args);
        assert!(code == 2 && error.contains("--yes"), "{error}");
    }
    redis.is("nothing is gone", "XLEN {mq:t}:dead", 152).await;
    let (code, out, error) = dead(&redis, &["purge", "t", "1000-1", &fresh, "--yes"]);
    assert_eq!((code, out.as_str()), (1, "1 purged\n"));
    assert!(error.contains(&fresh) && !error.contains("1000-1"), "{error}");
    assert_eq!(dead(&redis, &["purge", "t", "--older-than", "30d", "--yes"]).1, "2 purged\n");
    redis.is("the recent ones remain", "XLEN {mq:t}:dead", 150).await;
    assert_eq!(dead(&redis, &["purge", "t", "--all", "--yes"]).1, "150 purged\n");
    redis.is("none is left", "XLEN {mq:t}:dead", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_a_dead_letter_is_shown_text_or_binary() {
    let redis = Redis::start();
    let entry = add_dead_letter(&redis, envelope("a").as_bytes(), &[("note", b"\xff\x1b[31mred")]).await;
    for id in [entry.as_str(), "a"] {
        let (code, shown, _) = dead(&redis, &["show", "t", id]);
        assert_eq!(code, 0);
        for fragment in [&entry, "gw-error: it broke", "\\xff\\u{1b}[31mred", "data:\n{\n  \"n\": 1\n}"] {
            assert!(shown.contains(fragment), "{fragment}: {shown}");
        }
    }
    let (_, json, _) = dead(&redis, &["show", "t", "a", "--json"]);
    let shown: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&shown["reason"], &shown["data"]), (&json!("trap"), &json!({"n": 1})));
    assert!(shown["fields"].as_array().unwrap().contains(&json!(["note", "\\xff\u{1b}[31mred"])), "{json}");

    let binary = add_dead_letter(&redis, b"\xc3(\xff", &[("gw-reason", b"decode")]).await;
    let (_, shown, _) = dead(&redis, &["show", "t", &binary]);
    assert!(shown.contains("message: \\xc3(\\xff") && !shown.contains("data:"), "{shown}");
    let (code, _, error) = dead(&redis, &["show", "t", "nobody"]);
    assert!(code == 1 && error.contains("nobody"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_over_the_caps_are_evicted_oldest_first_with_a_warning() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &guest("(unreachable)"), "");
    redis.run::<String>("XADD {mq:t}:dead 1000-1 message 1").await;
    redis.run::<String>("XADD {mq:t}:dead 1000-2 message 2").await;
    let large = vec![b'x'; 50_000];
    let mut entries = Vec::new();
    for number in 0..150 {
        entries.push(add_dead_letter(&redis, &large, &[("number", number.to_string().as_bytes())]).await);
    }
    let without = Gateway::start(&redis, &plugins);
    without.until_ready().await;
    let minute = ["--queue-dead-max-age", "30d"];
    let gateway = Gateway::start_with(&redis.url(), &plugins, &minute);
    let line = gateway.until_logged(events::DEAD_LETTERS_EVICTED, |line| line["topic"] == "t").await;
    assert_eq!((line["evicted"].as_i64(), line["level"].as_str()), (Some(2), Some("WARN")));
    redis.is("only the old ones are evicted", "XLEN {mq:t}:dead", 150).await;
    gateway.kill();

    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--queue-dead-max-bytes", "1MiB"]);
    let bytes = "MEMORY USAGE {mq:t}:dead SAMPLES 0";
    until("it is small enough", async || (redis.run::<i64>(bytes).await <= 1 << 20).then_some(())).await;
    let left = redis.run::<i64>("XLEN {mq:t}:dead").await;
    assert!((10..=20).contains(&left), "no more are evicted than necessary: {left}");
    until("every eviction is logged", async || {
        let lines = gateway.logged(events::DEAD_LETTERS_EVICTED);
        (lines.iter().map(|line| line["evicted"].as_i64().unwrap()).sum::<i64>() == 150 - left).then_some(())
    })
    .await;
    let newest = redis.entries("{mq:t}:dead").await.pop().unwrap();
    assert_eq!(text(&newest, "number"), "149");
    assert_eq!(redis.run::<i64>("HGET {mq:t}:state dead-evicted").await, 152 - left);
    let metric = format!("gateway_dead_letters_evicted_total{{topic=\"t\",reason=\"bytes\"}} {}", 150 - left);
    until("it is counted", async || gateway.get("/metrics/prometheus").await.1.contains(&metric).then_some(())).await;
    assert!(without.logged(events::DEAD_LETTERS_EVICTED).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_arguments_name_the_fix() {
    for (args, fragment) in [
        (&["replay", "t"][..], "--all"),
        (&["replay", "t", "1-1", "--all"], "--all"),
        (&["replay", "t", "--search", ""], "--search"),
        (&["replay", "t", "--reason", ""], "--reason"),
        (&["replay", "t", "x"], "dead ls"),
        (&["replay", "t", "1-99999999999999999999999"], "dead ls"),
        (&["purge", "t", "--yes"], "--older-than"),
        (&["purge", "t", "--all", "--older-than", "1d", "--yes"], "--older-than"),
        (&["edit", "t", "1-1"], "--data"),
        (&["edit", "t", "1-1", "--data", "{"], "not JSON"),
        (&["show", "t"], "ENTRY"),
    ] {
        let (code, _, error) = dead_at("redis://127.0.0.1:1", args);
        assert_eq!(code, 2, "{args:?}: {error}");
        assert!(error.contains(fragment), "{args:?}: {error}");
    }
}
