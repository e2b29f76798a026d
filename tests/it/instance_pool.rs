//! The instance pool: instances serve as many calls as the manifest allows, and never
//! another one after an aborted call.

use crate::batch::replies;
use crate::support::{Gateway, OK, Plugins, Redis, built, guest, resident_bytes, until};

/// Counts the calls of its instance at address 256 and traps beyond this maximum.
fn counts(calls_max: u32) -> Vec<u8> {
    guest(&format!(
        "(i32.store (i32.const 256) (i32.add (i32.const 1) (i32.load (i32.const 256))))
         (if (i32.gt_u (i32.load (i32.const 256)) (i32.const {calls_max})) (then unreachable)) {OK}"
    ))
}

const ONE_BY_ONE: &str = "concurrency = 1\n[retry]\nattempts = 1\n";

fn pooled(more: &str) -> String {
    format!("instances = {{ {more} }}\n{ONE_BY_ONE}")
}

/// Publishes `count` messages and returns their outcomes in order.
async fn outcomes(gateway: &Gateway, redis: &Redis, topic: &str, count: usize) -> Vec<String> {
    for number in 0..count {
        redis.publish(topic, &number.to_string(), "{}").await;
    }
    until("all have run", async || (gateway.outcomes(topic).len() >= count).then_some(())).await;
    gateway.outcomes(topic).into_iter().map(|(_, outcome)| outcome).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_serves_as_many_calls_as_the_manifest_says() {
    let redis = Redis::start();
    let plugins = Plugins::with("within", &counts(3), &pooled("max_calls = 3"))
        .and("beyond", &counts(2), &pooled("max_calls = 3"))
        .and("once", &counts(1), &pooled("max_calls = 1"))
        .and("fresh", &counts(1), ONE_BY_ONE);
    let gateway = Gateway::start(&redis, &plugins);
    for topic in ["within", "once", "fresh"] {
        assert_eq!(outcomes(&gateway, &redis, topic, 10).await, ["done"; 10], "{topic}");
    }
    // A trap ends the instance before its last call.
    let ended = outcomes(&gateway, &redis, "beyond", 9).await;
    assert_eq!(ended, ["done", "done", "trap"].repeat(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_aborted_run_the_next_instance_is_fresh() {
    let redis = Redis::start();
    let then = |end: &str| {
        guest(&format!("(if (i32.load (i32.const 256)) (then {end})) (i32.store (i32.const 256) (i32.const 1)) {OK}"))
    };
    // After a reply outside of memory the instance is not trusted either.
    let bad = "(i32.store8 (i32.const 16) (i32.const 1)) (i32.store (i32.const 24) (i32.const -4))
               (i32.store (i32.const 28) (i32.const 64)) (return (i32.const 16))";
    let spin = "(loop $on (br $on))";
    let limits = "[limits]\ncpu = \"50ms\"\n";
    let slow = "[limits]\ntimeout = \"200ms\"\ncpu = \"1h\"\n";
    let plugins = Plugins::with("trap", &then("unreachable"), &pooled("max_calls = 1000"))
        .and("bad-reply", &then(bad), &pooled("max_calls = 1000"))
        .and("cpu-limit", &then(spin), &format!("{}{limits}", pooled("max_calls = 1000")))
        .and("timeout", &then(spin), &format!("{}{slow}", pooled("max_calls = 1000")));
    let gateway = Gateway::start(&redis, &plugins);
    for end in ["trap", "bad-reply", "cpu-limit", "timeout"] {
        assert_eq!(outcomes(&gateway, &redis, end, 4).await, ["done", end, "done", end]);
    }
}

/// A batch handler that returns all replies at its first call, and none later.
fn withholds() -> Vec<u8> {
    replies(
        "(i32.store (i32.const 20) (select (i32.const 0) (local.get 1) (i32.load (i32.const 256))))
         (i32.store (i32.const 256) (i32.const 1))",
    )
}

/// After an invalid reply, as after a trap, the instance is not trusted.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_bad_reply_the_next_instance_is_fresh() {
    let redis = Redis::start();
    // A reject with an empty code, which is invalid.
    let code = guest(&format!(
        "(if (i32.load (i32.const 256)) (then
            (i32.store8 (i32.const 16) (i32.const 1)) (i32.store8 (i32.const 20) (i32.const 2)) (return (i32.const 16))))
         (i32.store (i32.const 256) (i32.const 1)) {OK}"
    ));
    let batch = "[batch]\nsize = 1\nwait = \"0s\"\n";
    let plugins = Plugins::with("code", &code, &pooled("max_calls = 1000")).and(
        "count",
        &withholds(),
        &format!("{}{batch}", pooled("max_calls = 1000")),
    );
    let gateway = Gateway::start(&redis, &plugins);
    for topic in ["code", "count"] {
        assert_eq!(outcomes(&gateway, &redis, topic, 4).await, ["done", "bad-reply", "done", "bad-reply"], "{topic}");
    }
}

/// Budgets are reset for each run, also in the same instance.
#[tokio::test(flavor = "multi_thread")]
async fn each_run_has_its_own_budgets_in_a_pooled_instance() {
    let redis = Redis::start();
    let grants = "[grants]\npublish = [\"other\"]\n";
    let plugins = Plugins::with("puppet", &built("puppet"), &format!("{}{grants}", pooled("max_calls = 1000")));
    let gateway = Gateway::start(&redis, &plugins);
    for id in ["a", "b", "c"] {
        redis.publish("puppet", id, r#"{"do":"publish","to":"other","times":700,"then":null}"#).await;
        gateway.until_outcome("puppet", id, "done").await;
    }
    redis.is("all are published", "XLEN mq:other", 2100).await;
    // Each run has its own publications with its own ids.
    let ids: std::collections::BTreeSet<String> =
        redis.envelopes("mq:other").await.iter().map(|envelope| envelope["id"].to_string()).collect();
    assert_eq!(ids.len(), 2100);
    // Log lines carry the id of the current message.
    for id in ["d", "e"] {
        redis.publish("puppet", id, &format!(r#"{{"do":"print","text":"printed by {id}"}}"#)).await;
        let line = gateway.until_logged(&format!("printed by {id}"), |_| true).await;
        assert_eq!(line["id"], id);
    }
}

/// A limit that one run has hit does not explain the failure of the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_reached_in_an_earlier_run_is_not_reported() {
    let redis = Redis::start();
    let grows = guest(&format!(
        "(if (i32.load (i32.const 256)) (then unreachable)) (i32.store (i32.const 256) (i32.const 1))
         (drop (memory.grow (i32.const 60000))) {OK}"
    ));
    let plugins = Plugins::with("grows", &grows, &pooled("max_calls = 1000"));
    let gateway = Gateway::start(&redis, &plugins);
    assert_eq!(outcomes(&gateway, &redis, "grows", 2).await, ["done", "trap"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_instance_is_evicted() {
    let redis = Redis::start();
    // 48 MiB that stay resident as long as the instance exists.
    let fills = guest(&format!(
        "(drop (memory.grow (i32.const 768))) (memory.fill (i32.const 65536) (i32.const 1) (i32.const 50331648)) {OK}"
    ));
    let plugins = Plugins::with("fills", &fills, &pooled("max_calls = 1000, idle_timeout = \"5s\""));
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("fills", "a", "{}").await;
    gateway.until_outcome("fills", "a", "done").await;
    let small = 48 << 20;
    let with = resident_bytes(gateway.id());
    until("its memory is released", async || (resident_bytes(gateway.id()) + small * 3 / 4 < with).then_some(())).await;
    redis.publish("fills", "b", "{}").await;
    gateway.until_outcome("fills", "b", "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_has_instances_of_its_own() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &counts(2), &pooled("max_calls = 1000"));
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("topic").await;
    for (version, id) in ["a", "b", "c"].into_iter().enumerate() {
        // The first two calls of an instance succeed.
        for call in ["first", "second"] {
            redis.publish("topic", &format!("{id}-{call}"), "{}").await;
            gateway.until_outcome("topic", &format!("{id}-{call}"), "done").await;
        }
        plugins.write(
            "topic.toml",
            format!("{}[config]\nversion = \"{version}\"\n", pooled("max_calls = 1000")).as_bytes(),
        );
        gateway.post("/api/v1/plugins/reload").await;
    }
}
