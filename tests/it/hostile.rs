//! Hostile guests, all at once: each has its outcome, the host keeps running, and its
//! memory use returns to where it was.

use crate::guest::{OK, guest, guest_in, guest_with, module};
use crate::inspect::self_tested;
use crate::limits::{times, waits_at_its_start};
use crate::support::{Gateway, Plugins, Redis, built, encode, resident_bytes, text, until};
use std::collections::BTreeMap;

/// A hostile guest and its outcome, which is the same on each run.
struct Attack {
    name: &'static str,
    wasm: Vec<u8>,
    manifest: &'static str,
    data: &'static str,
    outcome: &'static str,
    /// A fragment of the error.
    error: &'static str,
}

impl Attack {
    fn new(
        name: &'static str,
        wasm: Vec<u8>,
        manifest: &'static str,
        outcome: &'static str,
        error: &'static str,
    ) -> Self {
        Self { name, wasm, manifest, data: "{}", outcome, error }
    }
}

const EVERYTHING: &str = r#"
    (import "gateway:worker/logging@1.0.0" "log" (func $log (param i32 i32 i32)))
    (import "gateway:worker/logging@1.0.0" "log-with" (func $log_with (param i32 i32 i32 i32 i32)))
    (import "gateway:worker/config@1.0.0" "get" (func $config (param i32 i32 i32)))
    (import "gateway:worker/publisher@1.0.0" "publish" (func $publish (param i32 i32 i32 i32 i32)))
    (import "gateway:worker/publisher@1.0.0" "publish-with" (func $publish_with (param i32 i32)))
    (import "gateway:worker/key-value@1.0.0" "get" (func $key_value (param i32 i32 i32)))
    (import "gateway:worker/key-value@1.0.0" "set" (func $set (param i32 i32 i32 i32 i32 i32)))
    (import "gateway:worker/key-value@1.0.0" "set-if-absent" (func $set_if_absent (param i32 i32 i32 i32 i32 i32)))
    (import "gateway:worker/key-value@1.0.0" "compare-and-swap" (func $compare_and_swap (param i32 i32 i32 i32 i32 i32 i32 i32)))
    (import "gateway:worker/key-value@1.0.0" "delete" (func $delete (param i32 i32 i32)))
    (import "gateway:worker/secrets@1.0.0" "get" (func $secret (param i32 i32 i32)))
    (import "gateway:worker/mail@1.0.0" "send" (func $mail (param i32 i32 i32 i32 i32 i32 i32)))"#;

/// A valid and an invalid string as the canonical ABI passes them: pointer and length.
const GOOD: &str = "(i32.const 520) (i32.const 1)";
const BAD: &str = "(i32.const 528) (i32.const 2)";

/// Lists with one element: pairs with an invalid name or value, and mail parts with an
/// invalid type or file name.
const BAD_NAME: &str = "(i32.const 536) (i32.const 1)";
const BAD_VALUE: &str = "(i32.const 552) (i32.const 1)";
const BAD_TYPE: &str = "(i32.const 568) (i32.const 1)";
const BAD_FILE: &str = "(i32.const 600) (i32.const 1)";
const NONE: &str = "(i32.const 0) (i32.const 0)";

/// The data segments that these constants point to.
fn texts() -> String {
    let words = |at: u32, words: &[u32]| {
        let bytes: String =
            words.iter().flat_map(|word| word.to_le_bytes()).map(|byte| format!("\\{byte:02x}")).collect();
        format!("(data (i32.const {at}) \"{bytes}\")")
    };
    let (good, bad) = ([520, 1], [528, 2]);
    [
        r#"(data (i32.const 520) "t") (data (i32.const 528) "\ff\fe")"#.to_owned(),
        // Texts that would begin another line or word.
        r#"(data (i32.const 640) "/\0d\0aHost: b") (data (i32.const 656) "a b")"#.to_owned(),
        words(536, &[bad, good].concat()),
        words(552, &[good, bad].concat()),
        words(568, &[&bad[..], &[0, 0, 0], &good].concat()),
        words(600, &[&good[..], &[1], &bad, &good].concat()),
    ]
    .join(" ")
}

/// A handler that imports every interface of the contract.
fn armed(body: &str) -> Vec<u8> {
    guest_in("full-handler", "", EVERYTHING, &texts(), body)
}

const WEB: &str = r#"
    package wasi:http@0.2.0 {
        interface types {
            variant method { get, head, post, put, delete, connect, options, trace, patch, other(string) }
            variant scheme { HTTP, HTTPS, other(string) }
            variant header-error { invalid-syntax, forbidden, immutable }
            resource fields {
                constructor();
                from-list: static func(entries: list<tuple<string, list<u8>>>) -> result<fields, header-error>;
                has: func(name: string) -> bool;
                append: func(name: string, value: list<u8>) -> result<_, header-error>;
            }
            resource outgoing-request {
                constructor(headers: fields);
                set-method: func(method: method) -> result;
                set-scheme: func(scheme: option<scheme>) -> result;
                set-authority: func(authority: option<string>) -> result;
                set-path-with-query: func(path: option<string>) -> result;
            }
        }
    }
    package wasi:sockets@0.2.0 {
        interface network {
            resource network;
            enum error-code {
                unknown, access-denied, not-supported, invalid-argument, out-of-memory, timeout, concurrency-conflict,
                not-in-progress, would-block, invalid-state, new-socket-limit, address-not-bindable, address-in-use,
                remote-unreachable, connection-refused, connection-reset, connection-aborted, datagram-too-large,
                name-unresolvable, temporary-resolver-failure, permanent-resolver-failure
            }
        }
        interface instance-network { use network.{network}; instance-network: func() -> network; }
        interface ip-name-lookup {
            use network.{network, error-code};
            resource resolve-address-stream;
            resolve-addresses: func(network: borrow<network>, name: string) -> result<resolve-address-stream, error-code>;
        }
    }
    world web {
        include message-handler;
        import wasi:http/types@0.2.0;
        import wasi:sockets/instance-network@0.2.0;
        import wasi:sockets/ip-name-lookup@0.2.0;
    }"#;

/// A handler that builds HTTP headers and requests, but sends none.
fn web(body: &str) -> Vec<u8> {
    let imports = r#"
        (import "wasi:http/types@0.2.0" "[constructor]fields" (func $fields (result i32)))
        (import "wasi:http/types@0.2.0" "[resource-drop]fields" (func $drop_fields (param i32)))
        (import "wasi:http/types@0.2.0" "[static]fields.from-list" (func $from_list (param i32 i32 i32)))
        (import "wasi:http/types@0.2.0" "[method]fields.has" (func $has (param i32 i32 i32) (result i32)))
        (import "wasi:http/types@0.2.0" "[method]fields.append" (func $append (param i32 i32 i32 i32 i32 i32)))
        (import "wasi:http/types@0.2.0" "[constructor]outgoing-request" (func $request (param i32) (result i32)))
        (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-method"
            (func $method (param i32 i32 i32 i32) (result i32)))
        (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-scheme"
            (func $scheme (param i32 i32 i32 i32 i32) (result i32)))
        (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-authority"
            (func $authority (param i32 i32 i32 i32) (result i32)))
        (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-path-with-query"
            (func $path (param i32 i32 i32 i32) (result i32)))
        (import "wasi:sockets/instance-network@0.2.0" "instance-network" (func $network (result i32)))
        (import "wasi:sockets/ip-name-lookup@0.2.0" "resolve-addresses" (func $resolve (param i32 i32 i32 i32)))"#;
    guest_in("web", WEB, imports, &texts(), body)
}

/// Each parameter through which a string reaches the host, with invalid UTF-8.
fn not_text() -> Vec<(&'static str, Vec<u8>)> {
    let none = "(i32.const 0)";
    let some = "(i32.const 1)";
    let absent = "(i32.const 0) (i32.const 0) (i32.const 0)";
    let at = "(i32.const 64)";
    // Topic, data, id, parent, no delay, normal priority, headers, deduplication key, no expiry: more than the canonical
    // ABI passes as parameters, so they are in memory.
    let publish_with = |topic: &str, id: &str, parent: &str, headers: &str, dedup_key: &str| {
        let words = format!("{topic} {GOOD} {id} {parent} {none} {some} {headers} {dedup_key} {none}");
        let words = words[1..words.len() - 1].split(") (").enumerate();
        let stores: String =
            words.map(|(index, word)| format!("(i32.store (i32.const {}) ({word}))", 704 + 4 * index)).collect();
        format!("{stores} (call $publish_with (i32.const 704) {at})")
    };
    let some_bad = format!("{some} {BAD}");
    let request = "(call $request (call $fields))";
    let of_ours = [
        ("text.log", format!("(call $log {some} {BAD})")),
        ("text.line", format!("(call $log_with {some} {BAD} {NONE})")),
        ("text.field", format!("(call $log_with {some} {GOOD} {BAD_NAME})")),
        ("text.field.value", format!("(call $log_with {some} {GOOD} {BAD_VALUE})")),
        ("text.config", format!("(call $config {BAD} {at})")),
        ("text.topic", format!("(call $publish {BAD} {GOOD} {at})")),
        ("text.with.topic", publish_with(BAD, absent, absent, NONE, absent)),
        ("text.with.id", publish_with(GOOD, &some_bad, absent, NONE, absent)),
        ("text.with.parent", publish_with(GOOD, absent, &some_bad, NONE, absent)),
        ("text.with.header", publish_with(GOOD, absent, absent, BAD_NAME, absent)),
        ("text.with.header.value", publish_with(GOOD, absent, absent, BAD_VALUE, absent)),
        ("text.with.dedup_key", publish_with(GOOD, absent, absent, NONE, &some_bad)),
        ("text.key", format!("(call $key_value {BAD} {at})")),
        ("text.key.set", format!("(call $set {BAD} {GOOD} {none} {at})")),
        ("text.key.set_if_absent", format!("(call $set_if_absent {BAD} {GOOD} {none} {at})")),
        ("text.key.compare_and_swap", format!("(call $compare_and_swap {BAD} {GOOD} {GOOD} {none} {at})")),
        ("text.key.delete", format!("(call $delete {BAD} {at})")),
        ("text.secret", format!("(call $secret {BAD} {at})")),
        ("text.mail.to", format!("(call $mail {BAD_NAME} {NONE} {NONE} {at})")),
        ("text.mail.header", format!("(call $mail {NONE} {BAD_NAME} {NONE} {at})")),
        ("text.mail.header.value", format!("(call $mail {NONE} {BAD_VALUE} {NONE} {at})")),
        ("text.mail.type", format!("(call $mail {NONE} {NONE} {BAD_TYPE} {at})")),
        ("text.mail.file", format!("(call $mail {NONE} {NONE} {BAD_FILE} {at})")),
    ];
    let of_wasi = [
        ("text.http.method", format!("(drop (call $method {request} (i32.const 9) {BAD}))")),
        ("text.http.scheme", format!("(drop (call $scheme {request} {some} (i32.const 2) {BAD}))")),
        ("text.http.authority", format!("(drop (call $authority {request} {some} {BAD}))")),
        ("text.http.path", format!("(drop (call $path {request} {some} {BAD}))")),
        ("text.http.has", format!("(drop (call $has (call $fields) {BAD}))")),
        ("text.http.header", format!("(call $append (call $fields) {BAD} {GOOD} {at})")),
        ("text.http.headers", format!("(call $from_list {BAD_NAME} {at})")),
        ("text.sockets.name", format!("(call $resolve (call $network) {BAD} {at})")),
    ];
    let of_ours = of_ours.map(|(name, call)| (name, armed(&format!("{call} {OK}"))));
    let of_wasi = of_wasi.map(|(name, call)| (name, web(&format!("{call} {OK}"))));
    of_ours.into_iter().chain(of_wasi).collect()
}

/// Returns a failure of this kind: 0 is a retry, 1 a postponement, and 2 a reject, which
/// has two strings.
fn fails(kind: u32, texts: &[&str]) -> Vec<u8> {
    let mut body = format!("(i32.store8 (i32.const 16) (i32.const 1)) (i32.store8 (i32.const 20) (i32.const {kind}))");
    for (index, text) in texts.iter().enumerate() {
        let (start, length) = text.split_once(") (").unwrap();
        let at = 24 + 8 * index;
        body += &format!("(i32.store (i32.const {at}) {start})) (i32.store (i32.const {}) ({length})", at + 4);
    }
    armed(&format!("{body} {OK}"))
}

/// Sets an authority, a path or a header with characters that could inject a line, and
/// traps if the host accepts it.
fn forges() -> Vec<u8> {
    let (line, words) = ("(i32.const 640) (i32.const 10)", "(i32.const 656) (i32.const 3)");
    let request = "(call $request (call $fields))";
    let mut body = String::new();
    let mut refused = |call: String| body += &format!("(if (i32.eqz {call}) (then unreachable))");
    for text in [line, words] {
        refused(format!("(call $authority {request} (i32.const 1) {text})"));
        refused(format!("(call $path {request} (i32.const 1) {text})"));
        refused(format!("(call $scheme {request} (i32.const 1) (i32.const 2) {text})"));
        refused(format!("(call $method {request} (i32.const 9) {text})"));
    }
    // A name may contain neither, and a value no line break.
    for (name, value) in [(line, GOOD), (words, GOOD), (GOOD, line)] {
        body += &format!("(call $append (call $fields) {name} {value} (i32.const 64))");
        body += "(if (i32.eqz (i32.load8_u (i32.const 64))) (then unreachable))";
    }
    web(&format!("{body} {OK}"))
}

/// Sets a component of a request with `bytes` letters, and traps if the host does not
/// accept or reject it as expected.
fn set_component(setter: &str, bytes: usize, is_refused: u8) -> Vec<u8> {
    web(&format!(
        "(drop (memory.grow (i32.const 16))) (memory.fill (i32.const 65536) (i32.const 65) (i32.const {bytes}))
        (if (i32.ne (i32.const {is_refused})
            (call {setter} (i32.const 65536) (i32.const {bytes})))
            (then unreachable)) {OK}"
    ))
}

const METHOD: &str = "$method (call $request (call $fields)) (i32.const 9)";
const SCHEME: &str = "$scheme (call $request (call $fields)) (i32.const 1) (i32.const 2)";
const AUTHORITY: &str = "$authority (call $request (call $fields)) (i32.const 1)";

/// Attacks on memory of the host, which `limits.memory` does not count.
fn in_the_hosts_memory() -> [Attack; 9] {
    [
        Attack::new(
            "headers",
            web(&times(1000, "(drop (call $fields))")),
            "",
            "resource-limit",
            "limits.resources = 10000",
        ),
        Attack::new("requests", web(&times(1000, "(drop (call $request (call $fields)))")), "", "resource-limit", ""),
        Attack::new("one.by.one", web(&times(1000, "(call $drop_fields (call $fields))")), "", "done", ""),
        Attack::new("method", set_component(METHOD, 65, 1), "", "done", ""),
        Attack::new("method.short", set_component(METHOD, 64, 0), "", "done", ""),
        Attack::new("scheme", set_component(SCHEME, 65, 1), "", "done", ""),
        Attack::new("scheme.short", set_component(SCHEME, 64, 0), "", "done", ""),
        Attack::new("authority", set_component(AUTHORITY, 513, 1), "", "done", ""),
        Attack::new("authority.short", set_component(AUTHORITY, 512, 0), "", "done", ""),
    ]
}

fn attacks() -> Vec<Attack> {
    let spin = "(loop $on (br $on)) (unreachable)";
    let down = guest_with("(func $down (call $down))", &format!("(call $down) {OK}"));
    let more_memory = "(loop $on (br_if $on (i32.ne (i32.const -1) (memory.grow (i32.const 16))))) (unreachable)";
    let more_table =
        "(loop $on (br_if $on (i32.ne (i32.const -1) (table.grow $t (ref.null func) (i32.const 1000))))) (unreachable)";
    // A gigabyte in lines of a megabyte.
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
    let grant = "[grants]\npublish = [\"other\", \"t\"]\nkeyvalue = true\nmail = true\n";
    let outside = format!("(call $log (i32.const 1) (i32.const -8) (i32.const 64)) {OK}");
    let path = "(module
        (import \"wasi_snapshot_preview1\" \"path_open\"
            (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (memory (export \"memory\") 1)
        (data (i32.const 0) \"\\ff\\fe\")
        (func (export \"_start\")
            (if (i32.eqz (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 2) (i32.const 0)
                (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 16))) (then unreachable))))";
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
        Attack::new("retry.reason", fails(0, &[BAD]), "", "bad-reply", "utf-8"),
        Attack::new("postpone.reason", fails(1, &[BAD]), "", "bad-reply", "utf-8"),
        Attack::new("reject.code", fails(2, &[BAD, GOOD]), "", "bad-reply", "utf-8"),
        Attack::new("reject.reason", fails(2, &[GOOD, BAD]), "", "bad-reply", "utf-8"),
        Attack::new("text.outside", armed(&outside), "", "trap", ""),
        Attack::new(
            "text.path",
            wat::parse_str(path).unwrap(),
            "[grants]\nread = { \"/in\" = \"/usr\" }\n",
            "done",
            "",
        ),
        Attack::new("forges", forges(), "", "done", ""),
        Attack { data: r#"{"do":"exit","code":0}"#, ..Attack::new("exit", built("puppet"), "", "trap", "exit") },
        Attack {
            data: r#"{"do":"publish","to":"other","times":100000,"then":null}"#,
            ..Attack::new("flood", built("puppet"), grant, "reject", "too-many")
        },
        Attack::new("large", padded(&guest(OK), 50 << 20), "", "done", ""),
    ];
    all.extend(in_the_hosts_memory());
    all.extend(not_text().into_iter().map(|(name, wasm)| Attack::new(name, wasm, grant, "trap", "utf-8")));
    all
}

/// The component, enlarged by a custom section of `bytes` bytes.
fn padded(component: &[u8], bytes: usize) -> Vec<u8> {
    let name = b"\x03pad";
    let mut padded = [component, &[0], &leb(bytes + name.len()), name].concat();
    padded.resize(padded.len() + bytes, 0);
    padded
}

/// A number in LEB128.
fn leb(number: usize) -> Vec<u8> {
    let low = (number & 0x7f) as u8;
    if number > 0x7f { [vec![low | 0x80], leb(number >> 7)].concat() } else { vec![low] }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_attack_has_its_outcome_and_the_host_recovers() {
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
        for Attack { name, outcome, .. } in &attacks {
            gateway.until_outcome(name, &format!("{name}-{round}"), outcome).await;
        }
        resident.push(resident_bytes(gateway.id()));
    }
    for Attack { name, outcome, error, .. } in &attacks {
        if *outcome != "done" {
            let letters = redis.entries(&format!("{{mq:{name}}}:dead")).await;
            assert_eq!(letters.len(), 3, "{name}");
            assert!(text(&letters[0], "gw-error").contains(error), "{name}: {}", text(&letters[0], "gw-error"));
        }
    }
    // Failed runs have published nothing.
    for key in ["mq:t", "mq:other"] {
        assert_eq!(redis.run::<i64>(&format!("EXISTS {key}")).await, 0, "{key}");
    }
    // The first round leaves pages in the allocator and the instance pool; later rounds
    // add none.
    let mib = |bytes: &usize| bytes >> 20;
    assert!(resident[2] <= resident[1] + (16 << 20), "{:?} MiB", resident.iter().map(mib).collect::<Vec<_>>());
}

/// Files that attack the loader.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_files_are_rejected_with_a_reason() {
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
    let failed = |text: &str, length: u32| {
        let check = "(i32.store8 (i32.const 32) (i32.const 1)) (i32.store (i32.const 36) (i32.const 640))";
        let check = format!("{check} (i32.store (i32.const 40) (i32.const {length})) (i32.const 32)");
        self_tested(&format!("(data (i32.const 640) \"{text}\")"), &check)
    };
    let mistyped = include_str!("../../wit/gateway.wit")
        .replacen("  export handler;", "  export handler;\n  export self-test;", 1)
        .replacen("check: func() -> result<_, string>;", "check: func() -> u32;", 1);
    let check = r#"(func (export "gateway:worker/self-test@1.0.0#check") (result i32) (i32.const 0))"#;
    let mistyped = encode(&module(check, OK), "tested.wit", Some(&mistyped));
    let refused = BTreeMap::from([
        ("self-test.type", (mistyped, "its export gateway:worker/self-test@1.0.0 has another type")),
        ("self-test", (failed("\\ff\\fe", 2), "utf-8")),
        ("self-test.forges", (failed("\\1b[2Ja\\0ab\\c2\\9bc", 9), "its self-test failed: a\\nb")),
        ("four-gib", (declares("65536"), "memory")),
        ("starts", (starts, "cpu-limit")),
        ("zip", (empty_zip, "a zip archive")),
        ("text", (b"(component)".to_vec(), "not WebAssembly")),
        ("empty", (Vec::new(), "incomplete")),
        ("native", (b"\x7fELF\x02\x01\x01".to_vec(), "native code")),
        ("nested", (deep, "it exports nothing")),
        ("huge", (padded(&guest(OK), (128 << 20) + 1), "more than the allowed 128MiB")),
        ("sections", ([b"\0asm\x0d\0\x01\0".as_slice(), &[0xff; 4096]].concat(), "not valid WebAssembly")),
    ]);
    let redis = Redis::start();
    let plugins = Plugins::with("good", &guest(OK), "");
    for (name, (wasm, _)) in &refused {
        plugins.put(name, wasm, "[limits]\ncpu = \"50ms\"\n");
    }
    let gateway = Gateway::start(&redis, &plugins);
    for (name, (_, fragment)) in &refused {
        let reason = gateway.until_refused(name).await;
        assert!(reason.contains(fragment), "{name}: {reason}");
        assert!(reason.len() < 5000 && !reason.contains(char::is_control), "{name}: {reason}");
    }
    redis.publish("good", "g", "{}").await;
    gateway.until_outcome("good", "g", "done").await;
    let refused = refused.len();
    until("all are reported", async || {
        let (_, metrics) = gateway.json("/metrics").await;
        (metrics["refused"].as_array().unwrap().len() == refused).then_some(())
    })
    .await;
}

/// A self-test runs at load time, without a message.
#[tokio::test(flavor = "multi_thread")]
async fn a_self_test_reaches_no_granted_interface() {
    // The code of the fault begins after the discriminant: "deni".
    let denied = |call: &str| {
        format!("{call} (if (i32.ne (i32.load (i32.load (i32.const 68))) (i32.const 0x696e6564)) (then unreachable))")
    };
    let at = "(i32.const 64)";
    let calls = [
        format!("(call $publish {GOOD} {GOOD} {at})"),
        format!("(call $key_value {GOOD} {at})"),
        format!("(call $set {GOOD} {GOOD} (i32.const 0) {at})"),
        format!("(call $delete {GOOD} {at})"),
        format!("(call $secret {GOOD} {at})"),
        format!("(call $mail {NONE} {NONE} {NONE} {at})"),
    ];
    let check: String = calls.iter().map(|call| denied(call)).collect();
    let check =
        format!(r#"(func (export "gateway:worker/self-test@1.0.0#check") (result i32) {check} (i32.const 32))"#);
    let world = "world tested { include full-handler; export self-test; }";
    let wasm = guest_in("tested", world, EVERYTHING, &format!("{} {check}", texts()), OK);
    let grants = "[grants]\npublish = [\"t\"]\nkeyvalue = true\nmail = true\nsecrets = [\"t\"]\n";
    let redis = Redis::start();
    let plugins = Plugins::with("tested", &wasm, grants);
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("tested").await;
    assert_eq!(gateway.plugin("tested").await["state"], "live");
}

/// As many plugins as are loaded concurrently, whose start functions never end.
#[tokio::test(flavor = "multi_thread")]
async fn plugins_that_never_finish_starting_block_no_other_load() {
    let redis = Redis::start();
    let starts = guest_with("(func $start (loop $on (br $on))) (start $start)", OK);
    let plugins = Plugins::with("good", &guest(OK), "");
    let names = ["a", "b", "c", "d"];
    for name in names {
        plugins.put(name, &starts, "[limits]\ncpu = \"1h\"\ntimeout = \"1h\"\n");
    }
    plugins.put("waits", &waits_at_its_start(), "[limits]\ntimeout = \"1h\"\n");
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--handler-threads", "2"]);
    gateway.until_loaded("good").await;
    for name in names {
        let reason = gateway.until_refused(name).await;
        // On a slow machine the wall clock limit may be reached first.
        let names_a_limit = ["limits.cpu = 2s", "limits.timeout = 10s"].iter().any(|limit| reason.contains(limit));
        assert!(names_a_limit, "{reason}");
    }
    let reason = gateway.until_refused("waits").await;
    assert!(reason.contains("timeout: ran longer than limits.timeout = 10s"), "{reason}");
    assert_eq!(gateway.plugin("waits").await["refusal"]["kind"], "transient", "a timeout may be caused by the machine");
    gateway.until_ready().await;
}

/// Nested components, the innermost truncated.
fn nested(depth: usize) -> Vec<u8> {
    let header = b"\0asm\x0d\0\x01\0";
    (0..depth).fold(Vec::new(), |inner, _| [vec![4], leb(header.len() + inner.len()), header.to_vec(), inner].concat())
}
