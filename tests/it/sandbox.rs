//! A handler can hurt nobody and reach nothing: each way of misbehaving has
//! its named outcome, and the next message is handled.

use crate::support::{Gateway, OK, Plugins, Redis, built, guest, text};
use serde_json::Value;

/// A topic of a hostile guest beside a well-behaved one: how the hostile ends.
async fn ends(wasm: &[u8], manifest: &str) -> (String, String) {
    let redis = Redis::start();
    let manifest = format!("{manifest}\n[retry]\nattempts = 1\n");
    let plugins = Plugins::with("hostile", wasm, &manifest).and("good", &guest(OK), "");
    let mut gateway = Gateway::start(&redis, &plugins);
    redis.publish("hostile", "h", "{}").await;
    let dead = redis.dead("hostile").await;
    redis.publish("good", "g", "{}").await;
    gateway.until_outcome("good", "g", "done").await;
    assert!(gateway.is_running());
    let (status, _) = gateway.get("/healthz").await;
    assert_eq!(status, 200);
    redis.is("settled", "XLEN mq:hostile", 0).await;
    (text(&dead, "gw-reason"), text(&dead, "gw-error"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_loop_ends_at_its_cpu_limit() {
    let wasm = guest("(loop $forever (br $forever)) (unreachable)");
    let (reason, error) = ends(&wasm, "[limits]\ncpu = \"50ms\"").await;
    assert_eq!((reason.as_str(), error.as_str()), ("cpu-limit", "used more than limits.cpu = 50ms"));
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_loops_on_every_thread_keep_nobody_from_running() {
    let redis = Redis::start();
    let wasm = guest("(loop $forever (br $forever)) (unreachable)");
    let hostile = "concurrency = 16\n[limits]\ncpu = \"1h\"\ntimeout = \"1h\"\n";
    let plugins = Plugins::with("hostile", &wasm, hostile).and("good", &guest(OK), "");
    let gateway = Gateway::start_with(
        &redis.url(),
        &plugins,
        &["--handler-threads", "2", "--drain", "10ms", "--queue-lease", "1s"],
    );
    for number in 0..8 {
        redis.publish("hostile", &number.to_string(), "{}").await;
    }
    redis.until_in_flight("hostile", 8).await;
    for number in 0..50 {
        redis.publish("good", &number.to_string(), "{}").await;
    }
    redis.is("the others are handled", "XLEN mq:good", 0).await;
    assert_eq!(gateway.get("/ready").await.0, 200);
    // Leases go on being renewed beside them.
    let plugins = Plugins::with("hostile", &wasm, hostile);
    let other = Gateway::start_with(&redis.url(), &plugins, &["--queue-lease", "1s"]);
    other.until_loaded("hostile").await;
    redis.publish("good", "late", "{}").await;
    gateway.until_outcome("good", "late", "done").await;
    assert!(other.logged("taken over").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_waits_ends_at_its_timeout() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "[limits]\ntimeout = \"100ms\"\n[retry]\nattempts = 1\n");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("puppet", "short", r#"{"do":"sleep","ms":1}"#).await;
    gateway.until_outcome("puppet", "short", "done").await;
    redis.publish("puppet", "long", r#"{"do":"sleep","ms":60000}"#).await;
    let dead = redis.dead("puppet").await;
    assert_eq!(text(&dead, "gw-reason"), "timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_hog_ends_at_its_memory_limit() {
    let hog = "(loop $more (br_if $more (i32.ne (i32.const -1) (memory.grow (i32.const 16))))) (unreachable)";
    let (reason, error) = ends(&guest(hog), "[limits]\nmemory = \"8MiB\"").await;
    assert_eq!(reason, "memory-limit");
    assert!(error.contains("8388608 bytes"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_within_the_limit_is_given() {
    // 8 MiB are 128 pages, and one is there already.
    let grow = |pages: u32| {
        guest(&format!("(if (i32.eq (i32.const -1) (memory.grow (i32.const {pages}))) (then unreachable)) {OK}"))
    };
    let redis = Redis::start();
    let manifest = "[limits]\nmemory = \"8MiB\"\n[retry]\nattempts = 1\n";
    let plugins = Plugins::with("at", &grow(127), manifest).and("above", &grow(128), manifest);
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("at", "a", "{}").await;
    gateway.until_outcome("at", "a", "done").await;
    redis.publish("above", "a", "{}").await;
    gateway.until_outcome("above", "a", "memory-limit").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_costs_only_its_own_message() {
    let (reason, error) = ends(&guest("(unreachable)"), "").await;
    assert_eq!(reason, "trap");
    assert!(error.contains("unreachable"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_recursion_is_a_trap() {
    let wasm = crate::support::guest_with("(func $down (call $down))", &format!("(call $down) {OK}"));
    let (reason, error) = ends(&wasm, "").await;
    assert_eq!(reason, "trap");
    assert!(error.contains("stack"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_is_none_is_a_bad_reply() {
    // A result whose variant does not exist, and a text that lies outside of memory.
    let variant = "(i32.store8 (i32.const 16) (i32.const 1)) (i32.store8 (i32.const 20) (i32.const 9)) (i32.const 16)";
    let text = "(i32.store8 (i32.const 16) (i32.const 1)) (i32.store (i32.const 24) (i32.const -4)) (i32.store (i32.const 28) (i32.const 64)) (i32.const 16)";
    // A reject whose code is no code.
    let code = "(i32.store8 (i32.const 16) (i32.const 1)) (i32.store8 (i32.const 20) (i32.const 2)) (i32.const 16)";
    for body in [variant, text, code] {
        assert_eq!(ends(&guest(body), "").await.0, "bad-reply", "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_tells_its_message_and_exit_is_no_success() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "[retry]\nattempts = 1\n");
    let _gateway = Gateway::start(&redis, &plugins);
    for (data, told) in
        [(r#"{"do":"panic","text":"the reactor is hot"}"#, "the reactor is hot"), (r#"{"do":"exit","code":0}"#, "exit")]
    {
        redis.run::<i64>("DEL {mq:puppet}:dead").await;
        redis.publish("puppet", "p", data).await;
        let dead = redis.dead("puppet").await;
        assert_eq!(text(&dead, "gw-reason"), "trap");
        assert!(text(&dead, "gw-error").to_lowercase().contains(told), "{}", text(&dead, "gw-error"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_not_granted_can_be_reached() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "");
    let _gateway = Gateway::start(&redis, &plugins);
    redis.publish("puppet", "p", r#"{"do":"reach"}"#).await;
    let dead = redis.dead("puppet").await;
    assert_eq!(text(&dead, "gw-error"), "reached: ");
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_share_nothing() {
    // Counts its calls in memory, and traps at the second.
    let count =
        format!("(if (i32.load (i32.const 256)) (then unreachable)) (i32.store (i32.const 256) (i32.const 1)) {OK}");
    let redis = Redis::start();
    let plugins = Plugins::with("once", &guest(&count), "");
    let gateway = Gateway::start(&redis, &plugins);
    for number in 0..200 {
        redis.publish("once", &number.to_string(), "{}").await;
    }
    redis.is("all are handled", "XLEN mq:once", 0).await;
    assert!(gateway.outcomes("once").iter().all(|(_, outcome)| outcome == "done"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_flood_is_cut_and_cannot_forge_a_line() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "[limits]\nlog = \"1KiB/s\"\n");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("puppet", "p", r#"{"do":"log","text":"tick\n{\"forged\":1}\u001b[2J","times":100000}"#).await;
    gateway.until_outcome("puppet", "p", "done").await;
    let lines = gateway.logged("tick");
    assert!((1..=100).contains(&lines.len()), "{} lines", lines.len());
    assert!(lines.iter().all(|line| line["forged"] == Value::Null && line["id"] == "p"));
    assert!(!lines[0]["message"].as_str().unwrap().contains(['\n', '\u{1b}']));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_handler_prints_is_in_the_log() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("puppet", "p", r#"{"do":"print","text":"hello from inside"}"#).await;
    let line = gateway.until_logged("hello from inside", |_| true).await;
    assert_eq!((&line["plugin"], &line["id"]), (&Value::from("puppet"), &Value::from("p")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_flood_is_cut() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "[grants]\npublish = [\"other\"]\n");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("puppet", "at", r#"{"do":"publish","to":"other","times":1000,"then":null}"#).await;
    gateway.until_outcome("puppet", "at", "done").await;
    redis.is("all of them", "XLEN mq:other", 1000).await;
    redis.publish("puppet", "above", r#"{"do":"publish","to":"other","times":1001,"then":null}"#).await;
    let dead = redis.dead("puppet").await;
    assert!(text(&dead, "gw-error").starts_with("too-many: "), "{dead:?}");
    redis.is("and not one more", "XLEN mq:other", 1000).await;
}
