//! A handler can access the directories that its manifest grants, with the granted
//! rights, and nothing else.

use crate::http_rig::{Rig, manifest};
use crate::support::{BINARY, Gateway, Plugins, Redis, built, text};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

fn read(path: &str) -> Value {
    json!({ "do": "read", "path": path })
}

fn write(path: &str) -> Value {
    json!({ "do": "write", "path": path, "text": "new" })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_reads_and_writes_only_what_is_granted() {
    let outer = tempfile::tempdir().unwrap();
    let (input, output) = (outer.path().join("in"), outer.path().join("out"));
    fs::create_dir(&input).unwrap();
    fs::create_dir(&output).unwrap();
    fs::write(input.join("a.csv"), "a,b").unwrap();
    fs::write(outer.path().join("secret"), "secret").unwrap();
    symlink("../secret", input.join("up")).unwrap();
    symlink(outer.path().join("secret"), input.join("absolute")).unwrap();
    symlink("a.csv", input.join("inside")).unwrap();
    symlink("..", output.join("parent")).unwrap();
    let (shown_in, shown_out) = (input.display(), output.display());
    let rig =
        Rig::new(&format!("read = {{ \"/in\" = \"{shown_in}\" }}\nwrite = {{ \"/out\" = \"{shown_out}\" }}")).await;

    let listed = rig.run(json!({ "do": "list", "path": "/in" })).await;
    assert_eq!(listed["text"], "a.csv,absolute,inside,up");
    assert_eq!(rig.run(read("/in/a.csv")).await["text"], "a,b");
    assert_eq!(rig.run(read("/in/inside")).await["text"], "a,b");
    assert_eq!(rig.run(write("/out/b")).await["text"], "");
    assert_eq!(rig.run(read("/out/b")).await["text"], "new");
    assert_eq!(fs::read_to_string(output.join("b")).unwrap(), "new");

    for act in [
        write("/in/a.csv"),
        write("/in/new"),
        read("/in/up"),
        read("/in/absolute"),
        read("/in/../secret"),
        read("/out/parent/secret"),
        write("/out/parent/secret"),
        write("/out/../secret"),
        read("/etc/passwd"),
        read(&format!("{}/secret", outer.path().display())),
        json!({ "do": "list", "path": "/" }),
    ] {
        let result = rig.run(act.clone()).await;
        assert!(result["error"].is_string(), "{act}: {result}");
    }
    assert_eq!(fs::read_to_string(input.join("a.csv")).unwrap(), "a,b");
    assert_eq!(fs::read_to_string(outer.path().join("secret")).unwrap(), "secret");
    assert!(!input.join("new").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_directory_gets_the_plugin_rejected_and_is_named() {
    let outer = tempfile::tempdir().unwrap();
    let shown = outer.path().display();
    fs::write(outer.path().join("file"), "").unwrap();
    let redis = Redis::start();
    for (grants, fragment) in [
        (format!("read = {{ \"/in\" = \"{shown}/none\" }}"), "grants.read: "),
        (format!("write = {{ \"/out\" = \"{shown}/file\" }}"), "is not a directory"),
        (
            format!("read = {{ \"/a\" = \"{shown}\" }}\nwrite = {{ \"/a\" = \"{shown}\" }}"),
            "leave it only in grants.write",
        ),
    ] {
        let plugins = Plugins::with("fetch", &built("fetch"), &manifest(&grants));
        let gateway = Gateway::start(&redis, &plugins);
        let reason = gateway.until_refused("fetch").await;
        assert!(reason.contains(fragment) && reason.contains("fetch.toml"), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_too_many_files_fails_in_the_call() {
    let outer = tempfile::tempdir().unwrap();
    fs::write(outer.path().join("a"), "here").unwrap();
    let granted = format!("read = {{ \"/in\" = \"{}\" }}", outer.path().display());
    let rig = Rig::new(&granted).await;
    let result = rig.run(json!({ "do": "open-many", "path": "/in/a", "times": 100_000 })).await;
    assert!(result["count"] == 100 && result["error"].is_string(), "{result}");
    assert_eq!(rig.run(read("/in/a")).await["text"], "here");

    // A core module uses another interface: it opens its first directory repeatedly.
    let module = wat::parse_str(
        r#"(module
            (import "wasi_snapshot_preview1" "path_open"
                (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1)
            (data (i32.const 64) ".")
            (func $with_path (param $length i32) (result i32)
                (call $open (i32.const 3) (i32.const 0) (i32.const 64) (local.get $length) (i32.const 0)
                    (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 0)))
            (func (export "_start") (local $count i32) (local $error i32)
                ;; A path is passed to the host as all else is: too long, there is no memory for it.
                (if (i32.eq (i32.const 48) (call $with_path (i32.const 4096))) (then unreachable))
                (if (i32.ne (i32.const 48) (call $with_path (i32.const 4097))) (then unreachable))
                (loop $again
                    (local.set $error (call $open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 2)
                        (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 0)))
                    (if (i32.eqz (local.get $error)) (then
                        (local.set $count (i32.add (local.get $count) (i32.const 1)))
                        (br_if $again (i32.lt_u (local.get $count) (i32.const 100000))))))
                (if (i32.eq (local.get $error) (i32.const 33)) (then (call $exit (local.get $count))))
                (unreachable)))"#,
    );
    let redis = Redis::start();
    let manifest = format!("[grants]\n{granted}\n[limits]\nhost_call_bytes = \"4KiB\"\n[retry]\nattempts = 1\n");
    let module = module.unwrap();
    let few = manifest.replace("[limits]", "[limits]\nresources = 20");
    let plugins = Plugins::with("module", &module, &manifest).and("few", &module, &few);
    let gateway = Gateway::start(&redis, &plugins);
    for (topic, reason, error) in
        [("module", "retry", "exit code 100"), ("few", "resource-limit", "used more than limits.resources = 20")]
    {
        gateway.until_loaded(topic).await;
        redis.publish(topic, "m", "{}").await;
        let dead = redis.dead(topic).await;
        assert_eq!((text(&dead, "gw-reason"), text(&dead, "gw-error")), (reason.to_owned(), error.to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_may_open_half_of_the_files_of_the_process() {
    let outer = tempfile::tempdir().unwrap();
    fs::write(outer.path().join("a"), "here").unwrap();
    let redis = Redis::start();
    let granted = format!("read = {{ \"/in\" = \"{}\" }}", outer.path().display());
    let plugins = Plugins::with("fetch", &built("fetch"), &manifest(&granted));
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "ulimit -n 180 && exec \"$0\" run --log-level debug --listen 127.0.0.1:0 --redis-url \"$1\" --plugins \"$2\"",
    ]);
    command.args([BINARY, &redis.url()]).arg(plugins.path()).env("GATEWAY_PLUGINS_CACHE", plugins.cache());
    let gateway = Gateway::spawn(&mut command);
    gateway.until_loaded("fetch").await;
    for id in ["first", "second"] {
        let hold = json!({ "do": "open-many", "path": "/in/a", "times": 1000 });
        redis.publish("fetch", id, &hold.to_string()).await;
        gateway.until_outcome("fetch", id, "done").await;
    }
    for envelope in redis.envelopes("mq:results").await {
        let result = &envelope["data"]["result"];
        assert!(
            result["count"] == 89 && result["error"].is_string(),
            "one handle is the preopened directory: {result}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_created_later_is_detected() {
    let outer = tempfile::tempdir().unwrap();
    let redis = Redis::start();
    let granted = format!("read = {{ \"/in\" = \"{}/later\" }}", outer.path().display());
    let plugins = Plugins::with("fetch", &built("fetch"), &manifest(&granted));
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_refused("fetch").await;
    fs::create_dir(outer.path().join("later")).unwrap();
    gateway.until_loaded("fetch").await;
}

/// Write access to plugins or compiled components breaks the sandbox, and read access
/// to the secrets directory grants every secret.
#[tokio::test(flavor = "multi_thread")]
async fn protected_directories_cannot_be_granted() {
    let outer = tempfile::tempdir().unwrap();
    let redis = Redis::start();
    for name in ["secrets", "cache", "cache/compiled", "beside"] {
        fs::create_dir(outer.path().join(name)).unwrap();
    }
    symlink("secrets", outer.path().join("link")).unwrap();
    let plugins = Plugins::with("fetch", &built("fetch"), &manifest(""));
    let own = |name: &str| outer.path().join(name).to_str().unwrap().to_owned();
    let started = || {
        let mut command = Command::new(BINARY);
        command.args(["run", "--listen", "127.0.0.1:0", "--redis-url", &redis.url(), "--secrets-dir", &own("secrets")]);
        command.args(["--plugins-cache", &own("cache")]).arg("--plugins").arg(plugins.path());
        Gateway::spawn(&mut command)
    };
    let of_plugins = plugins.path().to_str().unwrap().to_owned();
    for (key, folder) in
        [("read", own("")), ("read", own("link")), ("write", own("cache/compiled")), ("write", of_plugins)]
    {
        plugins.write("fetch.toml", manifest(&format!("{key} = {{ \"/in\" = \"{folder}\" }}")).as_bytes());
        let reason = started().until_refused("fetch").await;
        assert!(reason.contains(&format!("grants.{key}: {folder} reaches into ")), "{reason}");
    }
    let unprotected = format!("write = {{ \"/in\" = \"{}\" }}", own("beside"));
    plugins.write("fetch.toml", manifest(&unprotected).as_bytes());
    started().until_loaded("fetch").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_directory_costs_no_attempt() {
    let outer = tempfile::tempdir().unwrap();
    let input = outer.path().join("in");
    fs::create_dir(&input).unwrap();
    fs::write(input.join("a"), "here").unwrap();
    let rig = Rig::new(&format!("read = {{ \"/in\" = \"{}\" }}", input.display())).await;
    fs::rename(&input, outer.path().join("away")).unwrap();
    let id = rig.publish(&read("/in/a")).await;
    rig.gateway.until_outcome("fetch", &id, "plugin-unavailable").await;
    fs::rename(outer.path().join("away"), &input).unwrap();
    rig.gateway.until_outcome("fetch", &id, "done").await;
}
