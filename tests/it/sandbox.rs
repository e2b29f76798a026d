//! The sandbox: each kind of misbehaviour has its outcome, no handler reaches what it was
//! not granted, and the next message is handled.

use crate::key_value::{manifest, run_actions};
use crate::support::{Gateway, OK, Plugins, Redis, built, command, guest, is_control_or_bidi, text, until};
use gateway_worker::events;
use serde_json::{Value, json};

/// Runs a hostile guest next to a well-behaved one. Returns reason and error of the dead
/// letter.
async fn outcome_of(wasm: &[u8], manifest: &str) -> (String, String) {
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
    let (reason, error) = outcome_of(&wasm, "[limits]\ncpu = \"50ms\"").await;
    assert_eq!((reason.as_str(), error.as_str()), ("cpu-limit", "used more than limits.cpu = 50ms"));
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_loops_on_every_thread_block_no_other_handler() {
    let redis = Redis::start();
    let wasm = guest("(loop $forever (br $forever)) (unreachable)");
    let hostile = "concurrency = 16\n[limits]\ncpu = \"1h\"\ntimeout = \"1h\"\n";
    let plugins = Plugins::with("hostile", &wasm, hostile).and("good", &guest(OK), "");
    let gateway = Gateway::start_with(
        &redis.url(),
        &plugins,
        &["--handler-threads", "2", "--shutdown-timeout", "10ms", "--queue-lease", "1s"],
    );
    for number in 0..8 {
        redis.publish("hostile", &number.to_string(), "{}").await;
    }
    redis.until_in_flight("hostile", 8).await;
    for number in 0..50 {
        redis.publish("good", &number.to_string(), "{}").await;
    }
    redis.is("the other topic is handled", "XLEN mq:good", 0).await;
    assert_eq!(gateway.get("/ready").await.0, 200);
    // Leases are still renewed.
    let plugins = Plugins::with("hostile", &wasm, hostile);
    let other = Gateway::start_with(&redis.url(), &plugins, &["--queue-lease", "1s"]);
    other.until_loaded("hostile").await;
    redis.publish("good", "late", "{}").await;
    gateway.until_outcome("good", "late", "done").await;
    assert!(other.logged(events::RECLAIMED).is_empty());
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
async fn unlimited_memory_growth_ends_at_the_memory_limit() {
    let grows = "(loop $more (br_if $more (i32.ne (i32.const -1) (memory.grow (i32.const 16))))) (unreachable)";
    let (reason, error) = outcome_of(&guest(grows), "[limits]\nmemory = \"8MiB\"").await;
    assert_eq!(reason, "memory-limit");
    assert!(error.contains("limits.memory = 8MiB"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_within_the_limit_is_given() {
    // 8 MiB are 128 pages, one of which is allocated at the start.
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
    let (reason, error) = outcome_of(&guest("(unreachable)"), "").await;
    assert_eq!(reason, "trap");
    assert!(error.contains("unreachable"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_recursion_is_a_trap() {
    let wasm = crate::support::guest_with("(func $down (call $down))", &format!("(call $down) {OK}"));
    let (reason, error) = outcome_of(&wasm, "").await;
    assert_eq!(reason, "trap");
    assert!(error.contains("stack"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_reply_is_a_bad_reply() {
    // A variant that does not exist, and a string outside of memory.
    let variant = "(i32.store8 (i32.const 16) (i32.const 1)) (i32.store8 (i32.const 20) (i32.const 9)) (i32.const 16)";
    let text = "(i32.store8 (i32.const 16) (i32.const 1)) (i32.store (i32.const 24) (i32.const -4)) (i32.store (i32.const 28) (i32.const 64)) (i32.const 16)";
    // A reject with an empty code.
    let code = "(i32.store8 (i32.const 16) (i32.const 1)) (i32.store8 (i32.const 20) (i32.const 2)) (i32.const 16)";
    for body in [variant, text, code] {
        assert_eq!(outcome_of(&guest(body), "").await.0, "bad-reply", "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_reports_its_message_and_exit_is_no_success() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "[retry]\nattempts = 1\n");
    let _gateway = Gateway::start(&redis, &plugins);
    for (data, fragment) in
        [(r#"{"do":"panic","text":"the reactor is hot"}"#, "the reactor is hot"), (r#"{"do":"exit","code":0}"#, "exit")]
    {
        redis.run::<i64>("DEL {mq:puppet}:dead").await;
        redis.publish("puppet", "p", data).await;
        let dead = redis.dead("puppet").await;
        assert_eq!(text(&dead, "gw-reason"), "trap");
        assert!(text(&dead, "gw-error").to_lowercase().contains(fragment), "{}", text(&dead, "gw-error"));
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
async fn a_log_flood_is_limited_and_cannot_forge_a_line() {
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
async fn empty_log_lines_are_limited() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "[limits]\nlog = \"1KiB/s\"\n");
    let gateway = Gateway::start(&redis, &plugins);
    let print = json!({ "do": "print", "text": "\n".repeat(10_000) }).to_string();
    for (id, data) in [("log", r#"{"do":"log","text":"","times":10000}"#), ("print", &print)] {
        redis.publish("puppet", id, data).await;
        gateway.until_outcome("puppet", id, "done").await;
        let lines = gateway.logged("").iter().filter(|line| line["target"] == "handler" && line["id"] == id).count();
        assert!(lines <= 500, "{id}: {lines} lines");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stdout_of_a_handler_is_logged() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("puppet", "p", r#"{"do":"print","text":"hello from inside"}"#).await;
    let line = gateway.until_logged("hello from inside", |_| true).await;
    assert_eq!((&line["plugin"], &line["id"]), (&Value::from("puppet"), &Value::from("p")));
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_log_lines_are_reported_though_no_line_follows() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "[limits]\nlog = \"1KiB/s\"\n");
    let gateway = Gateway::start(&redis, &plugins);
    let flood = r#"{"do":"log","text":"0123456789","times":1000}"#;
    redis.publish("puppet", "first", flood).await;
    redis.publish("puppet", "second", flood).await;
    let counted = async || {
        let (written, reports) = (gateway.logged("0123456789").len() as u64, gateway.logged(events::LOG_LINES_DROPPED));
        let dropped: u64 = reports.iter().map(|line| line["dropped"].as_u64().unwrap()).sum();
        (written + dropped == 2000).then_some(())
    };
    until("every line is written or counted", counted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_lines_and_fields_are_truncated_and_escaped() {
    let redis = Redis::start();
    let plugins = Plugins::with("store", &built("store"), &manifest("", "[limits]\nlog = \"1MiB/s\""));
    let gateway = Gateway::start(&redis, &plugins);
    let fields: Vec<(String, String)> = (0..33).map(|number| (format!("f{number}"), "v".to_owned())).collect();
    let log = |text: &str, fields: Value| json!({ "do": "log", "text": text, "fields": fields });
    let (largest, value) = (format!("large {}", "x".repeat((16 << 10) - 6)), "y".repeat(1 << 10));
    let whole = format!("whole {}", "x".repeat(14_000));
    let lines = json!([
        log(&whole, json!([["at", value]])),
        log(&largest, json!([])),
        log(&format!("{largest}x"), json!([["above", format!("{value}y")]])),
        log("many", json!(fields)),
        log("exact", json!(fields[..32])),
        log("a\u{1b}[31mred\u{202e}", json!([["level", "error id=7"], ["b\nc", ""], ["n".repeat(65), "v"]])),
    ]);
    run_actions(&redis, "store", "s", lines).await;
    let line = gateway.until_logged("whole ", |_| true).await;
    assert_eq!((&line["message"], &line["fields"]), (&json!(whole), &json!(format!("at={value}"))));
    // A text of 16 KiB makes a line that is longer than container engines take, so it
    // ends with how much is missing, however often it was shortened.
    let lines = gateway.logged("large ");
    assert_eq!(lines.len(), 2);
    let missing = |line: &Value, whole: &str| {
        let (kept, note) = line["message"].as_str().unwrap().rsplit_once("... (").unwrap();
        assert!(whole.starts_with(kept) && line.to_string().len() < 16 << 10, "{line}");
        assert_eq!(note, format!("{} bytes more)", whole.len() - kept.len()));
    };
    missing(&lines[0], &largest);
    missing(&lines[1], &format!("{largest}x"));
    assert_eq!(lines[1]["fields"], json!(format!("above={value}...")));
    let many = gateway.until_logged("many", |_| true).await;
    assert!(many["fields"].as_str().unwrap().ends_with("f31=v and 1 more"), "{many}");
    let exact = gateway.until_logged("exact", |_| true).await;
    assert!(exact["fields"].as_str().unwrap().ends_with("f31=v"), "{exact}");
    let escaped = gateway.until_logged("ared\u{fffd}", |_| true).await;
    assert_eq!((&escaped["level"], &escaped["id"]), (&json!("INFO"), &json!("s")));
    let name = "n".repeat(64);
    assert_eq!(escaped["fields"], json!(format!("level=\"error id=7\" b\\nc=\"\" {name}...=v")));
}

#[tokio::test(flavor = "multi_thread")]
async fn denials_do_not_flood_the_log() {
    let redis = Redis::start();
    let plugins = Plugins::with("store", &built("store"), &manifest("", "[limits]\nlog = \"1KiB/s\""));
    let gateway = Gateway::start(&redis, &plugins);
    let refused = vec![json!({ "do": "secret", "name": "x".repeat(10_000) }); 500];
    let answers = run_actions(&redis, "store", "s", json!(refused)).await;
    assert!(answers.iter().all(|answer| answer["fault"] == "denied"));
    let lines = gateway.logged("denied");
    assert!((1..50).contains(&lines.len()), "{}", lines.len());
    assert!(lines[0].to_string().len() < 1000, "{}", lines[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_published_messages_per_run_is_limited() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "[grants]\npublish = [\"other\"]\n");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("puppet", "at", r#"{"do":"publish","to":"other","times":1000,"then":null}"#).await;
    gateway.until_outcome("puppet", "at", "done").await;
    redis.is("all are published", "XLEN mq:other", 1000).await;
    redis.publish("puppet", "above", r#"{"do":"publish","to":"other","times":1001,"then":null}"#).await;
    let dead = redis.dead("puppet").await;
    assert!(text(&dead, "gw-error").starts_with("too-many: "), "{dead:?}");
    redis.is("no more are published", "XLEN mq:other", 1000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_published_bytes_per_run_are_limited() {
    let redis = Redis::start();
    let plugins = Plugins::with("store", &built("store"), &manifest("", "[limits]\nmemory = \"256MiB\""));
    let gateway = Gateway::start(&redis, &plugins);
    let large = |bytes: usize| json!([{ "do": "large", "to": "other", "bytes": bytes }]);
    assert!(run_actions(&redis, "store", "a", large(1000)).await[0]["ok"].is_string());
    let envelope = crate::support::field(&redis.entries("mq:other").await[0], "message").len() - 1000;
    let second = (16 << 20) - (1000 + envelope) - envelope;
    let two_publications =
        |second: usize| json!({ "acts": [large(1000)[0], large(second)[0]], "end": "fault" }).to_string();
    redis.publish("store", "at", &two_publications(second)).await;
    gateway.until_outcome("store", "at", "done").await;
    redis.is("both are published", "XLEN mq:other", 3).await;
    redis.publish("store", "above", &two_publications(second + 1)).await;
    let dead = redis.dead("store").await;
    assert!(text(&dead, "gw-error").starts_with("too-large: a run publishes at most 16777216 bytes"), "{dead:?}");
    redis.is("no more are published", "XLEN mq:other", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_message_chain_is_stopped() {
    let redis = Redis::start();
    let plugins = Plugins::with("ring", &built("store"), &manifest("", "")).and(
        "later",
        &built("store"),
        &manifest("", "").replace("\"ring\"", "\"later\""),
    );
    let _gateway = Gateway::start(&redis, &plugins);
    // Each run publishes to `seen` too, without a delay, so the last run fails at that.
    redis.publish("ring", "first", r#"{"acts":[{"do":"republish","to":"ring"}],"end":"fault"}"#).await;
    let dead = redis.dead("ring").await;
    assert!(text(&dead, "gw-error").starts_with("too-many: the last 100 messages"), "{dead:?}");
    let envelope: Value = serde_json::from_str(&text(&dead, "message")).unwrap();
    assert_eq!(envelope["headers"], json!({ "worker-hops": "100" }));
    assert_eq!(redis.run::<i64>("HGET {mq:ring}:state done").await, 100);

    // A delayed message begins a new chain.
    redis.publish("later", "rests", r#"{"acts":[{"do":"republish","to":"later","delay":1}],"end":"fault"}"#).await;
    let delayed = until("delayed", async || {
        let bodies: Vec<Vec<u8>> = redis.run("HVALS {mq:later}:delayed:body").await;
        bodies.into_iter().next()
    })
    .await;
    assert!(!String::from_utf8_lossy(&delayed).contains("worker-hops"));

    // The handler can read the header, and only the host can set it.
    redis.run::<i64>("DEL mq:seen").await;
    let envelope = |hops: &str| {
        format!(
            r#"{{"id":"{hops}","topic":"ring","data":{{"acts":[{{"do":"publish","to":"other","headers":[["worker-hops","1"]]}}]}},"headers":{{"worker-hops":"{hops}","Worker-Other":"x"}}}}"#
        )
    };
    for (hops, headers) in [("7", json!([["worker-hops", "7"]])), ("many", json!([]))] {
        redis.add("ring", envelope(hops).as_bytes()).await;
        let seen = until("the handler has reported", async || {
            redis.envelopes("mq:seen").await.into_iter().find(|envelope| envelope["data"]["of"] == hops)
        })
        .await;
        assert_eq!(seen["data"]["headers"], headers);
        assert_eq!(seen["data"]["results"][0]["fault"], "invalid");
    }
}

/// Texts of a handler are logged without characters that control a terminal, including
/// those that JSON does not escape.
#[tokio::test(flavor = "multi_thread")]
async fn handler_output_cannot_control_a_terminal() {
    let unsafe_text = "a\u{1b}[2J\u{9b}2J\u{7f}\u{202e}\nb";
    let acts = [
        json!({ "do": "log", "text": unsafe_text, "times": 1 }),
        json!({ "do": "print", "text": unsafe_text }),
        json!({ "do": "retry", "reason": unsafe_text }),
        json!({ "do": "postpone", "reason": unsafe_text, "after_ms": 3_600_000 }),
        json!({ "do": "reject", "code": "requested", "reason": unsafe_text }),
        json!({ "do": "reject", "code": unsafe_text, "reason": "" }),
        json!({ "do": "panic", "text": unsafe_text }),
        json!({ "do": unsafe_text }),
        json!({ "do": "publish", "to": unsafe_text, "times": 1 }),
    ];
    let plugins = Plugins::with("puppet", &built("puppet"), "[retry]\nattempts = 1\n");
    for format in ["json", "pretty"] {
        let redis = Redis::start();
        let gateway = Gateway::start_with(&redis.url(), &plugins, &["--log-format", format]);
        // An id is untrusted too.
        for (number, act) in acts.iter().enumerate() {
            redis.publish("puppet", &format!("{number}{unsafe_text}"), &act.to_string()).await;
        }
        redis.is("one is postponed", "ZCARD {mq:puppet}:delayed", 1).await;
        redis.is("all others are settled", "XLEN mq:puppet", 0).await;
        assert_eq!(gateway.lines_with_control_characters(), Vec::<String>::new(), "{format}");
        // The commands that show the results escape them too.
        let url = redis.url();
        let entry = redis.run::<Vec<(String, redis::Value)>>("XRANGE {mq:puppet}:dead - + COUNT 1").await[0].0.clone();
        for args in [&["dead", "ls", "puppet"][..], &["dead", "show", "puppet", &entry], &["messages", "ls", "puppet"]]
        {
            let output = command(&[args, &["--redis-url", &url]].concat());
            let shown = String::from_utf8(output.stdout).unwrap();
            assert!(
                output.status.success() && !shown.replace('\n', "").contains(is_control_or_bidi),
                "{args:?}: {shown:?}"
            );
        }
        // Nothing was left out of the log.
        assert_eq!(redis.entries("{mq:puppet}:dead").await.len(), 6);
        let lines = gateway.kill_and_read_log().iter().filter(|line| line.to_string().contains("2J")).count();
        assert!(lines >= acts.len(), "{format}: {lines}");
    }
}
