//! What a server can do to the worker, and a handler to a server: bounded on
//! both sides.

use crate::http_rig::{Rig, word};
use crate::http_server::Server;
use crate::support::until;
use serde_json::{Value, json};

const KIB_64: usize = 64 << 10;

async fn small(server: &Server, more: &str) -> Rig {
    Rig::new(&format!("http = [\"{}\"]\n[limits]\nhttp_body = \"64KiB\"\n{more}", server.origin())).await
}

fn send(server: &Server, path: &str) -> Value {
    json!({ "do": "send", "url": format!("{}{path}", server.origin()) })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_has_a_largest_size_whether_it_says_it_or_not() {
    let server = Server::start().await;
    let rig = small(&server, "").await;
    for kind in ["body", "until-closed"] {
        let told = rig.told(send(&server, &format!("/{kind}/{KIB_64}"))).await;
        assert_eq!((&told["status"], &told["length"]), (&json!(200), &json!(KIB_64)), "{kind}");
        let told = rig.told(send(&server, &format!("/{kind}/{}", KIB_64 + 1))).await;
        assert_eq!(word(&told), "too-large", "{kind}: {told}");
    }
    assert_eq!(word(&rig.told(send(&server, "/endless")).await), "too-large");
    // A reply to HEAD only tells of a body.
    let head = json!({ "do": "send", "method": "HEAD", "url": format!("{}/hello", server.origin()) });
    assert_eq!(word(&rig.told(head).await), "200");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_a_largest_size_whether_it_says_it_or_not() {
    let server = Server::start().await;
    let rig = small(&server, "").await;
    let post = |bytes: usize| json!({ "do": "send", "method": "POST", "url": format!("{}/hello", server.origin()), "bytes": bytes });
    assert_eq!(word(&rig.told(post(KIB_64)).await), "200");
    assert_eq!(word(&rig.told(post(KIB_64 + 1)).await), "too-large");
    let seen = server.seen();
    assert_eq!(seen.len(), 1, "what says that it is too large is not sent");
    assert_eq!((seen[0].body, seen[0].is_whole), (KIB_64, true));

    let authority = format!("127.0.0.1:{}", server.port);
    let upload = |bytes: usize| json!({ "do": "upload", "authority": authority, "path": "/hello", "bytes": bytes, "is_finished": true });
    assert_eq!(rig.told(upload(KIB_64)).await, "Ok(200)");
    let told = rig.told(upload(KIB_64 + 1)).await;
    assert_eq!(told, "Err(ErrorCode::HttpRequestBodySize(Some(65536)))");
    until("the broken one is seen", async || (server.seen().len() == 3).then_some(())).await;
    let seen = server.seen();
    assert_eq!((seen[1].body, seen[1].is_whole), (KIB_64, true));
    assert!(!seen[2].is_whole, "a body that was cut never looks whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_body_is_allowed_requests_without_one_go_on() {
    let server = Server::start().await;
    let rig = Rig::new(&format!("http = [\"{}\"]\n[limits]\nhttp_body = \"0B\"", server.origin())).await;
    assert_eq!(word(&rig.told(send(&server, "/body/0")).await), "200");
    assert_eq!(word(&rig.told(send(&server, "/body/1")).await), "too-large");
    let sent = server.seen().len();
    let mut act = send(&server, "/body/0");
    act["bytes"] = 1.into();
    assert_eq!(word(&rig.told(act).await), "too-large");
    assert_eq!(server.seen().len(), sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_whose_handler_died_never_looks_whole() {
    let server = Server::start().await;
    let rig = small(&server, "").await;
    let authority = format!("127.0.0.1:{}", server.port);
    let id = rig
        .publish(
            &json!({ "do": "upload", "authority": authority, "path": "/early", "bytes": 10, "is_finished": false }),
        )
        .await;
    rig.gateway.until_outcome("fetch", &id, "trap").await;
    until("the server knows", async || (server.seen().len() == 1).then_some(())).await;
    assert!(!server.seen()[0].is_whole, "{:?}", server.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_have_a_largest_size() {
    let server = Server::start().await;
    let rig = small(&server, "").await;
    for (path, expected) in
        [("/headers/32000", "200"), ("/headers/100000", "too-large"), ("/many/90", "200"), ("/many/1000", "too-large")]
    {
        assert_eq!(word(&rig.told(send(&server, path)).await), expected, "{path}");
    }
    // A handler's own are not even put together.
    let with = |length: usize| {
        let mut act = send(&server, "/hello");
        act["headers"] = json!([["x-long", "x".repeat(length)]]);
        act
    };
    assert_eq!(word(&rig.told(with(32_000)).await), "200");
    let sent = server.seen().len();
    let id = rig.publish(&with(100_000)).await;
    rig.gateway.until_outcome("fetch", &id, "trap").await;
    assert_eq!(server.seen().len(), sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_has_so_many_requests_under_way() {
    let server = Server::start().await;
    let rig = small(&server, "http_requests = 2").await;
    // The server answers when two have come.
    let url = format!("{}/pair", server.origin());
    let together = |count: usize| json!({ "do": "together", "of": vec![json!({ "url": url }); count] });
    let words = |told: &Value| told.as_array().unwrap().iter().map(word).collect::<Vec<_>>();
    assert_eq!(words(&rig.told(together(2)).await), ["200", "200"]);
    assert_eq!(words(&rig.told(together(3)).await), ["200", "200", "too-many"]);
    // Those that are over make room.
    assert_eq!(words(&rig.told(together(2)).await), ["200", "200"]);
    assert!(rig.not_made()[0].contains("limits.http_requests"), "{:?}", rig.not_made());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_ends_keeps_nobody_but_its_own_message() {
    let server = Server::start().await;
    let grants = format!("http = [\"{}\"]\n[limits]\ntimeout = \"1s\"\nhttp_requests = 1", server.origin());
    let rig = Rig::new(&grants).await;
    // More of them than there is room for: each leaves its place.
    for path in ["/hang", "/slow-head", "/slow-body", "/stall"] {
        let id = rig.publish(&send(&server, path)).await;
        rig.gateway.until_outcome("fetch", &id, "timeout").await;
    }
    assert_eq!(rig.get(&format!("{}/hello", server.origin())).await, "200");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_says_how_long_it_waits() {
    let server = Server::start().await;
    let rig = small(&server, "").await;
    for path in ["/hang", "/slow-head", "/stall"] {
        let mut act = send(&server, path);
        act["timeout_ms"] = 100.into();
        let told = rig.told(act).await;
        assert_eq!(told["error"], "timeout", "{path}: {told}");
    }
    // Longer than the run itself is as long as the run.
    let mut act = send(&server, "/hello");
    act["timeout_ms"] = u64::from(u32::MAX).into();
    assert_eq!(word(&rig.told(act).await), "200");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_stands_in_time_or_not_at_all() {
    // Takes connections and says nothing, so that TLS never begins.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("https://{}", silent.local_addr().unwrap());
    let rig = Rig::new(&format!("http = [\"{origin}\"]\n[limits]\ntimeout = \"1h\"")).await;
    let url = format!("{origin}/");
    rig.publish(&json!({ "do": "send", "url": url })).await;
    let own = rig.told(json!({ "do": "send", "url": url, "timeout_ms": 100 })).await;
    assert_eq!(own["error"], "timeout");
    assert_eq!(rig.redis.envelopes("mq:results").await.len(), 1, "the host's own limit is longer");
    let both = until("the host's own limit", async || {
        let told = rig.redis.envelopes("mq:results").await;
        (told.len() == 2).then_some(told)
    })
    .await;
    assert_eq!(both[1]["data"]["result"]["error"], "timeout", "{both:?}");
}

/// What a run leaves open would be a connection that no run's limit counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_instance_holds_no_connections_of_runs_before() {
    let server = Server::start().await;
    let rig = small(&server, "http_requests = 1\n[instances]\nreuse = 1000\nidle = \"1h\"").await;
    let authority = format!("127.0.0.1:{}", server.port);
    for _ in 0..5 {
        let told = rig.told(json!({ "do": "leave", "authority": authority, "path": "/slow-body" })).await;
        assert_eq!(told, "Ok(200)");
    }
    until("all are let go of", async || (server.closed().len() == 5).then_some(())).await;
    // Who reads to the end is kept.
    until("an instance is kept", async || {
        assert_eq!(word(&rig.told(send(&server, "/hello")).await), "200");
        (rig.told(json!({ "do": "count" })).await.as_u64() > Some(1)).then_some(())
    })
    .await;
}
