//! Priorities, concurrency, rates, pauses and deduplication.

use crate::support::{Gateway, OK, Plugins, Redis, built, guest, topic, until};
use crate::topic_client::TopicClient;
use gateway_worker::events;
use gateway_worker::message::Fields;
use gateway_worker::publication::{Draft, Priority, Publication};
use gateway_worker::queue::{BlockingReader, Claim, Delivery, FlowControl, Settled, StreamKind, Take};
use jiff::Timestamp;
use std::time::{Duration, Instant};

const HOUR: Duration = Duration::from_secs(3600);
const SOURCES: [StreamKind; 3] = [StreamKind::High, StreamKind::Normal, StreamKind::Low];

fn publication(id: &str, priority: Priority) -> Publication {
    let topic = topic("t");
    let draft = Draft { priority, ..Draft::new(id.to_owned(), &topic, "{}") };
    draft.encode(Timestamp::now()).unwrap()
}

/// An opened topic with `count` messages of each priority.
async fn all_priorities(redis: &Redis, count: usize) -> TopicClient {
    let queue = redis.queue("t", "me");
    for number in 0..count {
        for priority in [Priority::Low, Priority::Normal, Priority::High] {
            queue.publisher.publish(&publication(&format!("{number}"), priority)).await.unwrap();
        }
    }
    assert_eq!(queue.open().await.unwrap().streams, SOURCES);
    queue
}

async fn take(queue: &TopicClient, control: FlowControl, count: usize) -> Take {
    BlockingReader::connect(&queue.handle).await.unwrap().take(&SOURCES, control, count).await.unwrap()
}

fn entries(take: Take) -> Vec<Delivery> {
    let Take::Taken(taken) = take else { panic!("{take:?}") };
    taken
}

fn of(taken: &[Delivery], source: StreamKind) -> usize {
    taken.iter().filter(|one| one.entry.stream == source).count()
}

#[tokio::test]
async fn each_priority_gets_its_share() {
    let redis = Redis::start();
    let queue = all_priorities(&redis, 40).await;
    let taken = entries(take(&queue, FlowControl::default(), 20).await);
    assert_eq!(SOURCES.map(|source| of(&taken, source)), [12, 6, 2]);
    // With single reads too: each continues the rotation.
    let mut taken = Vec::new();
    for turn in 0..10 {
        taken.extend(entries(take(&queue, FlowControl { turn, ..FlowControl::default() }, 1).await));
    }
    assert_eq!(SOURCES.map(|source| of(&taken, source)), [6, 3, 1]);
    // Shares that one priority does not use go to the others.
    let taken = entries(take(&queue, FlowControl::default(), 1000).await);
    assert_eq!(taken.len(), 90);
    assert!(matches!(take(&queue, FlowControl::default(), 10).await, Take::Empty(behind) if behind.len() == 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn single_reads_starve_no_priority() {
    let redis = Redis::start();
    let queue = redis.queue("t", "publisher");
    for number in 0..20 {
        queue.publisher.publish(&publication(&number.to_string(), Priority::High)).await.unwrap();
    }
    queue.publisher.publish(&publication("low", Priority::Low)).await.unwrap();
    let plugins = Plugins::with("t", &guest(OK), "concurrency = 1\n");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_outcome("t", "low", "done").await;
    let before = gateway.outcomes("t").iter().position(|(id, _)| id == "low").unwrap();
    assert!(before < 10, "{before}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_worker_discovers_the_first_message_of_a_priority() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("t", "normal", "{}").await;
    gateway.until_outcome("t", "normal", "done").await;
    let queue = redis.queue("t", "publisher");
    for (id, priority) in [("high", Priority::High), ("low", Priority::Low)] {
        queue.publisher.publish(&publication(id, priority)).await.unwrap();
        gateway.until_outcome("t", id, "done").await;
    }
    redis.is("settled", "XLEN {mq:t}:high", 0).await;
    redis.is("settled", "XLEN {mq:t}:low", 0).await;
    redis.publish("t", "after", "{}").await;
    gateway.until_outcome("t", "after", "done").await;
}

/// A worker on a topic that only has messages of high priority.
async fn only_high(redis: &Redis, plugins: &Plugins) -> Gateway {
    let gateway = Gateway::start(redis, plugins);
    redis.queue("t", "publisher").publisher.publish(&publication("high", Priority::High)).await.unwrap();
    gateway.until_outcome("t", "high", "done").await;
    gateway
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_began_with_a_priority_discovers_every_other_key() {
    let body = |id: &str| format!(r#"{{"id":"{id}","topic":"t","data":{{}}}}"#);
    let plugins = Plugins::with("t", &guest(OK), "");
    for kind in ["stream", "list", "delayed", "legacy"] {
        let redis = Redis::start();
        let gateway = only_high(&redis, &plugins).await;
        match kind {
            "stream" => drop(redis.add("t", body("next").as_bytes()).await),
            "list" => redis.run::<()>(&format!("LPUSH mq:t {}", body("next"))).await,
            "delayed" => redis.publish_later("t", "next", "{}", Duration::from_millis(100)).await,
            _ => redis.run::<()>(&format!("ZADD mq:delay:t 1 {}", body("next"))).await,
        }
        gateway.until_outcome("t", "next", "done").await;
        // Messages with a priority are still consumed.
        redis.queue("t", "publisher").publisher.publish(&publication("again", Priority::High)).await.unwrap();
        gateway.until_outcome("t", "again", "done").await;
        assert_eq!(gateway.logged(events::NOT_CONSUMING).len(), 0, "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_and_recreated_key_is_discovered_on_a_topic_with_priorities() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = only_high(&redis, &plugins).await;
    for (id, is_list) in [("a", false), ("b", true), ("c", false)] {
        redis.run::<i64>("DEL mq:t").await;
        if is_list {
            redis.run::<()>(&format!(r#"LPUSH mq:t {{"id":"{id}","topic":"t","data":{{}}}}"#)).await;
        } else {
            redis.add("t", format!(r#"{{"id":"{id}","topic":"t","data":{{}}}}"#).as_bytes()).await;
        }
        gateway.until_outcome("t", id, "done").await;
    }
    // Also long after the worker has detected that the key is missing.
    redis.run::<i64>("DEL mq:t").await;
    let is_gone = |line: &serde_json::Value| line["kind"] == "Absent";
    until("the missing key is detected", async || {
        gateway.logged(events::TOPIC_OPENED).last().filter(|line| is_gone(line)).map(drop)
    })
    .await;
    redis.publish("t", "d", "{}").await;
    gateway.until_outcome("t", "d", "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_priority_stream_causes_no_key_discovery_on_each_read() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = only_high(&redis, &plugins).await;
    redis.publish("t", "normal", "{}").await;
    gateway.until_outcome("t", "normal", "done").await;
    redis.run::<i64>("DEL {mq:t}:high").await;
    for number in 0..50 {
        let id = number.to_string();
        redis.publish("t", &id, "{}").await;
        gateway.until_outcome("t", &id, "done").await;
    }
    redis.run::<()>("CONFIG RESETSTAT").await;
    for number in 50..150 {
        let id = number.to_string();
        redis.publish("t", &id, "{}").await;
        gateway.until_outcome("t", &id, "done").await;
    }
    // Only a discovery of all keys asks for the type of the work stream.
    let stats: String = redis.run("INFO commandstats").await;
    let types =
        stats.lines().find_map(|line| line.strip_prefix("cmdstat_type:calls=")?.split(',').next()?.parse().ok());
    // Each publication asks once.
    assert!(types.unwrap_or(0) < 200, "{stats}");
    redis.queue("t", "publisher").publisher.publish(&publication("again", Priority::High)).await.unwrap();
    gateway.until_outcome("t", "again", "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_keeps_its_priority_while_it_is_retried_and_delayed() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    queue.publisher.publish(&publication("retried", Priority::High)).await.unwrap();
    let delayed = Publication { delay: Duration::from_millis(1), ..publication("delayed", Priority::Low) };
    queue.publisher.publish(&delayed).await.unwrap();
    let sources = queue.open().await.unwrap().streams;
    assert_eq!(sources, [StreamKind::High]);
    let mut reader = BlockingReader::connect(&queue.handle).await.unwrap();
    let taken = entries(reader.take(&sources, FlowControl::default(), 10).await.unwrap());
    queue.settlements.settle(&[taken[0].run_again(Duration::ZERO, Fields::new())], HOUR).await.unwrap();
    until("both are promoted", async || {
        queue.delayed.promote().await.unwrap();
        (redis.run::<i64>("ZCARD {mq:t}:delayed").await == 0).then_some(())
    })
    .await;
    assert_eq!(redis.envelopes("{mq:t}:high").await[0]["id"], "retried");
    assert_eq!(redis.envelopes("{mq:t}:low").await[0]["id"], "delayed");
    assert_eq!(redis.run::<i64>("EXISTS mq:t").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_names_its_priority() {
    let redis = Redis::start();
    redis
        .queue("puppet", "me")
        .publisher
        .publish(&{
            let topic = topic("puppet");
            let data = r#"{"do":"reject","code":"c","reason":"r"}"#;
            let draft = Draft { priority: Priority::High, ..Draft::new("a".to_owned(), &topic, data) };
            draft.encode(Timestamp::now()).unwrap()
        })
        .await
        .unwrap();
    let plugins = Plugins::with("puppet", &built("puppet"), "");
    let _gateway = Gateway::start(&redis, &plugins);
    let source = crate::support::text(&redis.dead("puppet").await, "gw-source");
    assert!(source.starts_with("puppet:high/"), "{source}");
}

#[tokio::test]
async fn no_window_exceeds_the_rate() {
    let redis = Redis::start();
    let queue = all_priorities(&redis, 20).await;
    let span = Duration::from_millis(500);
    let control = FlowControl { rate: Some((7, span)), ..FlowControl::default() };
    let mut reader = BlockingReader::connect(&queue.handle).await.unwrap();
    let mut taken = 0;
    while taken < 60 {
        match reader.take(&SOURCES, control, 5).await.unwrap() {
            Take::Taken(more) => taken += more.len(),
            // Asks again sooner than it should, as other workers may.
            Take::TooSoon(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            other => panic!("{other:?}"),
        }
    }
    let mut delivered = Vec::new();
    for key in ["mq:t", "{mq:t}:high", "{mq:t}:low"] {
        delivered.extend(delivered_at(&redis, key).await);
    }
    delivered.sort_unstable();
    assert_eq!(delivered.len(), 60);
    for eight in delivered.windows(8) {
        assert!(eight[7] - eight[0] >= 500, "{eight:?}");
    }
}

/// The delivery times of pending entries by the clock of Redis, in ms.
async fn delivered_at(redis: &Redis, key: &str) -> Vec<i64> {
    fn find(value: &redis::Value, name: &str) -> redis::Value {
        let redis::Value::Array(list) = value else { panic!("{value:?}") };
        let at = list.iter().position(|word| *word == redis::Value::BulkString(name.into())).unwrap();
        list[at + 1].clone()
    }
    let info: redis::Value = redis.run(&format!("XINFO STREAM {key} FULL COUNT 0")).await;
    let redis::Value::Array(groups) = find(&info, "groups") else { panic!("{info:?}") };
    let redis::Value::Array(pending) = find(&groups[0], "pending") else { panic!("{groups:?}") };
    let delivered = |row: &redis::Value| match row {
        redis::Value::Array(row) => match &row[2] {
            redis::Value::Int(ms) => *ms,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    pending.iter().map(delivered).collect()
}

#[tokio::test]
async fn the_rate_is_shared_and_survives_a_clock_that_was_ahead() {
    let redis = Redis::start();
    let queue = all_priorities(&redis, 10).await;
    let control = FlowControl { rate: Some((7, HOUR)), ..FlowControl::default() };
    assert_eq!(entries(take(&queue, control, 5).await).len(), 5);
    assert_eq!(entries(take(&redis.queue("t", "other"), control, 5).await).len(), 2);
    assert!(
        matches!(take(&queue, control, 5).await, Take::TooSoon(wait) if wait <= HOUR + HOUR / 20 && wait > HOUR / 2)
    );
    // A time written by a clock an hour ahead counts as now.
    let ahead = Timestamp::now().as_millisecond() + 3_600_000;
    let mut pack = redis::cmd("EVAL");
    pack.arg("return redis.call('HSET', KEYS[1], 'rate', cmsgpack.pack({ { tonumber(ARGV[1]), 7 } }))");
    pack.arg(1).arg("{mq:t}:state").arg(ahead);
    pack.query_async::<i64>(&mut redis.connection().await).await.unwrap();
    assert!(matches!(take(&queue, control, 5).await, Take::TooSoon(wait) if wait <= HOUR + HOUR / 20));
}

#[tokio::test]
async fn the_global_concurrency_holds_over_all_workers() {
    let redis = Redis::start();
    let queue = all_priorities(&redis, 10).await;
    let other = redis.queue("t", "other");
    let control = FlowControl { total: Some(8), ..FlowControl::default() };
    let mine = entries(take(&queue, control, 5).await);
    assert_eq!((mine.len(), entries(take(&other, control, 5).await).len()), (5, 3));
    assert_eq!(take(&other, control, 5).await, Take::Full);
    // A settled message frees its slot, so no counter can leak.
    assert_eq!(queue.settlements.settle(&[mine[0].done(None, Vec::new())], HOUR).await.unwrap(), [Settled::Ok]);
    assert_eq!(entries(take(&other, control, 5).await).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_together_respect_the_global_concurrency() {
    let redis = Redis::start();
    for number in 0..12 {
        redis.publish("puppet", &number.to_string(), r#"{"do":"sleep","ms":500}"#).await;
    }
    let plugins = Plugins::with("puppet", &built("puppet"), "global_concurrency = 3\n");
    let _gateways = [Gateway::start(&redis, &plugins), Gateway::start(&redis, &plugins)];
    let mut most = 0;
    until("all are done", async || {
        most = most.max(redis.in_flight("puppet").await);
        (redis.run::<i64>("XLEN mq:puppet").await == 0).then_some(())
    })
    .await;
    assert!((1..=3).contains(&most), "{most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_topic_starts_nothing_until_it_is_resumed() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "").and("other", &guest(OK), "");
    let gateways = [Gateway::start(&redis, &plugins), Gateway::start(&redis, &plugins)];
    redis.publish("puppet", "before", r#"{"do":"sleep","ms":2000}"#).await;
    let asleep = || gateways.iter().map(|gateway| gateway.asleep("puppet")).sum::<usize>();
    until("one runs", async || (asleep() == 1).then_some(())).await;
    redis.run::<i64>("HSET {mq:puppet}:state paused 1").await;
    // Blocked readers do not know of the pause, yet new messages must not run.
    for number in 0..20 {
        redis.publish("puppet", &number.to_string(), r#"{"do":"sleep","ms":0}"#).await;
    }
    for gateway in &gateways {
        gateway.until_logged(events::TOPIC_PAUSED, |line| line["topic"] == "puppet").await;
    }
    redis.is("the running one has ended", "XLEN mq:puppet", 20).await;
    redis.publish("other", "o", "{}").await;
    redis.is("other topics continue", "XLEN mq:other", 0).await;
    let ran: usize = gateways.iter().map(|gateway| gateway.outcomes("puppet").len()).sum();
    assert_eq!(ran, 1);
    redis.run::<i64>("HDEL {mq:puppet}:state paused").await;
    redis.is("all are done", "XLEN mq:puppet", 0).await;
    let ran: usize = gateways.iter().map(|gateway| gateway.outcomes("puppet").len()).sum();
    assert_eq!(ran, 21);
    let reclaimed: usize = gateways.iter().map(|gateway| gateway.logged(events::RECLAIMED).len()).sum();
    assert_eq!(reclaimed, 0, "a message requeued by the pause is counted as lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_read_during_a_pause_are_requeued_and_not_counted_as_lost() {
    let redis = Redis::start();
    redis.run::<()>("XGROUP CREATE mq:t consumer-group-t 0 MKSTREAM").await;
    let plugins = Plugins::with("t", &guest(OK), "");
    // With a lease of an hour only the end of the pause makes it available again.
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--queue-lease", "1h", "--queue-max-message", "1MiB"]);
    until("the reader is blocked", async || {
        redis.run::<String>("INFO clients").await.contains("blocked_clients:1\r").then_some(())
    })
    .await;
    // Too large to be recovered in one batch.
    let script = "redis.call('HSET', KEYS[1], 'paused', 1) \
                  for _ = 1, 3 do redis.call('XADD', KEYS[2], '*', 'message', string.rep(' ', 5242880)) end";
    let mut pause = redis::cmd("EVAL");
    pause.arg(script).arg(2).arg("{mq:t}:state").arg("mq:t");
    pause.query_async::<()>(&mut redis.connection().await).await.unwrap();
    redis.until_requeued("t", 3).await;
    redis.run::<i64>("HDEL {mq:t}:state paused").await;
    redis.is("all are dead", "XLEN {mq:t}:dead", 3).await;
    let recovered: Vec<_> = gateway
        .logged(events::FETCHED_AGAIN)
        .iter()
        .map(|line| (line["message"].clone(), line["count"].clone()))
        .collect();
    let requeued = events::FETCHED_AGAIN;
    assert_eq!(recovered, [(requeued.into(), 2.into()), (requeued.into(), 1.into())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_while_its_topic_is_paused_waits_too() {
    let redis = Redis::start();
    redis.run::<i64>("HSET {mq:t}:state paused 1").await;
    redis.publish("t", "a", "{}").await;
    let plugins = Plugins::with("t", &guest(OK), "global_concurrency = 5\n");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_logged(events::TOPIC_PAUSED, |_| true).await;
    gateway.until_ready().await;
    assert_eq!(redis.run::<i64>("XLEN mq:t").await, 1);
    redis.run::<i64>("HDEL {mq:t}:state paused").await;
    gateway.until_outcome("t", "a", "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_deduplication_copies_run_and_no_key_is_stored() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("t", "same", "{}").await;
    redis.publish("t", "same", "{}").await;
    redis.is("settled", "XLEN mq:t", 0).await;
    assert_eq!(gateway.outcomes("t").len(), 2);
    assert!(redis.run::<Vec<String>>("KEYS {mq:t}:dedup:*").await.is_empty());
    assert!(!redis.run::<bool>("HEXISTS {mq:t}:state dedup-windows").await);
}

#[tokio::test]
async fn the_deduplication_key_is_written_with_the_settlement() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    for number in 0..2 {
        redis.publish("t", &number.to_string(), "{}").await;
    }
    let sources = queue.open().await.unwrap().streams;
    let mut reader = BlockingReader::connect(&queue.handle).await.unwrap();
    let taken = entries(reader.take(&sources, FlowControl::default(), 10).await.unwrap());
    let keys = ["a".to_owned(), "b".to_owned()];
    let child = vec![publication("child", Priority::Normal)];
    let claim = |at: usize| Some(Claim::new(&keys[at], taken[at].first_entry(), HOUR));
    let batch = [taken[0].done(claim(0), Vec::new()), taken[1].done(claim(1), child)];
    assert_eq!(queue.dedup.finished(&keys).await.unwrap(), [false, false]);
    // With a full Redis the message without follow-ups is still settled.
    redis.run::<()>("CONFIG SET maxmemory 1").await;
    assert_eq!(queue.settlements.settle(&batch[..1], HOUR).await.unwrap(), [Settled::Ok]);
    redis.run::<()>("CONFIG SET maxmemory 0").await;
    assert_eq!(queue.dedup.finished(&keys).await.unwrap(), [true, false]);
    assert_eq!(queue.settlements.settle(&batch[1..], HOUR).await.unwrap(), [Settled::Ok]);
    assert_eq!(queue.dedup.finished(&keys).await.unwrap(), [true, true]);
}

#[tokio::test]
async fn publish_once_publishes_once_however_often_it_is_called() {
    let redis = Redis::start();
    let queue = redis.queue("t", "me");
    let one = publication("a", Priority::Normal);
    let mut published = 0;
    for _ in 0..3 {
        published += i64::from(queue.publisher.publish_once(&one, HOUR).await.unwrap());
    }
    assert_eq!((published, redis.run::<i64>("XLEN mq:t").await), (1, 1));
    // A failed publication stores no key, so it can be retried.
    redis.run::<()>("CONFIG SET maxmemory 1").await;
    let other = publication("b", Priority::High);
    queue.publisher.publish_once(&other, HOUR).await.unwrap_err();
    redis.run::<()>("CONFIG SET maxmemory 0").await;
    assert!(queue.publisher.publish_once(&other, HOUR).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_topic_costs_less_than_five_commands_a_second() {
    let redis = Redis::start();
    redis.publish("t", "a", "{}").await;
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_outcome("t", "a", "done").await;
    let commands = async || {
        // Commands of the worker as a whole are excluded.
        let stats: String = redis.run("INFO commandstats").await;
        let calls = |line: &str| -> Option<u64> {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            let is_other = ["ping", "info", "zadd", "zremrangebyscore", "client|", "config", "hello", "time"]
                .iter()
                .any(|other| name.starts_with(other));
            if is_other { None } else { rest.split(',').next()?.parse().ok() }
        };
        stats.lines().filter_map(calls).sum::<u64>()
    };
    // A new worker runs its maintenance more often for the first seconds.
    tokio::time::sleep(Duration::from_secs(13)).await;
    let (began, before) = (Instant::now(), commands().await);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let (spent, seconds) = (commands().await - before, began.elapsed().as_secs());
    assert!(spent < 5 * seconds, "{spent} commands in {seconds} s");
}
