//! Limits, tested on both sides: a run just within a limit is done, and one just beyond
//! has the outcome of that limit.

use crate::guest::{OK, guest, guest_in, guest_with};
use crate::support::{BINARY, Gateway, Plugins, Redis, built, text, topic};
use gateway_worker::events;
use gateway_worker::publication::Draft;
use jiff::Timestamp;
use std::process::Command;
use std::time::Duration;

const CLOCKS: &str = r#"
    package wasi:io@0.2.0 { interface poll { resource pollable { block: func(); } } }
    package wasi:clocks@0.2.0 {
        interface monotonic-clock {
            use wasi:io/poll@0.2.0.{pollable};
            now: func() -> u64;
            subscribe-duration: func(when: u64) -> pollable;
        }
    }
    package wasi:http@0.2.0 {
        interface types {
            variant header-error { invalid-syntax, forbidden, immutable }
            resource fields {
                constructor();
                from-list: static func(entries: list<tuple<string, list<u8>>>) -> result<fields, header-error>;
                clone: func() -> fields;
            }
            resource outgoing-body;
            resource outgoing-request {
                constructor(headers: fields);
                body: func() -> result<outgoing-body>;
            }
            resource outgoing-response {
                constructor(headers: fields);
                body: func() -> result<outgoing-body>;
            }
        }
    }
    package wasi:sockets@0.2.0 {
        interface network { resource network; }
        interface instance-network { use network.{network}; instance-network: func() -> network; }
    }
    package wasi:random@0.2.0 { interface random { get-random-bytes: func(len: u64) -> list<u8>; } }
    world limited {
        include message-handler;
        import wasi:clocks/monotonic-clock@0.2.0;
        import wasi:http/types@0.2.0;
        import wasi:random/random@0.2.0;
        import wasi:sockets/instance-network@0.2.0;
    }"#;

const IMPORTS: &str = r#"
    (import "wasi:io/poll@0.2.0" "[method]pollable.block" (func $block (param i32)))
    (import "wasi:clocks/monotonic-clock@0.2.0" "now" (func $now (result i64)))
    (import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration" (func $subscribe (param i64) (result i32)))
    (import "wasi:http/types@0.2.0" "[constructor]fields" (func $fields (result i32)))
    (import "wasi:http/types@0.2.0" "[static]fields.from-list" (func $from_list (param i32 i32 i32)))
    (import "wasi:http/types@0.2.0" "[method]fields.clone" (func $clone (param i32) (result i32)))
    (import "wasi:http/types@0.2.0" "[constructor]outgoing-request" (func $request (param i32) (result i32)))
    (import "wasi:http/types@0.2.0" "[method]outgoing-request.body" (func $request_body (param i32 i32)))
    (import "wasi:http/types@0.2.0" "[constructor]outgoing-response" (func $response (param i32) (result i32)))
    (import "wasi:http/types@0.2.0" "[method]outgoing-response.body" (func $response_body (param i32 i32)))
    (import "wasi:random/random@0.2.0" "get-random-bytes" (func $random (param i64 i32)))
    (import "wasi:sockets/instance-network@0.2.0" "instance-network" (func $network (result i32)))
    (import "gateway:worker/logging@1.0.0" "log" (func $log (param i32 i32 i32)))"#;

fn limited(body: &str) -> Vec<u8> {
    guest_in("limited", CLOCKS, IMPORTS, "", body)
}

/// Waits for this time and returns ok.
fn waits(milliseconds: u64) -> String {
    format!("(call $block (call $subscribe (i64.const {}))) {OK}", milliseconds * 1_000_000)
}

/// A handler whose start function waits for an hour.
pub(crate) fn waits_at_its_start() -> Vec<u8> {
    let start = "(func $start (call $block (call $subscribe (i64.const 3600000000000)))) (start $start)";
    guest_in("limited", CLOCKS, IMPORTS, start, OK)
}

/// Runs for this time by the wall clock, so it uses at most as much CPU time.
fn spins(milliseconds: u64) -> String {
    format!(
        "(local $end i64) (local.set $end (i64.add (call $now) (i64.const {})))
         (loop $on (br_if $on (i64.lt_u (call $now) (local.get $end)))) {OK}",
        milliseconds * 1_000_000
    )
}

async fn publish_many(redis: &Redis, topic_name: &str, count: usize) {
    let to = topic(topic_name);
    let drafts: Vec<_> =
        (0..count).map(|number| Draft::new(number.to_string(), &to, "{}").encode(Timestamp::now()).unwrap()).collect();
    redis.queue(topic_name, "publisher").publisher.publish_all(&drafts).await.unwrap();
}

/// Runs `body` `count` times and returns ok.
pub(crate) fn times(count: u32, body: &str) -> String {
    format!(
        "(local $left i32) (local.set $left (i32.const {count}))
         (loop $again {body}
            (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
         {OK}"
    )
}

/// A guest within a limit, one beyond it, and the outcome of the latter.
struct Case {
    name: &'static str,
    manifest: &'static str,
    within: Vec<u8>,
    beyond: Vec<u8>,
    outcome: &'static str,
    error: &'static str,
}

/// Resources of `wasi:http`, of which `count` are within the limit.
fn http_resources(name: &'static str, manifest: &'static str, count: u32, body: &str) -> Case {
    Case {
        name,
        manifest,
        within: limited(&times(count, body)),
        beyond: limited(&times(count + 1, body)),
        outcome: "resource-limit",
        error: "used more than limits.resources = 64",
    }
}

/// Limits on memory, tables and time.
fn of_instances() -> Vec<Case> {
    let grow_memory =
        |pages| format!("(if (i32.eq (i32.const -1) (memory.grow (i32.const {pages}))) (then unreachable)) {OK}");
    let grow_tables = |elements| {
        let body = format!(
            "(if (i32.eq (i32.const -1) (table.grow $b (ref.null func) (i32.const {elements}))) (then unreachable)) {OK}"
        );
        guest_with("(table $a 30 funcref) (table $b 50 funcref)", &body)
    };
    vec![
        Case {
            name: "memory",
            manifest: "memory = \"8MiB\"",
            within: guest(&grow_memory(127)),
            beyond: guest(&grow_memory(128)),
            outcome: "memory-limit",
            error: "used more than limits.memory = 8MiB",
        },
        Case {
            name: "tables",
            manifest: "table_elements = 100",
            within: grow_tables(20),
            beyond: grow_tables(21),
            outcome: "table-limit",
            error: "used more than limits.table_elements = 100",
        },
        Case {
            name: "cpu",
            manifest: "cpu = \"2s\"",
            within: limited(&spins(1500)),
            beyond: limited("(loop $forever (br $forever)) (unreachable)"),
            outcome: "cpu-limit",
            error: "used more than limits.cpu = 2s",
        },
        Case {
            name: "timeout",
            manifest: "timeout = \"10s\"",
            within: limited(&waits(6000)),
            beyond: limited(&waits(3_600_000)),
            outcome: "timeout",
            error: "ran longer than limits.timeout = 10s",
        },
    ]
}

/// Limits on resources of the host.
fn of_handles() -> Vec<Case> {
    vec![
        Case {
            name: "handles",
            manifest: "resources = 50",
            within: limited(&times(50, "(drop (call $subscribe (i64.const 0)))")),
            beyond: limited(&times(51, "(drop (call $subscribe (i64.const 0)))")),
            outcome: "resource-limit",
            error: "used more than limits.resources = 50",
        },
        // A resource of one host object, not of two as above.
        Case {
            name: "networks",
            manifest: "resources = 50",
            within: limited(&times(50, "(drop (call $network))")),
            beyond: limited(&times(51, "(drop (call $network))")),
            outcome: "resource-limit",
            error: "used more than limits.resources = 50",
        },
        // Counts as several handles, according to its size in the memory of the host.
        Case {
            name: "fields",
            manifest: "resources = 6400",
            within: limited(&times(100, "(drop (call $fields))")),
            beyond: limited(&times(101, "(drop (call $fields))")),
            outcome: "resource-limit",
            error: "used more than limits.resources = 6400",
        },
        http_resources(
            "fields.listed",
            "resources = 6400",
            100,
            "(call $from_list (i32.const 0) (i32.const 0) (i32.const 64))",
        ),
        // Each iteration needs two; beyond the limit the first fits and the second does not.
        http_resources("fields.cloned", "resources = 6464", 50, "(drop (call $clone (call $fields)))"),
        http_resources(
            "request.body",
            "resources = 6464",
            50,
            "(call $request_body (call $request (call $fields)) (i32.const 64))",
        ),
        http_resources(
            "response.body",
            "resources = 6464",
            50,
            "(call $response_body (call $response (call $fields)) (i32.const 64))",
        ),
    ]
}

/// Limits on the bytes of one host call.
fn of_calls() -> Vec<Case> {
    // A log line of `bytes` zeros.
    let line = |bytes| format!("(call $log (i32.const 1) (i32.const 1024) (i32.const {bytes})) {OK}");
    // A retry whose reason has `bytes` bytes.
    let reply = |bytes| {
        format!(
            "(i32.store8 (i32.const 16) (i32.const 1)) (i32.store (i32.const 24) (i32.const 1024)) (i32.store (i32.const 28) (i32.const {bytes})) (i32.const 16)"
        )
    };
    let random = |bytes: u32| format!("(call $random (i64.const {bytes}) (i32.const 64)) {OK}");
    vec![
        Case {
            name: "host-call",
            manifest: "host_call_bytes = \"4KiB\"",
            within: limited(&line(4096)),
            beyond: limited(&line(4097)),
            outcome: "host-call-limit",
            error: "passed more than limits.host_call_bytes = 4KiB to the host in one call",
        },
        Case {
            name: "reply",
            manifest: "host_call_bytes = \"4KiB\"",
            within: guest(&reply(4096)),
            beyond: guest(&reply(4097)),
            outcome: "host-call-limit",
            error: "passed more than limits.host_call_bytes = 4KiB",
        },
        Case {
            name: "random",
            manifest: "",
            within: limited(&random(1 << 20)),
            beyond: limited(&random((1 << 20) + 1)),
            outcome: "trap",
            error: "requested len",
        },
    ]
}

/// The same limit for a command, which gets an error code instead of a trap. The list of
/// buffers, 8 bytes each, counts too.
fn of_programs() -> Vec<Case> {
    // A call with this many bytes and its expected result: 0, or `nomem`.
    let print = |bytes: u32, errno: u32| {
        let program = format!(
            r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (func (export "_start")
                (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const {bytes}))
                (if (i32.ne (i32.const {errno}) (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
                    (then unreachable))))"#
        );
        wat::parse_str(program).unwrap()
    };
    vec![
        Case {
            name: "program",
            manifest: "host_call_bytes = \"4KiB\"",
            within: print(4088, 0),
            beyond: print(4089, 0),
            outcome: "trap",
            error: "unreachable",
        },
        Case {
            name: "program.errno",
            manifest: "host_call_bytes = \"4KiB\"",
            within: print(4089, 48),
            beyond: print(4088, 48),
            outcome: "trap",
            error: "unreachable",
        },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_limit_is_tested_on_both_sides() {
    let redis = Redis::start();
    let plugins = Plugins::empty();
    let cases: Vec<Case> = [of_instances(), of_handles(), of_calls(), of_programs()].into_iter().flatten().collect();
    for case in &cases {
        let manifest = format!("[limits]\n{}\n[retry]\nattempts = 1\n", case.manifest);
        plugins.put(&format!("{}.within", case.name), &case.within, &manifest);
        plugins.put(&format!("{}.beyond", case.name), &case.beyond, &manifest);
    }
    let gateway = Gateway::start(&redis, &plugins);
    for Case { name, outcome, error, .. } in cases {
        let (within, beyond) = (format!("{name}.within"), format!("{name}.beyond"));
        redis.publish(&within, "w", "{}").await;
        redis.publish(&beyond, "b", "{}").await;
        let dead = redis.dead(&beyond).await;
        assert_eq!(text(&dead, "gw-reason"), outcome, "{name}");
        assert!(text(&dead, "gw-error").contains(error), "{name}: {}", text(&dead, "gw-error"));
        let ended = if name == "reply" { "retry" } else { "done" };
        gateway.until_outcome(&within, "w", ended).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cpu_time_is_counted_and_waiting_is_not() {
    let redis = Redis::start();
    let limits = "[limits]\ncpu = \"40ms\"\ntimeout = \"1m\"\n[retry]\nattempts = 1\n";
    let spins = guest("(loop $forever (br $forever)) (unreachable)");
    let plugins = Plugins::with("puppet", &built("puppet"), limits).and("spins", &spins, limits);
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("puppet", "waits", r#"{"do":"sleep","ms":400}"#).await;
    redis.publish("spins", "s", "{}").await;
    gateway.until_outcome("puppet", "waits", "done").await;
    gateway.until_outcome("spins", "s", "cpu-limit").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wall_clock_covers_the_start_of_an_instance() {
    let redis = Redis::start();
    let loops = guest_with("(func $start (loop $forever (br $forever))) (start $start)", OK);
    let manifest = "[limits]\ncpu = \"1h\"\ntimeout = \"50ms\"\n";
    let plugins = Plugins::with("starts", &loops, manifest);
    let gateway = Gateway::start(&redis, &plugins);
    let reason = gateway.until_refused("starts").await;
    assert!(reason.contains("timeout: ran longer than limits.timeout = 50ms"), "{reason}");
}

/// A line counts at least 128 bytes, and the unused budget of at most one second is
/// saved.
#[tokio::test(flavor = "multi_thread")]
async fn log_lines_beyond_the_limit_are_dropped() {
    let redis = Redis::start();
    // At one byte a second the next line is allowed after minutes.
    let plugins = Plugins::with("puppet", &built("puppet"), "[limits]\nlog = \"1B/s\"\n");
    let gateway = Gateway::start(&redis, &plugins);
    for (id, times) in [("within", 1), ("beyond", 1)] {
        redis.publish("puppet", id, &format!(r#"{{"do":"log","text":"measured","times":{times}}}"#)).await;
        gateway.until_outcome("puppet", id, "done").await;
    }
    let lines = gateway.logged("measured");
    assert!(lines.len() == 1 && lines[0]["id"] == "within", "{lines:?}");
    gateway.until_logged(events::LOG_LINES_DROPPED, |line| line["dropped"] == 1).await;
}

/// A plugin can use half of all call permits, and not one more.
#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_can_use_its_whole_quota_of_calls() {
    let redis = Redis::start();
    let manifest = "concurrency = 1000\n[limits]\ntimeout = \"1h\"\nlog = \"1GiB/s\"\n[retry]\nattempts = 1\n";
    let logs = format!("(call $log (i32.const 1) (i32.const 512) (i32.const 4)) {}", waits(3_600_000));
    let plugins = Plugins::with("crowd", &limited(&logs), manifest);
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--shutdown-timeout", "10ms"]);
    gateway.until_ready().await;
    publish_many(&redis, "crowd", 500).await;
    crate::support::until("all run", async || (gateway.logged("busy").len() == 500).then_some(())).await;
    assert!(gateway.outcomes("crowd").is_empty());
    redis.publish("crowd", "above", "{}").await;
    gateway.until_outcome("crowd", "above", "plugin-unavailable").await;
    assert_eq!(gateway.logged("busy").len(), 500);
}

/// Calls beyond the quota of a plugin cost its messages no attempt, and neither other
/// plugins nor new versions wait for them.
#[tokio::test(flavor = "multi_thread")]
async fn no_plugin_uses_up_the_call_permits_of_others() {
    let redis = Redis::start();
    let manifest = "concurrency = 1100\n[limits]\ntimeout = \"1h\"\n[retry]\nattempts = 1\n";
    let plugins = Plugins::with("crowd", &limited(&waits(3_600_000)), manifest).and("good", &guest(OK), "");
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--shutdown-timeout", "10ms"]);
    gateway.until_ready().await;
    publish_many(&redis, "crowd", 1100).await;
    // The waiting time is reported and does not count against `limits.timeout`.
    let waits = |plugin: &serde_json::Value| plugin["waiting"].as_u64().is_some_and(|calls| calls > 0);
    gateway.until_plugin("crowd", "has calls that wait", waits).await;
    let line = gateway.until_logged(events::SETTLED, |line| line["outcome"] == "plugin-unavailable").await;
    assert!(line["error"].as_str().unwrap().contains("too many calls at once"), "{line}");
    assert!(line["retry_in"].is_string(), "{line}");
    redis.publish("good", "g", "{}").await;
    gateway.until_outcome("good", "g", "done").await;
    plugins.put("late", &guest(OK), "");
    gateway.until_loaded("late").await;
    assert_eq!(redis.run::<i64>("XLEN {mq:crowd}:dead").await, 0);
}

/// Two instances within their own limits exceed the total: one waits until the other has
/// ended, which costs no attempt.
#[tokio::test(flavor = "multi_thread")]
async fn the_memories_of_all_instances_share_a_limit() {
    let redis = Redis::start();
    let grows =
        format!("(if (i32.eq (i32.const -1) (memory.grow (i32.const 640))) (then unreachable)) {}", waits(3_600_000));
    let manifest = "[limits]\ntimeout = \"2s\"\n[retry]\nattempts = 1\nbase = \"100ms\"\n";
    let plugins = Plugins::with("grows", &limited(&grows), manifest).and("good", &guest(OK), "");
    // One plugin may use half of it.
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--handler-memory", "128MiB"]);
    gateway.until_ready().await;
    publish_many(&redis, "grows", 2).await;
    let line = gateway.until_logged(events::SETTLED, |line| line["outcome"] == "plugin-unavailable").await;
    assert!(line["error"].as_str().unwrap().contains("handler_memory"), "{line}");
    redis.publish("good", "g", "{}").await;
    gateway.until_outcome("good", "g", "done").await;
    redis.is("both ran", "XLEN {mq:grows}:dead", 2).await;
    for letter in redis.entries("{mq:grows}:dead").await {
        assert_eq!(text(&letter, "gw-reason"), "timeout");
    }
}

/// A plugin that holds as much memory as it can get leaves enough for others.
#[tokio::test(flavor = "multi_thread")]
async fn no_plugin_uses_up_the_memory_of_others() {
    let redis = Redis::start();
    let grows = |and: &str| {
        let grown = "(i32.eq (i32.const -1) (memory.grow (i32.const 320)))";
        limited(&format!("(if {grown} (then unreachable)) {and}"))
    };
    let hostile = "concurrency = 10\n[limits]\ntimeout = \"1h\"\n";
    let plugins = Plugins::with("hostile", &grows(&waits(3_600_000)), hostile).and("good", &grows(OK), "");
    let gateway =
        Gateway::start_with(&redis.url(), &plugins, &["--handler-memory", "100MiB", "--shutdown-timeout", "10ms"]);
    gateway.until_ready().await;
    publish_many(&redis, "hostile", 10).await;
    let line = gateway.until_logged(events::SETTLED, |line| line["outcome"] == "plugin-unavailable").await;
    assert!(line["error"].as_str().unwrap().contains("its quota of memory"), "{line}");
    redis.publish("good", "g", "{}").await;
    gateway.until_outcome("good", "g", "done").await;
    assert!(gateway.outcomes("good").iter().all(|(_, outcome)| outcome == "done"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_open_file_limit_is_raised_to_the_hard_limit() {
    let redis = Redis::start();
    let plugins = Plugins::empty();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -Sn 256 && exec \"$0\" run --listen 127.0.0.1:0 --redis-url \"$1\" --plugins \"$2\""]);
    command.args([BINARY, &redis.url()]).arg(plugins.path()).env("GATEWAY_PLUGINS_CACHE", plugins.cache());
    let gateway = Gateway::spawn(&mut command);
    gateway.until_ready().await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gateway.id())).unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let files: Vec<&str> = files.split_whitespace().collect();
    assert_eq!(files[0], files[1], "{limits}");
}

#[tokio::test(flavor = "multi_thread")]
async fn short_handlers_do_not_wait_for_cpu_bound_ones() {
    short_messages_pass_cpu_bound_ones(&guest(OK)).await;
}

/// A handler that has waited past a tick of the scheduler and needs almost no CPU time.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_handlers_do_not_wait_for_cpu_bound_ones() {
    short_messages_pass_cpu_bound_ones(&limited(&times(2, "(call $block (call $subscribe (i64.const 7000000)))")))
        .await;
}

/// Short messages, one after the other, are handled before any of many CPU-bound
/// handlers has ended.
async fn short_messages_pass_cpu_bound_ones(short: &[u8]) {
    let redis = Redis::start();
    let spins = guest("(loop $forever (br $forever)) (unreachable)");
    let manifest = "concurrency = 64\n[limits]\ncpu = \"250ms\"\ntimeout = \"10m\"\n[retry]\nattempts = 1\n";
    let plugins = Plugins::with("spins", &spins, manifest).and("short", short, "");
    let options = ["--handler-threads", "2", "--queue-lease", "4s"];
    let gateway = Gateway::start_with(&redis.url(), &plugins, &options);
    gateway.until_loaded("spins").await;
    gateway.until_loaded("short").await;
    publish_many(&redis, "spins", 64).await;
    redis.until_in_flight("spins", 64).await;
    let short = topic("short");
    let queue = redis.queue("short", "publisher");
    let mut connection = redis.connection().await;
    for number in 0..100 {
        queue
            .publisher
            .publish(&Draft::new(number.to_string(), &short, "{}").encode(Timestamp::now()).unwrap())
            .await
            .unwrap();
        crate::support::until("it is handled", async || {
            let left: i64 = redis::cmd("XLEN").arg("mq:short").query_async(&mut connection).await.unwrap();
            (left == 0).then_some(())
        })
        .await;
    }
    assert_eq!(redis.in_flight("spins").await, 64, "a CPU-bound handler has ended before the short ones");
    assert_eq!(gateway.get("/healthz").await.0, 200);
    // Their leases were renewed meanwhile.
    assert!(gateway.logged(events::RECLAIMED).is_empty() && gateway.logged("lease").is_empty());
    tokio::time::timeout(Duration::from_secs(90), redis.is("all CPU-bound ones end", "XLEN {mq:spins}:dead", 64))
        .await
        .unwrap();
}
