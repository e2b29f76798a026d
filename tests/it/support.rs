//! Helpers of the tests: a Redis server for each, the real binary, real
//! components, and polling for conditions.

pub(crate) use crate::guest::{OK, encode, guest, guest_with};
use crate::topic_client::TopicClient;
use gateway_worker::events;
use gateway_worker::private_redis::{self, PrivateRedis};
use gateway_worker::publication::Draft;
use gateway_worker::queue::{Connection, RedisTarget};
use gateway_worker::topic::Topic;
use jiff::Timestamp;
use redis::aio::MultiplexedConnection;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tempfile::{NamedTempFile, TempDir};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_gateway-worker");
/// A condition that is not met by then fails the test.
const TIMEOUT: Duration = Duration::from_secs(90);

pub(crate) fn state() -> PathBuf {
    Path::new(ROOT).join(".gateway-worker")
}

/// Polls until `condition` returns a value.
pub(crate) async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(started.elapsed() < TIMEOUT, "not met within {TIMEOUT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

// ------------------------------------------------------------------ Redis

/// The fields of a stream entry.
pub(crate) type Entry = Vec<(String, Vec<u8>)>;

pub(crate) struct Redis {
    server: PrivateRedis,
    data: TempDir,
    options: Vec<String>,
}

impl Redis {
    pub(crate) fn start() -> Self {
        Self::start_with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    pub(crate) fn start_with(options: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = PrivateRedis::start(&state(), data.path(), options).unwrap();
        Self { server, data, options: options.iter().map(ToString::to_string).collect() }
    }

    /// A server whose clock can be set.
    pub(crate) fn start_with_clock() -> (Self, SkewedClock) {
        let data = tempfile::tempdir().unwrap();
        let clock = SkewedClock::create();
        let server = PrivateRedis::start(clock.redis_dir(), data.path(), &[]).unwrap();
        (Self { server, data, options: Vec::new() }, clock)
    }

    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// Kills the server, as a crash does.
    pub(crate) fn kill(&mut self) {
        self.server.kill().unwrap();
    }

    /// Restarts it on the same port with its data on disk.
    pub(crate) fn restart(&mut self) {
        let program = private_redis::find(&state()).unwrap();
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        let start = || PrivateRedis::start_at(self.server.port(), &program, self.data.path(), &options);
        // An outgoing connection may use the port for a moment.
        self.server = (0..50)
            .find_map(|_| start().map_err(|_| std::thread::sleep(Duration::from_millis(100))).ok())
            .expect("the server restarts");
    }

    pub(crate) async fn connection(&self) -> MultiplexedConnection {
        connect_without_timeout(&self.url()).await
    }

    /// Runs one command, whose words are separated by spaces.
    pub(crate) async fn run<T: redis::FromRedisValue>(&self, command: &str) -> T {
        let mut words = command.split_whitespace();
        let mut built = redis::cmd(words.next().unwrap());
        words.for_each(|word| {
            built.arg(word);
        });
        built.query_async(&mut self.connection().await).await.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    pub(crate) async fn is(&self, what: &str, command: &str, expected: i64) {
        until(what, async || (self.run::<Option<i64>>(command).await == Some(expected)).then_some(())).await;
    }

    /// The number of a topic's pending messages.
    pub(crate) async fn in_flight(&self, topic: &str) -> i64 {
        let groups: Vec<BTreeMap<String, redis::Value>> = self.run(&format!("XINFO GROUPS mq:{topic}")).await;
        match groups.first().and_then(|group| group.get("pending")) {
            Some(redis::Value::Int(pending)) => *pending,
            _ => 0,
        }
    }

    pub(crate) async fn until_in_flight(&self, topic: &str, count: i64) {
        until(&format!("{count} in flight"), async || (self.in_flight(topic).await == count).then_some(())).await;
    }

    /// Waits until `count` pending messages are marked as requeued by their idle time.
    pub(crate) async fn until_requeued(&self, topic: &str, count: usize) {
        let command = format!("XPENDING mq:{topic} consumer-group-{topic} IDLE 86400000 - + 1000");
        until("requeued", async || (self.run::<Vec<redis::Value>>(&command).await.len() == count).then_some(())).await;
    }

    /// A topic's queue as the worker `consumer` uses it.
    pub(crate) fn queue(&self, name: &str, consumer: &str) -> TopicClient {
        let connection = Connection::to(&RedisTarget::at(&self.url()).unwrap()).unwrap();
        TopicClient::new(&connection, "mq:", "consumer-group-{topic}", consumer, &topic(name))
    }

    pub(crate) async fn publish(&self, topic_name: &str, id: &str, data: &str) {
        self.publish_later(topic_name, id, data, Duration::ZERO).await;
    }

    pub(crate) async fn publish_later(&self, topic_name: &str, id: &str, data: &str, delay: Duration) {
        let topic = topic(topic_name);
        let draft = Draft { delay, ..Draft::new(id.to_owned(), &topic, data) };
        self.queue(topic_name, "publisher").publisher.publish(&draft.encode(Timestamp::now()).unwrap()).await.unwrap();
    }

    /// Adds a message as GinForge publishers do.
    pub(crate) async fn add(&self, topic: &str, message: &[u8]) -> String {
        let mut command = redis::cmd("XADD");
        command.arg(format!("mq:{topic}")).arg("*").arg("message").arg(message);
        command.query_async(&mut self.connection().await).await.unwrap()
    }

    /// The envelopes in a stream.
    pub(crate) async fn envelopes(&self, key: &str) -> Vec<Value> {
        self.entries(key)
            .await
            .iter()
            .map(|fields| serde_json::from_slice(&field(fields, "message")).unwrap())
            .collect()
    }

    /// The fields of a stream's entries.
    pub(crate) async fn entries(&self, key: &str) -> Vec<Entry> {
        let entries: Vec<(String, Entry)> = self.run(&format!("XRANGE {key} - +")).await;
        entries.into_iter().map(|(_, fields)| fields).collect()
    }

    /// Waits for a dead letter of a topic and returns it.
    pub(crate) async fn dead(&self, topic: &str) -> Entry {
        let key = format!("{{mq:{topic}}}:dead");
        until(&format!("a dead letter of {topic}"), async || self.entries(&key).await.pop()).await
    }
}

/// A clock for a process that differs from the clock of the machine.
pub(crate) struct SkewedClock {
    folder: TempDir,
    ahead: File,
}

impl SkewedClock {
    /// Compiles a library for `LD_PRELOAD` that reads the offset from a file.
    pub(crate) fn create() -> Self {
        const LIBRARY: &str = r#"
            #define _GNU_SOURCE
            #include <fcntl.h>
            #include <stdlib.h>
            #include <sys/mman.h>
            #include <sys/syscall.h>
            #include <sys/time.h>
            #include <time.h>
            #include <unistd.h>
            static long ahead(void) {
              static volatile long *seconds;
              if (!seconds) seconds = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, open(getenv("CLOCK"), O_RDONLY), 0);
              return *seconds;
            }
            int gettimeofday(struct timeval *restrict now, void *restrict zone) {
              int result = syscall(SYS_gettimeofday, now, zone);
              now->tv_sec += ahead();
              return result;
            }
            int clock_gettime(clockid_t clock, struct timespec *now) {
              int result = syscall(SYS_clock_gettime, clock, now);
              if (clock == CLOCK_REALTIME) now->tv_sec += ahead();
              return result;
            }
            time_t time(time_t *now) {
              struct timespec exact;
              clock_gettime(CLOCK_REALTIME, &exact);
              if (now) *now = exact.tv_sec;
              return exact.tv_sec;
            }
        "#;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("clock.c"), LIBRARY).unwrap();
        // A Rust toolchain needs `cc` as its linker.
        let compiled =
            Command::new("cc").args(["-shared", "-fPIC", "-o", &path("clock.so"), &path("clock.c")]).status();
        assert!(compiled.unwrap().success());
        let clock = Self { ahead: File::create(path("clock")).unwrap(), folder };
        clock.set_ahead(Duration::ZERO);
        clock
    }

    pub(crate) fn skewed(seconds: i64) -> Self {
        let clock = Self::create();
        clock.set(seconds);
        clock
    }

    /// A directory with a Redis server that uses this clock.
    fn redis_dir(&self) -> &Path {
        let environment = self.environment().map(|(name, path)| format!("{name}={}", path.display())).join(" ");
        let server = private_redis::find(&state()).unwrap();
        let script = format!("#!/bin/sh\n{environment} exec {} \"$@\"\n", server.display());
        let program = self.folder.path().join("redis/redis-server");
        std::fs::create_dir(program.parent().unwrap()).unwrap();
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        self.folder.path()
    }

    /// The environment that makes a process use this clock.
    pub(crate) fn environment(&self) -> [(&'static str, PathBuf); 2] {
        [("LD_PRELOAD", "clock.so"), ("CLOCK", "clock")].map(|(name, file)| (name, self.folder.path().join(file)))
    }

    pub(crate) fn set_ahead(&self, by: Duration) {
        self.set(by.as_secs().cast_signed());
    }

    pub(crate) fn set_behind(&self, by: Duration) {
        self.set(-by.as_secs().cast_signed());
    }

    fn set(&self, seconds: i64) {
        self.ahead.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }
}

/// Without the client's own timeouts, which are too short for a busy machine.
pub(crate) async fn connect_without_timeout(url: &str) -> MultiplexedConnection {
    try_connection(url).await.unwrap()
}

pub(crate) async fn try_connection(url: &str) -> redis::RedisResult<MultiplexedConnection> {
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
    redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await
}

pub(crate) fn field(fields: &[(String, Vec<u8>)], name: &str) -> Vec<u8> {
    let found = fields.iter().find(|(key, _)| key == name);
    found.unwrap_or_else(|| panic!("no field {name} in {fields:?}")).1.clone()
}

pub(crate) fn text(fields: &[(String, Vec<u8>)], name: &str) -> String {
    String::from_utf8(field(fields, name)).unwrap()
}

pub(crate) fn topic(name: &str) -> Topic {
    Topic::parse(name).unwrap()
}

// -------------------------------------------------------------- the worker

/// The plugins directory of a test.
pub(crate) struct Plugins(TempDir);

impl Plugins {
    pub(crate) fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A directory with one plugin, named after its topic.
    pub(crate) fn with(name: &str, wasm: &[u8], manifest: &str) -> Self {
        Self::empty().and(name, wasm, manifest)
    }

    pub(crate) fn and(self, name: &str, wasm: &[u8], manifest: &str) -> Self {
        self.put(name, wasm, manifest);
        self
    }

    /// Writes the manifest, then the component, each atomically by a rename.
    pub(crate) fn put(&self, name: &str, wasm: &[u8], manifest: &str) {
        self.write(&format!("{name}.toml"), manifest.as_bytes());
        self.write(&format!("{name}.wasm"), wasm);
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        let new = self.path().join(format!(".{name}.new"));
        std::fs::write(&new, bytes).unwrap();
        std::fs::rename(new, self.path().join(name)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.path().join(name)).unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// A hidden directory, which is not scanned for plugins.
    pub(crate) fn cache(&self) -> PathBuf {
        self.path().join(".cache")
    }
}

/// The admin token of the workers under test.
pub(crate) const TOKEN: &str = "a-token-for-tests";

/// A running worker and its log.
pub(crate) struct Gateway {
    child: Child,
    log: Mutex<Log>,
}

/// The log goes to a file, so that a line is readable before the effects of what
/// the worker does next, however busy the machine is.
struct Log {
    lines: BufReader<File>,
    /// The beginning of an incomplete line.
    partial: String,
    read: Vec<Value>,
    /// Raw lines with control or bidirectional characters.
    unsafe_lines: Vec<String>,
}

impl Log {
    /// A log and the file to write to.
    fn create() -> (Self, File) {
        let file = NamedTempFile::new().unwrap();
        let lines = BufReader::new(file.reopen().unwrap());
        (Self { lines, partial: String::new(), read: Vec::new(), unsafe_lines: Vec::new() }, file.into_file())
    }

    fn all(&mut self) -> &[Value] {
        while self.lines.read_line(&mut self.partial).unwrap() > 0 && self.partial.ends_with('\n') {
            let line = std::mem::take(&mut self.partial).trim_end().to_owned();
            if line.contains(is_control_or_bidi) {
                self.unsafe_lines.push(line.clone());
            }
            // The `pretty` format is not JSON.
            self.read.push(serde_json::from_str(&line).unwrap_or(Value::String(line)));
        }
        &self.read
    }
}

impl Gateway {
    pub(crate) fn start(redis: &Redis, plugins: &Plugins) -> Self {
        Self::start_with(&redis.url(), plugins, &[])
    }

    pub(crate) fn start_with(redis_url: &str, plugins: &Plugins, options: &[&str]) -> Self {
        Self::spawn(&mut Self::command(redis_url, plugins, options))
    }

    /// A worker that uses another clock.
    pub(crate) fn start_with_clock(clock: &SkewedClock, redis_url: &str, plugins: &Plugins, options: &[&str]) -> Self {
        Self::spawn(Self::command(redis_url, plugins, options).envs(clock.environment()))
    }

    pub(crate) fn command(redis_url: &str, plugins: &Plugins, options: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(["run", "--redis-url", redis_url, "--plugins"]);
        command.env("GATEWAY_ADMIN_TOKEN", TOKEN);
        command.arg(plugins.path());
        if !options.contains(&"--plugins-cache") {
            // Each test has its own cache, which is removed with the plugins directory.
            command.arg("--plugins-cache").arg(plugins.cache());
        }
        if !options.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        if !options.contains(&"--log-level") {
            command.args(["--log-level", "debug"]);
        }
        command.args(options);
        command
    }

    pub(crate) fn spawn(command: &mut Command) -> Self {
        let (log, written) = Log::create();
        let child = command.stdout(written).spawn().unwrap();
        Self { child, log: Mutex::new(log) }
    }

    /// A worker whose log can't be read.
    pub(crate) fn spawn_without_log(command: &mut Command, stdout: Stdio) -> Self {
        let child = command.stdout(stdout).spawn().unwrap();
        Self { child, log: Mutex::new(Log::create().0) }
    }

    /// Waits until the worker's log thread sleeps, and so has written every line that
    /// was logged before. A suspended worker is not waited for.
    fn until_log_is_written(&self) {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.child.id()));
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let threads = std::fs::read_dir(tasks).into_iter().flatten().flatten();
        let writer =
            threads.map(|thread| thread.path()).find(|thread| read(thread.join("comm")).trim() == "log-writer");
        let Some(writer) = writer else { return };
        let is_writing =
            || read(writer.join("stat")).rsplit(") ").next().is_some_and(|stat| stat.starts_with(['R', 'D']));
        let started = Instant::now();
        while is_writing() && started.elapsed() < TIMEOUT {
            std::thread::yield_now();
        }
    }

    /// The log lines whose message contains this text.
    pub(crate) fn logged(&self, message: &str) -> Vec<Value> {
        self.until_log_is_written();
        let mut log = self.log.lock().unwrap();
        let lines = log.all().iter();
        lines.filter(|line| line["message"].as_str().is_some_and(|text| text.contains(message))).cloned().collect()
    }

    /// Log lines with control or bidirectional characters.
    pub(crate) fn lines_with_control_characters(&self) -> Vec<String> {
        self.until_log_is_written();
        let mut log = self.log.lock().unwrap();
        log.all();
        log.unsafe_lines.clone()
    }

    /// Waits for a log line with this message that passes the check.
    pub(crate) async fn until_logged(&self, message: &str, check: impl Fn(&Value) -> bool) -> Value {
        until(&format!("a log line \"{message}\""), async || self.logged(message).into_iter().find(&check)).await
    }

    pub(crate) async fn until_loaded(&self, plugin: &str) -> String {
        let line = self.until_logged(events::PLUGIN_LOADED, |line| line["plugin"] == plugin).await;
        line["digest"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn until_refused(&self, plugin: &str) -> String {
        let line = self.until_logged(events::PLUGIN_REFUSED, |line| line["plugin"] == plugin).await;
        line["reason"].as_str().unwrap().to_owned()
    }

    /// The outcomes of a topic's messages with their ids, in order. A run is logged when it
    /// ends, before it is settled; a message that is not run, when it is settled.
    pub(crate) fn outcomes(&self, topic: &str) -> Vec<(String, String)> {
        let is_outcome = |line: &Value| match line["message"].as_str() {
            Some(events::HANDLED) => true,
            Some(events::SETTLED) => line["attempt"].is_null(),
            _ => false,
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.until_log_is_written();
        let mut log = self.log.lock().unwrap();
        let lines = log.all().iter().filter(|line| line["topic"] == topic && is_outcome(line));
        lines.map(|line| (text(&line["id"]), text(&line["outcome"]))).collect()
    }

    pub(crate) async fn until_outcome(&self, topic: &str, id: &str, outcome: &str) {
        let expected = (id.to_owned(), outcome.to_owned());
        until(&format!("{id} {outcome}"), async || self.outcomes(topic).contains(&expected).then_some(())).await;
    }

    /// The number of handlers that have begun to sleep: a message in flight may not have
    /// started.
    pub(crate) fn asleep(&self, topic: &str) -> usize {
        self.logged("asleep").iter().filter(|line| line["topic"] == topic).count()
    }

    pub(crate) async fn until_asleep(&self, topic: &str, count: usize) {
        until(&format!("{count} asleep"), async || (self.asleep(topic) == count).then_some(())).await;
    }

    pub(crate) async fn address(&self) -> String {
        let line = self.until_logged("gateway-worker starting", |_| true).await;
        line["address"].as_str().unwrap().to_owned()
    }

    /// The status and body of a GET request.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        self.request("GET", path, "").await
    }

    pub(crate) async fn request(&self, method: &str, path: &str, headers: &str) -> (u16, String) {
        let address = self.address().await;
        tokio::task::spawn_blocking({
            let request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n");
            move || {
                use std::io::{Read, Write};
                let mut stream = std::net::TcpStream::connect(address).unwrap();
                stream.write_all(request.as_bytes()).unwrap();
                let mut reply = String::new();
                stream.read_to_string(&mut reply).unwrap();
                let (head, body) = reply.split_once("\r\n\r\n").unwrap();
                (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
            }
        })
        .await
        .unwrap()
    }

    pub(crate) async fn json(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.get(path).await;
        (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}")))
    }

    /// A POST request to the API with the admin token.
    pub(crate) async fn post(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.request("POST", path, &format!("Authorization: Bearer {TOKEN}\r\n")).await;
        (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}")))
    }

    /// A plugin as the API reports it; null if it is unknown.
    pub(crate) async fn plugin(&self, name: &str) -> Value {
        let (_, body) = self.json("/api/v1/plugins").await;
        let plugins = body["plugins"].as_array().unwrap();
        plugins.iter().find(|plugin| plugin["name"] == name).cloned().unwrap_or_default()
    }

    /// Waits until the plugin passes the check and returns it as the API reports it.
    pub(crate) async fn until_plugin(&self, name: &str, what: &str, check: impl Fn(&Value) -> bool) -> Value {
        until(&format!("{name} {what}"), async || Some(self.plugin(name).await).filter(&check)).await
    }

    pub(crate) async fn until_ready(&self) {
        until("ready", async || (self.get("/ready").await.0 == 200).then_some(())).await;
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().try_into().unwrap()).unwrap(), signal).unwrap();
    }

    /// Sends SIGTERM and waits until the worker has exited.
    pub(crate) async fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        until("the worker ends", async || self.child.try_wait().unwrap()).await
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Kills the worker, if it still runs, and returns its whole log.
    pub(crate) fn kill_and_read_log(mut self) -> Vec<Value> {
        self.until_log_is_written();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.log.lock().unwrap().all().to_vec()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut log = self.log.lock().unwrap();
            let lines = log.all();
            lines[lines.len().saturating_sub(30)..].iter().for_each(|line| println!("{line}"));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether it is a control character or changes the direction of text.
pub(crate) fn is_control_or_bidi(char: char) -> bool {
    char.is_control() || matches!(char, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Runs a one-shot command with an empty environment.
pub(crate) fn command(args: &[&str]) -> Output {
    command_in(Path::new("/"), args)
}

/// Runs a one-shot command and returns its exit code, stdout and stderr.
pub(crate) fn run_command(args: &[&str]) -> (i32, String, String) {
    let output = command(args);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

pub(crate) fn command_in(folder: &Path, args: &[&str]) -> Output {
    Command::new(BINARY).args(args).current_dir(folder).env_clear().stdin(Stdio::null()).output().unwrap()
}

// ------------------------------------------------------------------ guests

/// A guest that was built by `make plugins`.
pub(crate) fn built(name: &str) -> Vec<u8> {
    read_built("test-guests", &format!("{name}.wasm"))
}

/// A predefined handler and its manifest.
pub(crate) fn predefined(topic: &str) -> (Vec<u8>, String) {
    let manifest = read_built("plugins", &format!("{topic}.toml"));
    (read_built("plugins", &format!("{topic}.wasm")), String::from_utf8(manifest).unwrap())
}

fn read_built(folder: &str, name: &str) -> Vec<u8> {
    let path = Path::new(ROOT).join("target").join(folder).join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; `make plugins` builds it", path.display()))
}

/// The resident memory of a process.
pub(crate) fn resident_bytes(pid: u32) -> usize {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10
}
