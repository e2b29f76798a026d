//! What `/ready` and the metrics say of a worker that can't do its work, or not all of it,
//! and that they say it no longer when it can again.

use crate::support::{Gateway, OK, Plugins, Redis, TOKEN, built, guest, until};
use gateway_worker::events;
use serde_json::{Value, json};

/// Waits until `/ready` has this code and all these words among its reasons.
async fn until_not_ready(gateway: &Gateway, words: &[&str]) -> Value {
    until(&format!("not ready: {words:?}"), async || {
        let (code, body) = gateway.json("/ready").await;
        let reasons = body["reasons"].to_string();
        (code == 503 && words.iter().all(|word| reasons.contains(word))).then_some(body)
    })
    .await
}

/// Waits until `/ready` is 200 and all these words are in `degraded`; without words, until
/// there is none.
async fn until_degraded(gateway: &Gateway, words: &[&str]) -> Value {
    until(&format!("degraded: {words:?}"), async || {
        let (code, body) = gateway.json("/ready").await;
        let degraded = body["degraded"].to_string();
        let is_as_expected =
            words.iter().all(|word| degraded.contains(word)) && words.is_empty() == body["degraded"].is_null();
        (code == 200 && is_as_expected).then_some(body)
    })
    .await
}

/// Waits until these lines are in the metrics.
async fn until_metrics(gateway: &Gateway, lines: &[&str]) {
    until(&format!("metrics {lines:?}"), async || {
        let (_, text) = gateway.get("/metrics/prometheus").await;
        lines.iter().all(|line| text.lines().any(|found| found == *line)).then_some(())
    })
    .await;
}

/// Waits until the only topic is said to be consumed, or not to be.
async fn until_consuming(gateway: &Gateway, is_consuming: bool) {
    until(&format!("consuming is {is_consuming}"), async || {
        let (_, body) = gateway.json("/metrics").await;
        let active = &body["consumers"]["active"];
        (body["topics"][0]["consuming"] == is_consuming && *active == i64::from(is_consuming)).then_some(())
    })
    .await;
}

/// A worker with one topic, from a Redis that serves to one that does not, and back.
async fn is_told_and_its_end_too(redis: &Redis, breaks: &str, words: &[&str], mends: &str) {
    let plugins = Plugins::with("topic", &guest(OK), "");
    let gateway = Gateway::start(redis, &plugins);
    gateway.until_ready().await;
    until_consuming(&gateway, true).await;
    redis.run::<()>(breaks).await;
    let body = until_not_ready(&gateway, words).await;
    assert_eq!((&body["status"], &body["consumers"]), (&json!("not_ready"), &json!("stopped")), "{body}");
    until_metrics(&gateway, &["gateway_redis_connected 0", "gateway_ready 0"]).await;
    assert_eq!(gateway.json("/metrics").await.1["status"], "not_ready");
    redis.run::<()>(mends).await;
    gateway.until_ready().await;
    until_consuming(&gateway, true).await;
    until_metrics(&gateway, &["gateway_redis_connected 1", "gateway_ready 1"]).await;
    redis.publish("topic", "after", "{}").await;
    gateway.until_outcome("topic", "after", "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_without_enough_replicas_is_not_ready_until_there_are() {
    let redis = Redis::start();
    let words = ["Redis takes no writes", "NOREPLICAS", "Not enough good replicas", "min-replicas-to-write"];
    is_told_and_its_end_too(&redis, "CONFIG SET min-replicas-to-write 1", &words, "CONFIG SET min-replicas-to-write 0")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_became_a_replica_is_not_ready_until_it_is_promoted() {
    let (redis, master) = (Redis::start(), Redis::start());
    let replicate = format!("REPLICAOF 127.0.0.1 {}", master.url().rsplit(':').next().unwrap());
    is_told_and_its_end_too(&redis, &replicate, &["read only replica", "REPLICAOF NO ONE"], "REPLICAOF NO ONE").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_whose_right_to_write_was_revoked_is_not_ready_until_it_is_granted() {
    let redis = Redis::start();
    let words = ["NOPERM", "no permissions", "ACL SETUSER"];
    is_told_and_its_end_too(
        &redis,
        "ACL SETUSER default -zadd -xreadgroup -evalsha",
        &words,
        "ACL SETUSER default +zadd +xreadgroup +evalsha",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_with_full_memory_is_not_ready_until_there_is_some() {
    let redis = Redis::start();
    let words = ["OOM", "its memory is full, see maxmemory"];
    is_told_and_its_end_too(&redis, "CONFIG SET maxmemory 1", &words, "CONFIG SET maxmemory 0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_plugin_refused_writes_are_noticed_too() {
    let redis = Redis::start();
    let plugins = Plugins::empty();
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_ready().await;
    redis.run::<()>("CONFIG SET min-replicas-to-write 1").await;
    until_not_ready(&gateway, &["NOREPLICAS"]).await;
    redis.run::<()>("CONFIG SET min-replicas-to-write 0").await;
    gateway.until_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_takes_no_more_clients_is_not_ready_until_it_does() {
    let redis = Redis::start();
    redis.run::<()>("CONFIG SET maxclients 2").await;
    let (mut first, second) = (redis.connection().await, redis.connection().await);
    let plugins = Plugins::with("topic", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    until_not_ready(&gateway, &["max number of clients", "maxclients"]).await;
    redis::cmd("CONFIG").arg("SET").arg("maxclients").arg(100).query_async::<()>(&mut first).await.unwrap();
    gateway.until_ready().await;
    drop(second);
}

/// A worker that may do everything but announce itself handles messages.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_may_not_announce_itself_is_degraded() {
    let redis = Redis::start();
    redis.run::<()>("ACL SETUSER default resetkeys ~mq:topic ~{mq:*").await;
    let plugins = Plugins::with("topic", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    until_degraded(&gateway, &["can't be announced", "NOPERM"]).await;
    until_metrics(&gateway, &["gateway_degraded{kind=\"presence\"} 1", "gateway_redis_connected 1"]).await;
    redis.run::<()>("ACL SETUSER default allkeys").await;
    until_degraded(&gateway, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_topic_without_rights_is_degraded_and_all_of_them_are_not_ready() {
    let redis = Redis::start();
    let plugins = Plugins::with("a", &guest(OK), "").and("b", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_ready().await;
    redis.run::<()>("ACL SETUSER default resetkeys ~mq::* ~mq:b ~{mq:b*").await;
    let body = until_degraded(&gateway, &["some topics are not consumed: a;", "NOPERM"]).await;
    assert_eq!(gateway.json("/metrics").await.1["consumers"]["active"], 1, "{body}");
    until_metrics(&gateway, &["gateway_degraded{kind=\"topics-unserved\"} 1", "gateway_ready 1"]).await;
    redis.run::<()>("ACL SETUSER default resetkeys ~mq::*").await;
    until_not_ready(&gateway, &["no topic has been consumed for 10 s: a, b"]).await;
    redis.run::<()>("ACL SETUSER default allkeys").await;
    until_degraded(&gateway, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settlements_that_are_refused_make_their_topic_unserved() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_ready().await;
    redis.publish("puppet", "a", r#"{"do":"sleep","ms":3000}"#).await;
    gateway.until_asleep("puppet", 1).await;
    redis.run::<()>("ACL SETUSER default -xack").await;
    until_not_ready(&gateway, &["no topic has been consumed", "run this command"]).await;
    redis.run::<()>("ACL SETUSER default +xack").await;
    gateway.until_ready().await;
    redis.is("it is settled", "XLEN mq:puppet", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_topic_is_not_consumed_and_no_reason_not_to_be_ready() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    until_consuming(&gateway, true).await;
    redis.run::<i64>("HSET {mq:topic}:state paused 1").await;
    until_consuming(&gateway, false).await;
    until_degraded(&gateway, &["topics are paused: topic", "topics resume"]).await;
    assert_eq!(gateway.json("/metrics").await.1["topics"][0]["paused"], true);
    until_metrics(&gateway, &["gateway_degraded{kind=\"topics-paused\"} 1", "gateway_ready 1"]).await;
    redis.run::<i64>("HDEL {mq:topic}:state paused").await;
    until_degraded(&gateway, &[]).await;
    until_consuming(&gateway, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn some_refused_plugins_are_degraded_and_only_refused_ones_are_not_ready() {
    let redis = Redis::start();
    let plugins = Plugins::with("bad", b"no component", "").and("good", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    let body = until_degraded(&gateway, &["some plugins are refused: bad"]).await;
    assert!(body.get("reasons").is_none(), "{body}");
    until_metrics(&gateway, &["gateway_degraded{kind=\"plugins-refused\"} 1"]).await;
    plugins.remove("good.wasm");
    until_not_ready(&gateway, &["every plugin is refused: bad"]).await;
    plugins.put("good", &guest(OK), "");
    until_degraded(&gateway, &["some plugins are refused: bad"]).await;
    plugins.remove("bad.wasm");
    until_degraded(&gateway, &[]).await;
    until_metrics(&gateway, &["gateway_degraded{kind=\"plugins-refused\"} 0"]).await;
    // An existing directory without plugins is ready.
    plugins.remove("good.wasm");
    gateway.until_logged(events::PLUGIN_REMOVED, |line| line["plugin"] == "good").await;
    until_degraded(&gateway, &[]).await;
}

/// A version whose file is replaced by a bad one goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_runs_an_older_version_is_degraded() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_ready().await;
    plugins.write("topic.wasm", b"no component");
    until_degraded(&gateway, &["some plugins are refused: topic"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_plugins_directory_is_not_ready_until_it_is_back() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "");
    let away = plugins.path().with_extension("away");
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--plugins-cache", ""]);
    gateway.until_ready().await;
    std::fs::rename(plugins.path(), &away).unwrap();
    let body = until_not_ready(&gateway, &["the plugins directory is missing"]).await;
    let path = plugins.path().to_str().unwrap();
    assert!(!body.to_string().contains(path), "{body}");
    let (_, told) = gateway.request("GET", "/ready", &format!("Authorization: Bearer {TOKEN}\r\n")).await;
    assert!(told.contains(path), "{told}");
    // What is live goes on.
    redis.publish("topic", "a", "{}").await;
    gateway.until_outcome("topic", "a", "done").await;
    std::fs::rename(&away, plugins.path()).unwrap();
    gateway.until_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsuitable_policy_is_degraded_until_it_is_changed() {
    let redis = Redis::start_with(&["--maxmemory-policy", "allkeys-lru"]);
    let plugins = Plugins::empty();
    let gateway = Gateway::start(&redis, &plugins);
    let body = until_degraded(&gateway, &["maxmemory-policy is allkeys-lru", "noeviction"]).await;
    assert!(!body.to_string().contains("127.0.0.1"), "{body}");
    until_metrics(&gateway, &["gateway_degraded{kind=\"redis-policy\"} 1"]).await;
}

/// Strangers learn why, and no host.
#[tokio::test(flavor = "multi_thread")]
async fn only_operators_are_told_where_redis_is() {
    let mut redis = Redis::start();
    redis.kill();
    let plugins = Plugins::empty();
    let gateway = Gateway::start(&redis, &plugins);
    let body = until_not_ready(&gateway, &["Redis is away: connection refused"]).await;
    assert!(!body.to_string().contains("127.0.0.1"), "{body}");
    let (_, told) = gateway.request("GET", "/ready", &format!("Authorization: Bearer {TOKEN}\r\n")).await;
    assert!(told.contains("127.0.0.1"), "{told}");
    let (_, metrics) = gateway.json("/metrics").await;
    assert_eq!(metrics["reasons"], body["reasons"]);
}
