//! Compiling in a separate process with limits, and the cache of compiled components.

use crate::support::{BINARY, Gateway, OK, Plugins, Redis, guest, guest_with, until};
use gateway_worker::capability::Capabilities;
use gateway_worker::events;
use gateway_worker::manifest::Manifest;
use gateway_worker::plugin::{CompileLimits, Compiler, Engine, Plugin};
use gateway_worker::topic::Topic;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A component that compiles slowly: one function of many instructions, none of which
/// can be optimized away.
fn slow(size: u32) -> Vec<u8> {
    let mut body = String::new();
    for number in 0..size {
        let _ = write!(body, "(local.set 0 (i32.xor (i32.load (local.get 0)) (i32.const {number})))");
        let _ = write!(body, "(if (local.get 0) (then (i32.store (local.get 0) (i32.const {number}))))");
    }
    guest_with(&format!("(func $slow (export \"slow\") (param i32) (result i32) {body} (local.get 0))"), OK)
}

fn engine(program: &str, limits: CompileLimits) -> Engine {
    Engine::new(Capabilities::default(), Compiler::with_program(PathBuf::from(program), limits, None), 2).unwrap()
}

async fn load(engine: &Engine, wasm: &[u8]) -> Result<Plugin, String> {
    let manifest = Manifest::default_for(Topic::parse("topic").unwrap());
    Plugin::load(engine, "topic", wasm.into(), manifest, "digest".to_owned()).await.map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_that_exceeds_a_compile_limit_is_rejected_by_that_limit() {
    let default = CompileLimits::default();
    let slow = slow(25_000);
    let little = guest(OK);
    load(&engine(BINARY, default), &slow).await.unwrap();
    let wall = CompileLimits { wall: Duration::from_millis(1), ..default };
    let memory = CompileLimits { memory: 256 << 20, ..default };
    for (program, limits, wasm, fragment) in [
        (BINARY, wall, &little, "takes too long to compile: more than 1ms"),
        (BINARY, CompileLimits { cpu: 1, ..default }, &slow, "takes too long to compile: more than 1s of CPU time"),
        (BINARY, memory, &slow, "takes too much memory to compile: more than 256MiB"),
        ("/bin/false", default, &little, "the compiler crashed on it: exit status: 1"),
        ("/no/such/program", default, &little, "the compiler can't be started: /no/such/program"),
    ] {
        let error = load(&engine(program, limits), wasm).await.err().unwrap();
        assert!(error.contains(fragment), "{fragment}: {error}");
    }
    // A small component compiles within small limits.
    load(&engine(BINARY, CompileLimits { cpu: 1, ..memory }), &little).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compiler_that_is_killed_says_so() {
    let engine = engine(BINARY, CompileLimits { cpu: 101, ..CompileLimits::default() });
    let loading = tokio::spawn(async move { load(&engine, &slow(25_000)).await.err().unwrap() });
    let child = until("a compiler runs", async || compilers(std::process::id(), "101").pop()).await;
    // The compiler inherits no environment and limits its own resources.
    let of_child = |what: &str| fs::read_to_string(format!("/proc/{}/{what}", child.as_raw_nonzero())).unwrap();
    let environment = of_child("environ");
    let names: Vec<&str> = environment.split_terminator('\0').filter_map(|one| one.split('=').next()).collect();
    assert_eq!(names, ["MALLOC_ARENA_MAX", "TOKIO_WORKER_THREADS"]);
    until("the compiler has limited itself", async || {
        let limits = of_child("limits");
        let first = |name: &str| limits.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        let is_limited = first("Max core file size") == Some("0")
            && first("Max address space") == Some("4294967296")
            && first("Max cpu time") == Some("101");
        is_limited.then_some(())
    })
    .await;
    rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
    let error = loading.await.unwrap();
    assert!(error.contains("the compiler crashed on it: it was killed"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_whose_compiler_was_killed_is_retried() {
    let redis = Redis::start();
    let plugins = Plugins::with("slow", &slow(25_000), "").and("bad", b"nothing", "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_logged("gateway-worker starting", |_| true).await;
    let id = gateway.id();
    let child = until("a compiler runs", async || compilers(id, "240").pop()).await;
    rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
    let line = gateway.until_logged(events::PLUGIN_REFUSED, |line| line["plugin"] == "slow").await;
    assert!(line["retry_in"].as_str().is_some_and(|wait| wait.ends_with('s')), "{line}");
    let refused = gateway.plugin("slow").await;
    assert_eq!((refused["refusal"]["kind"].as_str(), refused["retry_at"].is_string()), (Some("transient"), true));
    let url = format!("http://{}", gateway.address().await);
    let listed = Command::new(BINARY).args(["plugins", "ls", "--url", &url]).output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout);
    assert!(listed.lines().any(|line| line.starts_with("slow: ") && line.contains("; retry at 2")), "{listed}");
    gateway.until_loaded("slow").await;
    let loaded = gateway.plugin("slow").await;
    assert!(loaded["refusal"].is_null() && loaded["retry_at"].is_null(), "{loaded}");
    // A permanent rejection is not retried.
    let bad = gateway.plugin("bad").await;
    assert_eq!((bad["refusal"]["kind"].as_str(), bad["retry_at"].is_null()), (Some("invalid"), true));
    assert_eq!(gateway.logged(events::PLUGIN_REFUSED).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_component_is_compiled_at_a_time() {
    let engine = engine(BINARY, CompileLimits { cpu: 102, ..CompileLimits::default() });
    let load_one = || {
        let engine = engine.clone();
        tokio::spawn(async move { load(&engine, &slow(5_000)).await.map(drop) })
    };
    let (first, second) = (load_one(), load_one());
    let mut seen = BTreeSet::new();
    while !(first.is_finished() && second.is_finished()) {
        let now = compilers(std::process::id(), "102");
        assert!(now.len() <= 1, "{now:?}");
        seen.extend(now.iter().map(|child| child.as_raw_nonzero()));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for loading in [first, second] {
        loading.await.unwrap().unwrap();
    }
    assert_eq!(seen.len(), 2);
}

/// The compiler processes of this parent with this CPU limit, which distinguishes those
/// of different tests.
fn compilers(parent: u32, cpu: &str) -> Vec<rustix::process::Pid> {
    let is_compiler = |status: &str, command: &[u8]| {
        let mut words = command.split(|byte| *byte == 0).skip(1);
        status.lines().any(|line| line == format!("PPid:\t{parent}"))
            && words.next() == Some(b"compile-component")
            && words.any(|word| word == cpu.as_bytes())
    };
    let child = |entry: fs::DirEntry| {
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        let id = entry.file_name().to_str()?.parse().ok()?;
        is_compiler(&status, &command).then(|| rustix::process::Pid::from_raw(id))?
    };
    fs::read_dir("/proc").unwrap().filter_map(|entry| child(entry.ok()?)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_the_compiler() {
    let redis = Redis::start();
    let (_folder, cache) = cache();
    let plugins = Plugins::with("slow", &slow(25_000), "");
    let mut gateway = Gateway::start_with(&redis.url(), &plugins, &["--plugins-cache", cache.to_str().unwrap()]);
    gateway.until_logged("gateway-worker starting", |_| true).await;
    let id = gateway.id();
    let child = until("a compiler runs", async || compilers(id, "240").pop()).await;
    gateway.signal(rustix::process::Signal::TERM);
    until("the worker ends", async || (!gateway.is_running()).then_some(())).await;
    let log = gateway.kill_and_read_log();
    assert!(log.iter().any(|line| line["message"] == events::STOPPED), "{log:#?}");
    assert!(!log.iter().any(|line| line["message"] == events::COMPILED));
    until("the compiler has exited", async || rustix::process::test_kill_process(child).err()).await;
}

/// A cache directory for this test alone.
fn cache() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache");
    (folder, path)
}

fn artifacts(cache: &Path) -> Vec<PathBuf> {
    fs::read_dir(cache.join("compiled")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Starts a worker and waits until all its plugins are loaded. Returns the time it
/// took.
async fn start(redis: &Redis, plugins: &Plugins, cache: &Path) -> (Duration, Gateway) {
    let names: Vec<String> = fs::read_dir(plugins.path())
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".wasm")?.to_owned()))
        .collect();
    let started = Instant::now();
    let gateway = Gateway::start_with(&redis.url(), plugins, &["--plugins-cache", cache.to_str().unwrap()]);
    for name in names {
        gateway.until_loaded(&name).await;
    }
    (started.elapsed(), gateway)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_compiles_nothing() {
    let redis = Redis::start();
    let (_folder, cache) = cache();
    let plugins = Plugins::empty();
    for number in 0..10 {
        let data = format!("(data (i32.const 600) \"{number}\")");
        plugins.write(&format!("topic-{number}.wasm"), &guest_with(&data, OK));
    }
    let (cold, gateway) = start(&redis, &plugins, &cache).await;
    assert_eq!(compiled(&gateway), 10);
    assert!(gateway.stop().await.success());
    assert_eq!(artifacts(&cache).len(), 10);
    let (warm, gateway) = start(&redis, &plugins, &cache).await;
    assert_eq!(compiled(&gateway), 0);
    redis.publish("topic-7", "a", "{}").await;
    gateway.until_outcome("topic-7", "a", "done").await;
    let loading: Vec<String> =
        gateway.logged(events::PLUGIN_LOADED).iter().map(|line| line["took"].as_str().unwrap().to_owned()).collect();
    println!("10 plugins: cold {cold:?}, warm {warm:?} (with process start), each {loading:?}");
}

fn compiled(gateway: &Gateway) -> usize {
    gateway.logged(events::COMPILED).iter().filter(|line| line["message"] == events::COMPILED).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_that_was_tampered_with_is_compiled_again() {
    let redis = Redis::start();
    let (_folder, cache) = cache();
    let plugins = Plugins::with("topic", &guest(OK), "");
    drop(start(&redis, &plugins, &cache).await);
    let file = artifacts(&cache).pop().unwrap();
    let whole = fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for (bytes, mode) in [(&flipped[..], 0o600), (&whole[..whole.len() / 2], 0o600), (b"", 0o600), (&whole, 0o666)] {
        fs::write(&file, bytes).unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
        let (_, gateway) = start(&redis, &plugins, &cache).await;
        assert_eq!(compiled(&gateway), 1);
        assert_eq!(gateway.logged(events::ARTIFACT_DISCARDED).len(), 1);
        assert_eq!(fs::read(&file).unwrap(), whole);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_untrusted_or_cannot_be_created_is_not_used() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "");
    let (folder, open) = cache();
    fs::create_dir_all(open.join("compiled")).unwrap();
    fs::set_permissions(open.join("compiled"), PermissionsExt::from_mode(0o755)).unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for (path, fragment) in [(&open, "its mode is 755"), (&file, "it can't be created")] {
        let (_, gateway) = start(&redis, &plugins, path).await;
        let line = gateway.until_logged(events::NO_CACHE, |_| true).await;
        assert!(line["error"].as_str().unwrap().contains(fragment), "{line}");
        assert_eq!(compiled(&gateway), 1);
    }
    assert!(artifacts(&open).is_empty());
}
