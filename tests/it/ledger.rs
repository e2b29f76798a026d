//! Nothing disappears without an account: what is in a stream, delivered and not
//! pending, and what fails after its entry was deleted or trimmed.

use crate::legacy::LEGACY_CONSUMER;
use crate::support::{Gateway, Plugins, Redis, built, run_command, text};
use gateway_worker::events;
use gateway_worker::queue::StreamKind;
use rustix::process::Signal;
use serde_json::Value;
use std::time::Duration;

const LEASE: [&str; 2] = ["--queue-lease", "1s"];

fn plugins() -> Plugins {
    let manifest = "[grants]\npublish = [\"seen\"]\n[retry]\nattempts = 2\nbase = \"20ms\"\ncap = \"50ms\"\n";
    Plugins::with("puppet", &built("puppet"), manifest)
}

fn start(redis: &Redis, plugins: &Plugins) -> Gateway {
    Gateway::start_with(&redis.url(), plugins, &LEASE)
}

/// Publishes a message that runs for this long before it does something else.
async fn publish_slow(redis: &Redis, id: &str, ms: u64, then: &str) {
    let data = format!(r#"{{"do":"all","of":[{{"do":"sleep","ms":{ms}}},{then}]}}"#);
    redis.publish("puppet", id, &data).await;
}

const ECHO: &str = r#"{"do":"echo","to":"seen"}"#;
const FAIL: &str = r#"{"do":"fail","times":9}"#;

async fn consumers(redis: &Redis, key: &str) -> Vec<String> {
    let rows: Vec<(String, String, u64, u64)> =
        redis.run(&format!("XPENDING {key} consumer-group-puppet - + 100")).await;
    rows.into_iter().map(|(_, owner, ..)| owner).collect()
}

async fn attempts_seen(redis: &Redis) -> Vec<(String, u64)> {
    crate::legacy::seen_in(&redis.envelopes("mq:seen").await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_a_killed_worker_whose_consumer_was_deleted_runs_with_its_attempt_unchanged() {
    let redis = Redis::start();
    let plugins = plugins();
    let first = start(&redis, &plugins);
    publish_slow(&redis, "unfinished", 600_000, ECHO).await;
    first.until_asleep("puppet", 1).await;
    first.kill();
    let owner = consumers(&redis, "mq:puppet").await.remove(0);
    redis.run::<i64>(&format!("XGROUP DELCONSUMER mq:puppet consumer-group-puppet {owner}")).await;
    let second = start(&redis, &plugins);
    second.until_asleep("puppet", 1).await;
    let line = second.until_logged(events::RESTORED, |_| true).await;
    assert_eq!((line["level"].as_str(), line["count"].as_u64()), (Some("WARN"), Some(1)));
    let rows: Vec<(String, String, u64, u64)> = redis.run("XPENDING mq:puppet consumer-group-puppet - + 10").await;
    assert_eq!(rows.iter().map(|row| row.3).collect::<Vec<_>>(), [1], "no crash is counted");
    assert_eq!(redis.run::<i64>("HGET {mq:puppet}:state restored").await, 1);
    assert!(second.logged(events::HISTORY_SWEPT).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_living_worker_whose_consumer_is_deleted_finishes_what_it_runs_once() {
    for (then, outcome) in [(ECHO, "done"), (FAIL, "retry")] {
        let redis = Redis::start();
        let plugins = plugins();
        let gateway = start(&redis, &plugins);
        publish_slow(&redis, "a", 5000, then).await;
        gateway.until_asleep("puppet", 1).await;
        let owner = consumers(&redis, "mq:puppet").await.remove(0);
        redis.run::<i64>(&format!("XGROUP DELCONSUMER mq:puppet consumer-group-puppet {owner}")).await;
        gateway.until_logged(events::RESTORED, |_| true).await;
        gateway.until_outcome("puppet", "a", outcome).await;
        if outcome == "done" {
            redis.is("settled", "XLEN mq:puppet", 0).await;
            assert_eq!(attempts_seen(&redis).await, [("a".to_owned(), 1)]);
        } else {
            assert_eq!(text(&redis.dead("puppet").await, "gw-attempts"), "2");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_passed_over_before_we_came_is_kept_until_an_operator_decides() {
    let redis = Redis::start();
    for number in 0..5 {
        redis.publish("puppet", &format!("old-{number}"), ECHO).await;
    }
    redis.run::<()>("XGROUP CREATE mq:puppet consumer-group-puppet $").await;
    let plugins = plugins();
    let gateway = start(&redis, &plugins);
    redis.publish("puppet", "new", ECHO).await;
    gateway.until_outcome("puppet", "new", "done").await;
    let line = gateway.until_logged(events::NEVER_OURS, |_| true).await;
    assert_eq!((line["level"].as_str(), line["count"].as_u64()), (Some("WARN"), Some(5)));
    assert_eq!(line["ids"].as_str().unwrap().split(' ').count(), 5);
    redis.is("kept", "XLEN mq:puppet", 5).await;
    let show = |redis: &Redis| run_command(&["topics", "show", "puppet", "--redis-url", &redis.url()]).1;
    let shown = show(&redis);
    assert!(shown.contains("XGROUP SETID 'mq:puppet' 'consumer-group-puppet' 0"), "{shown}");
    assert!(shown.contains("topics purge 'puppet'"), "{shown}");
    // A lost group does not run them either.
    redis.run::<i64>("XGROUP DESTROY mq:puppet consumer-group-puppet").await;
    redis.publish("puppet", "newer", ECHO).await;
    gateway.until_outcome("puppet", "newer", "done").await;
    assert_eq!(attempts_seen(&redis).await, [("new".to_owned(), 1), ("newer".to_owned(), 1)]);
    // Each way out works.
    redis.run::<()>("XGROUP SETID mq:puppet consumer-group-puppet 0").await;
    gateway.until_outcome("puppet", "old-4", "done").await;
    redis.is("all are run", "XLEN mq:puppet", 0).await;
    assert_eq!(attempts_seen(&redis).await.len(), 7);
    assert!(!show(&redis).contains("passed over"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_deletes_what_was_passed_over() {
    let redis = Redis::start();
    for number in 0..3 {
        redis.publish("puppet", &number.to_string(), ECHO).await;
    }
    redis.run::<()>("XGROUP CREATE mq:puppet consumer-group-puppet $").await;
    redis.queue("puppet", "me").open().await.unwrap();
    let (code, out, err) = run_command(&["topics", "purge", "puppet", "--yes", "--redis-url", &redis.url()]);
    assert_eq!((code, out.trim()), (0, "3 waiting messages deleted"), "{err}");
    assert_eq!(redis.run::<i64>("XLEN mq:puppet").await, 0);
}

#[tokio::test]
async fn each_stream_has_positions_of_its_own_and_group_changes_move_them_back() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    for key in ["mq:t", "{mq:t}:high", "{mq:t}:work", "{mq:t}:low"] {
        redis.run::<String>(&format!("XADD {key} 1-1 message 1")).await;
        redis.run::<()>(&format!("XGROUP CREATE {key} consumer-group-t 1-1")).await;
    }
    redis.run::<()>("HSET {mq:t}:state high 1 low 1").await;
    queue.open().await.unwrap();
    for (stream, class) in StreamKind::ALL.into_iter().zip([":high", "", ":work", ":low"]) {
        if stream == StreamKind::Work {
            // Workers read it only while the main key is a list, or it has entries.
            continue;
        }
        assert_eq!(redis.run::<String>(&format!("HGET {{mq:t}}:state start{class}")).await, "1-1");
        assert_eq!(queue.sweep_all(stream).await.never_ours.len(), 1, "{stream:?}");
    }
    redis.run::<()>("XGROUP SETID mq:t consumer-group-t 0").await;
    queue.open().await.unwrap();
    assert_eq!(redis.run::<String>("HGET {mq:t}:state start").await, "0-0");
    let read = "XREADGROUP GROUP consumer-group-t gone STREAMS mq:t >";
    redis.run::<redis::Value>(read).await;
    redis.run::<i64>("XGROUP DELCONSUMER mq:t consumer-group-t gone").await;
    assert_eq!(queue.sweep_all(StreamKind::Normal).await.unfinished.len(), 1);
}

#[tokio::test]
async fn what_other_groups_and_legacy_workers_leave_is_history_and_nothing_else() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    let finish = async |consumer: &str, acknowledge: bool| {
        redis.publish("t", "x", "1").await;
        queue.open().await.unwrap();
        let read = format!("XREADGROUP GROUP consumer-group-t {consumer} STREAMS mq:t >");
        redis.run::<redis::Value>(&read).await;
        if acknowledge {
            let last: Vec<(String, Vec<String>)> = redis.run("XREVRANGE mq:t + - COUNT 1").await;
            redis.run::<i64>(&format!("XACK mq:t consumer-group-t {}", last[0].0)).await;
        } else {
            redis.run::<i64>(&format!("XGROUP DELCONSUMER mq:t consumer-group-t {consumer}")).await;
        }
    };
    // A legacy worker finishes one, and is seen.
    finish(LEGACY_CONSUMER, true).await;
    assert_eq!(queue.sweep_all(StreamKind::Normal).await.history.len(), 1);
    // It does not ask any more, and a worker of ours loses one. Other commands name the
    // legacy consumer too, so its idle time is made to pass.
    redis.run::<i64>(&format!("XGROUP DELCONSUMER mq:t consumer-group-t {LEGACY_CONSUMER}")).await;
    finish("gone", false).await;
    let swept = queue.sweep_all(StreamKind::Normal).await;
    assert_eq!((swept.history.len(), swept.unfinished.len()), (0, 1));
    let unfinished: Vec<_> = swept.unfinished.into_iter().map(|one| (one, None)).collect();
    // Twice, as after a lost reply.
    assert_eq!(queue.leases.restore(StreamKind::Normal, &unfinished).await.unwrap().len(), 1);
    assert_eq!(queue.leases.restore(StreamKind::Normal, &unfinished).await.unwrap(), []);
    let found = queue.leases.reconcile(StreamKind::Normal, &[]).await.unwrap().remove(0);
    assert_eq!((found.delivery_count, found.crash_count), (1, 0));
    // Another group appears; what we finish stays for it, and never runs again after it goes.
    redis.run::<()>("XGROUP CREATE mq:t audit 0").await;
    queue.open().await.unwrap();
    let settled = queue.settlements.settle(&[found.done(None, Vec::new())], Duration::ZERO).await.unwrap();
    assert_eq!(settled, [gateway_worker::queue::Settled::Ok]);
    redis.run::<i64>("XGROUP DESTROY mq:t audit").await;
    let swept = queue.sweep_all(StreamKind::Normal).await;
    assert_eq!((swept.history, swept.unfinished), (vec![found.entry], Vec::new()));
    assert_eq!(redis.run::<i64>("XLEN mq:t").await, 0);
}

/// Lets the entry of a running message disappear, and returns what happened.
async fn trimmed_while_it_runs(
    then: &str,
    command: &str,
    is_renewed: bool,
    plugins: &Plugins,
) -> (Redis, Gateway, Vec<Value>) {
    let redis = Redis::start();
    let gateway = start(&redis, plugins);
    publish_slow(&redis, "a", if is_renewed { 2500 } else { 700 }, then).await;
    gateway.until_asleep("puppet", 1).await;
    let entries: Vec<(String, Vec<String>)> = redis.run("XRANGE mq:puppet - +").await;
    redis.run::<redis::Value>(&command.replace("ID", &entries[0].0)).await;
    if is_renewed {
        gateway.until_logged(events::ENTRIES_DELETED, |_| true).await;
    }
    let settled = |line: &Value| line["id"] == "a" && line["outcome"].is_string();
    gateway.until_logged(events::SETTLED, settled).await;
    let lines = gateway.logged(events::SETTLED).into_iter().filter(settled).collect();
    (redis, gateway, lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_after_its_entry_was_deleted_is_a_dead_letter_from_the_copy_in_hand() {
    const FAILURES: [(&str, &str); 4] = [
        (FAIL, "retry"),
        (r#"{"do":"reject","code":"no","reason":"way"}"#, "reject"),
        (r#"{"do":"postpone","reason":"later"}"#, "postpone"),
        (r#"{"do":"panic","text":"ouch"}"#, "trap"),
    ];
    let commands = ["XDEL mq:puppet ID", "XTRIM mq:puppet MAXLEN 0", "XADD mq:puppet MAXLEN 1 * message 1"];
    for (at, (act, outcome)) in FAILURES.into_iter().enumerate() {
        let plugins = plugins();
        let (redis, _gateway, lines) = trimmed_while_it_runs(act, commands[at % 3], at % 2 == 0, &plugins).await;
        assert_eq!((lines.len(), lines[0]["outcome"].as_str()), (1, Some(outcome)), "{lines:?}");
        assert_eq!(
            (lines[0]["dead"].as_str(), lines[0]["retry_in"].as_str()),
            (Some("entry-deleted"), Some("None")),
            "{lines:?}"
        );
        let letters = redis.entries("{mq:puppet}:dead").await;
        let letter = letters.iter().find(|one| text(one, "gw-reason") == "entry-deleted").unwrap();
        assert!(text(letter, "message").contains(r#""id":"a""#));
        assert!(text(letter, "gw-error").contains(outcome), "{}", text(letter, "gw-error"));
        assert_eq!(text(letter, "gw-attempts"), "1");
        redis.until_in_flight("puppet", 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_after_its_entry_was_deleted_is_done_and_counted_once() {
    for is_renewed in [false, true] {
        for then in [ECHO, r#"{"do":"sleep","ms":1}"#] {
            let redis = Redis::start();
            let plugins = plugins();
            let gateway = start(&redis, &plugins);
            publish_slow(&redis, "a", if is_renewed { 2500 } else { 700 }, then).await;
            gateway.until_asleep("puppet", 1).await;
            redis.run::<i64>("XTRIM mq:puppet MAXLEN 0").await;
            gateway.until_outcome("puppet", "a", "done").await;
            redis.is("counted", "HGET {mq:puppet}:state done", 1).await;
            assert_eq!(redis.entries("{mq:puppet}:dead").await, Vec::<Vec<_>>::new());
            if then == ECHO {
                assert_eq!(attempts_seen(&redis).await, [("a".to_owned(), 1)]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_owner_whose_deleted_entry_was_reclaimed_still_has_its_copy() {
    let redis = Redis::start();
    let plugins = plugins();
    let owner = start(&redis, &plugins);
    publish_slow(&redis, "a", 1000, FAIL).await;
    owner.until_asleep("puppet", 1).await;
    owner.signal(Signal::STOP);
    redis.run::<i64>("XTRIM mq:puppet MAXLEN 0").await;
    let other = start(&redis, &plugins);
    let deleted = |line: &Value| line["outcome"] == "entry-deleted";
    other.until_logged(events::SETTLED, deleted).await;
    owner.signal(Signal::CONT);
    let letter = redis.dead("puppet").await;
    assert_eq!(text(&letter, "gw-reason"), "entry-deleted");
    assert!(text(&letter, "message").contains(r#""id":"a""#));
}
