//! Guests that mean harm, all beside each other: each has its named end, the
//! host lives on, and its memory goes back to where it was.

use crate::guest::{OK, guest, guest_in, guest_with, module};
use crate::limits::times;
use crate::support::{Gateway, Plugins, Redis, built, encode, resident_bytes, text, until};
use std::collections::BTreeMap;

/// What a guest does, and how that ends: every time, not just the first.
struct Attack {
    name: &'static str,
    wasm: Vec<u8>,
    manifest: &'static str,
    data: &'static str,
    end: &'static str,
    /// What the error says.
    told: &'static str,
}

impl Attack {
    fn new(name: &'static str, wasm: Vec<u8>, manifest: &'static str, end: &'static str, told: &'static str) -> Self {
        Self { name, wasm, manifest, data: "{}", end, told }
    }
}

const EVERYTHING: &str = r#"
    (import "gateway:worker/logging@1.0.0" "log" (func $log (param i32 i32 i32)))
    (import "gateway:worker/logging@1.0.0" "log-with" (func $log_with (param i32 i32 i32 i32 i32)))
    (import "gateway:worker/config@1.0.0" "get" (func $config (param i32 i32 i32)))
    (import "gateway:worker/publisher@1.0.0" "publish" (func $publish (param i32 i32 i32 i32 i32)))
    (import "gateway:worker/key-value@1.0.0" "get" (func $key_value (param i32 i32 i32)))
    (import "gateway:worker/secrets@1.0.0" "get" (func $secret (param i32 i32 i32)))
    (import "gateway:worker/mail@1.0.0" "send" (func $mail (param i32 i32 i32 i32 i32 i32 i32)))"#;

/// A handler that imports all of the contract. At 520 stands "t", at 528 text
/// that is not UTF-8, and at 536 a pair of it and a good one.
fn armed(body: &str) -> Vec<u8> {
    let data = r#"(data (i32.const 520) "t") (data (i32.const 528) "\ff\fe")
        (data (i32.const 536) "\10\02\00\00\02\00\00\00\08\02\00\00\01\00\00\00")"#;
    guest_in("full-handler", "", EVERYTHING, data, body)
}

const WEB: &str = r#"
    package wasi:http@0.2.0 {
        interface types {
            variant method { get, head, post, put, delete, connect, options, trace, patch, other(string) }
            resource fields { constructor(); }
            resource outgoing-request { constructor(headers: fields); set-method: func(method: method) -> result; }
        }
    }
    world web { include message-handler; import wasi:http/types@0.2.0; }"#;

/// A handler with headers and requests, of which it sends none.
fn web(body: &str) -> Vec<u8> {
    let imports = r#"
        (import "wasi:http/types@0.2.0" "[constructor]fields" (func $fields (result i32)))
        (import "wasi:http/types@0.2.0" "[resource-drop]fields" (func $drop_fields (param i32)))
        (import "wasi:http/types@0.2.0" "[constructor]outgoing-request" (func $request (param i32) (result i32)))
        (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-method"
            (func $method (param i32 i32 i32 i32) (result i32)))"#;
    guest_in("web", WEB, imports, "", body)
}

/// A method of so many letters, which is taken or not.
fn method(bytes: usize, is_refused: u8) -> Vec<u8> {
    web(&format!(
        "(drop (memory.grow (i32.const 16))) (memory.fill (i32.const 65536) (i32.const 65) (i32.const {bytes}))
        (if (i32.ne (i32.const {is_refused})
            (call $method (call $request (call $fields)) (i32.const 9) (i32.const 65536) (i32.const {bytes})))
            (then unreachable)) {OK}"
    ))
}

/// Where `limits.memory` does not see it.
fn in_the_hosts_memory() -> [Attack; 5] {
    [
        Attack::new(
            "headers",
            web(&times(1000, "(drop (call $fields))")),
            "",
            "handle-limit",
            "limits.handles = 10000",
        ),
        Attack::new("requests", web(&times(1000, "(drop (call $request (call $fields)))")), "", "handle-limit", ""),
        Attack::new("one.by.one", web(&times(1000, "(call $drop_fields (call $fields))")), "", "done", ""),
        Attack::new("method", method(1 << 20, 1), "", "done", ""),
        Attack::new("method.short", method(64, 0), "", "done", ""),
    ]
}

fn attacks() -> Vec<Attack> {
    let spin = "(loop $on (br $on)) (unreachable)";
    let down = guest_with("(func $down (call $down))", &format!("(call $down) {OK}"));
    let more_memory = "(loop $on (br_if $on (i32.ne (i32.const -1) (memory.grow (i32.const 16))))) (unreachable)";
    let more_table =
        "(loop $on (br_if $on (i32.ne (i32.const -1) (table.grow $t (ref.null func) (i32.const 1000))))) (unreachable)";
    // A gigabyte, a megabyte at a time.
    let log = times(1000, "(call $log (i32.const 1) (i32.const 65536) (i32.const 1048576))");
    let log = log.replacen("(loop", "(drop (memory.grow (i32.const 16))) (loop", 1);
    let publish = "(loop $on (call $publish (i32.const 520) (i32.const 1) (i32.const 520) (i32.const 1) (i32.const 64)) (br $on)) (unreachable)";
    let many = times(10_000, "(call $config (i32.const 520) (i32.const 1) (i32.const 64))");
    let print = "(module
        (import \"wasi_snapshot_preview1\" \"fd_write\" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export \"memory\") 17)
        (data (i32.const 0) \"\\10\\00\\00\\00\\00\\00\\10\\00\")
        (func (export \"_start\") (local $left i32) (local.set $left (i32.const 1000))
            (loop $on
                (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
                (br_if $on (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))";
    // Each way in which a text reaches the host, with one that is none.
    let not_text = [
        ("text.log", "(call $log (i32.const 1) (i32.const 528) (i32.const 2))"),
        ("text.line", "(call $log_with (i32.const 1) (i32.const 528) (i32.const 2) (i32.const 0) (i32.const 0))"),
        ("text.field", "(call $log_with (i32.const 1) (i32.const 520) (i32.const 1) (i32.const 536) (i32.const 1))"),
        ("text.config", "(call $config (i32.const 528) (i32.const 2) (i32.const 64))"),
        ("text.topic", "(call $publish (i32.const 528) (i32.const 2) (i32.const 520) (i32.const 1) (i32.const 64))"),
        ("text.key", "(call $key_value (i32.const 528) (i32.const 2) (i32.const 64))"),
        ("text.secret", "(call $secret (i32.const 528) (i32.const 2) (i32.const 64))"),
        (
            "text.mail.to",
            "(call $mail (i32.const 536) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 64))",
        ),
        (
            "text.mail.header",
            "(call $mail (i32.const 0) (i32.const 0) (i32.const 536) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 64))",
        ),
        ("text.outside", "(call $log (i32.const 1) (i32.const -8) (i32.const 64))"),
    ];
    let reason = "(i32.store8 (i32.const 16) (i32.const 1)) (i32.store (i32.const 24) (i32.const 528)) (i32.store (i32.const 28) (i32.const 2)) (i32.const 16)";
    let code = "(i32.store8 (i32.const 16) (i32.const 1)) (i32.store8 (i32.const 20) (i32.const 2)) (i32.store (i32.const 24) (i32.const 528)) (i32.store (i32.const 28) (i32.const 2)) (i32.const 16)";
    let grant = "[grants]\npublish = [\"other\", \"t\"]\n";
    let mut all = vec![
        Attack::new("loop", guest(spin), "[limits]\ncpu = \"50ms\"\n", "cpu-limit", ""),
        Attack::new("recursion", down, "", "trap", "stack"),
        Attack::new("memory", guest(more_memory), "[limits]\nmemory = \"32MiB\"\n", "memory-limit", ""),
        Attack::new("table", guest_with("(table $t 1 funcref)", more_table), "", "table-limit", ""),
        Attack::new("log", armed(&log), "[limits]\ncpu = \"1m\"\nlog = \"4KiB/s\"\n", "done", ""),
        Attack::new("print", wat::parse_str(print).unwrap(), "[limits]\ncpu = \"1m\"\nlog = \"4KiB/s\"\n", "done", ""),
        Attack::new(
            "publish",
            armed(publish),
            "[grants]\npublish = [\"t\"]\n[limits]\ncpu = \"100ms\"\n",
            "cpu-limit",
            "",
        ),
        Attack::new("calls", armed(&many), "", "done", ""),
        Attack::new("reason", armed(reason), "", "bad-reply", "utf-8"),
        Attack::new("code", armed(code), "", "bad-reply", "utf-8"),
        Attack { data: r#"{"do":"exit","code":0}"#, ..Attack::new("exit", built("puppet"), "", "trap", "exit") },
        Attack {
            data: r#"{"do":"publish","to":"other","times":100000,"then":null}"#,
            ..Attack::new("flood", built("puppet"), grant, "reject", "too-many")
        },
        Attack::new("large", padded(&guest(OK), 50 << 20), "", "done", ""),
    ];
    all.extend(in_the_hosts_memory());
    all.extend(not_text.map(|(name, call)| Attack::new(name, armed(&format!("{call} {OK}")), grant, "trap", "")));
    all
}

/// The same component, so many bytes larger by a section that says nothing.
fn padded(component: &[u8], bytes: usize) -> Vec<u8> {
    let name = b"\x03pad";
    let mut padded = [component, &[0], &leb(bytes + name.len()), name].concat();
    padded.resize(padded.len() + bytes, 0);
    padded
}

/// A number as WebAssembly writes it.
fn leb(number: usize) -> Vec<u8> {
    let low = (number & 0x7f) as u8;
    if number > 0x7f { [vec![low | 0x80], leb(number >> 7)].concat() } else { vec![low] }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_has_its_end_and_the_host_is_as_it_was() {
    let redis = Redis::start();
    let plugins = Plugins::with("good", &guest(OK), "");
    let attacks = attacks();
    for attack in &attacks {
        plugins.put(attack.name, &attack.wasm, &format!("[retry]\nattempts = 1\n{}", attack.manifest));
    }
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--handler-threads", "2"]);
    gateway.until_ready().await;
    let mut resident = Vec::new();
    for round in 0..3 {
        for attack in &attacks {
            redis.publish(attack.name, &format!("{}-{round}", attack.name), attack.data).await;
        }
        let good = format!("good-{round}");
        redis.publish("good", &good, "{}").await;
        gateway.until_outcome("good", &good, "done").await;
        assert_eq!(gateway.get("/healthz").await.0, 200);
        for Attack { name, end, .. } in &attacks {
            gateway.until_outcome(name, &format!("{name}-{round}"), end).await;
        }
        resident.push(resident_bytes(gateway.id()));
    }
    for Attack { name, end, told, .. } in &attacks {
        if *end != "done" {
            let letters = redis.entries(&format!("{{mq:{name}}}:dead")).await;
            assert_eq!(letters.len(), 3, "{name}");
            assert!(text(&letters[0], "gw-error").contains(told), "{name}: {}", text(&letters[0], "gw-error"));
        }
    }
    // Nothing of what failed was published.
    for key in ["mq:t", "mq:other"] {
        assert_eq!(redis.run::<i64>(&format!("EXISTS {key}")).await, 0, "{key}");
    }
    // What the first round leaves behind are the allocator's and the pool's
    // warm pages; the others add nothing to them.
    let mib = |bytes: &usize| bytes >> 20;
    assert!(resident[2] <= resident[1] + (16 << 20), "{:?} MiB", resident.iter().map(mib).collect::<Vec<_>>());
}

/// Files that are to hurt whoever loads them.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_to_hurt_the_loader_is_refused_by_name() {
    let declares = |pages: &str| {
        let module = module("", OK).replacen(
            "(memory (export \"memory\") 1)",
            &format!("(memory (export \"memory\") {pages})"),
            1,
        );
        encode(&module, "gateway.wit", None)
    };
    let starts = guest_with("(func $start (loop $on (br $on))) (start $start)", OK);
    let empty_zip = [b"PK\x05\x06".as_slice(), &[0; 18]].concat();
    let deep = [b"\0asm\x0d\0\x01\0".as_slice(), &nested(2000)].concat();
    let refused = BTreeMap::from([
        ("four-gib", (declares("65536"), "memory")),
        ("starts", (starts, "cpu-limit")),
        ("zip", (empty_zip, "a zip archive")),
        ("text", (b"(component)".to_vec(), "not WebAssembly")),
        ("empty", (Vec::new(), "incomplete")),
        ("native", (b"\x7fELF\x02\x01\x01".to_vec(), "native code")),
        ("nested", (deep, "it exports nothing")),
        ("huge", (padded(&guest(OK), (128 << 20) + 1), "more than the 128.0 MiB")),
        ("sections", ([b"\0asm\x0d\0\x01\0".as_slice(), &[0xff; 4096]].concat(), "not valid WebAssembly")),
    ]);
    let redis = Redis::start();
    let plugins = Plugins::with("good", &guest(OK), "");
    for (name, (wasm, _)) in &refused {
        plugins.put(name, wasm, "[limits]\ncpu = \"50ms\"\n");
    }
    let gateway = Gateway::start(&redis, &plugins);
    for (name, (_, told)) in &refused {
        let reason = gateway.until_refused(name).await;
        assert!(reason.contains(told), "{name}: {reason}");
        assert!(reason.len() < 5000, "{name}");
    }
    redis.publish("good", "g", "{}").await;
    gateway.until_outcome("good", "g", "done").await;
    let refused = refused.len();
    until("all are told of", async || {
        let (_, metrics) = gateway.json("/metrics").await;
        (metrics["refused"].as_array().unwrap().len() == refused).then_some(())
    })
    .await;
}

/// As many as are loaded beside each other, and they start for ever.
#[tokio::test(flavor = "multi_thread")]
async fn what_never_starts_keeps_nobody_from_being_loaded() {
    let redis = Redis::start();
    let starts = guest_with("(func $start (loop $on (br $on))) (start $start)", OK);
    let plugins = Plugins::with("good", &guest(OK), "");
    let names = ["a", "b", "c", "d"];
    for name in names {
        plugins.put(name, &starts, "[limits]\ncpu = \"1h\"\ntimeout = \"1h\"\n");
    }
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--handler-threads", "2"]);
    gateway.until_loaded("good").await;
    for name in names {
        let reason = gateway.until_refused(name).await;
        // Where four share a slow machine, the clock on the wall may be first.
        let is_told = ["limits.cpu = 2s", "limits.timeout = 10s"].iter().any(|told| reason.contains(told));
        assert!(is_told, "{reason}");
    }
    gateway.until_ready().await;
}

/// Components within components, the innermost cut off.
fn nested(depth: usize) -> Vec<u8> {
    let header = b"\0asm\x0d\0\x01\0";
    (0..depth).fold(Vec::new(), |inner, _| [vec![4], leb(header.len() + inner.len()), header.to_vec(), inner].concat())
}
