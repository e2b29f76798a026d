//! `plugin inspect` and `plugin check`, with which authors verify a plugin before they
//! deploy it.

use crate::compatibility::{self, ADD_FLUSH, FLUSH, NEWER};
use crate::guest::module;
use crate::support::{Gateway, OK, Plugins, Redis, built, command, encode, guest};
use gateway_worker::events;
use serde_json::{Value, json};

/// Exit code, stdout, stderr.
fn plugin(args: &[&str]) -> (i32, String, String) {
    let cache = crate::support::state().canonicalize().unwrap().join("test-cache");
    let output = command(&[&["plugin"], args, &["--plugins-cache", cache.to_str().unwrap()]].concat());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn path(plugins: &Plugins, file: &str) -> String {
    plugins.path().join(file).to_str().unwrap().to_owned()
}

fn inspect(plugins: &Plugins, file: &str) -> (i32, Value) {
    let (code, out, error) = plugin(&["inspect", &path(plugins, file), "--json"]);
    (code, serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{error}")))
}

/// The access to one imported interface, in the report of `inspect`.
fn access(report: &Value, interface: &str) -> Value {
    let is_interface = |import: &&Value| import["name"].as_str().unwrap().contains(interface);
    let mut import = report["imports"].as_array().unwrap().iter().find(is_interface).unwrap().clone();
    import.as_object_mut().unwrap().remove("name");
    import
}

/// A handler with a self-test: the body of `check`, and more items for its core module.
pub(crate) fn self_tested(more: &str, check: &str) -> Vec<u8> {
    let more = format!(r#"{more} (func (export "gateway:worker/self-test@1.0.0#check") (result i32) {check})"#);
    let wit = include_str!("../../wit/gateway.wit").replacen(
        "  export handler;",
        "  export handler;\n  export self-test;",
        1,
    );
    encode(&module(&more, OK), "tested.wit", Some(&wit))
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_shows_a_plugin_with_its_permissions() {
    let wasm = built("puppet");
    let manifest = "topics = [\"a\", \"b\"]\n[limits]\ncpu = \"2s\"\nmemory = \"32MiB\"\n[grants]\npublish = [\"seen\"]\nmail = true\n";
    let plugins = Plugins::with("puppet", &wasm, manifest);
    let (code, report) = inspect(&plugins, "puppet.wasm");
    assert_eq!(code, 0, "{report:#}");
    assert_eq!((&report["name"], &report["kind"]), (&json!("puppet"), &json!("handler")));
    assert_eq!(report["bytes"], wasm.len());
    assert_eq!(report["topics"], json!(["a", "b"]));
    assert_eq!(report["exports"], json!(["gateway:worker/handler@1.0.0"]));
    assert_eq!(access(&report, "worker/logging"), json!({ "access": "always" }));
    assert_eq!(access(&report, "worker/publisher"), json!({ "access": "granted", "what": ["seen"] }));
    assert_eq!(access(&report, "wasi:clocks"), json!({ "access": "always" }));
    assert_eq!(report["unused_grants"], json!(["mail"]));
    assert_eq!((&report["limits"]["cpu"], &report["limits"]["memory"]), (&json!("2s"), &json!("32MiB")));
    assert_eq!((&report["limits"]["timeout"], &report["limits"]["log"]), (&json!("30s"), &json!("64KiB/s")));
    // The worker logs the same digest.
    let redis = Redis::start();
    let gateway = Gateway::start(&redis, &plugins);
    let digest = gateway.until_loaded("puppet").await;
    assert!(report["digest"].as_str().unwrap().starts_with(&digest), "{digest} {report:#}");
    let (_, text, _) = plugin(&["inspect", &path(&plugins, "puppet.wasm")]);
    for line in ["kind       handler", "topics     a, b", "granted: seen", "cpu = 2s", "grants.mail is unused"] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_shows_commands() {
    let folder = tempfile::tempdir().unwrap();
    let granted = format!("args = [\"-v\"]\n[grants]\nread = {{ \"/in\" = \"{}\" }}\n", folder.path().display());
    let plugins = Plugins::with("module", &built("command"), &granted).and("component", &built("program"), "");
    let (code, report) = inspect(&plugins, "module.wasm");
    assert_eq!((code, &report["kind"], &report["unused_grants"]), (0, &json!("command"), &json!([])), "{report:#}");
    let is_in = |list: &Value, name: &str| list.as_array().unwrap().contains(&json!(name));
    assert!(is_in(&report["exports"], "_start"), "{report:#}");
    let folder = format!("/in = {}", folder.path().display());
    assert_eq!(access(&report, "wasi_snapshot_preview1"), json!({ "access": "granted", "what": [folder] }));
    let (code, report) = inspect(&plugins, "component.wasm");
    assert_eq!((code, &report["kind"]), (0, &json!("command")), "{report:#}");
    // No warning: the standard library of the language always imports the file system.
    assert_eq!(report["warnings"], json!([]), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_without_a_grant_are_reported_everywhere() {
    let plugins = Plugins::with("puppet", &built("puppet"), "");
    let (code, report) = inspect(&plugins, "puppet.wasm");
    assert_eq!(code, 0);
    assert_eq!(
        access(&report, "worker/publisher"),
        json!({ "access": "not-granted", "write": "publish = [\"topic\"]" })
    );
    let warning = "imported but not granted: gateway:worker/publisher@1.0.0";
    assert!(report["warnings"].as_array().unwrap().contains(&json!(warning)), "{report:#}");
    let (code, out, _) = plugin(&["check", &path(&plugins, "puppet.wasm")]);
    assert_eq!(code, 0);
    assert!(
        out.contains("ok       puppet.wasm: handler of puppet") && out.contains(&format!("warning  {warning}")),
        "{out}"
    );
    let redis = Redis::start();
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("puppet").await;
    let line = &gateway.logged(events::PLUGIN_LOADED)[0];
    assert_eq!(line["not_granted"], "gateway:worker/publisher@1.0.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_loads_a_whole_directory_and_reports_every_error() {
    let good = guest(OK);
    let plugins = Plugins::with("b-good", &good, "")
        .and("a-faulty", &good[..good.len() / 2], "concurrency = 0\n[limits]\ncpuu = \"1s\"\n")
        .and("c-claims", &good, "topics = [\"b-good\"]\n");
    plugins.write(".hidden.wasm", b"no");
    let (code, out, error) = plugin(&["check", plugins.path().to_str().unwrap()]);
    assert_eq!(code, 1, "{out}");
    assert!(error.contains("2 of 3 would be refused"), "{error}");
    for fragment in [
        "refused  a-faulty.wasm\n",
        "a-faulty.toml: line 1, column 15: ",
        "a-faulty.toml: line 3, column 1: unknown key `cpuu`",
        "not valid WebAssembly (is it complete?)",
        "ok       b-good.wasm: handler of b-good\n",
        "refused  c-claims.wasm\n         topic b-good is handled by b-good.wasm: remove the topic there, or from c-claims",
    ] {
        assert!(out.contains(fragment), "{fragment}: {out}");
    }
    let (code, out, _) = plugin(&["check", &path(&plugins, "b-good.wasm"), "--json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &report[0]["refused"]), (0, &json!([])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_detects_topic_conflicts_however_the_files_are_given() {
    let good = guest(OK);
    let catch_all = "topics = [\"*\"]\n";
    let plugins = Plugins::with("a-rest", &good, catch_all).and("b-rest", &good, catch_all).and("named", &good, "");
    plugins.put("z-claims", &good, "topics = [\"named\"]\n");
    let folder = plugins.path().to_str().unwrap();
    let [first, other] = ["a-rest.wasm is already the catch-all plugin", "topic named is handled by named.wasm"];
    let by_file: Vec<String> =
        ["z-claims", "named", "b-rest", "a-rest"].map(|name| path(&plugins, &format!("{name}.wasm"))).into();
    let twice = [format!("{folder}/."), path(&plugins, "a-rest.wasm"), format!("{folder}/../{}", name_of(folder))];
    for paths in [vec![folder.to_owned()], by_file, twice.to_vec()] {
        let args: Vec<&str> = ["check"].into_iter().chain(paths.iter().map(String::as_str)).collect();
        let (code, out, error) = plugin(&args);
        assert!(code == 1 && error.contains("2 of 4 would be refused"), "{paths:?}: {out}{error}");
        assert!(out.contains(first) && out.contains(other), "{paths:?}: {out}");
    }
    // Plugins in different directories belong to different workers.
    let other = Plugins::with("b-rest", &good, catch_all);
    assert_eq!(plugin(&["check", &path(&plugins, "a-rest.wasm"), other.path().to_str().unwrap()]).0, 0);
}

fn name_of(folder: &str) -> &str {
    folder.rsplit('/').next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_reports_plugins_beyond_the_maximum() {
    let plugins = Plugins::empty();
    for number in 0..=1000 {
        std::fs::write(plugins.path().join(format!("topic-{number:04}.wasm")), "no").unwrap();
    }
    let (code, out, error) = plugin(&["check", plugins.path().to_str().unwrap()]);
    assert!(code == 1 && error.contains("1001 of 1001 would be refused"), "{error}");
    assert!(out.contains("refused  topic-1000.wasm\n         too many plugins in the directory"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphaned_manifest_is_reported_by_the_check_and_once_by_the_worker() {
    let plugins = Plugins::with("order", &guest(OK), "");
    plugins.write("ordr.toml", b"concurrency = 1");
    let warning = &events::orphan_manifest("ordr");
    let (code, out, _) = plugin(&["check", plugins.path().to_str().unwrap()]);
    assert!(code == 0 && out.contains(&format!("warning  {warning}\n")), "{out}");
    let (_, out, error) = plugin(&["check", "--json", plugins.path().to_str().unwrap()]);
    let listed: Value = serde_json::from_str(&out).unwrap();
    assert!(listed.as_array().unwrap().len() == 1 && error.contains(warning), "{out}{error}");
    let redis = Redis::start();
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_logged(warning, |line| line["level"] == "WARN").await;
    gateway.post("/api/v1/plugins/reload").await;
    assert_eq!(gateway.logged(warning).len(), 1);
}

/// The names in a component are untrusted.
#[tokio::test(flavor = "multi_thread")]
async fn names_in_a_file_cannot_control_or_flood_the_terminal() {
    let good = r#"(memory (export "memory") 1) (func (export "_start")) (func (export "\1b[2J\1b]0;title\07over\nok       b.wasm"))"#;
    let foreign = format!(r#"(import "\1b[31mred" "{}" (func))"#, "x\\1b[1m".repeat(40_000));
    let wasm = |text: &str| wat::parse_str(format!("(module {text})")).unwrap();
    let plugins = Plugins::with("exports", &wasm(good), "").and("imports", &wasm(&foreign), "");
    for (command, file, shown) in [("inspect", "exports.wasm", "over\\nok"), ("check", "imports.wasm", "of red")] {
        let (_, out, error) = plugin(&[command, &path(&plugins, file)]);
        assert!(!out.contains('\u{1b}') && !out.contains("\nok "), "{out}");
        assert!(out.len() < 10_000, "{} bytes", out.len());
        assert!(command == "check" || out.contains(shown), "{out}{error}");
    }
    let redis = Redis::start();
    let gateway = Gateway::start(&redis, &plugins);
    let reason = gateway.until_refused("imports").await;
    assert!(reason.len() < 5000 && !reason.contains('\u{1b}'), "{} {reason}", reason.len());
}

/// The same in JSON, where escapes keep the names intact.
#[tokio::test(flavor = "multi_thread")]
async fn json_output_has_no_terminal_control_characters() {
    let export = "red\u{9b}31m\u{202e}over";
    let wasm = wat::parse_str(format!(
        r#"(module (memory (export "memory") 1) (func (export "_start")) (func (export "{}")))"#,
        export.escape_unicode()
    ));
    let (name, manifest) = ("a\u{9b}31m\u{2066}", "topics = [\"a\"]");
    let plugins = Plugins::with(name, &wasm.unwrap(), manifest).and("bad\u{9d}", b"no", "topics = [\"b\"]");
    let is_plain = |out: &str| !out.contains(|char: char| (char.is_control() && char != '\n') || char > '\u{2000}');
    let (_, out, _) = plugin(&["check", plugins.path().to_str().unwrap(), "--json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert!(is_plain(&out) && report[0]["name"] == name, "{out}");
    assert!(report[0]["exports"].as_array().unwrap().contains(&json!(export)), "{out}");
    let redis = Redis::start();
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_ready().await;
    let url = format!("http://{}", gateway.address().await);
    for args in [&["plugins", "ls", "--json"][..], &["plugins", "ls"]] {
        let out = String::from_utf8(command(&[args, &["--url", &url]].concat()).stdout).unwrap();
        assert!(is_plain(&out.replace('\u{fffd}', "?")), "{out}");
        if args.contains(&"--json") {
            assert_eq!(serde_json::from_str::<Value>(&out).unwrap()[0]["name"], name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_knows_the_protected_directories() {
    let outer = tempfile::tempdir().unwrap();
    let at = |name: &str| outer.path().join(name).to_str().unwrap().to_owned();
    for name in ["plugins", "cache", "cache/versions", "secrets", "beside"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    let plugins = Plugins::with("topic", &guest(OK), "");
    let file = path(&plugins, "topic.wasm");
    let settings = format!(
        "plugins = {{ dir = {:?}, cache = {:?} }}\n[secrets]\ndir = {:?}\n",
        at("plugins"),
        at("cache"),
        at("secrets")
    );
    std::fs::write(at("worker.toml"), settings).unwrap();
    let (folder, cache, secrets, config) = (at("plugins"), at("cache"), at("secrets"), at("worker.toml"));
    let typed = ["--plugins", &folder, "--plugins-cache", &cache, "--secrets-dir", &secrets];
    for settings in [&typed[..], &["--config", &config]] {
        for name in ["", "plugins", "cache", "cache/versions", "secrets"] {
            plugins.write("topic.toml", format!("[grants]\nwrite = {{ \"/in\" = {:?} }}", at(name)).as_bytes());
            for command_name in ["check", "inspect"] {
                let output = command(&[&["plugin", command_name, &file], settings].concat());
                let out = String::from_utf8(output.stdout).unwrap();
                assert!(
                    output.status.code() == Some(1) && out.contains("which belongs to the worker"),
                    "{name}: {out}"
                );
            }
        }
        // The directory of the checked file is the plugins directory.
        let own = plugins.path().to_str().unwrap();
        plugins.write("topic.toml", format!("[grants]\nread = {{ \"/in\" = {own:?} }}").as_bytes());
        assert_eq!(command(&[&["plugin", "check", own], settings].concat()).status.code(), Some(1));
        plugins.write("topic.toml", format!("[grants]\nread = {{ \"/in\" = {:?} }}", at("beside")).as_bytes());
        let output = command(&[&["plugin", "check", &file], settings].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unusable_secrets_are_reported() {
    let secrets = tempfile::tempdir().unwrap();
    for (name, value) in [("tiny", "abc"), ("empty", ""), ("lines", "one\ntwo-two\n"), ("good", "value-1")] {
        std::fs::write(secrets.path().join(name), value).unwrap();
    }
    let manifest = "[grants]\nhttp = [\"https://a.example\"]\nsecrets = [\"none\", \"good\"]\n\
                    [http_headers.\"https://a.example\"]\nX-A = \"${secret:tiny}\"\nX-B = \"${secret:empty}\"\n\
                    X-C = \"${secret:lines}\"\nX-D = \"${secret:missing}\"\nX-E = \"Bearer ${secret:good}\"\n";
    let plugins = Plugins::with("fetch", &built("fetch"), manifest);
    let file = path(&plugins, "fetch.wasm");
    let dir = secrets.path().to_str().unwrap();
    let (code, out, _) = plugin(&["check", &file, "--secrets-dir", dir]);
    assert_eq!(code, 0, "{out}");
    let header =
        |name: &str| format!("warning  [http_headers] for https://a.example: the header `{name}` can't be set: ");
    for warning in [
        "warning  grants.secrets: none: a granted secret is unavailable: this host has no secret none".to_owned(),
        header("x-a") + "the secret tiny has less than 4 bytes",
        header("x-b") + "unavailable: the secret empty: ",
        header("x-c") + "the secret lines has characters that a header must not have",
        header("x-d") + "unavailable: this host has no secret missing",
    ] {
        assert!(out.contains(&warning), "{warning}: {out}");
    }
    assert!(!out.contains("x-e") && !out.contains("grants.secrets: good") && !out.contains("abc"), "{out}");
    let redis = Redis::start();
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--secrets-dir", dir]);
    gateway.until_logged("the header `x-d` can't be set", |line| line["level"] == "WARN").await;
    assert_eq!(gateway.logged("[http_headers] for https://a.example: ").len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_runs_the_self_test() {
    // An error whose text is the four bytes at 512.
    let failed = "(i32.store8 (i32.const 32) (i32.const 1)) (i32.store (i32.const 36) (i32.const 512)) (i32.store (i32.const 40) (i32.const 4)) (i32.const 32)";
    let plugins =
        Plugins::with("passes", &self_tested("", "(i32.const 32)"), "").and("fails", &self_tested("", failed), "");
    let (code, report) = inspect(&plugins, "passes.wasm");
    assert_eq!((code, &report["has_self_test"]), (0, &json!(true)), "{report:#}");
    let (code, report) = inspect(&plugins, "fails.wasm");
    assert_eq!((code, &report["refused"], &report["kind"]), (1, &json!(["its self-test failed: busy"]), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_plugin_is_reported() {
    let plugins = Plugins::empty();
    plugins.write("native.wasm", b"\x7fELF\x02\x01\x01\0");
    plugins.write("other.txt", b"");
    for (file, code, fragment) in [
        ("native.wasm", 1, "precompiled components are not taken"),
        ("other.txt", 2, "the file of a plugin must be named <name>.wasm"),
        ("none.wasm", 1, "no such file"),
    ] {
        for command in ["check", "inspect"] {
            let (ended, out, error) = plugin(&[command, &path(&plugins, file)]);
            assert_eq!(ended, code, "{command} {file}: {error}");
            assert!(format!("{out}{error}").contains(fragment), "{command} {file}: {out}{error}");
        }
    }
    assert_eq!(plugin(&["check"]).0, 2);
}

/// Plugins that a worker rejects, and three that it loads: name, file, manifest, and a
/// fragment of the reason.
fn refused() -> Vec<(&'static str, Vec<u8>, &'static str, &'static str)> {
    let memory = r#"(memory (export "memory") 1)"#;
    let start = r#"(func (export "_start"))"#;
    let program = |text: &str| wat::parse_str(format!("(module {text})")).unwrap();
    let command = || program(&format!("{memory} {start}"));
    let (handler, batch) = (guest(OK), "[batch]\nsize = 2\nwait = \"1s\"\n");
    let failed = "(i32.store8 (i32.const 32) (i32.const 1)) (i32.store (i32.const 36) (i32.const 512)) (i32.store (i32.const 40) (i32.const 4)) (i32.const 32)";
    let wider = [("    retry(retry-options),", "    retry(retry-options),\n    other(retry-options),")];
    let foreign = format!(r#"(import "env" "sleep" (func)) {memory} {start}"#);
    let threads = format!(r#"(import "env" "memory" (memory 1 2 shared)) {start}"#);
    vec![
        ("args", handler.clone(), "args = [\"-v\"]\n", "`args` are for commands, and this is a handler"),
        ("batch", handler.clone(), batch, "it must export gateway:worker/batch-handler@1.0.0"),
        ("batch-command", command(), batch, "[batch] is for components"),
        ("batch-without", built("crew"), "", "write [batch] with size and wait"),
        ("claims", handler.clone(), "topics = [\"z\"]\n", ""),
        (
            "claims-too",
            handler.clone(),
            "topics = [\"z\"]\n",
            "topic z is handled by claims.wasm: remove the topic there, or from",
        ),
        ("cut", handler[..handler.len() / 2].to_vec(), "", "is it complete?"),
        ("faults", handler.clone(), "concurrency = 0\n[limits]\ncpuu = \"1s\"\n", "unknown key `cpuu`"),
        ("folder", handler.clone(), "[grants]\nread = { \"/in\" = \"/no/such\" }\n", "grants.read: "),
        ("foreign", program(&foreign), "", "`sleep` of env"),
        ("good", handler.clone(), "", ""),
        ("native", b"\x7fELF\x02\x01\x01\0".to_vec(), "", "precompiled components are not taken"),
        (
            "newer",
            compatibility::built(&[NEWER, ADD_FLUSH], FLUSH),
            "",
            "it needs `flush` of gateway:worker/logging@1.1.0",
        ),
        ("reactor", program(&format!(r#"{memory} (func (export "_initialize"))"#)), "", "it is a reactor"),
        ("rest", handler.clone(), "topics = [\"*\"]\n", ""),
        ("rest-too", handler, "topics = [\"*\"]\n", "rest.wasm is already the catch-all plugin"),
        ("reused", command(), "instances = { max_calls = 10 }\n", "`instances` is \"per-message\" for a command"),
        ("self-test", self_tested("", failed), "", "its self-test failed: busy"),
        ("threads", program(&threads), "", "it needs threads"),
        ("typed", compatibility::built(&wider, ""), "", "has another type than this host's"),
        ("zip", b"PK\x05\x06".to_vec(), "", "a zip archive: unpack it"),
    ]
}

/// A check before the deployment reports the same reasons as the worker.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_and_a_worker_reject_with_the_same_reason() {
    let (plugins, refused) = (Plugins::empty(), refused());
    for (name, wasm, manifest, _) in &refused {
        plugins.put(name, wasm, manifest);
    }
    let redis = Redis::start();
    let gateway = Gateway::start(&redis, &plugins);
    let (code, out, _) = plugin(&["check", "--json", plugins.path().to_str().unwrap()]);
    let checked: Value = serde_json::from_str(&out).unwrap();
    let (checked, count) = (checked.as_array().unwrap(), refused.len());
    assert_eq!((code, checked.len()), (1, count));
    gateway.until_ready().await;
    for (checked, (name, _, _, fragment)) in checked.iter().zip(refused) {
        assert_eq!(checked["name"], name);
        let reasons: Vec<&str> =
            checked["refused"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
        let reasons = reasons.join("; ");
        let live = gateway.plugin(name).await;
        assert_eq!(live["refusal"]["reason"].as_str().unwrap_or_default(), reasons, "{name}");
        assert!(reasons.is_empty() == fragment.is_empty() && reasons.contains(fragment), "{name}: {reasons}");
        assert_eq!(live["state"] == "live", fragment.is_empty(), "{name}: {live}");
    }
}
