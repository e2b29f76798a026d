//! The scripts without a worker: each hazard of the design has a test that fails without
//! its countermeasure.

use crate::support::{Gateway, OK, Plugins, Redis, field, guest, text, topic, until};
use crate::topic_client::TopicClient;
use gateway_worker::message::Fields;
use gateway_worker::publication::{Draft, Publication};
use gateway_worker::queue::{
    BlockingReader, Delivery, EntryId, NotRenewed, QueueError, ReclaimTimeouts, Settled, Settlement, StreamKind, Swept,
    TopicKind,
};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

const SOON: Duration = Duration::from_millis(50);
const HOUR: Duration = Duration::from_secs(3600);
const NOW: ReclaimTimeouts = ReclaimTimeouts { lease: Duration::ZERO, legacy: HOUR, connected: HOUR };
const ONLY_REQUEUED: ReclaimTimeouts = ReclaimTimeouts { connected: Duration::ZERO, lease: SOON, legacy: SOON };
const LEGACY_CONSUMER: &str = "consumer-1795419923585502180";

/// A topic with these messages, taken by the consumer `me`.
async fn taken(redis: &Redis, me: &str, ids: &[&str]) -> (TopicClient, Vec<Delivery>) {
    for id in ids {
        redis.publish("t", id, "{}").await;
    }
    let queue = redis.queue("t", me);
    let taken = take(&queue).await;
    assert_eq!(taken.len(), ids.len());
    (queue, taken)
}

async fn take(queue: &TopicClient) -> Vec<Delivery> {
    assert_eq!(queue.open().await.unwrap().kind, TopicKind::Stream);
    read(queue).await
}

async fn read(queue: &TopicClient) -> Vec<Delivery> {
    BlockingReader::connect(&queue.handle).await.unwrap().read(StreamKind::Normal, 100, SOON).await.unwrap().0
}

async fn take_over(queue: &TopicClient, patience: ReclaimTimeouts, count: usize) -> Vec<(Delivery, String)> {
    queue.leases.reclaim(StreamKind::Normal, patience, None, count).await.unwrap().deliveries
}

async fn reconcile(queue: &TopicClient, in_flight: &[EntryId]) -> Vec<Delivery> {
    queue.leases.reconcile(StreamKind::Normal, in_flight).await.unwrap()
}

async fn settle(queue: &TopicClient, batch: &[Settlement]) -> Vec<Settled> {
    queue.settlements.settle(batch, HOUR).await.unwrap()
}

fn publication(to: &str, id: &str) -> Publication {
    let topic = topic(to);
    let draft = Draft::new(id.to_owned(), &topic, "1");
    draft.encode(Timestamp::now()).unwrap()
}

fn done(taken: &Delivery, publications: Vec<Publication>) -> Settlement {
    taken.done(None, publications)
}

async fn promote_all(queue: &TopicClient) -> usize {
    let mut moved = 0;
    loop {
        match queue.delayed.promote().await.unwrap().moved + queue.legacy_delayed.promote().await.unwrap() {
            0 => return moved,
            more => moved += more,
        }
    }
}

#[tokio::test]
async fn two_messages_of_one_id_are_both_kept_while_they_wait() {
    let redis = Redis::start();
    let (queue, both) = taken(&redis, "me", &["same", "same"]).await;
    let later: Vec<_> = both.iter().map(|one| one.run_again(SOON, Fields::new())).collect();
    assert_eq!(settle(&queue, &later).await, [Settled::Ok, Settled::Ok]);
    for _ in 0..2 {
        redis.publish_later("t", "same", "{}", SOON).await;
    }
    assert_eq!(redis.run::<i64>("ZCARD {mq:t}:delayed").await, 4);
    until("all four are due", async || {
        (redis.run::<i64>("XLEN mq:t").await + promote_all(&queue).await as i64 >= 4).then_some(())
    })
    .await;
    assert_eq!(redis.run::<i64>("XLEN mq:t").await, 4);
}

#[tokio::test]
async fn a_lost_counter_overwrites_no_delayed_message() {
    let redis = Redis::start();
    redis.publish_later("t", "a", "{}", HOUR).await;
    redis.run::<i64>("DEL {mq:t}:state").await;
    redis.publish_later("t", "b", "{}", HOUR).await;
    assert_eq!(redis.run::<i64>("HLEN {mq:t}:delayed:body").await, 2);
}

#[tokio::test]
async fn every_field_of_an_entry_survives_waiting() {
    let redis = Redis::start();
    redis.run::<String>("XADD mq:t * one 1 trace abc one again").await;
    let queue = redis.queue("t", "me");
    let one = take(&queue).await.remove(0);
    let set = vec![(b"gw-attempt".to_vec(), b"2".to_vec()), (b"one".to_vec(), b"set".to_vec())];
    settle(&queue, &[one.run_again(Duration::ZERO, set)]).await;
    assert_eq!(promote_all(&queue).await, 1);
    let expected = [("trace", "abc"), ("gw-attempt", "2"), ("one", "set")];
    assert_eq!(redis.entries("mq:t").await[0], expected.map(|(k, v)| (k.to_owned(), v.as_bytes().to_vec())));
}

#[tokio::test]
async fn a_due_token_without_a_body_is_a_dead_letter_and_blocks_nobody() {
    let redis = Redis::start();
    redis.run::<i64>("ZADD {mq:t}:delayed 1 lost").await;
    redis.publish_later("t", "fine", "{}", Duration::from_millis(1)).await;
    let queue = redis.queue("t", "me");
    until("nothing is delayed", async || {
        promote_all(&queue).await;
        (redis.run::<i64>("ZCARD {mq:t}:delayed").await == 0).then_some(())
    })
    .await;
    let dead = redis.dead("t").await;
    assert_eq!(text(&dead, "gw-reason"), "body-missing");
    assert_eq!(redis.run::<i64>("XLEN mq:t").await, 1);
}

#[tokio::test]
async fn any_number_of_due_messages_is_promoted_in_batches() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    for number in 0..250 {
        redis.run::<i64>(&format!("ZADD mq:delay:t 1 {{\"id\":\"{number}\"}}")).await;
    }
    assert_eq!(queue.legacy_delayed.promote().await.unwrap(), 100);
    assert_eq!(promote_all(&queue).await, 150);
    assert_eq!(redis.run::<i64>("XLEN mq:t").await, 250);
}

#[tokio::test]
async fn promoting_into_a_key_of_another_type_loses_nothing() {
    let redis = Redis::start();
    redis.run::<()>("SET mq:t text").await;
    redis.run::<i64>("ZADD mq:delay:t 1 {\"id\":\"a\"}").await;
    let queue = redis.queue("t", "me");
    assert!(matches!(queue.legacy_delayed.promote().await, Err(QueueError::WrongType(_))));
    assert_eq!(redis.run::<i64>("ZCARD mq:delay:t").await, 1);
    assert!(matches!(queue.publisher.publish(&publication("t", "x")).await, Err(QueueError::WrongType(_))));
}

#[tokio::test]
async fn taking_creates_no_key() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    let opened = queue.open().await.unwrap();
    assert_eq!((&opened.kind, opened.absent.len()), (&TopicKind::Absent, 4));
    assert!(!BlockingReader::connect(&queue.handle).await.unwrap().wait_for_more(&opened, &[], SOON).await.unwrap());
    promote_all(&queue).await;
    assert_eq!(redis.run::<i64>("DBSIZE").await, 0);
}

#[tokio::test]
async fn a_drained_list_stays_a_list_for_those_who_publish_through_us() {
    let redis = Redis::start();
    redis.run::<i64>("LPUSH mq:t a").await;
    let queue = redis.queue("t", "me");
    assert_eq!(queue.open().await.unwrap().kind, TopicKind::List);
    redis.run::<String>("LPOP mq:t").await;
    redis.publish("t", "ours", "{}").await;
    assert_eq!(redis.run::<i64>("EXISTS mq:t").await, 0);
    assert_eq!(redis.run::<i64>("XLEN {mq:t}:work").await, 1);
    assert_eq!(redis.run::<i64>("LPUSH mq:t b").await, 1);
}

#[tokio::test]
async fn a_delivery_with_a_lost_reply_is_recovered_and_not_counted() {
    let redis = Redis::start();
    let (queue, lost) = taken(&redis, "me", &["a", "b", "held"]).await;
    let in_flight = lost[2].entry.clone();
    assert!(take(&queue).await.is_empty());
    let found = reconcile(&queue, &[in_flight]).await;
    assert_eq!(found, lost[..2]);
    let in_flight: Vec<_> = lost.iter().map(|one| one.entry.clone()).collect();
    assert!(reconcile(&queue, &in_flight).await.is_empty());
    // Recovery does not increase the delivery count.
    assert_eq!(reconcile(&queue, &[]).await, lost);
}

#[tokio::test]
async fn a_renewal_neither_steals_nor_counts() {
    let redis = Redis::start();
    let (mine, all) = taken(&redis, "me", &["a", "b"]).await;
    let other = redis.queue("t", "other");
    let stolen = take_over(&other, NOW, 1).await.remove(0);
    assert_eq!((stolen.0.delivery_count, stolen.1.as_str()), (2, "me"));
    let ids: Vec<_> = all.iter().map(|one| one.entry.clone()).collect();
    assert_eq!(mine.leases.renew(&ids).await.unwrap().taken, std::slice::from_ref(&stolen.0.entry));
    // The other consumer still owns it, and no delivery count has increased.
    assert_eq!(other.leases.renew(std::slice::from_ref(&stolen.0.entry)).await.unwrap(), NotRenewed::default());
    let again = take_over(&redis.queue("t", "third"), NOW, 10).await;
    let counts: Vec<_> = again.iter().map(|(one, owner)| (owner.as_str(), one.delivery_count)).collect();
    assert_eq!(counts, [("other", 3), ("me", 2)]);
}

#[tokio::test]
async fn nothing_is_reclaimed_before_its_lease_expires_or_just_after_connecting() {
    let redis = Redis::start();
    let (_, all) = taken(&redis, "me", &["a", "theirs"]).await;
    // As after an outage: both are idle, and one belongs to a legacy worker.
    for (one, owner) in all.iter().zip(["me", LEGACY_CONSUMER]) {
        let claim = format!("XCLAIM mq:t consumer-group-t {owner} 0 {} IDLE 600000 JUSTID", one.entry);
        redis.run::<redis::Value>(&claim).await;
    }
    let other = redis.queue("t", "other");
    let hour = ReclaimTimeouts { lease: HOUR, ..NOW };
    assert!(take_over(&other, hour, 10).await.is_empty());
    assert!(take_over(&other, ONLY_REQUEUED, 10).await.is_empty());
    assert_eq!(take_over(&other, NOW, 10).await.len(), 1);
    // A consumer never reclaims its own messages: reconciling recovers those.
    assert!(take_over(&other, NOW, 10).await.is_empty());
}

#[tokio::test]
async fn a_requeued_message_is_available_at_once_and_not_counted() {
    let redis = Redis::start();
    let (mine, all) = taken(&redis, "me", &["a", "kept"]).await;
    assert_eq!(mine.leases.requeue_except(StreamKind::Normal, std::slice::from_ref(&all[1].entry)).await.unwrap(), 1);
    let other = redis.queue("t", "other");
    let reclaimed = take_over(&other, ONLY_REQUEUED, 10).await;
    assert_eq!(reclaimed.len(), 1);
    assert_eq!((&reclaimed[0].0.entry, reclaimed[0].0.delivery_count), (&all[0].entry, 1));
}

#[tokio::test]
async fn a_requeued_message_keeps_its_crash_count() {
    let redis = Redis::start();
    let (first, _) = taken(&redis, "first", &["a", "b", "c", "held"]).await;
    let me = redis.queue("t", "me");
    let mine: Vec<_> = take_over(&me, NOW, 10).await.into_iter().map(|(one, _)| one).collect();
    me.leases.requeue(&mine[0].entry).await.unwrap();
    me.leases.requeue(&mine[1].entry).await.unwrap();
    // No longer owned by this consumer, so it cannot requeue it.
    first.leases.requeue(&mine[3].entry).await.unwrap();
    let in_flight = [mine[2].entry.clone(), mine[3].entry.clone()];
    let deliveries =
        |reclaimed: &[(Delivery, String)]| reclaimed.iter().map(|(one, _)| one.clone()).collect::<Vec<_>>();
    let other = redis.queue("t", "other");
    let theirs = take_over(&other, ReclaimTimeouts { lease: HOUR, legacy: HOUR, connected: Duration::ZERO }, 1).await;
    assert_eq!((deliveries(&theirs), mine[0].crash_count), (mine[..1].to_vec(), 1));
    assert_eq!(reconcile(&me, &in_flight).await, mine[1..2]);
}

#[tokio::test]
async fn a_consumer_is_removed_only_without_pending_messages() {
    let redis = Redis::start();
    let (queue, all) = taken(&redis, "me", &["a"]).await;
    let source = all[0].entry.stream;
    queue.leases.remove_consumer(source).await.unwrap();
    assert_eq!(redis.in_flight("t").await, 1);
    settle(&queue, &[done(&all[0], Vec::new())]).await;
    queue.leases.remove_consumer(source).await.unwrap();
    let consumers: Vec<redis::Value> = redis.run("XINFO CONSUMERS mq:t consumer-group-t").await;
    assert!(consumers.is_empty(), "{consumers:?}");
}

/// Moves the last activity of the consumers into the past.
async fn age_consumers(redis: &Redis, by: Duration) {
    let redis::Value::Array(info) = redis.run("XINFO STREAM mq:t FULL").await else { panic!() };
    let field = |list: &[redis::Value], name: &str| {
        let at = list.iter().position(|word| *word == redis::Value::BulkString(name.into())).unwrap();
        list[at + 1].clone()
    };
    let redis::Value::Array(groups) = field(&info, "groups") else { panic!() };
    let redis::Value::Array(group) = &groups[0] else { panic!() };
    let redis::Value::Array(consumers) = field(group, "consumers") else { panic!() };
    let mut dump: Vec<u8> = redis.run("DUMP mq:t").await;
    for consumer in &consumers {
        let redis::Value::Array(consumer) = consumer else { panic!() };
        let redis::Value::Int(seen) = field(consumer, "seen-time") else { panic!() };
        let aged = (seen - i64::try_from(by.as_millis()).unwrap()).to_le_bytes();
        for at in 0..dump.len() - 8 {
            if dump[at..at + 8] == seen.to_le_bytes() {
                dump[at..at + 8].copy_from_slice(&aged);
            }
        }
    }
    // The checksum of the changed dump is wrong.
    redis.run::<()>("DEBUG SET-SKIP-CHECKSUM-VALIDATION 1").await;
    let mut restore = redis::cmd("RESTORE");
    restore.arg("mq:t").arg(0).arg(dump).arg("REPLACE");
    restore.query_async::<()>(&mut redis.connection().await).await.unwrap();
}

async fn consumers(redis: &Redis) -> Vec<String> {
    let info: Vec<BTreeMap<String, redis::Value>> = redis.run("XINFO CONSUMERS mq:t consumer-group-t").await;
    let name = |one: &BTreeMap<String, redis::Value>| match &one["name"] {
        redis::Value::BulkString(name) => String::from_utf8(name.clone()).unwrap(),
        other => panic!("{other:?}"),
    };
    info.iter().map(name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_consumers_are_pruned_without_losing_messages() {
    let redis = Redis::start_with(&["--enable-debug-command", "yes"]);
    let (me, all) = taken(&redis, "me", &["a", "b"]).await;
    settle(&me, &all.iter().map(|one| done(one, Vec::new())).collect::<Vec<_>>()).await;
    for (name, id) in [("gone", "c"), ("gone-too", "d"), ("busy", "e")] {
        redis.publish("t", id, "{}").await;
        let theirs = redis.queue("t", name);
        let taken = take(&theirs).await;
        if name != "busy" {
            settle(&theirs, &[done(&taken[0], Vec::new())]).await;
        }
    }
    assert_eq!(me.leases.prune_consumers(StreamKind::Normal, HOUR).await.unwrap(), 0);
    age_consumers(&redis, HOUR).await;
    redis.run::<i64>("XGROUP CREATECONSUMER mq:t consumer-group-t new").await;
    assert_eq!(consumers(&redis).await, ["busy", "gone", "gone-too", "me", "new"]);
    assert_eq!(me.leases.prune_consumers(StreamKind::Normal, HOUR).await.unwrap(), 2);
    assert_eq!(consumers(&redis).await, ["busy", "me", "new"]);
    assert_eq!(redis.in_flight("t").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pruned_consumer_that_still_waits_is_recreated_by_its_next_message() {
    let redis = Redis::start_with(&["--enable-debug-command", "yes"]);
    redis.run::<()>("XGROUP CREATE mq:t consumer-group-t 0 MKSTREAM").await;
    redis.run::<i64>("XGROUP CREATECONSUMER mq:t consumer-group-t gone").await;
    age_consumers(&redis, 2 * HOUR).await;
    let waits = redis.queue("t", "waits");
    let mut reader = BlockingReader::connect(&waits.handle).await.unwrap();
    let (read, ()) = tokio::join!(reader.read(StreamKind::Normal, 1, HOUR), async {
        until("it is blocked", async || {
            redis.run::<String>("CLIENT LIST").await.contains("cmd=xreadgroup").then_some(())
        })
        .await;
        redis.queue("t", "me").leases.prune_consumers(StreamKind::Normal, Duration::ZERO).await.unwrap();
        assert!(consumers(&redis).await.is_empty());
        redis.publish("t", "a", "{}").await;
    });
    assert_eq!(read.unwrap().0.len(), 1);
    assert_eq!((consumers(&redis).await, redis.in_flight("t").await), (vec!["waits".to_owned()], 1));
    redis.run::<i64>("XGROUP CREATECONSUMER mq:t consumer-group-t gone").await;
    age_consumers(&redis, 2 * HOUR).await;
    let plugins = Plugins::with("t", &guest(OK), "");
    let _gateway = Gateway::start(&redis, &plugins);
    until("the consumer is pruned", async || (!consumers(&redis).await.contains(&"gone".to_owned())).then_some(()))
        .await;
}

#[tokio::test]
async fn a_reclaim_scans_past_messages_it_may_not_take() {
    let redis = Redis::start();
    for number in 0..150 {
        redis.publish("t", &number.to_string(), "{}").await;
    }
    redis.queue("t", "me").open().await.unwrap();
    // A live legacy worker, which renews no leases, has a page of them pending.
    redis
        .run::<redis::Value>("XREADGROUP GROUP consumer-group-t consumer-1795419923585502180 COUNT 120 STREAMS mq:t >")
        .await;
    redis.run::<redis::Value>("XREADGROUP GROUP consumer-group-t dead COUNT 30 STREAMS mq:t >").await;
    let reclaimed = take_over(&redis.queue("t", "other"), NOW, 100).await;
    assert_eq!(reclaimed.len(), 30);
    assert!(reclaimed.iter().all(|(_, owner)| owner == "dead"));
}

#[tokio::test]
async fn a_deleted_entry_leaves_the_pending_list() {
    let redis = Redis::start();
    let (_, all) = taken(&redis, "me", &["a"]).await;
    redis.run::<i64>(&format!("XDEL mq:t {}", all[0].entry)).await;
    // It is reported, and nothing of it is left.
    let (reclaimed, owner) = take_over(&redis.queue("t", "other"), NOW, 10).await.remove(0);
    assert_eq!((reclaimed.entry, reclaimed.fields, owner.as_str()), (all[0].entry.clone(), Fields::new(), "me"));
    assert_eq!(redis.in_flight("t").await, 0);
}

#[tokio::test]
async fn settling_twice_changes_nothing_the_second_time() {
    let redis = Redis::start();
    let (queue, all) = taken(&redis, "me", &["done", "later", "dead", "parent"]).await;
    let set = vec![(b"gw-reason".to_vec(), b"trap".to_vec())];
    let batch = [
        done(&all[0], Vec::new()),
        all[1].run_again(HOUR, Fields::new()),
        all[2].dead_letter(set),
        done(&all[3], vec![publication("child", "c-1"), publication("other", "c-2")]),
    ];
    assert_eq!(settle(&queue, &batch).await, vec![Settled::Ok; 4]);
    let again = settle(&queue, &batch).await;
    assert_eq!(again, [Settled::Ok, Settled::Gone, Settled::Gone, Settled::Gone]);
    for (command, expected) in [
        ("XLEN mq:t", 0),
        ("ZCARD {mq:t}:delayed", 1),
        ("XLEN {mq:t}:dead", 1),
        ("XLEN mq:child", 1),
        ("XLEN mq:other", 1),
        ("HGET {mq:t}:state done", 2),
    ] {
        assert_eq!(redis.run::<i64>(command).await, expected, "{command}");
    }
}

#[tokio::test]
async fn a_worker_that_lost_its_lease_may_finish_but_not_retry_or_dead_letter() {
    let redis = Redis::start();
    let (late, all) = taken(&redis, "late", &["retry", "dead", "done"]).await;
    let other = redis.queue("t", "other");
    let theirs = take_over(&other, NOW, 10).await;
    let batch = [all[0].run_again(HOUR, Fields::new()), all[1].dead_letter(Fields::new())];
    assert_eq!(settle(&late, &batch).await, [Settled::Gone, Settled::Gone]);
    // The run was successful, so its follow-ups are sent and it is not repeated.
    let finished = [done(&all[2], vec![publication("child", "c")])];
    assert_eq!(settle(&late, &finished).await, [Settled::Ok]);
    assert_eq!(settle(&other, &[done(&theirs[2].0, vec![publication("child", "c")])]).await, [Settled::Gone]);
    assert_eq!(redis.run::<i64>("XLEN mq:child").await, 1);
    assert_eq!(redis.in_flight("t").await, 2);
}

#[tokio::test]
async fn a_settlement_of_an_earlier_delivery_is_ignored() {
    let redis = Redis::start();
    let (me, first) = taken(&redis, "me", &["a"]).await;
    take_over(&redis.queue("t", "other"), NOW, 1).await;
    let mine_again = take_over(&me, NOW, 1).await.remove(0).0;
    assert_eq!(mine_again.delivery_count, 3);
    assert_eq!(settle(&me, &[first[0].run_again(HOUR, Fields::new())]).await, [Settled::Gone]);
    assert_eq!(settle(&me, &[mine_again.run_again(HOUR, Fields::new())]).await, [Settled::Ok]);
}

#[tokio::test]
async fn the_failure_of_one_settlement_affects_no_other() {
    let redis = Redis::start();
    redis.run::<()>("SET mq:broken text").await;
    let (queue, all) = taken(&redis, "me", &["bad", "good", "plain"]).await;
    let batch = [
        done(&all[0], vec![publication("fine", "1"), publication("broken", "2")]),
        done(&all[1], vec![publication("fine", "3")]),
        done(&all[2], Vec::new()),
    ];
    let results = settle(&queue, &batch).await;
    assert!(
        matches!(&results[0], Settled::FollowUpsRefused(error) if error.contains("mq:broken holds a string")),
        "{results:?}"
    );
    assert_eq!(results[1..], [Settled::Ok, Settled::Ok]);
    // Nothing of the failed one was sent, since its keys are checked first.
    assert_eq!(redis.run::<i64>("XLEN mq:fine").await, 1);
    assert_eq!(redis.in_flight("t").await, 1);
}

#[tokio::test]
async fn a_destroyed_group_aborts_no_settlement() {
    let redis = Redis::start();
    let (queue, all) = taken(&redis, "me", &["later", "plain", "parent"]).await;
    redis.run::<i64>("XGROUP DESTROY mq:t consumer-group-t").await;
    let batch = [
        all[0].run_again(HOUR, Fields::new()),
        done(&all[1], Vec::new()),
        done(&all[2], vec![publication("child", "c")]),
    ];
    assert_eq!(settle(&queue, &batch).await, [Settled::Gone, Settled::Ok, Settled::Ok]);
    // Done messages are removed; the retried one remains for the new group.
    assert_eq!((redis.run::<i64>("XLEN mq:t").await, redis.run::<i64>("XLEN mq:child").await), (1, 1));
    assert_eq!(take(&queue).await, all[..1]);
}

#[tokio::test]
async fn a_full_redis_rejects_moves_and_accepts_done() {
    let redis = Redis::start();
    let (queue, all) = taken(&redis, "me", &["done", "later", "dead", "parent"]).await;
    redis.run::<()>("CONFIG SET maxmemory 1").await;
    let batch = [
        done(&all[0], Vec::new()),
        all[1].run_again(SOON, Fields::new()),
        all[2].dead_letter(Fields::new()),
        done(&all[3], vec![publication("child", "c")]),
    ];
    let results = settle(&queue, &batch).await;
    assert_eq!(results[0], Settled::Ok);
    for result in &results[1..] {
        assert!(matches!(result, Settled::Failed(error) if error.contains("OOM")), "{results:?}");
    }
    assert_eq!(redis.run::<i64>("XLEN mq:t").await, 3);
    redis.run::<()>("CONFIG SET maxmemory 0").await;
    assert_eq!(settle(&queue, &batch[1..]).await, vec![Settled::Ok; 3]);
}

#[tokio::test]
async fn a_lost_group_runs_no_history_again() {
    let redis = Redis::start();
    for number in 0..250 {
        redis.publish("t", &number.to_string(), "{}").await;
    }
    // A legacy worker acknowledges and never deletes. A sweep was completed before.
    let queue = redis.queue("t", "me");
    queue.open().await.unwrap();
    assert_eq!(queue.sweep(None).await.unwrap(), Swept::default());
    let command = "XREADGROUP GROUP consumer-group-t consumer-1 COUNT 240 STREAMS mq:t >";
    let entries: redis::Value = redis.run(command).await;
    let redis::Value::Array(streams) = entries else { panic!("{entries:?}") };
    let redis::Value::Array(stream) = &streams[0] else { panic!() };
    let redis::Value::Array(list) = &stream[1] else { panic!() };
    for entry in &list[..230] {
        let redis::Value::Array(entry) = entry else { panic!() };
        let redis::Value::BulkString(id) = &entry[0] else { panic!() };
        redis.run::<i64>(&format!("XACK mq:t consumer-group-t {}", String::from_utf8_lossy(id))).await;
    }
    // Also during a sweep: the floor is known after the first batch. Messages in flight are
    // no history, since only the group knew of them.
    let next = queue.sweep(None).await.unwrap().next;
    assert_eq!(redis.run::<i64>("XLEN mq:t").await, 150);
    let remaining: Vec<(String, Vec<(String, String)>)> = redis.run("XRANGE mq:t - +").await;
    let unread: Vec<String> = remaining.into_iter().skip(130).map(|(id, _)| id).collect();
    redis.run::<i64>("XGROUP DESTROY mq:t consumer-group-t").await;
    queue.open().await.unwrap();
    let ids: Vec<String> = read(&queue).await.iter().map(|one| one.entry.id.clone()).collect();
    assert_eq!(ids, unread);
    assert!(next.is_some());
}

#[tokio::test]
async fn a_swept_stream_holds_only_the_backlog() {
    let redis = Redis::start();
    let (queue, all) = taken(&redis, "me", &["acked", "pending", "acked too"]).await;
    redis.publish("t", "waits", "{}").await;
    // A legacy worker has had two of them, and acknowledges without deleting.
    for one in [&all[0], &all[2]] {
        let claim = format!("XCLAIM mq:t consumer-group-t {LEGACY_CONSUMER} 0 {} JUSTID", one.entry);
        redis.run::<redis::Value>(&claim).await;
        redis.run::<i64>(&format!("XACK mq:t consumer-group-t {}", one.entry)).await;
    }
    queue.sweep_all(StreamKind::Normal).await;
    let left: Vec<String> =
        redis.envelopes("mq:t").await.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(left, ["pending", "waits"]);
    // Without history a recreated group begins at the start of the stream, since pending
    // messages have to run again.
    redis.run::<i64>("XGROUP DESTROY mq:t consumer-group-t").await;
    assert_eq!(take(&queue).await.len(), 2);
}

#[tokio::test]
async fn nothing_is_deleted_while_another_group_reads_the_stream() {
    let redis = Redis::start();
    let (queue, all) = taken(&redis, "me", &["a", "b"]).await;
    redis.run::<()>("XGROUP CREATE mq:t audit 0").await;
    queue.sweep(None).await.unwrap();
    settle(&queue, &[done(&all[0], Vec::new()), done(&all[1], vec![publication("child", "c")])]).await;
    assert_eq!((redis.run::<i64>("XLEN mq:t").await, redis.in_flight("t").await), (2, 0));
    // The same settlement again sends nothing.
    let again = settle(&queue, &[done(&all[1], vec![publication("child", "c")])]).await;
    assert_eq!((again, redis.run::<i64>("XLEN mq:child").await), (vec![Settled::Gone], 1));
}

#[tokio::test]
async fn an_entry_of_too_many_fields_still_becomes_a_dead_letter() {
    let redis = Redis::start();
    let mut command = redis::cmd("XADD");
    command.arg("mq:t").arg("*");
    for number in 0..5000 {
        command.arg(format!("f{number}")).arg("v");
    }
    command.query_async::<String>(&mut redis.connection().await).await.unwrap();
    let queue = redis.queue("t", "me");
    let one = take(&queue).await.remove(0);
    assert_eq!(settle(&queue, &[one.dead_letter(Fields::new())]).await, [Settled::Ok]);
    assert!(field(&redis.dead("t").await, "gw-packed").len() > 5000);
}
