//! The commands for messages and topics on one server: unusual ids and keys, and messages
//! that move during a search.

use crate::support::{Gateway, OK, Plugins, Redis, guest, run_command, topic, until};
use crate::topic_client::TopicClient;
use gateway_worker::events;
use gateway_worker::publication::{Draft, Priority};
use gateway_worker::queue::{BlockingReader, Delivery, FlowControl, ListEnd, StreamKind, Take};
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

/// Exit code, stdout, stderr.
fn run(redis: &Redis, args: &[&str]) -> (i32, String, String) {
    run_command(&[args, &["--redis-url", &redis.url()]].concat())
}

fn json(redis: &Redis, args: &[&str]) -> Value {
    let (_, out, error) = run(redis, &[args, &["--json"]].concat());
    serde_json::from_str(&out).unwrap_or_else(|bad| panic!("{args:?}: {bad}: {out}{error}"))
}

/// The locations where the command finds a message, each with its stream if it has
/// one.
fn locations(redis: &Redis, id: &str) -> Vec<String> {
    locations_in(&json(redis, &["messages", "find", id]), id)
}

/// The locations in a result for this id.
pub(crate) fn locations_in(found: &Value, id: &str) -> Vec<String> {
    let location = |one: &Value| {
        assert!(one["id"] == id, "{one}");
        let (location, source) = (one["place"].as_str().unwrap(), one["source"].as_str());
        source.map_or(location.to_owned(), |source| format!("{location} {source}"))
    };
    found.as_array().unwrap().iter().map(location).collect()
}

async fn publish(redis: &Redis, id: &str, priority: Priority, delay: Duration) {
    let topic = topic("t");
    let draft = Draft { priority, delay, ..Draft::new(id.to_owned(), &topic, "{}") };
    redis.queue("t", "publisher").publisher.publish(&draft.encode(Timestamp::now()).unwrap()).await.unwrap();
}

pub(crate) fn envelope(id: &str) -> String {
    serde_json::json!({ "id": id, "topic": "t", "data": {} }).to_string()
}

async fn push(redis: &Redis, key: &str, id: &str) {
    let mut push = redis::cmd("RPUSH");
    push.arg(key).arg(envelope(id)).query_async::<i64>(&mut redis.connection().await).await.unwrap();
}

pub(crate) async fn take(queue: &TopicClient, source: StreamKind, count: usize) -> Vec<Delivery> {
    queue.open().await.unwrap();
    let mut reader = BlockingReader::connect(&queue.handle).await.unwrap();
    match reader.take(&[source], FlowControl::default(), count).await.unwrap() {
        Take::Taken(taken) => taken,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_in_a_list_is_found_and_cancelled_with_its_copies() {
    let redis = Redis::start();
    for id in ["a", "twice", "b", "twice"] {
        push(&redis, "mq:t", id).await;
    }
    let found = json(&redis, &["messages", "find", "twice"]);
    let positions: Vec<_> = found.as_array().unwrap().iter().map(|one| one["position"].as_u64().unwrap()).collect();
    assert_eq!(positions, [1, 3]);
    let (code, out, error) = run(&redis, &["messages", "cancel", "t", "twice"]);
    assert!(code == 0 && out.contains("2 copies"), "{out}{error}");
    assert_eq!(redis.run::<i64>("LLEN mq:t").await, 2);
    assert_eq!(redis.run::<i64>("HGET {mq:t}:state cancelled").await, 2);
    // The others are untouched and can be ingested.
    assert_eq!(redis.queue("t", "me").list_intake.move_batch(ListEnd::Left).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_match_in_every_json_spelling_and_only_as_a_whole() {
    let redis = Redis::start();
    let unusual = "say \"hi\" \\ größe/1";
    // As published by the host, and with unnecessary escapes.
    redis.publish("t", unusual, "{}").await;
    let escaped = r#"{"id":"say \u0022hi\u0022 \\ gr\u00f6\u00dfe\/1","topic":"t","data":{}}"#;
    redis.add("t", escaped.as_bytes()).await;
    publish(&redis, unusual, Priority::Normal, HOUR).await;
    // Other messages that only contain the text.
    let mention = serde_json::json!({ "text": unusual }).to_string();
    redis.publish("t", "mentions", &mention).await;
    redis.publish("t", &format!("{unusual} more"), "{}").await;
    assert_eq!(locations(&redis, unusual), ["delayed", "waiting normal", "waiting normal"]);
    let (code, out, _) = run(&redis, &["messages", "cancel", "t", unusual]);
    assert_eq!((code, out.lines().count()), (0, 3), "{out}");
    assert_eq!(redis.run::<i64>("XLEN mq:t").await, 2);
    // A message without an id is identified by its entry.
    let entry: String = redis.run("XADD mq:t * message 17").await;
    assert_eq!(locations(&redis, &entry), ["waiting normal"]);
    assert_eq!(run(&redis, &["messages", "cancel", "t", &entry]).0, 0);
    assert_eq!(redis.run::<i64>("XLEN mq:t").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_was_emptied_by_command_stays_a_list() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    for args in [&["messages", "cancel", "t", "only"][..], &["topics", "purge", "t", "--yes"]] {
        redis.run::<()>("FLUSHALL").await;
        push(&redis, "mq:t", "only").await;
        // The command also works with a full Redis.
        redis.run::<()>("CONFIG SET maxmemory 1").await;
        let (code, _, error) = run(&redis, args);
        redis.run::<()>("CONFIG SET maxmemory 0").await;
        assert_eq!(code, 0, "{args:?}: {error}");
        redis.publish("t", "ours", "{}").await;
        push(&redis, "mq:t", "theirs").await;
        assert_eq!(queue.list_intake.move_batch(ListEnd::Left).await.unwrap(), 1, "{args:?}");
        assert_eq!(redis.run::<i64>("XLEN {mq:t}:work").await, 2, "{args:?}");
    }
    // Messages in the intake list do not determine the kind of the topic.
    redis.run::<()>("FLUSHALL").await;
    push(&redis, "{mq:t}:in", "only").await;
    assert_eq!(run(&redis, &["messages", "cancel", "t", "only"]).0, 0);
    assert_eq!(redis.run::<Option<String>>("HGET {mq:t}:state kind").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_unread_by_other_groups_are_not_cancelled() {
    let redis = Redis::start();
    redis.publish("t", "read", "{}").await;
    redis.publish("t", "unread", "{}").await;
    redis.run::<()>("XGROUP CREATE mq:t audit 0").await;
    let read = "XREADGROUP GROUP audit auditor COUNT 1 STREAMS mq:t >";
    redis.run::<redis::Value>(read).await;
    let stays = async |id: &str| {
        let (code, out, error) = run(&redis, &["messages", "cancel", "t", id]);
        assert!(
            code == 1 && out.is_empty() && error.contains("other consumer groups have not read it yet"),
            "{id}: {out}{error}"
        );
        assert_eq!(locations(&redis, id), ["waiting normal"]);
    };
    // One is pending in the other group, the other not delivered to it.
    stays("read").await;
    stays("unread").await;
    assert_eq!(redis.run::<Option<i64>>("HGET {mq:t}:state cancelled").await, None);
    let entries: Vec<(String, Vec<String>)> = redis.run("XRANGE mq:t - +").await;
    redis.run::<i64>(&format!("XACK mq:t audit {}", entries[0].0)).await;
    assert_eq!(run(&redis, &["messages", "cancel", "t", "read"]).0, 0);
    stays("unread").await;
    assert_eq!(redis.run::<i64>("XLEN mq:t").await, 1);
    // A message that our own group has requeued is only acknowledged.
    let queue = redis.queue("t", "me");
    take(&queue, StreamKind::Normal, 1).await;
    queue.leases.requeue_except(StreamKind::Normal, &[]).await.unwrap();
    let (code, out, error) = run(&redis, &["messages", "cancel", "t", "unread"]);
    assert_eq!(code, 0, "{out}{error}");
    assert_eq!(redis.run::<i64>("XLEN mq:t").await, 1);
    assert!(redis.run::<Vec<redis::Value>>("XPENDING mq:t consumer-group-t - + 10").await.is_empty());
    assert_eq!(redis.run::<i64>("HGET {mq:t}:state cancelled").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn delivered_history_is_not_cancelled() {
    let redis = Redis::start();
    redis.publish("t", "history", "{}").await;
    let queue = redis.queue("t", "me");
    let taken = take(&queue, StreamKind::Normal, 1).await;
    // Acknowledged and not deleted, as by a legacy worker.
    redis.run::<i64>(&format!("XACK mq:t consumer-group-t {}", taken[0].entry.id)).await;
    assert_eq!(run(&redis, &["messages", "cancel", "t", "history"]).0, 1);
    assert_eq!(run(&redis, &["topics", "purge", "t", "--yes"]).1, "0 waiting messages deleted\n");
    assert_eq!(redis.run::<i64>("XLEN mq:t").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_group_only_entries_after_the_floor_are_waiting() {
    let redis = Redis::start();
    redis.publish("t", "delivered", "{}").await;
    redis.publish("t", "waits", "{}").await;
    publish(&redis, "high", Priority::High, Duration::ZERO).await;
    let entries: Vec<(String, Vec<String>)> = redis.run("XRANGE mq:t - + COUNT 1").await;
    redis.run::<i64>(&format!("HSET {{mq:t}}:state floor {}", entries[0].0)).await;
    assert_eq!(locations(&redis, "delivered"), [""; 0]);
    assert_eq!(run(&redis, &["messages", "cancel", "t", "delivered"]).0, 1);
    assert_eq!(locations(&redis, "waits"), ["waiting normal"]);
    // Streams of other priorities have no history.
    redis.run::<i64>("HSET {mq:t}:state floor 99999999999999-0").await;
    assert_eq!(locations(&redis, "high"), ["waiting high"]);
    assert_eq!(run(&redis, &["messages", "cancel", "t", "high"]).0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_found_in_a_backlog_of_many_batches() {
    let redis = Redis::start();
    for (id, delay) in [("first", Duration::ZERO), ("first-later", HOUR)] {
        publish(&redis, id, Priority::Normal, delay).await;
    }
    assert_eq!(run(&redis, &["publish", "t", "--count", "3000"]).0, 0);
    assert_eq!(run(&redis, &["publish", "t", "--count", "3000", "--delay", "1h"]).0, 0);
    for number in 0..1200 {
        push(&redis, "{mq:t}:in", &number.to_string()).await;
    }
    for (id, delay) in [("last", Duration::ZERO), ("last-later", HOUR)] {
        publish(&redis, id, Priority::Normal, delay).await;
    }
    for (id, location) in [
        ("first", "waiting normal"),
        ("last", "waiting normal"),
        ("first-later", "delayed"),
        ("last-later", "delayed"),
        ("0", "list-out"),
        ("1199", "list-out"),
    ] {
        assert_eq!(locations(&redis, id), [location], "{id}");
    }
    // Everything that is not in flight is purged, in several batches.
    take(&redis.queue("t", "me"), StreamKind::Normal, 2).await;
    let (code, out, _) = run(&redis, &["topics", "purge", "t", "--yes", "--delayed"]);
    assert_eq!((code, out.as_str()), (0, "4200 waiting and 3002 delayed messages deleted\n"));
    assert_eq!(redis.run::<i64>("XLEN mq:t").await, 2);
    assert_eq!(redis.in_flight("t").await, 2);
    for key in ["{mq:t}:in", "{mq:t}:delayed", "{mq:t}:delayed:body"] {
        assert_eq!(redis.run::<i64>(&format!("EXISTS {key}")).await, 0, "{key}");
    }
    assert_eq!(redis.run::<i64>("HGET {mq:t}:state purged").await, 7202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_drained_during_the_search_hides_no_message() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    for number in 0..2000 {
        push(&redis, "mq:t", &format!("n{number}")).await;
    }
    // The search proceeds to the right while batches leave on the left.
    let mut trimmed = false;
    let connection = redis.connection().await;
    let found = queue
        .search
        .find("n600", &mut |count| {
            if count == 500 && !trimmed {
                let mut connection = connection.clone();
                let mut trim = redis::cmd("LTRIM");
                trim.arg("mq:t").arg(400).arg(-1);
                run_concurrently(trim.query_async::<()>(&mut connection)).unwrap();
            }
            trimmed |= count == 500;
        })
        .await
        .unwrap();
    assert_eq!(found.len(), 1);
    assert!(trimmed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_message_is_found_within_the_deduplication_window() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &guest(OK), "[dedup]\nwindow = \"1h\"\n");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("t", "ran", "{}").await;
    gateway.until_outcome("t", "ran", "done").await;
    redis.is("settled", "HGET {mq:t}:state done", 1).await;
    assert_eq!(locations(&redis, "ran"), ["finished"]);
    assert_eq!(run(&redis, &["messages", "cancel", "t", "ran"]).0, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_topic_is_rejected_with_a_suggestion() {
    let redis = Redis::start();
    redis.publish("order.reminder", "a", "{}").await;
    for args in [
        &["topics", "pause", "order.remidner"][..],
        &["topics", "resume", "order.remidner"],
        &["topics", "purge", "order.remidner", "--yes"],
        &["messages", "ls", "order.remidner"],
        &["messages", "find", "a", "--topic", "order.remidner"],
        &["messages", "cancel", "order.remidner", "a"],
        &["dead", "ls", "order.remidner"],
        &["dead", "show", "order.remidner", "1-1"],
        &["dead", "edit", "order.remidner", "1-1", "--data", "1"],
        &["dead", "replay", "order.remidner", "--all"],
        &["dead", "purge", "order.remidner", "--all", "--yes"],
    ] {
        let (code, out, error) = run(&redis, args);
        let expected = "unknown topic order.remidner: Redis has no key of it and no worker handles it; \
                    did you mean order.reminder? `topics ls` lists all";
        assert!(code == 1 && out.is_empty() && error.contains(expected), "{args:?}: {out}{error}");
    }
    let (_, _, error) = run(&redis, &["topics", "pause", "payments"]);
    assert!(error.contains("; `topics ls` lists all topics"), "{error}");
    assert_eq!(redis.run::<Vec<String>>("KEYS *remidner*").await, [""; 0]);
    // A topic with only deduplication keys is known, and so is one that a worker handles.
    redis.run::<()>("HSET {mq:seldom}:dedup:0 a 1").await;
    assert_eq!(run(&redis, &["messages", "ls", "seldom"]).0, 0);
    let now = Timestamp::now().as_second();
    redis.run::<i64>(&format!(r#"ZADD mq::workers {now} {{"topics":["handled"]}}"#)).await;
    let (code, _, error) = run(&redis, &["topics", "pause", "handled"]);
    assert_eq!(code, 0, "{error}");
    // `--force` skips the check.
    assert_eq!(run(&redis, &["topics", "pause", "future", "--force"]).0, 0);
    assert_eq!(run(&redis, &["topics", "resume", "future"]).0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follow_up_in_the_outbox_is_found() {
    let redis = Redis::start();
    let out = format!("XADD {{mq:t}}:outbox * topic other due 0 priority high message {}", envelope("child"));
    let entry: String = redis.run(&out).await;
    let found = &json(&redis, &["messages", "find", "child"])[0];
    assert_eq!((&found["place"], &found["to"]), (&"outgoing".into(), &"other".into()));
    assert_eq!((&found["topic"], &found["entry"]), (&"t".into(), &entry.into()));
    assert_eq!(found["message"].as_str(), Some(envelope("child").as_str()));
    let (_, table, _) = run(&redis, &["messages", "find", "child"]);
    assert!(table.contains("outgoing") && table.contains("to other"), "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_message_arguments_are_usage_errors() {
    let redis = Redis::start();
    for (args, fragment) in [
        (&["messages", "find", ""][..], "must not be empty"),
        (&["messages", "find", "x", "--topic", "a{b"], "invalid topic name"),
        (&["messages", "cancel", "t"], "<ID>"),
        (&["messages", "ls", "t", "--limit", "0"], "--limit"),
        (&["topics", "show", "delay:x"], "invalid topic name"),
        (&["topics", "pause"], "<TOPIC>"),
    ] {
        let (code, _, error) = run(&redis, args);
        assert!(code == 2 && error.contains(fragment), "{args:?}: {error}");
    }
}

/// Runs a future from a synchronous callback, as another process would.
fn run_concurrently<T>(what: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(what))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_taken_between_search_and_removal_is_reported_in_flight() {
    let redis = Redis::start();
    redis.publish("t", "quick", "{}").await;
    let queue = redis.queue("t", "me");
    let mut taken = Vec::new();
    let mut between = |count| {
        if count == 1 && taken.is_empty() {
            taken = run_concurrently(take(&queue, StreamKind::Normal, 1));
        }
    };
    let cancelled = redis.queue("t", "operator").search.cancel("quick", &mut between).await.unwrap();
    assert_eq!((cancelled.removed.len(), cancelled.in_flight.len(), taken.len()), (0, 1, 1));
    redis.is("it remains", "XLEN mq:t", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_becomes_due_between_search_and_removal_is_cancelled() {
    let redis = Redis::start();
    publish(&redis, "due", Priority::Low, HOUR).await;
    let queue = redis.queue("t", "me");
    let mut moved = 0;
    let mut between = |count| {
        if count == 1 && moved == 0 {
            run_concurrently(redis.run::<i64>("ZADD {mq:t}:delayed XX CH 1 p:low:1"));
            moved = run_concurrently(queue.delayed.promote()).unwrap().moved;
        }
    };
    let cancelled = redis.queue("t", "operator").search.cancel("due", &mut between).await.unwrap();
    assert_eq!((cancelled.removed.len(), cancelled.in_flight.len(), moved), (1, 0, 1));
    assert_eq!(redis.run::<i64>("XLEN {mq:t}:low").await, 0);
    assert_eq!(redis.run::<i64>("HGET {mq:t}:state cancelled").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_message_never_runs_and_all_others_do() {
    const COUNT: u64 = 300;
    let redis = Redis::start();
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("t", "first", "{}").await;
    gateway.until_outcome("t", "first", "done").await;
    let queue = redis.queue("t", "operator");
    let mut cancelled = BTreeSet::new();
    for number in 0..COUNT {
        let id = format!("m{number}");
        publish(&redis, &id, Priority::Normal, Duration::from_millis(fastrand::u64(1..20))).await;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..25))).await;
        let done = queue.search.cancel(&id, &mut |_| ()).await.unwrap();
        if !done.removed.is_empty() {
            assert_eq!(done.removed.iter().map(|(_, count)| count).sum::<u64>(), 1);
            cancelled.insert(id);
        }
    }
    redis.is("nothing is delayed", "ZCARD {mq:t}:delayed", 0).await;
    redis.is("all are settled", "XLEN mq:t", 0).await;
    let expected = i64::try_from(COUNT).unwrap() + 1 - i64::try_from(cancelled.len()).unwrap();
    redis.is("each other one is done", "HGET {mq:t}:state done", expected).await;
    until("each is logged", async || (gateway.outcomes("t").len() as i64 == expected).then_some(())).await;
    let ran: BTreeSet<String> = gateway.outcomes("t").into_iter().map(|(id, _)| id).collect();
    assert!(ran.is_disjoint(&cancelled), "{:?}", ran.intersection(&cancelled).collect::<Vec<_>>());
    assert_eq!(ran.len() + cancelled.len(), usize::try_from(COUNT).unwrap() + 1);
    // Otherwise the race was not tested.
    assert!(!cancelled.is_empty() && ran.len() > 1, "{} cancelled, {} ran", cancelled.len(), ran.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_requeued_by_a_pause_can_be_cancelled() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("t", "before", "{}").await;
    gateway.until_outcome("t", "before", "done").await;
    run(&redis, &["topics", "pause", "t"]);
    // A blocked read takes it and requeues it.
    redis.publish("t", "meanwhile", "{}").await;
    redis.publish("t", "other", "{}").await;
    gateway.until_logged(events::TOPIC_PAUSED, |_| true).await;
    until("it is cancelled", async || {
        let (code, _, _) = run(&redis, &["messages", "cancel", "t", "meanwhile"]);
        (code == 0).then_some(())
    })
    .await;
    run(&redis, &["topics", "resume", "t"]);
    gateway.until_outcome("t", "other", "done").await;
    redis.is("all are settled", "XLEN mq:t", 0).await;
    let ran: Vec<String> = gateway.outcomes("t").into_iter().map(|(id, _)| id).collect();
    assert_eq!(ran, ["before", "other"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_key_does_not_hide_the_others() {
    let redis = Redis::start();
    publish(&redis, "a", Priority::Normal, Duration::ZERO).await;
    for key in ["mq:delay:t", "mq:dead-letter:t", "{mq:odd}:delayed", "{mq:odd}:delayed:body", "{mq:odd}:dead"] {
        redis.run::<()>(&format!("SET {key} text")).await;
    }
    for key in [&b"mq:\xff"[..], &b"{mq:\xfe}:dead"[..]] {
        redis::cmd("SET").arg(key).arg("text").query_async::<()>(&mut redis.connection().await).await.unwrap();
    }
    assert_eq!(locations(&redis, "a"), ["waiting normal"]);
    let listed = json(&redis, &["topics", "ls"]);
    let topics: Vec<_> = listed["topics"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["topic"].as_str().unwrap(), &one["waiting"]))
        .collect();
    assert_eq!(topics, [("odd", &0.into()), ("t", &1.into())]);
    assert_eq!(listed["topics"][0]["misused"].as_array().unwrap().len(), 2);
    assert_eq!(listed["unservable"], serde_json::json!(["mq:\\xff", "{mq:\\xfe}:dead"]));
    let (code, out, error) = run(&redis, &["topics", "ls"]);
    assert!(code == 0 && out.contains("wrong type: {mq:odd}:delayed, {mq:odd}:dead"), "{out}");
    assert!(error.contains("key of no legal topic: mq:\\xff: "), "{error}");
}
