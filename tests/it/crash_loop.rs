//! Messages that workers are lost with, again and again.

use crate::support::{Gateway, Plugins, Redis, built, text, until};

const OPTIONS: [&str; 2] = ["--queue-lease", "500ms"];

#[tokio::test(flavor = "multi_thread")]
async fn what_kills_its_worker_is_convicted_by_its_own_losses_and_no_bystander_is() {
    let redis = Redis::start();
    // Who runs alone waits until those before it have ended.
    let patient = "[limits]\ntimeout = \"2s\"\n[retry]\nattempts = 1000\nbase = \"10ms\"\ncap = \"10ms\"\n";
    let plugins = Plugins::with("puppet", &built("puppet"), "").and("other", &built("puppet"), patient);
    redis.publish("puppet", "poison", r#"{"do":"sleep","ms":600000}"#).await;
    // Lost beside others at first, then alone.
    for loss in 1..=2 {
        let gateway = Gateway::start_with(&redis.url(), &plugins, &OPTIONS);
        redis.publish("other", &format!("bystander-{loss}"), r#"{"do":"sleep","ms":600000}"#).await;
        until("bystanders run", async || (redis.in_flight("other").await > 0).then_some(())).await;
        redis.until_in_flight("puppet", 1).await;
        if loss > 1 {
            gateway.until_logged("taken over", |line| line["topic"] == "puppet" && line["losses"] == 1).await;
        }
        gateway.kill();
    }
    for lost in 0..3 {
        let gateway = Gateway::start_with(&redis.url(), &plugins, &OPTIONS);
        gateway.until_logged("runs alone", |line| line["topic"] == "puppet" && line["lost"] == lost).await;
        gateway.kill();
    }
    // The bystanders have an end now.
    let sense = Plugins::with("puppet", &built("puppet"), "").and(
        "other",
        &built("puppet"),
        "[limits]\ntimeout = \"200ms\"\n[retry]\nattempts = 1\n",
    );
    let _gateway = Gateway::start_with(&redis.url(), &sense, &OPTIONS);
    let dead = redis.dead("puppet").await;
    assert_eq!(text(&dead, "gw-reason"), "crash-loop");
    assert!(text(&dead, "gw-error").starts_with("3 workers were lost while it ran alone"), "{dead:?}");
    redis.is("the bystanders ended too", "XLEN {mq:other}:dead", 2).await;
    for letter in redis.entries("{mq:other}:dead").await {
        assert_eq!(text(&letter, "gw-reason"), "timeout");
    }
    redis.is("and nobody is suspected any more", "EXISTS {mq:puppet}:suspects {mq:other}:suspects", 0).await;
}
