//! The HTTP API: which requests need the token, and its limits against hostile
//! clients.

use crate::support::{Gateway, OK, Plugins, Redis, TOKEN, guest, until};
use gateway_worker::events;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const CHANGES: [&str; 3] =
    ["/api/v1/plugins/reload", "/api/v1/plugins/topic/rollback", "/api/v1/plugins/topic/unblock"];

#[tokio::test(flavor = "multi_thread")]
async fn reads_need_no_token_and_changes_need_the_admin_token() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("topic").await;
    let plugin = gateway.plugin("topic").await;
    assert_eq!(
        (&plugin["state"], &plugin["topics"], &plugin["grants"]),
        (&json!("live"), &json!(["topic"]), &json!({}))
    );
    assert_eq!(plugin["digest"].as_str().unwrap().len(), 64);
    for path in CHANGES {
        for sent in ["", "Authorization: Bearer wrong\r\n", &format!("Authorization: Bearer {TOKEN}x\r\n")] {
            let (status, body) = gateway.request("POST", path, sent).await;
            let body: Value = serde_json::from_str(&body).unwrap();
            assert!(status == 401 && body["detail"].is_string(), "{path} {sent}: {body}");
            assert!(!body.to_string().contains(TOKEN));
        }
        assert_eq!(gateway.get(path).await.0, 405);
    }
    assert_eq!(gateway.post(CHANGES[0]).await, (200, json!({ "changes": [] })));
    assert_eq!(gateway.post(CHANGES[1]).await.0, 409);
    assert_eq!(gateway.post("/api/v1/plugins/none/rollback").await.0, 404);
    for (path, title) in [("/api/v1/nothing", "Not Found"), ("/nothing", "Not Found")] {
        let (status, body) = gateway.json(path).await;
        assert!(status == 404 && body["detail"].is_string(), "{body}");
        assert_eq!(
            (&body["type"], &body["status"], &body["title"]),
            (&json!("about:blank"), &json!(404), &json!(title))
        );
    }
    let (status, body) = gateway.post("/metrics").await;
    assert!(status == 405 && body["detail"].is_string(), "{body}");
    let (status, body) = gateway.post("/api/v1/plugins/%ff/rollback").await;
    assert!(status == 400 && body["detail"].is_string(), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_admin_token_every_change_is_forbidden() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "");
    // An empty token counts as unset.
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--admin-token", ""]);
    gateway.until_loaded("topic").await;
    for path in CHANGES {
        let (status, body) = gateway.post(path).await;
        assert!(status == 403 && body["detail"].as_str().unwrap().contains("GATEWAY_ADMIN_TOKEN"), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_oversized_requests_block_no_other_client() {
    let redis = Redis::start();
    let gateway = Gateway::start(&redis, &Plugins::empty());
    gateway.until_ready().await;
    let address = gateway.address().await;
    // Request heads that never end.
    let mut slow: Vec<TcpStream> = (0..50).map(|_| connect(&address)).collect();
    for stream in &mut slow {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ").unwrap();
    }
    assert_eq!(gateway.get("/healthz").await.0, 200);
    // Request heads that are too large, in one line or in many.
    let one = format!("X-Large: {}\r\n", "x".repeat(100_000));
    let many: String = (0..200).map(|number| format!("X-{number}: x\r\n")).collect();
    for headers in [one, many] {
        let mut stream = connect(&address);
        let _ = stream.write_all(format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{headers}\r\n").as_bytes());
        let answer = until("an answer", async || answer(&mut stream)).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    // A request with a huge body is rejected before the body is read.
    let mut stream = connect(&address);
    let head = format!("POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n", CHANGES[0]);
    stream.write_all(head.as_bytes()).unwrap();
    let refused = until("an answer", async || answer(&mut stream)).await;
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
    // The slow connections are closed.
    for stream in &mut slow {
        until("the slow connection is closed", async || answer(stream)).await;
    }
    assert_eq!(gateway.get("/healthz").await.0, 200);
}

/// Strangers who send half of a head, and connect anew whenever they are closed.
#[tokio::test(flavor = "multi_thread")]
async fn probes_are_answered_while_strangers_hold_every_connection() {
    let own = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: own.maximum, ..own }).unwrap();
    let redis = Redis::start();
    let gateway = Gateway::start(&redis, &Plugins::empty());
    gateway.until_ready().await;
    let address = gateway.address().await;
    let half = |address: &str| {
        let mut stream = connect(address);
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ");
        stream.set_nonblocking(true).unwrap();
        stream
    };
    let mut strangers: Vec<TcpStream> = (0..700).map(|_| half(&address)).collect();
    for path in ["/healthz", "/ready", "/metrics", "/livez", "/readyz", "/metrics/prometheus"] {
        for _ in 0..2 {
            assert_eq!(gateway.get(path).await.0, 200, "{path}");
            for stream in &mut strangers {
                if answer(stream).is_some() {
                    *stream = half(&address);
                }
            }
        }
    }
    // A stop closes them and waits for none.
    assert!(gateway.stop().await.success());
    assert!(answer(&mut strangers[699]).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_one_valid_host_are_refused() {
    let redis = Redis::start();
    let gateway = Gateway::start(&redis, &Plugins::empty());
    gateway.until_ready().await;
    let address = gateway.address().await;
    for (version, headers, status) in [
        ("1.1", "", 400),
        ("1.1", "Host: a\r\nHost: a\r\n", 400),
        ("1.1", "Host: a b\r\n", 400),
        ("1.1", "Host: user@a\r\n", 400),
        ("1.1", "Host:\r\n", 400),
        ("1.1", "Host: a\r\n", 200),
        ("1.1", "Host: [::1]:8084\r\n", 200),
        ("1.0", "", 200),
        ("1.0", "Host: a\r\nHost: b\r\n", 400),
    ] {
        let mut stream = connect(&address);
        stream.write_all(format!("GET /healthz HTTP/{version}\r\n{headers}\r\n").as_bytes()).unwrap();
        let answer = until("an answer", async || answer(&mut stream)).await;
        assert_eq!(answer.split(' ').nth(1), Some(status.to_string().as_str()), "{headers}: {answer}");
        assert_eq!(answer.contains("application/problem+json"), status == 400, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_and_wrong_tokens_leave_a_line_in_the_log() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("topic").await;
    assert_eq!(gateway.post(CHANGES[0]).await.0, 200);
    let change = |name: &'static str| move |line: &Value| line["change"] == name;
    let line = gateway.until_logged(events::CHANGE_REQUESTED, change("reload")).await;
    assert_eq!((&line["address"], &line["error"]), (&json!("127.0.0.1"), &Value::Null));
    assert_eq!(gateway.post(CHANGES[1]).await.0, 409);
    let line = gateway.until_logged(events::CHANGE_REQUESTED, change("rollback")).await;
    assert!(line["plugin"] == "topic" && line["error"].is_string(), "{line}");
    for _ in 0..50 {
        assert_eq!(gateway.request("POST", CHANGES[2], "Authorization: Bearer wrong\r\n").await.0, 401);
    }
    let line = gateway.until_logged(events::WRONG_TOKEN, |_| true).await;
    assert_eq!((&line["count"], &line["last_address"]), (&json!(1), &json!("127.0.0.1")));
    assert!(!line.to_string().contains("Bearer"));
    assert!(gateway.logged(events::WRONG_TOKEN).len() < 10);
    assert!(gateway.logged(events::CHANGE_REQUESTED).iter().all(|line| line["change"] != "unblock"));
}

/// SIGQUIT, which some images of containers stop with.
#[tokio::test(flavor = "multi_thread")]
async fn sigquit_drains_like_sigterm() {
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &crate::support::built("puppet"), "");
    let mut gateway = Gateway::start(&redis, &plugins);
    redis.publish("puppet", "runs", r#"{"do":"sleep","ms":500}"#).await;
    gateway.until_asleep("puppet", 1).await;
    gateway.signal(rustix::process::Signal::QUIT);
    let settled = gateway.until_logged(events::SETTLED, |line| line["id"] == "runs").await;
    assert_eq!(settled["outcome"], "done");
    redis.is("it is settled", "XLEN mq:puppet", 0).await;
    until("the worker ends", async || (!gateway.is_running()).then_some(())).await;
}

/// At the limit a new connection gets the place of another one.
#[tokio::test(flavor = "multi_thread")]
async fn at_the_connection_limit_a_new_client_is_served_once_another_is_dropped() {
    let own = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: own.maximum, ..own }).unwrap();
    let redis = Redis::start();
    let gateway = Gateway::start(&redis, &Plugins::empty());
    gateway.until_ready().await;
    let address = gateway.address().await;
    let mut silent: Vec<TcpStream> = (0..512).map(|_| connect(&address)).collect();
    let mut last = connect(&address);
    last.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let answered = until("an answer", async || answer(&mut last)).await;
    assert!(answered.starts_with("HTTP/1.1 200"), "{answered}");
    let is_gone = |stream: &mut TcpStream| {
        stream.set_nonblocking(true).unwrap();
        answer(stream).is_some()
    };
    assert!(silent.iter_mut().any(is_gone), "another connection was closed first");
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    stream
}

/// The answer, once there is one or the connection is closed.
fn answer(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = [0; 4096];
    match stream.read(&mut bytes) {
        Ok(read) => Some(String::from_utf8_lossy(&bytes[..read]).into_owned()),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        // Reset: the connection was closed while the test was still sending.
        Err(_) => Some(String::new()),
    }
}
