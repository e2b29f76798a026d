//! The options of a publish: a deduplication key and an expiry.

use crate::guest::{OK, guest};
use crate::key_value::{manifest, run_actions};
use crate::support::{Gateway, Plugins, Redis, built, until};
use gateway_worker::events;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

const DEDUP: &str = "[dedup]\nwindow = \"1h\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn copies_by_dedup_key_and_expired_messages_are_not_run() {
    let redis = Redis::start();
    let plugins = Plugins::with("store", &built("store"), &manifest("", "")).and("other", &guest(OK), DEDUP);
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--queue-lease", "500ms"]);
    gateway.until_loaded("other").await;
    redis.run::<i64>("HSET {mq:other}:state paused 1").await;

    let start = Timestamp::now();
    let publish = |more: serde_json::Value| {
        let mut act = json!({ "do": "publish", "to": "other" });
        act.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        act
    };
    let options = [json!({ "dedup_key": "order-1" }), json!({ "dedup_key": "order-1" }), json!({ "expires": 1 })];
    let results = run_actions(&redis, "store", "parent", json!(options.map(publish))).await;
    let ids: Vec<&str> = results.iter().map(|result| result["ok"].as_str().unwrap()).collect();
    let envelopes = redis.envelopes("mq:other").await;
    assert_eq!(envelopes.len(), 3);
    assert_eq!((&envelopes[0]["dedup_key"], &envelopes[0]["expires_at"]), (&json!("order-1"), &json!(null)));
    assert_eq!(envelopes[2]["dedup_key"], json!(null));
    let expires_at: Timestamp = envelopes[2]["expires_at"].as_str().unwrap().parse().unwrap();
    let second = SignedDuration::from_secs(1);
    assert!(start + second <= expires_at + SignedDuration::from_millis(1), "{start} {expires_at}");
    assert!(expires_at <= Timestamp::now() + second, "{expires_at}");

    until("the third message expires", async || (Timestamp::now() > expires_at).then_some(())).await;
    redis.run::<i64>("HDEL {mq:other}:state paused").await;
    gateway.until_outcome("other", ids[0], "done").await;
    gateway.until_outcome("other", ids[2], "expired").await;
    // A copy that was taken together with the first one waits for a lease.
    redis.is("the copy is a duplicate", "HGET {mq:other}:state duplicate", 1).await;
    let is_duplicate = |line: &serde_json::Value| line["outcome"] == "duplicate";
    gateway.until_logged(events::SETTLED, is_duplicate).await;
    assert_eq!(gateway.outcomes("other").len(), 3, "one done, one duplicate, one expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn options_out_of_range_are_invalid() {
    let redis = Redis::start();
    let plugins = Plugins::with("store", &built("store"), &manifest("", ""));
    let _gateway = Gateway::start(&redis, &plugins);
    const YEAR: u32 = 366 * 24 * 60 * 60;
    let cases = [
        (json!({ "do": "publish", "to": "other", "dedup_key": "" }), "deduplication key"),
        (json!({ "do": "publish", "to": "other", "dedup_key": "k".repeat(257) }), "deduplication key"),
        (json!({ "do": "publish", "to": "other", "expires": YEAR + 1 }), "at most 366 days"),
        (json!({ "do": "publish", "to": "other", "expires": 60, "delay": 60 }), "more than the delay of 60 s"),
    ];
    let acts_of = |cases: &[(serde_json::Value, &str)]| cases.iter().map(|(act, _)| act.clone()).collect::<Vec<_>>();
    let results = run_actions(&redis, "store", "invalid", json!(acts_of(&cases))).await;
    for ((act, reason), result) in cases.iter().zip(&results) {
        assert_eq!(result["fault"], "invalid", "{act}: {result}");
        assert!(result["reason"].as_str().unwrap().contains(reason), "{act}: {result}");
    }
    let allowed = json!([
        { "do": "publish", "to": "other", "dedup_key": "k".repeat(256), "expires": YEAR },
        { "do": "publish", "to": "other", "expires": 61, "delay": 60 },
    ]);
    for result in run_actions(&redis, "store", "valid", allowed).await {
        assert!(result["ok"].is_string(), "{result}");
    }
}
