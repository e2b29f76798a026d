//! Deduplication as a worker does it: of several messages with one key, one runs at a
//! time, and none after one has finished.

use crate::support::{Gateway, OK, Plugins, Redis, built, guest, run_command, topic, until};
use gateway_worker::events;
use gateway_worker::publication::{Draft, Priority};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

const DEDUP: &str = "[dedup]\nwindow = \"1h\"\n[retry]\nattempts = 1\n";
const OPTIONS: [&str; 2] = ["--queue-lease", "500ms"];

fn puppet(more: &str) -> Plugins {
    Plugins::with("t", &built("puppet"), &format!("{more}{DEDUP}"))
}

fn start(redis: &Redis, plugins: &Plugins) -> Gateway {
    Gateway::start_with(&redis.url(), plugins, &OPTIONS)
}

/// Adds a message whose deduplication key is `k`, with more keys of its envelope.
async fn add_with(redis: &Redis, id: &str, act: Value, more: Value) {
    let mut envelope = json!({ "id": id, "topic": "t", "dedup_key": "k", "data": act });
    envelope.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    redis.add("t", envelope.to_string().as_bytes()).await;
}

async fn add(redis: &Redis, id: &str, act: Value) {
    add_with(redis, id, act, json!({})).await;
}

fn sleep(ms: u32) -> Value {
    json!({ "do": "sleep", "ms": ms })
}

fn reject_after(ms: u32) -> Value {
    json!({ "do": "all", "of": [sleep(ms), { "do": "reject", "code": "no", "reason": "no" }] })
}

/// Waits until the topic has counted this many.
async fn counted(redis: &Redis, counter: &str, count: i64) {
    redis.is(counter, &format!("HGET {{mq:t}}:state {counter}"), count).await;
}

/// How often copies were parked.
async fn parked(redis: &Redis) -> i64 {
    redis.run::<Option<i64>>("HGET {mq:t}:state parked").await.unwrap_or(0)
}

async fn until_parked(redis: &Redis, count: i64) {
    until(&format!("{count} times parked"), async || (parked(redis).await >= count).then_some(())).await;
}

/// Nothing of the topic is left but its markers, counters and dead letters.
async fn is_empty(redis: &Redis) {
    for (key, command) in [("mq:t", "XLEN"), ("{mq:t}:delayed", "ZCARD"), ("{mq:t}:delayed:body", "HLEN")] {
        redis.is(key, &format!("{command} {key}"), 0).await;
    }
    assert_eq!(redis.run::<i64>("EXISTS {mq:t}:dedup:claims").await, 0, "no claim is left");
}

fn command(redis: &Redis, args: &[&str]) -> (i32, String, String) {
    run_command(&[args, &["--redis-url", &redis.url()]].concat())
}

/// When each run began and ended; no two overlap.
fn assert_one_at_a_time(gateways: &[Gateway]) -> usize {
    let time = |line: &Value| line["timestamp"].as_str().unwrap().parse::<Timestamp>().unwrap();
    let lines = |text: &str| gateways.iter().flat_map(|one| one.logged(text)).collect::<Vec<_>>();
    let ended = lines(events::HANDLED);
    let end_of = |id: &Value| time(ended.iter().find(|line| line["id"] == *id).unwrap());
    let mut runs: Vec<_> = lines("asleep").iter().map(|line| (time(line), end_of(&line["id"]))).collect();
    runs.sort_unstable();
    for pair in runs.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "{runs:?}");
    }
    runs.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_one_burst_run_once_on_one_worker_and_on_two() {
    for (workers, manifest) in [(1, ""), (1, "concurrency = 1\n"), (2, ""), (2, "concurrency = 1\n")] {
        let (redis, plugins) = (Redis::start(), puppet(manifest));
        for _ in 0..20 {
            // The run is longer than the lease, and than the claim would last by itself.
            redis.publish("t", "same", &sleep(2500).to_string()).await;
        }
        let gateways: Vec<_> = (0..workers).map(|_| start(&redis, &plugins)).collect();
        counted(&redis, "duplicate", 19).await;
        assert_eq!(redis.run::<i64>("HGET {mq:t}:state done").await, 1, "{workers} {manifest}");
        assert_eq!(gateways.iter().map(|one| one.asleep("t")).sum::<usize>(), 1, "{workers} {manifest}");
        is_empty(&redis).await;
        let text = gateways[0].get("/metrics/prometheus").await.1;
        assert!(text.contains("gateway_messages_parked_total{topic=\"t\"} "), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_messages_that_fail_run_one_after_another() {
    for (workers, manifest) in [(1, ""), (2, "concurrency = 1\n")] {
        let (redis, plugins) = (Redis::start(), puppet(manifest));
        for id in ["a", "b", "c", "d"] {
            add(&redis, id, reject_after(700)).await;
        }
        let gateways: Vec<_> = (0..workers).map(|_| start(&redis, &plugins)).collect();
        counted(&redis, "dead", 4).await;
        assert_eq!(assert_one_at_a_time(&gateways), 4);
        is_empty(&redis).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_copies_run_once() {
    let (redis, plugins) = (Redis::start_with(&[]), puppet(""));
    let envelope = json!({ "id": "same", "topic": "t", "data": sleep(3000) }).to_string();
    let mut pipe = redis::pipe();
    for _ in 0..10_000 {
        pipe.cmd("XADD").arg("mq:t").arg("*").arg("message").arg(&envelope).ignore();
    }
    pipe.query_async::<()>(&mut redis.connection().await).await.unwrap();
    let gateway = start(&redis, &plugins);
    counted(&redis, "duplicate", 9999).await;
    assert_eq!((redis.run::<i64>("HGET {mq:t}:state done").await, gateway.asleep("t")), (1, 1));
    // Each time that it returns a copy waits twice as long.
    assert!(parked(&redis).await < 40_000);
    is_empty(&redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_claim_of_a_killed_worker_passes_on_with_its_message() {
    let redis = Redis::start();
    let act = json!({ "do": "by-version", "of": { "slow": sleep(600_000), "quick": sleep(1) } });
    for _ in 0..3 {
        redis.publish("t", "same", &act.to_string()).await;
    }
    let plugins = |version: &str| puppet(&format!("[config]\nversion = \"{version}\"\n[limits]\ntimeout = \"1h\"\n"));
    let (slow, quick) = (plugins("slow"), plugins("quick"));
    let first = start(&redis, &slow);
    first.until_asleep("t", 1).await;
    until_parked(&redis, 2).await;
    first.kill();
    let second = start(&redis, &quick);
    counted(&redis, "duplicate", 2).await;
    assert_eq!(second.asleep("t"), 1);
    // The message ran that had the claim, not one of its copies.
    assert_eq!(second.logged(events::RECLAIMED).len(), 1);
    is_empty(&redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_claim_of_a_message_that_vanished_lapses() {
    let (redis, plugins) = (Redis::start(), puppet("[limits]\ntimeout = \"1h\"\n"));
    add(&redis, "a", sleep(600_000)).await;
    add(&redis, "b", sleep(1)).await;
    let first = start(&redis, &plugins);
    first.until_asleep("t", 1).await;
    until_parked(&redis, 1).await;
    first.kill();
    redis.run::<()>("DEL mq:t").await;
    let second = start(&redis, &plugins);
    second.until_outcome("t", "b", "done").await;
    is_empty(&redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_full_memory_copies_are_parked_and_nothing_runs_twice() {
    let (redis, plugins) = (Redis::start(), puppet(""));
    for _ in 0..3 {
        redis.publish("t", "same", &sleep(1500).to_string()).await;
    }
    // A group can't be created then.
    redis.queue("t", "me").open().await.unwrap();
    redis.run::<()>("CONFIG SET maxmemory 1").await;
    let gateway = start(&redis, &plugins);
    until_parked(&redis, 2).await;
    counted(&redis, "done", 1).await;
    // What is due can't be promoted now.
    redis.is("both wait", "ZCARD {mq:t}:delayed", 2).await;
    redis.run::<()>("CONFIG SET maxmemory 0").await;
    counted(&redis, "duplicate", 2).await;
    assert_eq!(gateway.asleep("t"), 1);
    is_empty(&redis).await;
}

/// A worker whose message `a` is to be retried in ten minutes, and its copy `b`, which
/// was parked three times since.
async fn retrying(redis: &Redis, plugins: &Plugins) -> Gateway {
    add(redis, "a", json!({ "do": "retry", "reason": "later", "after_ms": 600_000 })).await;
    add(redis, "b", sleep(1)).await;
    let gateway = start(redis, plugins);
    counted(redis, "retried", 1).await;
    until_parked(redis, 3).await;
    assert_eq!(gateway.outcomes("t"), [("a".to_owned(), "retry".to_owned())]);
    gateway
}

const TWICE: &str = "[dedup]\nwindow = \"1h\"\n[retry]\nattempts = 2\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_keeps_its_claim_until_it_is_cancelled() {
    let (redis, plugins) = (Redis::start(), Plugins::with("t", &built("puppet"), TWICE));
    let gateway = retrying(&redis, &plugins).await;
    let claims: Vec<String> = redis.run("HVALS {mq:t}:dedup:claims").await;
    let (until_ms, now) = (claims[0].split_once(' ').unwrap().0, Timestamp::now());
    let until = Timestamp::from_millisecond(until_ms.parse().unwrap()).unwrap();
    assert!(until > now + SignedDuration::from_secs(540), "{claims:?} at {now}");
    let (code, out, error) = command(&redis, &["messages", "cancel", "t", "a"]);
    assert!(code == 0 && out.contains("cancelled delayed"), "{out}{error}");
    gateway.until_outcome("t", "b", "done").await;
    is_empty(&redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_frees_the_claims_of_what_it_deletes() {
    let (redis, plugins) = (Redis::start(), Plugins::with("t", &built("puppet"), TWICE));
    let gateway = retrying(&redis, &plugins).await;
    let mut copies = 0;
    // The copy may be on its way at the moment of the purge.
    until("both are purged", async || {
        let (code, _, error) = command(&redis, &["topics", "purge", "t", "--delayed", "--yes"]);
        assert_eq!(code, 0, "{error}");
        copies += 1;
        (redis.run::<i64>("EXISTS {mq:t}:dedup:claims").await == 0).then_some(())
    })
    .await;
    assert_eq!(copies, 1, "the first purge has deleted the delayed message");
    add(&redis, "c", sleep(1)).await;
    gateway.until_outcome("t", "c", "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_has_one_of_several_copies() {
    let redis = Redis::start();
    let manifest = format!("[grants]\npublish = [\"seen\"]\n[batch]\nsize = 3\nwait = \"60s\"\n{DEDUP}");
    let plugins = Plugins::with("crew", &built("crew"), &manifest);
    for id in ["a", "a", "b", "a", "c"] {
        redis.publish("crew", id, "\"count\"").await;
    }
    let _gateway = start(&redis, &plugins);
    redis.is("the copies are duplicates", "HGET {mq:crew}:state duplicate", 2).await;
    let seen = redis.envelopes("mq:seen").await;
    assert_eq!(seen.iter().map(|one| one["data"].as_u64().unwrap()).collect::<Vec<_>>(), [3, 3, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_message_that_is_parked_is_isolated_when_it_returns() {
    let (redis, plugins) = (Redis::start(), puppet(""));
    add(&redis, "suspect", sleep(1)).await;
    redis.run::<()>("XGROUP CREATE mq:t consumer-group-t 0").await;
    redis.run::<redis::Value>("XREADGROUP GROUP consumer-group-t lost COUNT 1 STREAMS mq:t >").await;
    let entries: Vec<(String, Vec<String>)> = redis.run("XRANGE mq:t - +").await;
    let entry = &entries[0].0;
    let claim = format!("XCLAIM mq:t consumer-group-t lost 0 {entry} IDLE 60000 RETRYCOUNT 2");
    redis.run::<redis::Value>(&claim).await;
    // It is taken at once, and the other one only after a lease.
    add(&redis, "first", reject_after(3000)).await;
    let gateway = start(&redis, &plugins);
    gateway.until_asleep("t", 1).await;
    until_parked(&redis, 1).await;
    gateway.until_logged(events::RUNNING_ISOLATED, |line| line["crashes"] == 2).await;
    gateway.until_outcome("t", "suspect", "done").await;
    assert_eq!(gateway.outcomes("t")[0], ("first".to_owned(), "reject".to_owned()));
    is_empty(&redis).await;
    redis.is("the isolation is cleared", "EXISTS {mq:t}:isolated", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_copy_is_not_parked_again() {
    let (redis, plugins) = (Redis::start(), puppet("[limits]\ntimeout = \"1h\"\n"));
    add(&redis, "a", sleep(600_000)).await;
    let gateway = start(&redis, &plugins);
    gateway.until_asleep("t", 1).await;
    let expires_at = Timestamp::now() + SignedDuration::from_secs(4);
    add_with(&redis, "b", sleep(1), json!({ "expires_at": expires_at.to_string() })).await;
    until_parked(&redis, 1).await;
    gateway.until_outcome("t", "b", "expired").await;
    assert_eq!(gateway.asleep("t"), 1);
    counted(&redis, "expired", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_dead_letter_whose_copy_has_finished_is_a_duplicate() {
    let (redis, plugins) = (Redis::start(), puppet(""));
    add(&redis, "a", reject_after(1)).await;
    let gateway = start(&redis, &plugins);
    counted(&redis, "dead", 1).await;
    // No copy has finished yet, so the message runs, and dies again.
    let (code, out, error) = command(&redis, &["dead", "replay", "t", "--all"]);
    assert_eq!((code, out.as_str(), error.as_str()), (0, "1 replayed\n", ""));
    counted(&redis, "dead", 2).await;
    add(&redis, "b", sleep(1)).await;
    gateway.until_outcome("t", "b", "done").await;
    counted(&redis, "done", 1).await;
    let (code, out, error) = command(&redis, &["dead", "replay", "t", "--all"]);
    assert_eq!((code, out.as_str()), (0, "1 replayed\n"));
    assert!(
        error.contains("1 of them are duplicates: a message with the same deduplication key has finished"),
        "{error}"
    );
    counted(&redis, "duplicate", 1).await;
    assert_eq!(gateway.asleep("t"), 3);
    is_empty(&redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_take_nothing_of_the_rate() {
    let (redis, plugins) = (Redis::start(), puppet("[rate]\nlimit = 4\nper = \"1h\"\n"));
    for id in ["a", "b", "c", "d", "e"] {
        add(&redis, id, sleep(1500)).await;
    }
    for id in ["other", "another"] {
        add_with(&redis, id, sleep(1), json!({ "dedup_key": id })).await;
    }
    let gateway = start(&redis, &plugins);
    // Each copy that is taken takes the last place, and gives it back.
    counted(&redis, "done", 3).await;
    counted(&redis, "duplicate", 4).await;
    assert_eq!(gateway.asleep("t"), 3);
    let used: u64 = rate_steps(&redis).await.iter().sum();
    assert_eq!(used, 3);
}

/// How many messages each step of the rate limit has counted.
async fn rate_steps(redis: &Redis) -> Vec<u64> {
    let mut unpack = redis::cmd("EVAL");
    unpack.arg("local n = {} for i, one in ipairs(cmsgpack.unpack(redis.call('HGET', KEYS[1], 'rate'))) do n[i] = one[2] end return n");
    unpack.arg(1).arg("{mq:t}:state").query_async(&mut redis.connection().await).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_cannot_be_parked_stops_nothing_else() {
    let (redis, plugins) = (Redis::start(), puppet(""));
    redis.run::<()>("SET {mq:t}:delayed text").await;
    for id in ["a", "a", "b"] {
        redis.publish("t", id, &sleep(1500).to_string()).await;
    }
    let gateway = start(&redis, &plugins);
    let line = gateway.until_logged(events::PARK_FAILED, |_| true).await;
    assert!(line["error"].as_str().unwrap().contains("WRONGTYPE {mq:t}:delayed holds a string, not a zset"), "{line}");
    gateway.until_outcome("t", "a", "done").await;
    gateway.until_outcome("t", "b", "done").await;
    // Then there is no need to park it.
    counted(&redis, "duplicate", 1).await;
    assert_eq!(gateway.asleep("t"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claims_key_of_another_type_is_named() {
    let redis = Redis::start();
    let plugins = Plugins::with("t", &guest(OK), DEDUP);
    redis.run::<()>("SET {mq:t}:dedup:claims text").await;
    redis.publish("t", "a", "{}").await;
    let gateway = start(&redis, &plugins);
    let line = gateway.until_logged(events::NOT_CONSUMING, |_| true).await;
    assert!(line["error"].as_str().unwrap().contains("{mq:t}:dedup:claims holds a string, not a hash"), "{line}");
    redis.run::<()>("DEL {mq:t}:dedup:claims").await;
    gateway.until_outcome("t", "a", "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_in_several_streams_run_once() {
    let (redis, plugins) = (Redis::start(), puppet(""));
    let (topic, data) = (topic("t"), sleep(2500).to_string());
    for priority in [Priority::High, Priority::Normal, Priority::Low] {
        let draft = Draft { priority, ..Draft::new("same".to_owned(), &topic, &data) };
        let publication = draft.encode(Timestamp::now()).unwrap();
        redis.queue("t", "publisher").publisher.publish(&publication).await.unwrap();
    }
    let gateways: Vec<_> = (0..2).map(|_| start(&redis, &plugins)).collect();
    counted(&redis, "duplicate", 2).await;
    assert_eq!(gateways.iter().map(|one| one.asleep("t")).sum::<usize>(), 1);
    is_empty(&redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_in_a_list_run_once() {
    let (redis, plugins) = (Redis::start(), puppet(""));
    let envelope = json!({ "id": "same", "topic": "t", "data": sleep(2500) }).to_string();
    let mut push = redis::cmd("RPUSH");
    push.arg("mq:t").arg(vec![&envelope; 5]).query_async::<i64>(&mut redis.connection().await).await.unwrap();
    let gateways: Vec<_> = (0..2).map(|_| start(&redis, &plugins)).collect();
    counted(&redis, "duplicate", 4).await;
    assert_eq!(gateways.iter().map(|one| one.asleep("t")).sum::<usize>(), 1);
    redis.is("nothing is left", "XLEN {mq:t}:work", 0).await;
    assert_eq!(redis.run::<i64>("EXISTS {mq:t}:delayed {mq:t}:dedup:claims").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_a_stop_gives_back_keeps_its_claim() {
    let (redis, plugins) = (Redis::start(), puppet("concurrency = 1\n"));
    for id in ["first", "second"] {
        add_with(&redis, id, sleep(1500), json!({ "dedup_key": id })).await;
    }
    add_with(&redis, "copy", sleep(1), json!({ "dedup_key": "second" })).await;
    let gateway =
        Gateway::start_with(&redis.url(), &plugins, &["--queue-lease", "500ms", "--shutdown-timeout", "10ms"]);
    gateway.until_asleep("t", 1).await;
    assert!(gateway.stop().await.success());
    let plugins = puppet("");
    let second = start(&redis, &plugins);
    second.until_outcome("t", "first", "done").await;
    counted(&redis, "done", 2).await;
    counted(&redis, "duplicate", 1).await;
    assert_eq!(second.asleep("t"), 2);
    is_empty(&redis).await;
}
