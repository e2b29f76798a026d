//! Commands: a program built for WASI reads its message from stdin, and its exit code
//! decides the outcome. It has the same limits and grants as a handler.

use crate::guest::{adapted, guest_in};
use crate::support::{Entry, Gateway, OK, Plugins, Redis, built, guest, text};

const ONCE: &str = "[retry]\nattempts = 1\n";

/// A program of WASI preview 1 in the text format.
fn program(imports: &str, more: &str, start: &str) -> Vec<u8> {
    let text = format!("(module {imports} (memory (export \"memory\") 1) {more} (func (export \"_start\") {start}))");
    wat::parse_str(text).unwrap()
}

fn wasi(name: &str, signature: &str) -> String {
    format!("(import \"wasi_snapshot_preview1\" \"{name}\" (func ${name} {signature}))")
}

/// A program that exits with this code.
fn exits(code: i32) -> Vec<u8> {
    program(&wasi("proc_exit", "(param i32)"), "", &format!("(call $proc_exit (i32.const {code}))"))
}

/// The dead letter of a message whose topic has one attempt.
async fn dead(redis: &Redis, topic: &str, data: &str) -> Entry {
    redis.run::<i64>(&format!("DEL {{mq:{topic}}}:dead")).await;
    redis.publish(topic, "d", data).await;
    redis.dead(topic).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_in_c_reads_its_message_and_what_the_manifest_gives_it() {
    let redis = Redis::start();
    let manifest = "args = [\"-v\", \"two words\"]\n[config]\nGREETING = \"hello\"\n[retry]\nattempts = 7\n";
    let core = built("command");
    let plugins = Plugins::with("core", &core, manifest).and("component", &adapted(&core), manifest);
    let gateway = Gateway::start(&redis, &plugins);
    for topic in ["core", "component"] {
        let envelope = r#"{"id":"m-1","topic":"other","data":{"n":  9007199254740993},"timestamp":"2026-11-23T07:45:23.585Z","retry":1,"max_retry":3}"#;
        redis.add(topic, envelope.as_bytes()).await;
        gateway.until_outcome(topic, "m-1", "done").await;
        let is_logged =
            |line: &str| gateway.logged(line).iter().any(|logged| logged["plugin"] == topic && logged["id"] == "m-1");
        for line in [
            &format!("arg={topic}"),
            "arg=-v",
            "arg=two words",
            &format!("id=m-1 topic={topic} attempt=2 of=7 greeting=hello"),
            // The topic is the one of the key, and the data is unchanged.
            &format!(
                r#"stdin={{"id":"m-1","topic":"{topic}","data":{{"n":  9007199254740993}},"timestamp":"2026-11-23T07:45:23.585Z","retry":1,"max_retry":7}}"#
            ),
        ] {
            assert!(is_logged(line), "{topic}: {line}: {:?}", gateway.logged("="));
        }
        assert_eq!(gateway.plugin(topic).await["state"], "live");
    }
    // A NUL character, which would end a C string, is replaced.
    redis.add("core", br#"{"id":"m\u0000x","topic":"core","data":{}}"#).await;
    gateway.until_logged("id=m\u{fffd}x topic=core", |_| true).await;
}

/// Some toolchains always export `run`.
#[tokio::test(flavor = "multi_thread")]
async fn a_component_that_exports_handler_and_run_is_called_as_a_handler() {
    let wit = "package wasi:cli@0.2.0 { interface run { run: func() -> result; } }
        world both { include message-handler; export wasi:cli/run@0.2.0; }";
    let run = r#"(func (export "wasi:cli/run@0.2.0#run") (result i32) (unreachable))"#;
    let redis = Redis::start();
    let plugins = Plugins::with("both", &guest_in("both", wit, "", run, OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("both", "b", "{}").await;
    gateway.until_outcome("both", "b", "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_decides_the_outcome() {
    let redis = Redis::start();
    let core = built("command");
    let plugins = Plugins::with("core", &core, ONCE).and("component", &adapted(&core), ONCE);
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("core", "zero", r#"{"exit":0}"#).await;
    gateway.until_outcome("core", "zero", "done").await;
    redis.publish("component", "zero", r#"{"exit":0}"#).await;
    gateway.until_outcome("component", "zero", "done").await;
    for code in [1, 2, 64, 65, 66, 75, 125, 126, 200, 255] {
        let letter = dead(&redis, "core", &format!(r#"{{"exit":{code}}}"#)).await;
        let (reason, begin) = if code == 65 { ("reject", "exit-65: ") } else { ("retry", "") };
        assert_eq!(text(&letter, "gw-reason"), reason, "{code}");
        let error = text(&letter, "gw-error");
        assert!(error.starts_with(&format!("{begin}exit code {code}\n")), "{error}");
        assert!(error.ends_with("exit code set by the message"), "{error}");
        // A component reports success or failure, but no exit code.
        let letter = dead(&redis, "component", &format!(r#"{{"exit":{code}}}"#)).await;
        assert_eq!(text(&letter, "gw-reason"), "retry", "{code}");
        assert!(text(&letter, "gw-error").starts_with("exit code 1\n"), "{code}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rust_program_needs_no_sdk() {
    let redis = Redis::start();
    let plugins =
        Plugins::with("program", &built("program"), &format!("args = [\"a\"]\n[config]\nGREETING = \"b\"\n{ONCE}"));
    let gateway = Gateway::start(&redis, &plugins);
    for (id, data) in [("ends", r#"{"end":"ok"}"#), ("exits", r#"{"end":"exit"}"#)] {
        redis.publish("program", id, data).await;
        gateway.until_outcome("program", id, "done").await;
        assert!(!gateway.logged(&format!("args=program,a id={id} greeting=b")).is_empty());
    }
    for (end, reason, fragment) in [
        ("fail", "retry", "it failed"),
        ("panic", "trap", "the reactor is hot"),
        // `run` returns no exit code, so 65 is reported as 1.
        ("reject", "retry", "exit code 1"),
    ] {
        let letter = dead(&redis, "program", &format!(r#"{{"end":"{end}"}}"#)).await;
        assert_eq!(text(&letter, "gw-reason"), reason, "{end}");
        assert!(text(&letter, "gw-error").contains(fragment), "{end}: {}", text(&letter, "gw-error"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_apply_to_commands() {
    let redis = Redis::start();
    let grow = "(loop $more (br_if $more (i32.ne (i32.const -1) (memory.grow (i32.const 16))))) (unreachable)";
    let down = "(func $down (call $down))";
    let random = wasi("random_get", "(param i32 i32) (result i32)");
    let plugins =
        Plugins::with("loop", &program("", "", "(loop $on (br $on))"), &format!("[limits]\ncpu = \"50ms\"\n{ONCE}"))
            .and("memory", &program("", "", grow), &format!("[limits]\nmemory = \"8MiB\"\n{ONCE}"))
            .and("recursion", &program("", down, "(call $down)"), ONCE)
            .and("trap", &program("", "", "(unreachable)"), ONCE)
            .and("random", &program(&random, "", "(drop (call $random_get (i32.const 0) (i32.const 1048577)))"), ONCE)
            .and("sleep", &built("command"), &format!("[limits]\ntimeout = \"100ms\"\n{ONCE}"))
            .and("good", &exits(0), "");
    let gateway = Gateway::start(&redis, &plugins);
    for (topic, reason) in [
        ("loop", "cpu-limit"),
        ("memory", "memory-limit"),
        ("recursion", "trap"),
        ("trap", "trap"),
        ("random", "trap"),
        ("sleep", "timeout"),
    ] {
        let letter = dead(&redis, topic, r#"{"do":"sleep"}"#).await;
        assert_eq!(text(&letter, "gw-reason"), reason, "{topic}: {}", text(&letter, "gw-error"));
    }
    // `abort` in C is a trap.
    let letter = dead(&redis, "sleep", r#"{"do":"abort"}"#).await;
    assert_eq!(text(&letter, "gw-reason"), "trap");
    redis.publish("good", "g", "{}").await;
    gateway.until_outcome("good", "g", "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_reaches_only_granted_directories() {
    let redis = Redis::start();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a"), "from the folder").unwrap();
    let granted = format!("[grants]\nread = {{ \"/in\" = \"{}\" }}\n", folder.path().display());
    let plugins = Plugins::with("granted", &built("command"), &granted).and("denied", &built("command"), "");
    let gateway = Gateway::start(&redis, &plugins);
    for (topic, path, seen) in [
        ("granted", "/in/a", "open=from the folder"),
        ("granted", "/etc/passwd", "open=no"),
        ("denied", "/in/a", "open=no"),
    ] {
        let id = format!("{topic}{}", path.replace('/', "-"));
        redis.publish(topic, &id, &format!(r#"{{"open":"{path}"}}"#)).await;
        gateway.until_outcome(topic, &id, "done").await;
        assert!(gateway.logged(seen).iter().any(|line| line["id"] == id.as_str()), "{topic} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_is_no_command_is_rejected_with_the_reason() {
    let redis = Redis::start();
    let parsed = |text: &str| wat::parse_str(text).unwrap();
    let memory = "(memory (export \"memory\") 1)";
    let start = "(func (export \"_start\"))";
    let refused: [(&str, Vec<u8>, &str, &str); 13] = [
        ("reactor", parsed(&format!("(module {memory} (func (export \"_initialize\")))")), "", "it is a reactor"),
        ("library", parsed(&format!("(module {memory} (func (export \"add\")))")), "", "without a function `_start`"),
        (
            "typed",
            parsed(&format!("(module {memory} (func (export \"_start\") (param i32)))")),
            "",
            "without a function `_start`",
        ),
        (
            "global",
            parsed(&format!("(module {memory} (global (export \"_start\") i32 (i32.const 0)))")),
            "",
            "without a function `_start`",
        ),
        ("memoryless", parsed(&format!("(module {start})")), "", "it exports no memory"),
        (
            "foreign",
            parsed(&format!("(module (import \"env\" \"emscripten_sleep\" (func)) {memory} {start})")),
            "",
            "`emscripten_sleep` of env",
        ),
        (
            "unknown",
            parsed(&format!("(module (import \"wasi_snapshot_preview1\" \"sock_open\" (func)) {memory} {start})")),
            "",
            "sock_open",
        ),
        (
            "threads",
            parsed(&format!("(module (import \"env\" \"memory\" (memory 1 2 shared)) {start})")),
            "",
            "it needs threads",
        ),
        (
            "atomics",
            parsed(&format!("(module {memory} (func (export \"_start\") (drop (i32.atomic.load (i32.const 0)))))")),
            "",
            "it needs threads",
        ),
        // One bulk instruction on a 64-bit memory could run longer than any limit.
        (
            "wide",
            parsed(&format!("(module (memory (export \"memory\") i64 1) {start})")),
            "",
            "memory64 must be enabled",
        ),
        ("batch", exits(0), "[batch]\nsize = 2\nwait = \"1s\"\n", "[batch] is for components"),
        ("reused", exits(0), "instances = { max_calls = 10 }\n", "`instances` is \"per-message\" for a command"),
        ("handler", guest(OK), "args = [\"-v\"]\n", "`args` are for commands, and this is a handler"),
    ];
    let plugins = Plugins::with("good", &exits(0), "");
    for (name, wasm, manifest, _) in &refused {
        plugins.put(name, wasm, manifest);
    }
    let gateway = Gateway::start(&redis, &plugins);
    for (name, _, _, fragment) in refused {
        let reason = gateway.until_refused(name).await;
        assert!(reason.contains(fragment), "{name}: {reason}");
    }
    redis.publish("good", "g", "{}").await;
    gateway.until_outcome("good", "g", "done").await;
}

/// A start function runs at load time, within the same limits.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_function_that_loops_gets_the_module_rejected() {
    let redis = Redis::start();
    let loops = program("", "(func $first (loop $on (br $on))) (start $first)", "");
    let plugins = Plugins::with("loops", &loops, "[limits]\ncpu = \"50ms\"\n");
    let gateway = Gateway::start(&redis, &plugins);
    let reason = gateway.until_refused("loops").await;
    assert!(reason.contains("cpu-limit"), "{reason}");
}
