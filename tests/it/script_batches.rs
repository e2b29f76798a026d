//! Scripts that scan many messages work in batches that are limited by entries and bytes,
//! so that Redis serves other clients in between, however large the messages are.

use crate::support::{Gateway, OK, Plugins, Redis, built, guest, topic, until};
use crate::topic_client::TopicClient;
use gateway_worker::message::Fields;
use gateway_worker::publication::{Draft, Publication};
use gateway_worker::queue::dead::{Order, Origin};
use gateway_worker::queue::{
    BlockingReader, Delivery, EntryId, FlowControl, ListEnd, Purged, ReclaimTimeouts, Settled, Settlement, StreamKind,
    Take,
};
use jiff::Timestamp;
use redis::aio::MultiplexedConnection;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);
const LARGE: usize = 1 << 20;
const COUNT: usize = 64;

fn envelope(id: usize, bytes: usize) -> String {
    format!(r#"{{"id":"m{id}","topic":"t","data":"{}"}}"#, "x".repeat(bytes))
}

async fn publish_later(queue: &TopicClient, number: usize, bytes: usize) {
    let (topic, data) = (topic("t"), format!("\"{}\"", "x".repeat(bytes)));
    let draft = Draft { delay: HOUR, ..Draft::new(format!("m{number}"), &topic, &data) };
    queue.publisher.publish(&draft.encode(Timestamp::now()).unwrap()).await.unwrap();
}

async fn send(connection: &mut MultiplexedConnection, words: &[&str]) {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]).query_async::<redis::Value>(connection).await.unwrap();
}

/// Adds `COUNT` messages of this size with this command, whose last word is the body.
async fn fill(redis: &Redis, words: &[&str], bytes: usize) {
    let mut connection = redis.connection().await;
    for number in 0..COUNT {
        let body = envelope(number, bytes);
        send(&mut connection, &[words, &[&body]].concat()).await;
    }
}

/// The number of messages that each script of a search has read.
async fn find_batches(queue: &TopicClient, id: &str) -> Vec<u64> {
    let mut counts = Vec::new();
    let found = queue.search.find(id, &mut |count| counts.push(count)).await.unwrap();
    assert_eq!(found.len(), 1, "{id}");
    counts.retain(|count| *count > 0);
    counts
}

async fn take_all(queue: &TopicClient) -> Vec<Delivery> {
    queue.open().await.unwrap();
    let mut reader = BlockingReader::connect(&queue.handle).await.unwrap();
    let take = reader.take(&[StreamKind::Normal], FlowControl::default(), COUNT).await.unwrap();
    let Take::Taken(taken) = take else { panic!("nothing to take") };
    assert_eq!(taken.len(), COUNT);
    taken
}

/// The memory of Lua, which keeps what scripts have read for a while.
async fn lua_bytes(redis: &Redis) -> usize {
    let memory: String = redis.run("INFO memory").await;
    let bytes = memory.lines().find_map(|line| line.strip_prefix("used_memory_lua:")).unwrap();
    bytes.trim().parse().unwrap()
}

async fn scripts_run(redis: &Redis) -> usize {
    let calls: String = redis.run("INFO commandstats").await;
    let calls = calls.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")).unwrap();
    calls.split(',').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_are_searched_one_by_one_and_small_ones_in_batches() {
    let redis = Redis::start_with(&[]);
    let queue = redis.queue("t", "me");
    for (bytes, scripts, at_once) in [(LARGE, COUNT, 1), (1000, 1, COUNT as u64)] {
        for words in [
            &["XADD", "mq:t", "*", "message"][..],
            &["XADD", "{mq:t}:work", "*", "message"],
            &["RPUSH", "mq:t"],
            &["RPUSH", "{mq:t}:in"],
            &["XADD", "{mq:t}:dead", "*", "gw-reason", "trap", "message"],
        ] {
            fill(&redis, words, bytes).await;
            let counts = find_batches(&queue, "m63").await;
            assert_eq!(counts, vec![at_once; scripts], "{words:?}");
            redis.run::<()>("FLUSHALL").await;
        }
        fill(&redis, &["XADD", "mq:t", "*", "message"], bytes).await;
        take_all(&queue).await;
        let counts = find_batches(&queue, "m63").await;
        assert_eq!(counts, vec![at_once; scripts], "in flight");
        redis.run::<()>("FLUSHALL").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_delayed_messages_are_searched_in_small_batches() {
    let redis = Redis::start_with(&[]);
    let queue = redis.queue("t", "me");
    for number in 0..COUNT {
        publish_later(&queue, number, LARGE).await;
    }
    // A scan returns all entries of one bucket.
    let counts = find_batches(&queue, "m63").await;
    assert!(counts.iter().all(|count| *count <= 8) && counts.iter().sum::<u64>() >= COUNT as u64, "{counts:?}");
    assert_eq!(queue.search.peek(COUNT).await.unwrap().len(), COUNT);
    redis.run::<()>("FLUSHALL").await;

    let mut connection = redis.connection().await;
    for number in 0..COUNT {
        send(&mut connection, &["ZADD", "mq:delay:t", "4102444800", &envelope(number, LARGE)]).await;
    }
    let counts = find_batches(&queue, "m63").await;
    assert!(counts.iter().all(|count| *count <= 8) && counts.iter().sum::<u64>() >= COUNT as u64, "{counts:?}");
    assert_eq!(queue.search.peek(COUNT).await.unwrap().len(), COUNT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_message_after_small_ones_ends_the_batch() {
    let redis = Redis::start_with(&[]);
    let queue = redis.queue("t", "me");
    fill(&redis, &["XADD", "mq:t", "*", "message"], 10).await;
    fill(&redis, &["XADD", "mq:t", "*", "message"], LARGE).await;
    redis.publish("t", "last", "{}").await;
    let counts = find_batches(&queue, "last").await;
    // The small ones, and the large ones that were read with the last of them.
    assert!(counts[0] >= COUNT as u64 && counts[0] <= COUNT as u64 + 16, "{counts:?}");
    assert!(counts[1..].iter().all(|count| *count <= 1), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_read_and_purged_in_batches_limited_by_bytes() {
    let redis = Redis::start_with(&[]);
    let queue = redis.queue("t", "me");
    let add_dead_letter = ["XADD", "{mq:t}:dead", "*", "gw-reason", "trap", "message"];
    for (bytes, at_once) in [(LARGE, 1), (1000, COUNT)] {
        fill(&redis, &add_dead_letter, bytes).await;
        let mut walk = queue.dead_letters.list(Origin::Ours, Order::OldestFirst).await.unwrap();
        assert_eq!(walk.next().await.unwrap().len(), at_once);
        let mut newest = None;
        let mut dropped = 0;
        while dropped < COUNT as u64 {
            let batch = queue.dead_purge.all(Origin::Ours, &mut newest).await.unwrap();
            assert_eq!(batch, at_once as u64);
            dropped += batch;
        }
        assert_eq!(queue.dead_letters.count().await.unwrap(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn due_messages_are_promoted_in_batches_limited_by_bytes() {
    let redis = Redis::start_with(&[]);
    let queue = redis.queue("t", "me");
    let mut connection = redis.connection().await;
    for (bytes, at_once) in [(LARGE, 1), (1000, COUNT)] {
        for number in 0..COUNT {
            publish_later(&queue, number, bytes).await;
            let token = format!("p:{}", number + 1);
            send(&mut connection, &["ZADD", "{mq:t}:delayed", "1", &token]).await;
            send(&mut connection, &["ZADD", "mq:delay:t", "1", &envelope(number, bytes)]).await;
        }
        assert_eq!(queue.delayed.promote().await.unwrap().moved, at_once);
        assert_eq!(queue.legacy_delayed.promote().await.unwrap(), at_once);
        redis.run::<()>("FLUSHALL").await;
    }
}

async fn read_all_as_legacy_worker(redis: &Redis) -> Vec<String> {
    redis.run::<()>("XGROUP CREATE mq:t consumer-group-t 0").await;
    redis.run::<redis::Value>("XREADGROUP GROUP consumer-group-t consumer-1 STREAMS mq:t >").await;
    let entries: Vec<(String, Vec<String>)> = redis.run("XRANGE mq:t - +").await;
    entries.into_iter().map(|(id, _)| id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_swept_in_batches_limited_by_bytes_also_with_a_full_redis() {
    let redis = Redis::start_with(&[]);
    let queue = redis.queue("t", "me");
    for (bytes, left) in [(LARGE, COUNT - 1), (1000, 0)] {
        fill(&redis, &["XADD", "mq:t", "*", "message"], bytes).await;
        for id in read_all_as_legacy_worker(&redis).await {
            redis.run::<i64>(&format!("XACK mq:t consumer-group-t {id}")).await;
        }
        redis.run::<()>("CONFIG SET maxmemory 1").await;
        assert!(queue.sweep(None).await.unwrap().next.is_some());
        redis.run::<()>("CONFIG SET maxmemory 0").await;
        assert_eq!(redis.run::<usize>("XLEN mq:t").await, left);
        assert_eq!(redis.run::<i64>("HEXISTS {mq:t}:state floor").await, 1);
        redis.run::<()>("FLUSHALL").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_pending_entries_do_not_hide_live_ones_from_a_sweep() {
    let redis = Redis::start_with(&[]);
    let queue = redis.queue("t", "me");
    for _ in 0..5 {
        fill(&redis, &["XADD", "mq:t", "*", "message"], 10).await;
    }
    let ids = read_all_as_legacy_worker(&redis).await;
    // The first is history, and all others except the last two are pending and deleted:
    // more than a batch has entries.
    redis.run::<i64>(&format!("XACK mq:t consumer-group-t {}", ids[0])).await;
    let (deleted, pending) = ids[1..].split_at(ids.len() - 3);
    let mut connection = redis.connection().await;
    redis::cmd("XDEL").arg("mq:t").arg(deleted).query_async::<i64>(&mut connection).await.unwrap();
    queue.sweep_all(StreamKind::Normal).await;
    let left: Vec<(String, Vec<String>)> = redis.run("XRANGE mq:t - +").await;
    assert_eq!(left.iter().map(|(id, _)| id).collect::<Vec<_>>(), pending.iter().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_large_items_is_not_read_whole() {
    for (end, bytes, at_once) in
        [(ListEnd::Left, LARGE, 1), (ListEnd::Right, LARGE, 1), (ListEnd::Left, 10, COUNT), (ListEnd::Right, 10, COUNT)]
    {
        let redis = Redis::start_with(&[]);
        let queue = redis.queue("t", "me");
        fill(&redis, &["RPUSH", "mq:t"], bytes).await;
        assert_eq!(queue.list_intake.move_batch(end).await.unwrap(), at_once);
        let lua = lua_bytes(&redis).await;
        assert!(lua < 16 * LARGE, "{lua}");
        while queue.list_intake.move_batch(end).await.unwrap() > 0 {}
        let mut ids: Vec<String> =
            redis.envelopes("{mq:t}:work").await.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
        if end == ListEnd::Right {
            ids.reverse();
        }
        assert_eq!(ids, (0..COUNT).map(|number| format!("m{number}")).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_copy_is_found_behind_large_messages() {
    let redis = Redis::start_with(&[]);
    let queue = redis.queue("t", "me");
    redis.add("t", br#"{"id":"copied","topic":"t","data":{},"retry":0}"#).await;
    assert_eq!(read_all_as_legacy_worker(&redis).await.len(), 1);
    fill(&redis, &["XADD", "mq:t", "*", "message"], LARGE).await;
    assert_eq!(queue.legacy_pending.acknowledge_copied(Duration::ZERO).await.unwrap(), 0);
    redis.add("t", br#"{"id":"copied","topic":"t","data":{},"retry":1}"#).await;
    redis.run::<()>("CONFIG RESETSTAT").await;
    assert_eq!(queue.legacy_pending.acknowledge_copied(Duration::ZERO).await.unwrap(), 1);
    // One large message fills a batch.
    assert!(scripts_run(&redis).await > COUNT);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_messages_are_purged_in_batches_limited_by_bytes() {
    let redis = Redis::start_with(&[]);
    let queue = redis.queue("t", "me");
    for (bytes, batches) in [(LARGE, vec![1; COUNT]), (1000, vec![COUNT as u64])] {
        fill(&redis, &["XADD", "mq:t", "*", "message"], bytes).await;
        let mut counts = Vec::new();
        queue.purge.purge(false, &mut |count| counts.push(count)).await.unwrap();
        assert_eq!(counts, batches);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_delayed_messages_are_purged_without_reading_them() {
    let redis = Redis::start_with(&[]);
    let queue = redis.queue("t", "me");
    let mut connection = redis.connection().await;
    for number in 0..COUNT {
        publish_later(&queue, number, LARGE).await;
        send(&mut connection, &["ZADD", "mq:delay:t", "4102444800", &envelope(number, LARGE)]).await;
    }
    fill(&redis, &["RPUSH", "{mq:t}:in"], LARGE).await;
    // Discard the memory that the publications have used.
    redis.run::<()>("SCRIPT FLUSH SYNC").await;
    let purged = queue.purge.purge(true, &mut |_| {}).await.unwrap();
    assert_eq!(purged, Purged { waiting: COUNT as u64, delayed: 2 * COUNT as u64 });
    let lua = lua_bytes(&redis).await;
    assert!(lua < LARGE, "{lua}");
    let keys: Vec<String> = redis.run("KEYS *mq:t*").await;
    assert_eq!(keys, ["{mq:t}:state"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_spares_messages_that_arrive_meanwhile() {
    let redis = Redis::start_with(&[]);
    let queue = redis.queue("t", "me");
    for _ in 0..10 {
        fill(&redis, &["LPUSH", "mq:t"], 10).await;
    }
    for number in 0..COUNT * 10 {
        redis.run::<i64>(&format!("ZADD mq:delay:t 4102444800 {number}")).await;
    }
    let mut connection = redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
    let mut publish_more = |_| {
        redis::cmd("LPUSH").arg("mq:t").arg("late").exec(&mut connection).unwrap();
        redis::cmd("ZADD").arg("mq:delay:t").arg(1).arg("late").exec(&mut connection).unwrap();
    };
    queue.purge.purge(true, &mut publish_more).await.unwrap();
    let left: Vec<String> = redis.run("LRANGE mq:t 0 -1").await;
    assert!(!left.is_empty() && left.iter().all(|one| one == "late"), "{left:?}");
    assert_eq!(redis.run::<Vec<String>>("ZRANGE mq:delay:t 0 -1").await, ["late"]);
}

fn follow_up(taken: &Delivery, bytes: usize) -> Settlement {
    let (topic, data) = (topic("child"), format!("\"{}\"", "x".repeat(bytes)));
    let sealed: Publication = Draft::new(taken.entry.to_string(), &topic, &data).encode(Timestamp::now()).unwrap();
    taken.done(None, vec![sealed])
}

#[tokio::test(flavor = "multi_thread")]
async fn moving_settlements_are_split_into_batches_limited_by_bytes() {
    // The server closes a connection that sends more at once.
    let redis = Redis::start_with(&["--client-query-buffer-limit", "8mb"]);
    let queue = redis.queue("t", "me");
    let again = |taken: &Delivery, _: usize| taken.run_again(HOUR, Fields::new());
    let dead = |taken: &Delivery, _: usize| taken.dead_letter(Fields::new());
    type Settle = fn(&Delivery, usize) -> Settlement;
    let settlements: [Settle; 3] = [follow_up, again, dead];
    for settlement in settlements {
        for (bytes, scripts) in [(LARGE, COUNT), (1000, 1)] {
            fill(&redis, &["XADD", "mq:t", "*", "message"], bytes).await;
            let batch: Vec<_> = take_all(&queue).await.iter().map(|one| settlement(one, bytes)).collect();
            let before = scripts_run(&redis).await;
            let settled = queue.settlements.settle(&batch, HOUR).await.unwrap();
            assert_eq!(settled, vec![Settled::Ok; COUNT]);
            // One more if the server had to load the script.
            let run = scripts_run(&redis).await - before;
            assert!(run == scripts || run == scripts + 1, "{run}");
            redis.run::<()>("FLUSHALL").await;
        }
    }
}

const LEASE: ReclaimTimeouts = ReclaimTimeouts { lease: Duration::ZERO, legacy: HOUR, connected: HOUR };

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_are_reclaimed_and_recovered_in_small_batches() {
    let redis = Redis::start_with(&[]);
    let (queue, other) = (redis.queue("t", "me"), redis.queue("t", "other"));
    for (bytes, at_once) in [(LARGE, 8), (1000, COUNT)] {
        fill(&redis, &["XADD", "mq:t", "*", "message"], bytes).await;
        take_all(&queue).await;
        let mut in_flight: Vec<EntryId> = Vec::new();
        while in_flight.len() < COUNT {
            let found = queue.leases.reconcile(StreamKind::Normal, &in_flight).await.unwrap();
            assert_eq!(found.len(), at_once);
            in_flight.extend(found.into_iter().map(|one| one.entry));
        }
        assert!(queue.leases.reconcile(StreamKind::Normal, &in_flight).await.unwrap().is_empty());
        let mut taken = 0;
        while taken < COUNT {
            let found = other.leases.reclaim(StreamKind::Normal, LEASE, None, COUNT).await.unwrap();
            assert_eq!(found.deliveries.len(), at_once);
            taken += at_once;
            // The caller learns that more can be reclaimed.
            assert_eq!(found.others > 0, taken < COUNT);
        }
        redis.run::<()>("FLUSHALL").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_worker_begins_with_small_reads() {
    let redis = Redis::start_with(&[]);
    let pad = "x".repeat(LARGE);
    for number in 0..COUNT {
        let envelope = format!(
            r#"{{"id":"m{number}","topic":"puppet","data":{{"do":"sleep","ms":600000,"pad":"{pad}"}},"retry":0,"max_retry":3}}"#
        );
        redis.add("puppet", envelope.as_bytes()).await;
    }
    let plugins = Plugins::with("puppet", &built("puppet"), "[limits]\ntimeout = \"1h\"\n");
    let _gateway = Gateway::start(&redis, &plugins);
    redis.until_in_flight("puppet", COUNT as i64).await;
    let stats: String = redis.run("INFO commandstats").await;
    let reads = stats.lines().find_map(|line| line.strip_prefix("cmdstat_xreadgroup:calls=")).unwrap();
    assert!(reads.split(',').next().unwrap().parse::<usize>().unwrap() >= 4, "{reads}");
}

#[tokio::test(flavor = "multi_thread")]
async fn due_messages_do_not_wait_for_the_end_of_a_sweep() {
    const HISTORY: i64 = 200_000;
    let redis = Redis::start_with(&[]);
    let fill = "for n = 1, tonumber(ARGV[1]) do redis.call('XADD', KEYS[1], '*', 'message', '{}') end";
    let mut command = redis::cmd("EVAL");
    command.arg(fill).arg(1).arg("mq:t").arg(HISTORY);
    command.query_async::<()>(&mut redis.connection().await).await.unwrap();
    redis.run::<()>("XGROUP CREATE mq:t consumer-group-t $").await;
    redis.run::<i64>("XGROUP CREATECONSUMER mq:t consumer-group-t consumer-1").await;
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    until("the sweep has begun", async || (redis.run::<i64>("XLEN mq:t").await < HISTORY).then_some(())).await;
    redis.publish_later("t", "due", "{}", Duration::from_millis(1)).await;
    gateway.until_outcome("t", "due", "done").await;
    assert!(redis.run::<i64>("XLEN mq:t").await > HISTORY / 2);
}
