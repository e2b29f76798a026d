//! The timeout of the shutdown bounds the whole stop, also where Redis is frozen: it
//! takes connections and answers nothing. The only limit of time here is far above the
//! timeout and far below what the waits for Redis would add up to.

use crate::support::{Gateway, OK, Plugins, Redis, built, guest, until};
use gateway_worker::events;
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};

const TIMEOUT: &str = "2s";
const MUCH_LONGER: Duration = Duration::from_secs(6);

/// Runs again when it is dropped.
struct Frozen(Pid);

impl Frozen {
    async fn freeze(redis: &Redis) -> Self {
        let info: String = redis.run("INFO server").await;
        let pid = info.lines().find_map(|line| line.strip_prefix("process_id:")).unwrap().trim();
        let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).unwrap();
    }
}

async fn stops_in_time(gateway: Gateway) {
    let started = Instant::now();
    assert!(gateway.stop().await.success());
    assert!(started.elapsed() < MUCH_LONGER, "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_while_a_frozen_redis_is_read_from() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "").and("other", &guest(OK), "");
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--shutdown-timeout", TIMEOUT]);
    gateway.until_ready().await;
    let _frozen = Frozen::freeze(&redis).await;
    stops_in_time(gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_while_a_frozen_redis_is_connected_to() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "");
    let frozen = Frozen::freeze(&redis).await;
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--shutdown-timeout", TIMEOUT]);
    gateway.until_loaded("topic").await;
    stops_in_time(gateway).await;
    // Before it has begun as well.
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--shutdown-timeout", TIMEOUT]);
    let handles_signals = async || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
        (caught & 1 << (Signal::TERM.as_raw() - 1) != 0).then_some(())
    };
    until("signals are handled", handles_signals).await;
    stops_in_time(gateway).await;
    drop(frozen);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_while_a_frozen_redis_is_settled_to() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "");
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--shutdown-timeout", TIMEOUT]);
    redis.publish("puppet", "a", r#"{"do":"sleep","ms":300}"#).await;
    gateway.until_asleep("puppet", 1).await;
    let _frozen = Frozen::freeze(&redis).await;
    gateway.until_logged(events::HANDLED, |line| line["id"] == "a").await;
    stops_in_time(gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_while_messages_are_given_back_to_a_frozen_redis() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "concurrency = 2\n");
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--shutdown-timeout", TIMEOUT]);
    for id in ["a", "b", "c", "d"] {
        redis.publish("puppet", id, r#"{"do":"sleep","ms":60000}"#).await;
    }
    gateway.until_asleep("puppet", 2).await;
    // The messages are still being waited for.
    gateway.signal(Signal::TERM);
    gateway.until_logged(events::SHUTTING_DOWN, |_| true).await;
    let _frozen = Frozen::freeze(&redis).await;
    let started = Instant::now();
    let mut gateway = gateway;
    until("the worker has ended", async || (!gateway.is_running()).then_some(())).await;
    assert!(started.elapsed() < MUCH_LONGER, "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_gives_back_within_its_timeout_what_does_not_end() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "concurrency = 2\n");
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--shutdown-timeout", TIMEOUT]);
    for id in ["a", "b"] {
        redis.publish("puppet", id, r#"{"do":"sleep","ms":60000}"#).await;
    }
    gateway.until_asleep("puppet", 2).await;
    stops_in_time(gateway).await;
    redis.until_requeued("puppet", 2).await;
    let workers: Vec<String> = redis.run("ZRANGE mq::workers 0 -1").await;
    assert!(workers.is_empty(), "{workers:?}");
}
