//! Two deployments on one Redis: a worker notices another one whose prefix begins its own.

use crate::support::{BINARY, Gateway, OK, Plugins, Redis, guest, until};
use gateway_worker::events;
use std::process::{Command, Stdio};

async fn see_worker(redis: &Redis, prefix: &str, seconds_ago: i64) {
    let (now, _): (i64, i64) = redis.run("TIME").await;
    redis.run::<i64>(&format!("ZADD {prefix}:workers {} {{\"id\":\"other\"}}", now - seconds_ago)).await;
}

fn options(prefix: &str) -> [&str; 2] {
    ["--queue-prefix", prefix]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_does_not_start_beside_one_whose_prefix_begins_its_own() {
    let redis = Redis::start();
    let plugins = Plugins::with("order", &guest(OK), "");
    let shorter = Gateway::start(&redis, &plugins);
    shorter.until_ready().await;
    until("it is announced", async || (redis.run::<i64>("EXISTS mq::workers").await == 1).then_some(())).await;
    let start = |prefix: &str| {
        let mut command = Command::new(BINARY);
        command.args(["run", "--listen", "127.0.0.1:0", "--redis-url", &redis.url(), "--queue-prefix", prefix]);
        command.arg("--plugins").arg(plugins.path()).env_clear().stdin(Stdio::null());
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for prefix in ["mq:eu:", "mq:\u{8ba2}\u{5355}"] {
        let (code, error) = start(prefix);
        assert_eq!(code, Some(78), "{error}");
        let expected = format!("queue.prefix: \"{prefix}\" begins with \"mq:\"");
        assert!(error.contains(&expected) && error.contains("GATEWAY_QUEUE_PREFIX"), "{error}");
    }
    // Neither of these begins with the other, and an equal one is another worker of the deployment.
    for prefix in ["other:", "mq:", "mq"] {
        Gateway::start_with(&redis.url(), &plugins, &options(prefix)).until_ready().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_worker_that_was_seen_lately_counts() {
    let redis = Redis::start();
    let plugins = Plugins::with("workers", &guest(OK), "");
    see_worker(&redis, "mq:", 120).await;
    see_worker(&redis, "mq:eu:x", 0).await;
    see_worker(&redis, "mq:us:", 0).await;
    // A topic of ours with the name of such a key.
    redis.run::<String>("XADD mq:eu:workers * message {}").await;
    let gateway = Gateway::start_with(&redis.url(), &plugins, &options("mq:eu:"));
    gateway.until_ready().await;
    until("the topic is handled", async || (redis.run::<i64>("XLEN mq:eu:workers").await == 0).then_some(())).await;
    assert!(gateway.get("/metrics/prometheus").await.1.contains("gateway_prefix_overlap 0\n"));
    assert!(gateway.logged(events::PREFIX_UNCHECKED).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_runs_goes_on_beside_a_shorter_prefix_and_says_so() {
    let redis = Redis::start();
    let plugins = Plugins::with("order", &guest(OK), "");
    let gateway = Gateway::start_with(&redis.url(), &plugins, &options("mq:eu:"));
    gateway.until_ready().await;
    // Seen for longer than two looks.
    see_worker(&redis, "mq:", -180).await;
    let line = gateway.until_logged(events::PREFIX_OVERLAP, |line| line["level"] == "ERROR").await;
    assert!(line["message"].as_str().unwrap().contains("\"mq:eu:\" begins with \"mq:\""), "{line}");
    assert!(gateway.get("/metrics/prometheus").await.1.contains("gateway_prefix_overlap 1\n"));
    let (code, body) = gateway.json("/ready").await;
    assert!(code == 200 && body["degraded"].to_string().contains("change queue.prefix"), "{body}");
    redis.run::<String>("XADD mq:eu:order * message {}").await;
    until("it works on", async || (redis.run::<i64>("XLEN mq:eu:order").await == 0).then_some(())).await;
    redis.run::<i64>("DEL mq::workers").await;
    gateway.until_logged(events::PREFIX_FREE, |_| true).await;
    assert!(gateway.get("/metrics/prometheus").await.1.contains("gateway_prefix_overlap 0\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_must_not_look_is_warned_once() {
    let redis = Redis::start();
    let rights = "on >secret ~mq:eu:* ~{mq:eu:* +@all";
    redis.run::<()>(&format!("ACL SETUSER worker {rights}")).await;
    let url = redis.url().replace("redis://", "redis://worker:secret@");
    let plugins = Plugins::with("order", &guest(OK), "");
    let gateway = Gateway::start_with(&url, &plugins, &options("mq:eu:"));
    gateway.until_ready().await;
    let line = gateway.until_logged(events::PREFIX_UNCHECKED, |line| line["level"] == "WARN").await;
    assert!(line["reason"].as_str().unwrap().contains("permissions"), "{line}");
    // What it may look at counts.
    redis.run::<()>("ACL SETUSER worker ~mq::workers").await;
    see_worker(&redis, "mq:", 0).await;
    gateway.until_logged(events::PREFIX_OVERLAP, |_| true).await;
    assert_eq!(gateway.logged(events::PREFIX_UNCHECKED).len(), 1);
}
