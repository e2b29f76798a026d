//! `make bench-plugins`: the cost of the sandbox: a fresh instance and its call with all
//! limits and interfaces; pooled instances; host calls; memory; the effect of CPU-bound
//! guests on others; the time until a file is live.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that can't go on ends, and prints")]

#[path = "../guest.rs"]
mod guest;
mod resident;
#[allow(dead_code, reason = "shared with other benchmarks")]
mod rig;

use async_trait::async_trait;
use gateway_worker::capability::{Capabilities, Fault, KeyValue, NewValue, Quota};
use gateway_worker::manifest::Manifest;
use gateway_worker::message;
use gateway_worker::metrics::Metrics;
use gateway_worker::plugin::{
    Cache, CompileLimits, Compiler, Engine, Job, Plugin, PluginDir, Registry, SHORT_QUIET, VersionStore,
};
use gateway_worker::queue::Publisher;
use gateway_worker::reloader::{Reloader, Request};
use gateway_worker::run_span::{PluginLabel, RunSpan};
use gateway_worker::settings::FilePermissionPolicy;
use gateway_worker::topic::Topic;
use gateway_worker::verdict::Outcome;
use guest::{OK, guest, guest_in, guest_with};
use resident::resident_bytes;
use rig::{Length, Worker, cpu_seconds, queue_of, redis_server, sdk_guest, stamped, start_latencies};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

const CALLS: usize = 20_000;
/// The argument of a child process of `separate_processes`.
const ONE_OF_SEVERAL: &str = "one-of-several";
/// The best of this many rounds is reported.
const ROUNDS: usize = 7;

fn main() {
    let runtime = |threads| Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
    let (one, two) = (runtime(1), runtime(2));
    if std::env::args().any(|arg| arg == ONE_OF_SEVERAL) {
        // Runs on the thread of the runtime, as the calls do otherwise.
        return one.block_on(async { one.spawn(one_of_several_processes()).await.unwrap() });
    }
    // An argument selects one part.
    let selected = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let is_wanted = |part: &str| selected.as_ref().is_none_or(|selected| selected == part);
    if is_wanted("instances") {
        one.block_on(instances());
        one.block_on(host_calls());
    }
    if is_wanted("threads") {
        two.block_on(two_threads(two.handle()));
    }
    if is_wanted("limits") {
        two.block_on(idle(two.handle()));
        two.block_on(time_to_kill());
        two.block_on(latency_with_cpu_bound_handlers());
    }
    if is_wanted("live") {
        two.block_on(time_to_live_version());
    }
}

fn engine(capabilities: Capabilities, cache: Option<Cache>) -> Engine {
    let program = env!("CARGO_BIN_EXE_gateway-worker").into();
    Engine::new(capabilities, Compiler::with_program(program, CompileLimits::default(), cache), 2).unwrap()
}

async fn plugin(engine: &Engine, wasm: &[u8], manifest: &str) -> Arc<Plugin> {
    let manifest = Manifest::parse(manifest, "topic").unwrap();
    Arc::new(Plugin::load(engine, "topic", wasm.into(), manifest, String::new()).await.unwrap())
}

fn call() -> Job {
    let envelope = r#"{"id":"0190b3a4-5e0c-7b3c-9a51-8b1f4c8a0001","topic":"topic","data":{"order_id":"o-1","user_id":"u-1"},"timestamp":"2026-11-23T07:45:23.585Z","retry":0,"max_retry":3}"#;
    let fields = vec![(b"message".to_vec(), envelope.as_bytes().to_vec())];
    let message = message::read(&Topic::parse("topic").unwrap(), "1795419923585-0", &fields).unwrap();
    let label = PluginLabel::new("topic", "");
    let span = RunSpan::for_message(message.topic.clone(), label, message.id.clone(), message.attempt);
    Job { message, entry: "1795419923585-0".to_owned(), max_attempts: 3, span }
}

/// Sorted microseconds of `count` calls.
async fn timed(plugins: &[Arc<Plugin>], count: usize) -> Vec<f64> {
    let mut took = Vec::with_capacity(count);
    for number in 0..count + count / 10 {
        let mut calls = [call()];
        let started = Instant::now();
        let outcomes = plugins[number % plugins.len()].call(&mut calls).await.outcomes;
        let elapsed = started.elapsed();
        assert!(!matches!(outcomes[0], Outcome::PluginUnavailable(_)));
        // The first tenth is warm-up.
        if number >= count / 10 {
            took.push(elapsed.as_secs_f64() * 1e6);
        }
    }
    took.sort_by(f64::total_cmp);
    took
}

fn at(sorted: &[f64], percent: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * percent / 100.0) as usize]
}

/// Sequential calls on one thread.
async fn instances() {
    let engine = engine(Capabilities::default(), None);
    let (smallest, sdk) = (guest(OK), sdk_guest("noop"));
    println!("{:<52}{:>10}{:>10}{:>12}", "instance and call, one thread", "p50 us", "p99 us", "of fresh");
    let mut fresh = 0.0;
    for (name, wasm, manifest) in [
        ("fresh, the smallest handler", &smallest, ""),
        ("pooled, the smallest handler", &smallest, "instances = { max_calls = 1000000 }"),
        ("fresh, a handler built with the SDK", &sdk, ""),
        ("pooled, a handler built with the SDK", &sdk, "instances = { max_calls = 1000000 }"),
    ] {
        let took = timed(&[plugin(&engine, wasm, manifest).await], CALLS).await;
        if fresh == 0.0 {
            fresh = at(&took, 50.0);
        }
        println!("  {name:<50}{:>10.2}{:>10.2}{:>12.2}", at(&took, 50.0), at(&took, 99.0), at(&took, 50.0) / fresh);
    }
    let mut many = Vec::new();
    for number in 0..200 {
        let wasm = guest_with(&format!("(data (i32.const 600) \"{number:04}\")"), OK);
        many.push(plugin(&engine, &wasm, "").await);
    }
    let took = timed(&many, CALLS).await;
    let ratio = at(&took, 50.0) / fresh;
    println!(
        "  {:<50}{:>10.2}{:>10.2}{ratio:>12.2}",
        "fresh, 200 plugins in rotation",
        at(&took, 50.0),
        at(&took, 99.0)
    );
}

/// The cost of one host call with a string as argument and as result.
async fn host_calls() {
    const EACH: usize = 10_000;
    let engine = engine(Capabilities::default(), None);
    let import = "(import \"gateway:worker/config@1.0.0\" \"get\" (func $get (param i32 i32 i32)))";
    let looped = |body: &str| {
        let body = format!(
            "(local $left i32) (local.set $left (i32.const {EACH}))
             (loop $on {body} (br_if $on (local.tee $left (i32.sub (local.get $left) (i32.const 1))))) {OK}"
        );
        guest_in("message-handler", "", import, "(data (i32.const 520) \"sixteen bytes ok\")", &body)
    };
    let with = plugin(&engine, &looped("(call $get (i32.const 520) (i32.const 16) (i32.const 64))"), "").await;
    let without = plugin(&engine, &looped(""), "").await;
    let (with, without) = (timed(&[with], 50).await, timed(&[without], 50).await);
    let each = (at(&with, 50.0) - at(&without, 50.0)) / EACH as f64;
    println!("  {:<50}{each:>10.3}", "a call from the guest to the host");
}

/// The throughput of two threads, relative to one.
async fn two_threads(handle: &Handle) {
    let engine = engine(Capabilities::default(), None);
    let small = plugin(&engine, &guest(OK), "").await;
    let calls = |plugin: Arc<Plugin>, count| move || many(plugin.clone(), count);
    let (rate, speedup, cpu) = speedup(handle, CALLS * 5, calls(small, CALLS * 5)).await;
    println!(
        "two threads do {speedup:.2} times what one does ({rate:.0} calls/s, fresh), at {cpu:.2} times its CPU for each"
    );
    // The upper bounds: of the cores, of Wasmtime alone, and of processes that share
    // nothing.
    let counts = "(local $n i32) (loop $on (br_if $on (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 200000))))";
    let computes = plugin(&engine, &guest(&format!("{counts} {OK}")), "").await;
    let (_, speedup, cpu) = self::speedup(handle, CALLS / 10, calls(computes, CALLS / 10)).await;
    println!("  a handler that only computes: {speedup:.2} times, at {cpu:.2} times its CPU for each");
    let bare = Arc::new(Bare::new());
    let calls = || {
        let bare = bare.clone();
        async move { bare.calls(CALLS * 5).await }
    };
    let (rate, speedup, cpu) = self::speedup(handle, CALLS * 5, calls).await;
    println!(
        "  Wasmtime alone, an empty call: {speedup:.2} times ({rate:.0} calls/s), at {cpu:.2} times its CPU for each"
    );
    let mut rates = [0.0_f64; 2];
    for _ in 0..ROUNDS {
        for processes in [1, 2] {
            rates[processes - 1] = rates[processes - 1].max(separate_processes(processes));
        }
    }
    println!("  two processes of one thread each: {:.2} times", rates[1] / rates[0]);
}

async fn many(plugin: Arc<Plugin>, count: usize) {
    for _ in 0..count {
        plugin.call(&mut [call()]).await;
    }
}

/// Total calls per second of this many processes with one thread each.
fn separate_processes(processes: usize) -> f64 {
    let program = std::env::current_exe().unwrap();
    let spawn =
        || Command::new(&program).arg(ONE_OF_SEVERAL).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut children: Vec<_> = (0..processes).map(|_| spawn()).collect();
    let mut answers: Vec<_> = children.iter_mut().map(|child| BufReader::new(child.stdout.take().unwrap())).collect();
    let read_line = |answers: &mut BufReader<ChildStdout>| {
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    };
    answers.iter_mut().for_each(|answers| assert_eq!(read_line(answers), "ready"));
    for child in &mut children {
        drop(child.stdin.take());
    }
    let rate = answers.iter_mut().map(|answers| read_line(answers).parse::<f64>().unwrap()).sum();
    children.iter_mut().for_each(|child| assert!(child.wait().unwrap().success()));
    rate
}

/// The child process: it waits for the end of its input, then prints its calls per
/// second.
async fn one_of_several_processes() {
    let engine = engine(Capabilities::default(), None);
    let small = plugin(&engine, &guest(OK), "").await;
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    many(small.clone(), CALLS).await;
    let started = Instant::now();
    many(small, CALLS * 5).await;
    println!("{}", (CALLS * 5) as f64 / started.elapsed().as_secs_f64());
}

/// Calls per second of two threads, their ratio to one thread, and the ratio of CPU time
/// per call: the best of `ROUNDS`.
async fn speedup<F>(handle: &Handle, count: usize, calls: impl Fn() -> F) -> (f64, f64, f64)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (mut rates, mut cpu) = ([0.0_f64; 2], [f64::INFINITY; 2]);
    for _ in 0..ROUNDS {
        for tasks in [1, 2] {
            let (started, cpu_before) = (Instant::now(), cpu_seconds(std::process::id()));
            let running: Vec<_> = (0..tasks).map(|_| handle.spawn(calls())).collect();
            for task in running {
                task.await.unwrap();
            }
            let calls = (tasks * count) as f64;
            rates[tasks - 1] = rates[tasks - 1].max(calls / started.elapsed().as_secs_f64());
            let each = (cpu_seconds(std::process::id()) - cpu_before) * 1e6 / calls;
            cpu[tasks - 1] = cpu[tasks - 1].min(each);
        }
    }
    (rates[1], rates[1] / rates[0], cpu[1] / cpu[0])
}

/// Wasmtime alone: a store, an instance and an empty call, with the settings that
/// determine what threads share.
struct Bare {
    engine: wasmtime::Engine,
    linked: wasmtime::component::InstancePre<()>,
}

impl Bare {
    const COMPONENT: &str = "(component
        (core module $m (memory (export \"memory\") 1) (func (export \"run\")))
        (core instance $i (instantiate $m))
        (func (export \"run\") (canon lift (core func $i \"run\"))))";

    fn new() -> Self {
        let mut pool = wasmtime::PoolingAllocationConfig::default();
        pool.linear_memory_keep_resident(1 << 20).pagemap_scan(wasmtime::Enabled::Auto);
        let mut config = wasmtime::Config::new();
        config.allocation_strategy(pool);
        let engine = wasmtime::Engine::new(&config).unwrap();
        let component = wasmtime::component::Component::new(&engine, wat::parse_str(Self::COMPONENT).unwrap()).unwrap();
        let linked = wasmtime::component::Linker::new(&engine).instantiate_pre(&component).unwrap();
        Self { engine, linked }
    }

    async fn calls(&self, count: usize) {
        for _ in 0..count {
            let mut store = wasmtime::Store::new(&self.engine, ());
            let instance = self.linked.instantiate_async(&mut store).await.unwrap();
            let run = instance.get_typed_func::<(), ()>(&mut store, "run").unwrap();
            run.call_async(&mut store, ()).await.unwrap();
        }
    }
}

/// A key-value store that never answers.
struct Silent;

#[async_trait]
impl KeyValue for Silent {
    async fn get(&self, _: &str, _: &str) -> Result<Option<Vec<u8>>, Fault> {
        std::future::pending().await
    }

    async fn set(&self, _: &str, _: Quota, _: NewValue<'_>) -> Result<bool, Fault> {
        std::future::pending().await
    }

    async fn delete(&self, _: &str, _: &str) -> Result<(), Fault> {
        std::future::pending().await
    }
}

/// The memory of an instance that waits in a host call.
async fn idle(handle: &Handle) {
    const COUNT: usize = 400;
    let engine = engine(Capabilities { key_value: Some(Arc::new(Silent)), ..Capabilities::default() }, None);
    let import = "(import \"gateway:worker/key-value@1.0.0\" \"get\" (func $get (param i32 i32 i32)))";
    let waits = format!("(call $get (i32.const 520) (i32.const 1) (i32.const 64)) {OK}");
    let wasm = guest_in("full-handler", "", import, "(data (i32.const 520) \"key\")", &waits);
    let plugin = plugin(&engine, &wasm, "[limits]\ntimeout = \"1h\"\n[grants]\nkeyvalue = true\n").await;
    let before = resident_bytes();
    let waiting: Vec<_> = (0..COUNT)
        .map(|_| {
            let plugin = plugin.clone();
            handle.spawn(async move { plugin.call(&mut [call()]).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let each = (resident_bytes() - before) as f64 / COUNT as f64 / 1024.0;
    assert!(waiting.iter().all(|task| !task.is_finished()));
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    println!("an instance that waits in a call to the host: {each:.0} KiB, {COUNT} of them");
}

/// How long after its CPU budget an endless loop is stopped.
async fn time_to_kill() {
    let engine = engine(Capabilities::default(), None);
    let budget = Duration::from_millis(50);
    let spins = guest("(loop $on (br $on)) (unreachable)");
    let plugin = plugin(&engine, &spins, "[limits]\ncpu = \"50ms\"").await;
    let took = timed(&[plugin], 50).await;
    let late = |percent| at(&took, percent) / 1e3 - budget.as_secs_f64() * 1e3;
    println!("an endless loop is stopped {:.1} ms after its budget (p50; p99 {:.1} ms)", late(50.0), late(99.0));
}

/// The latency from publication to handler start, alone and with CPU-bound handlers of
/// another topic, in a worker process.
async fn latency_with_cpu_bound_handlers() {
    const MESSAGES: usize = 500;
    let spins = guest("(loop $on (br $on)) (unreachable)");
    println!("{:<52}{:>10}{:>10}", "enqueue to handler start, one at a time", "p50 ms", "p99 ms");
    for (name, spinning) in [("alone", 0), ("with 64 CPU-bound handlers", 64)] {
        let data = tempfile::tempdir().unwrap();
        let server = redis_server(data.path());
        let (clock, spinner) = (Topic::parse("clock").unwrap(), Topic::parse("spins").unwrap());
        let (_, queue) = queue_of(&server, &clock);
        let (_, spinners) = queue_of(&server, &spinner);
        for number in 0..spinning {
            Publisher::new(spinners.clone()).publish(&stamped(&spinner, number)).await.unwrap();
        }
        let forever = "[limits]\ncpu = \"1h\"\ntimeout = \"1h\"\n";
        let plugins: [(&str, &[u8], &str); 2] = [("clock", &sdk_guest("clock"), ""), ("spins", &spins, forever)];
        let _worker = Worker::start(&server, &plugins, &["--handler-threads", "2", "--shutdown-timeout", "10ms"]);
        let dead = Length::of(&server, "{mq:clock}:dead").await;
        for number in 0..MESSAGES {
            Publisher::new(queue.clone()).publish(&stamped(&clock, number)).await.unwrap();
            while dead.now().await <= number {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        // The slowest ones waited for the worker to start.
        let mut took = start_latencies(&queue, &clock).await;
        took.truncate(MESSAGES - 5);
        println!("  {name:<50}{:>10.2}{:>10.2}", at(&took, 50.0), at(&took, 99.0));
    }
    println!("  (a tick is 5 ms)");
}

/// A component with about this many bytes of code.
fn large(bytes: usize, salt: usize) -> Vec<u8> {
    let mut functions = String::new();
    let mut number = 0;
    while functions.len() < bytes * 9 {
        number += 1;
        functions.push_str(&format!("(func $f{number} (param i32 i32) (result i32) (local i32)"));
        for step in 0..40 {
            let constant = number * 977 + step * 131 + salt;
            functions.push_str(&format!(
                "(local.set 2 (i32.add (i32.mul (local.get 0) (i32.const {constant})) (i32.xor (local.get 1) (local.get 2))))
                 (if (i32.lt_u (local.get 2) (i32.const {step})) (then (local.set 0 (i32.rotl (local.get 2) (i32.const 7)))))"
            ));
        }
        functions.push_str("(local.get 2))");
    }
    guest_with(&functions, OK)
}

async fn time_to_live_version() {
    let one = large(1 << 20, 0);
    println!("{:<52}{:>10}", "from a file to a live version", "ms");
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join(".cache");
    let name = format!("new file, {} KiB, not cached", one.len() >> 10);
    println!("  {name:<50}{:>10.0}", load_new_file(folder.path(), &cache, &one).await);
    println!("  {:<50}{:>10.0}", "new file, cached", load_new_file(folder.path(), &cache, &one).await);
    println!("  ({} ms of both wait for stable files)", SHORT_QUIET.as_millis());
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join(".cache");
    for number in 0..10 {
        let path = folder.path().join(format!("topic.{number}.wasm"));
        std::fs::write(&path, [sdk_guest("noop"), vec![0, 2, 1, b'a' + number]].concat()).unwrap();
        std::fs::File::options().write(true).open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    let cold = started(folder.path(), &cache).await;
    println!("  {:<50}{cold:>10.0}", "10 SDK handlers at a start, not cached");
    println!("  {:<50}{:>10.0}", "10 SDK handlers at a start, cached", started(folder.path(), &cache).await);
}

/// A running reloader of a directory, stopped when dropped.
struct Live {
    requests: mpsc::Sender<Request>,
    has_scanned: watch::Receiver<bool>,
    stop: CancellationToken,
}

impl Live {
    async fn start(folder: &Path, cache: &Path) -> Self {
        let engine = engine(Capabilities::default(), Cache::open(cache).ok());
        let registry =
            Registry::new(engine, PluginDir::new(folder, FilePermissionPolicy::Ignore), VersionStore::disabled());
        let (requests, received) = mpsc::channel(1);
        let (scanned, has_scanned) = watch::channel(false);
        let stop = CancellationToken::new();
        let reloader =
            Reloader::new(registry, Arc::new(Metrics::default()), received, scanned, watch::Sender::new(None));
        Handle::current().spawn(reloader.run(stop.clone()));
        Self { requests, has_scanned, stop }
    }

    async fn is_settled(&mut self) {
        self.has_scanned.wait_for(|has_scanned| *has_scanned).await.unwrap();
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn started(folder: &Path, cache: &Path) -> f64 {
    let started = Instant::now();
    Live::start(folder, cache).await.is_settled().await;
    started.elapsed().as_secs_f64() * 1e3
}

async fn load_new_file(folder: &Path, cache: &Path, wasm: &[u8]) -> f64 {
    let files: [(&str, &[u8]); 2] = [("topic.toml", b"concurrency = 8\n"), ("topic.wasm", wasm)];
    for (name, _) in files {
        let _ = std::fs::remove_file(folder.join(name));
    }
    let mut live = Live::start(folder, cache).await;
    live.is_settled().await;
    for (name, content) in files {
        std::fs::write(folder.join(".new"), content).unwrap();
        std::fs::rename(folder.join(".new"), folder.join(name)).unwrap();
    }
    let started = Instant::now();
    let (asker, answer) = oneshot::channel();
    live.requests.send(Request::Scan(Some(asker))).await.ok().unwrap();
    let changes = answer.await.unwrap().unwrap();
    assert_eq!(changes.len(), 1);
    started.elapsed().as_secs_f64() * 1e3
}
