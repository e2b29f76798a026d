//! What is written about the work never stops the work: the log may be full, closed or
//! not read.

use crate::process::free_port;
use crate::support::{Gateway, Plugins, Redis, built, until};
use gateway_worker::events;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// The data of a message that has nothing to do.
const NOTHING: &str = r#"{"do":"fail","times":0}"#;

/// A worker whose log the test sees, or not, by itself.
struct Worker {
    child: Child,
    port: u16,
}

impl Worker {
    fn start(redis: &Redis, plugins: &Plugins, out: impl Fn() -> Stdio) -> Self {
        let port = free_port();
        let mut command = Gateway::command(&redis.url(), plugins, &["--listen", &format!("127.0.0.1:{port}")]);
        Self { child: command.stdout(out()).stderr(out()).spawn().unwrap(), port }
    }

    /// The status and body of a GET request; `None` without an answer in time.
    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).ok()?;
        let (head, body) = reply.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    async fn until_ready(&self) {
        until("ready", async || self.get("/ready").filter(|(status, _)| *status == 200)).await;
    }

    fn lines_dropped(&self) -> u64 {
        let (_, text) = self.get("/metrics/prometheus").unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix("gateway_log_lines_dropped_total "));
        value.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().try_into().unwrap()).unwrap(), signal).unwrap();
    }

    /// One SIGTERM ends it.
    async fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        until("the worker ends", async || self.child.try_wait().unwrap()).await
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn puppet() -> Plugins {
    Plugins::with("t", &built("puppet"), "[limits]\nlog = \"1GiB/s\"\n")
}

/// Publishes messages and waits until each has finished.
async fn handles(redis: &Redis, count: usize, data: &str) {
    let before: i64 = redis.run("HGET {mq:t}:state done").await;
    for at in 0..count {
        redis.publish("t", &format!("m-{at}"), data).await;
    }
    let expected = before + i64::try_from(count).unwrap();
    until("handled", async || (redis.run::<i64>("HGET {mq:t}:state done").await == expected).then_some(())).await;
}

async fn first_message(redis: &Redis) {
    redis.publish("t", "first", NOTHING).await;
    let done = async || redis.run::<Option<i64>>("HGET {mq:t}:state done").await;
    until("the first message is handled", done).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_only_the_log() {
    let (redis, plugins) = (Redis::start(), puppet());
    let worker = Worker::start(&redis, &plugins, || File::options().write(true).open("/dev/full").unwrap().into());
    worker.until_ready().await;
    first_message(&redis).await;
    handles(&redis, 50, NOTHING).await;
    assert_eq!(worker.get("/ready").unwrap().0, 200);
    assert!(worker.lines_dropped() > 50);
    assert!(worker.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_costs_only_the_log() {
    let (redis, plugins) = (Redis::start(), puppet());
    let (reader, writer) = std::io::pipe().unwrap();
    let worker = Worker::start(&redis, &plugins, || writer.try_clone().unwrap().into());
    drop(writer);
    worker.until_ready().await;
    let mut reader = BufReader::new(reader);
    (0..4).for_each(|_| assert!(reader.read_line(&mut String::new()).unwrap() > 0));
    drop(reader);
    // A terminal that was closed sends this too, which rescans the plugins.
    worker.signal(Signal::HUP);
    first_message(&redis).await;
    handles(&redis, 50, NOTHING).await;
    assert_eq!(worker.get("/ready").unwrap().0, 200);
    assert!(worker.lines_dropped() > 50);
    assert!(worker.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn stdout_may_be_closed_from_the_start() {
    let (redis, plugins, port) = (Redis::start(), puppet(), free_port());
    let inner = Gateway::command(&redis.url(), &plugins, &["--listen", &format!("127.0.0.1:{port}")]);
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" >&- 2>&-"]).arg(inner.get_program()).args(inner.get_args());
    let worker = Worker { child: command.spawn().unwrap(), port };
    worker.until_ready().await;
    first_message(&redis).await;
    handles(&redis, 5, NOTHING).await;
    assert!(worker.stop().await.success());
}

/// Fills the pipe, and then the queue of the log.
async fn fill(redis: &Redis, worker: &Worker) {
    let data = serde_json::json!({ "do": "log", "text": "x".repeat(4000), "times": 100 }).to_string();
    until("lines are dropped", async || {
        handles(redis, 4, &data).await;
        (worker.lines_dropped() > 0).then_some(())
    })
    .await;
}

fn stalled(redis: &Redis, plugins: &Plugins) -> (Worker, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    (Worker::start(redis, plugins, || writer.try_clone().unwrap().into()), reader)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stalls_stops_neither_work_nor_signals() {
    let (redis, plugins) = (Redis::start(), puppet());
    let (worker, reader) = stalled(&redis, &plugins);
    worker.until_ready().await;
    first_message(&redis).await;
    fill(&redis, &worker).await;
    handles(&redis, 50, NOTHING).await;
    assert_eq!(worker.get("/healthz").unwrap().0, 200);
    assert_eq!(worker.get("/ready").unwrap().0, 200);
    assert!(worker.stop().await.success());
    drop(reader);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_reads_again_sees_how_many_lines_are_missing() {
    let (redis, plugins) = (Redis::start(), puppet());
    let (worker, reader) = stalled(&redis, &plugins);
    worker.until_ready().await;
    first_message(&redis).await;
    fill(&redis, &worker).await;
    let reading = tokio::task::spawn_blocking(move || {
        let lines = BufReader::new(reader).lines().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
        let reports = lines.filter(|line| line["message"] == events::LOG_NOT_WRITTEN);
        reports.map(|line| line["dropped"].as_u64().unwrap()).sum::<u64>()
    });
    // What is logged from now on is not dropped.
    handles(&redis, 3, NOTHING).await;
    let dropped = worker.lines_dropped();
    assert!(worker.stop().await.success());
    assert_eq!(reading.await.unwrap(), dropped);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_printed_is_logged_at_once_and_empty_lines_are_not() {
    let (redis, plugins) = (Redis::start(), Plugins::with("t", &built("puppet"), "limits = { timeout = \"10m\" }\n"));
    let gateway = Gateway::start(&redis, &plugins);
    let data = r#"{"do":"all","of":[{"do":"print","text":"one\n\n  \ntwo\n"},{"do":"sleep","ms":500000}]}"#;
    redis.publish("t", "m", data).await;
    let line = gateway.until_logged("two", |line| line["id"] == "m").await;
    assert_eq!((&line["topic"], &line["target"]), (&"t".into(), &"handler".into()));
    gateway.until_asleep("t", 1).await;
    assert_eq!(redis.in_flight("t").await, 1);
    let lines = gateway.logged("").into_iter().filter(|line| line["target"] == "handler");
    assert_eq!(lines.map(|line| line["message"].clone()).collect::<Vec<_>>(), ["one", "two", "asleep"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_line_is_as_long_as_those_that_docker_splits() {
    let (redis, plugins) = (Redis::start(), Plugins::with("t", &built("puppet"), "[limits]\nlog = \"1GiB/s\"\n"));
    let gateway = Gateway::start(&redis, &plugins);
    for (id, text) in
        [("x", "x".repeat(38_000)), ("q", "\"\u{1b}\u{202e}".repeat(9_000)), ("huge", "y".repeat(100_000))]
    {
        redis.publish("t", id, &serde_json::json!({ "do": "log", "text": text, "times": 1 }).to_string()).await;
        let line = gateway.until_logged(" bytes more)", |line| line["id"] == id).await;
        assert!(line.to_string().len() < 16 << 10, "{}", line.to_string().len());
        if id != "q" {
            let message = line["message"].as_str().unwrap();
            let (kept, note) = message.rsplit_once("... (").unwrap();
            let missing: usize = note.strip_suffix(" bytes more)").unwrap().parse().unwrap();
            assert_eq!(kept.len() + missing, text.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_rejects_are_summed_up_and_none_is_left_out() {
    const COUNT: u64 = 3000;
    let (redis, plugins) = (Redis::start(), puppet());
    let mut gateway = Gateway::start_with(&redis.url(), &plugins, &["--log-level", "info"]);
    let data = r#"{"do":"reject","code":"bad","reason":"no such order"}"#;
    for at in 0..COUNT {
        redis.publish("t", &format!("m-{at}"), data).await;
    }
    until("rejected", async || (redis.run::<u64>("XLEN {mq:t}:dead").await == COUNT).then_some(())).await;
    gateway.signal(Signal::TERM);
    until("the worker ends", async || (!gateway.is_running()).then_some(())).await;
    let log = gateway.kill_and_read_log();
    let about = |event: &str| log.iter().filter(|line| line["message"] == event).cloned().collect::<Vec<_>>();
    let repeated = about(events::REPEATED);
    let sum: u64 = repeated.iter().map(|line| line["repeated"].as_u64().unwrap()).sum();
    assert_eq!(about(events::SETTLED).len() as u64 + sum, COUNT);
    assert!(repeated.iter().all(|line| line["topic"] == "t" && line["outcome"] == "reject"), "{repeated:?}");
    assert!(repeated[0]["last"].as_str().unwrap().contains("no such order"), "{repeated:?}");
    assert!(log.iter().map(|line| line.to_string().len()).sum::<usize>() < 20_000, "{} lines", log.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_line_says_that_redis_is_away_and_one_that_it_is_back() {
    let mut redis = Redis::start();
    let plugins = Plugins::with("p", &built("puppet"), "topics = [\"a\", \"b\", \"c\"]\n");
    let gateway = Gateway::start(&redis, &plugins);
    for topic in ["a", "b", "c"] {
        redis.publish(topic, "m", NOTHING).await;
        gateway.until_outcome(topic, "m", "done").await;
    }
    redis.kill();
    gateway.until_logged("Redis does not answer", |_| true).await;
    for topic in ["a", "b", "c"] {
        let failures = || gateway.logged(events::NOT_CONSUMING).iter().filter(|line| line["topic"] == topic).count();
        until("several failures", async || (failures() > 3).then_some(())).await;
    }
    redis.restart();
    until("back", async || (gateway.logged("Redis answers").len() == 2).then_some(())).await;
    let loud = gateway.logged("").into_iter().filter(|line| line["level"] == "ERROR" || line["level"] == "WARN");
    let away: Vec<_> = loud.filter(|line| line.to_string().contains("Redis")).collect();
    assert_eq!(away.len(), 1, "{away:#?}");
}
