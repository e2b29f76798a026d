//! The key-value store: separate for each plugin, with exact quotas over all workers, and
//! with errors instead of failures when Redis has problems.

use crate::support::{Gateway, Plugins, Redis, built, text, until};
use gateway_worker::capability::{Fault, KeyValue, NewValue, Only, Quota};
use gateway_worker::queue::{KeyValueStore, RedisTarget};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const AMPLE: Quota = Quota { keys: 1000, bytes: 1 << 30 };

/// The manifest of the guest `store`, with these grants.
pub(crate) fn manifest(grants: &str, more: &str) -> String {
    format!("{more}\n[retry]\nattempts = 1\n[grants]\npublish = [\"seen\", \"other\", \"ring\"]\n{grants}\n")
}

/// Lets the guest `store` run actions and returns their results.
pub(crate) async fn run_actions(redis: &Redis, plugin: &str, id: &str, acts: Value) -> Vec<Value> {
    redis.publish(plugin, id, &json!({ "acts": acts }).to_string()).await;
    until(&format!("the results of {id}"), async || {
        let all = redis.envelopes("mq:seen").await;
        let found = all.into_iter().find(|envelope| envelope["data"]["of"] == id)?;
        Some(found["data"]["results"].as_array().unwrap().clone())
    })
    .await
}

fn store(redis: &Redis) -> KeyValueStore {
    KeyValueStore::new(&RedisTarget::at(&redis.url()).unwrap(), "mq:").unwrap()
}

fn value<'a>(key: &'a str, value: &'a str) -> NewValue<'a> {
    NewValue { key, value: value.as_bytes(), ttl: None, only: Only::Always }
}

fn short(key: &str, ms: u64) -> NewValue<'_> {
    NewValue { ttl: Some(Duration::from_millis(ms)), ..value(key, "v") }
}

fn code(answer: Result<bool, Fault>) -> &'static str {
    answer.unwrap_err().code
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_reads_its_own_values_and_no_other_plugin_does() {
    let redis = Redis::start();
    let plugins = Plugins::with("mine", &built("store"), &manifest("keyvalue = true", "")).and(
        "others",
        &built("store"),
        &manifest("keyvalue = true", ""),
    );
    let _gateway = Gateway::start(&redis, &plugins);
    let answers = run_actions(
        &redis,
        "mine",
        "first",
        json!([
            { "do": "get", "key": "k" },
            { "do": "set", "key": "k", "value": "v", "ttl": 3600 },
            { "do": "get", "key": "k" },
            { "do": "set-if-absent", "key": "k", "value": "other" },
            { "do": "set-if-absent", "key": "new", "value": "" },
            { "do": "compare-and-swap", "key": "k", "expected": "x", "value": "no" },
            { "do": "compare-and-swap", "key": "k", "expected": "v", "value": "w" },
            { "do": "compare-and-swap", "key": "absent", "expected": "", "value": "w" },
            { "do": "delete", "key": "absent" },
        ]),
    )
    .await;
    let expected = [
        json!(null),
        json!(null),
        json!("v"),
        json!(false),
        json!(true),
        json!(false),
        json!(true),
        json!(false),
        json!(null),
    ];
    assert_eq!(answers, expected.map(|answer| json!({ "ok": answer })));
    let again = json!([{ "do": "get", "key": "k" }]);
    assert_eq!(run_actions(&redis, "mine", "second", again.clone()).await, [json!({ "ok": "w" })]);
    assert_eq!(run_actions(&redis, "others", "third", again).await, [json!({ "ok": null })]);
    assert_eq!(redis.run::<String>("GET {mq::kv:mine}:k").await, "w");
    // A swap without a time to live makes the value permanent.
    assert_eq!(redis.run::<i64>("PTTL {mq::kv:mine}:k").await, -1);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_values_are_limited_and_need_a_grant() {
    let redis = Redis::start();
    let plugins = Plugins::with("store", &built("store"), &manifest("keyvalue = true", "")).and(
        "poor",
        &built("store"),
        &manifest("", ""),
    );
    let gateway = Gateway::start(&redis, &plugins);
    let set = |key: usize, value: usize| json!({ "do": "set", "key": "k".repeat(key), "value": "v".repeat(value) });
    let answers =
        run_actions(&redis, "store", "s", json!([set(0, 1), set(1, 1), set(512, 1), set(513, 1), set(1, 1 << 20)]))
            .await;
    let faults: Vec<&Value> = answers.iter().map(|answer| &answer["fault"]).collect();
    assert_eq!(faults, [&json!("invalid"), &Value::Null, &Value::Null, &json!("invalid"), &Value::Null]);
    let above = run_actions(&redis, "store", "above", json!([set(1, (1 << 20) + 1)])).await;
    assert_eq!(above[0]["fault"], "too-large");

    for act in [set(1, 1), json!({ "do": "get", "key": "k" }), json!({ "do": "delete", "key": "k" })] {
        redis.run::<i64>("DEL mq:seen").await;
        let denied = run_actions(&redis, "poor", "p", json!([act])).await;
        assert_eq!(denied[0]["fault"], "denied");
        assert!(denied[0]["reason"].as_str().unwrap().contains("write keyvalue = true"), "{denied:?}");
    }
    gateway.until_logged("key-value store denied", |line| line["plugin"] == "poor").await;
    assert_eq!(redis.run::<i64>("EXISTS {mq::kv:poor}:k {mq::kv:poor}-sizes").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_value_limits_of_the_manifest_hold() {
    let redis = Redis::start();
    let limits = "[limits]\nkeyvalue_keys = 3\nkeyvalue = \"1KiB\"\n";
    let plugins = Plugins::with("store", &built("store"), &manifest("keyvalue = true", limits));
    let _gateway = Gateway::start(&redis, &plugins);
    let fill =
        |key: &str, count: u32, bytes: usize| json!([{ "do": "fill", "key": key, "count": count, "bytes": bytes }]);
    assert_eq!(run_actions(&redis, "store", "a", fill("k", 3, 10)).await[0], json!({ "ok": null }));
    let many = run_actions(&redis, "store", "b", fill("m", 1, 10)).await;
    assert_eq!(many[0]["fault"], "too-many");
    assert!(many[0]["reason"].as_str().unwrap().contains("limits.keyvalue_keys = 3"), "{many:?}");
    // Of 1024 bytes two keys of two bytes with ten bytes each are used.
    assert_eq!(run_actions(&redis, "store", "c", fill("k", 1, 1024 - 24 - 2)).await[0], json!({ "ok": null }));
    let large = run_actions(&redis, "store", "d", fill("k", 1, 1024 - 24 - 1)).await;
    assert_eq!(large[0]["fault"], "too-large");
    assert!(large[0]["reason"].as_str().unwrap().contains("limits.keyvalue = 1KiB"), "{large:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quota_accounting_is_exact() {
    let redis = Redis::start();
    let store = store(&redis);
    let quota = Quota { keys: 2, bytes: 20 };
    assert_eq!(store.set("p", quota, value("a", "123456789")).await, Ok(true));
    assert_eq!(store.set("p", quota, value("b", "123456789")).await, Ok(true));
    assert_eq!(code(store.set("p", quota, value("c", "")).await), "too-many");
    assert_eq!(code(store.set("p", quota, value("a", "1234567890")).await), "too-large");
    // Existing keys may be overwritten, and shrunk even if the quota is now lower.
    assert_eq!(store.set("p", quota, value("a", "987654321")).await, Ok(true));
    assert_eq!(store.set("p", Quota { keys: 1, bytes: 5 }, value("a", "1234")).await, Ok(true));
    assert_eq!(code(store.set("p", Quota { keys: 1, bytes: 5 }, value("a", "12345")).await), "too-large");
    assert_eq!(store.set("p", quota, value("b", "12345678901234")).await, Ok(true));
    // Another plugin has its own quota.
    assert_eq!(store.set("q", quota, value("a", "1234567890123456789")).await, Ok(true));
    assert_eq!(redis.run::<i64>("HGET {mq::kv:p}-sizes a").await, 5);
    store.delete("p", "a").await.unwrap();
    store.delete("p", "a").await.unwrap();
    assert_eq!(store.set("p", quota, value("c", "1234")).await, Ok(true));
    assert_eq!(code(store.set("p", quota, value("c", "12345")).await), "too-large");
    for key in ["b", "c"] {
        store.delete("p", key).await.unwrap();
    }
    assert!(redis.run::<Vec<String>>("KEYS {mq::kv:p}*").await.is_empty(), "an empty store has no keys");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_one_round_trip() {
    let redis = Redis::start();
    let store = store(&redis);
    assert_eq!(store.set("p", AMPLE, value("k", "v")).await, Ok(true));
    redis.run::<()>("CONFIG RESETSTAT").await;
    for _ in 0..5 {
        assert_eq!(store.set("p", AMPLE, value("k", "v")).await, Ok(true));
        assert_eq!(store.get("p", "k").await, Ok(Some(b"v".to_vec())));
    }
    let stats: String = redis.run("INFO commandstats").await;
    for command in ["get", "evalsha"] {
        assert!(stats.contains(&format!("cmdstat_{command}:calls=5,")), "{stats}");
    }
    assert!(!stats.contains("cmdstat_script") && !stats.contains("cmdstat_eval:"), "{stats}");
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_values_do_not_count_against_the_quota() {
    let redis = Redis::start_with(&[]);
    let store = store(&redis);
    let quota = Quota { keys: 5000, bytes: 40_000 };
    let until_gone = |key: &'static str| {
        let command = format!("EXISTS {{mq::kv:p}}:{key}");
        let redis = &redis;
        async move { redis.is("it expires", &command, 0).await }
    };
    assert_eq!(store.set("p", AMPLE, short("k", 3_600_000)).await, Ok(true));
    assert!(redis.run::<i64>("PTTL {mq::kv:p}:k").await > 3_500_000);
    // The last time to live counts.
    assert_eq!(store.set("p", AMPLE, short("k", 1)).await, Ok(true));
    until_gone("k").await;
    let absent = NewValue { only: Only::IfAbsent, ..value("k", "again") };
    assert_eq!(store.set("p", AMPLE, absent).await, Ok(true));
    assert_eq!(store.get("p", "k").await, Ok(Some(b"again".to_vec())));
    store.delete("p", "k").await.unwrap();

    // More expired keys than one call removes from the accounting.
    for number in 0..4999 {
        assert_eq!(store.set("p", quota, short(&format!("k{number}"), 60_000)).await, Ok(true));
    }
    assert_eq!(store.set("p", quota, short("last", 60_000)).await, Ok(true));
    assert_eq!(code(store.set("p", quota, short("above", 60_000)).await), "too-many");
    let mut connection = redis.connection().await;
    let mut pipe = redis::pipe();
    for name in (0..4999).map(|number| format!("k{number}")).chain(["last".to_owned()]) {
        pipe.cmd("DEL").arg(format!("{{mq::kv:p}}:{name}")).ignore();
        pipe.cmd("ZADD").arg("{mq::kv:p}-ends").arg(1).arg(name).ignore();
    }
    pipe.query_async::<()>(&mut connection).await.unwrap();
    assert_eq!(store.set("p", quota, value("large", &"v".repeat(39_500))).await, Ok(true));
    let sizes: Vec<String> = redis.run("HGETALL {mq::kv:p}-sizes").await;
    assert_eq!(sizes.len() as i64 - 4, 2 * redis.run::<i64>("ZCARD {mq::kv:p}-ends").await);
    assert_eq!(redis.run::<i64>("HGET {mq::kv:p}-sizes large").await, 39_505);
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_values_are_removed_from_the_accounting_by_later_calls() {
    let redis = Redis::start();
    let store = store(&redis);
    for number in 0..400 {
        assert_eq!(store.set("p", AMPLE, short(&format!("k{number}"), 1)).await, Ok(true));
    }
    until("the accounting is empty", async || {
        store.delete("p", "another").await.unwrap();
        (redis.run::<i64>("HLEN {mq::kv:p}-sizes").await == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writers_do_not_exceed_the_quota() {
    let redis = Redis::start();
    let quota = Quota { keys: 50, bytes: 1 << 20 };
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let store = Arc::new(store(&redis));
        for number in 0..40 {
            let store = store.clone();
            writers
                .spawn(async move { store.set("p", quota, value(&format!("{writer}/{number}"), "v")).await.is_ok() });
        }
    }
    let set = writers.join_all().await.into_iter().filter(|is_set| *is_set).count();
    assert_eq!(set, 50);
    assert_eq!(redis.run::<i64>("HLEN {mq::kv:p}-sizes").await, 51);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_is_reported_and_nothing_changes() {
    let redis = Redis::start();
    let store = store(&redis);
    assert_eq!(store.set("p", AMPLE, value("k", "before")).await, Ok(true));
    redis.run::<()>("CONFIG SET maxmemory 1").await;
    let fault = store.set("p", AMPLE, value("k", "after")).await.unwrap_err();
    assert_eq!(fault.code, "unavailable");
    assert!(fault.reason.contains("maxmemory"), "{fault}");
    assert_eq!(store.get("p", "k").await, Ok(Some(b"before".to_vec())));
    assert_eq!(redis.run::<i64>("HGET {mq::kv:p}-sizes k").await, 7);
    // A deletion, which frees memory, succeeds.
    store.delete("p", "k").await.unwrap();
    redis.run::<()>("CONFIG SET maxmemory 0").await;
    assert_eq!(store.set("p", AMPLE, value("k", "after")).await, Ok(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_does_not_answer_is_reported_soon() {
    let mut redis = Redis::start();
    let store = store(&redis);
    assert_eq!(store.get("p", "k").await, Ok(None));
    redis.run::<()>("CLIENT PAUSE 600000 ALL").await;
    for fault in [store.get("p", "k").await.unwrap_err(), store.set("p", AMPLE, value("k", "v")).await.unwrap_err()] {
        assert_eq!(fault, Fault::unavailable("Redis has not answered for 2s"));
    }
    redis.kill();
    let fault = until("the outage is detected", async || {
        store.get("p", "k").await.err().filter(|fault| !fault.reason.contains("answered"))
    })
    .await;
    assert_eq!(fault.code, "unavailable");
    redis.restart();
    until("Redis answers again", async || store.get("p", "k").await.ok()).await;
}

/// The SDK maps `unavailable` to a retry.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_whose_store_fails_is_retried() {
    let redis = Redis::start();
    let plugins = Plugins::with("store", &built("store"), &manifest("keyvalue = true", ""));
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("store").await;
    // The key has another type.
    redis.run::<i64>("RPUSH {mq::kv:store}:k v").await;
    let act = json!({ "acts": [{ "do": "get", "key": "k" }], "end": "fault" });
    redis.publish("store", "s", &act.to_string()).await;
    let dead = redis.dead("store").await;
    assert_eq!(text(&dead, "gw-reason"), "retry");
    assert!(text(&dead, "gw-error").contains("WRONGTYPE"), "{dead:?}");
}
