//! Limits on HTTP, against hostile servers and against hostile handlers.

use crate::http_rig::{Rig, status_or_error};
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
async fn a_reply_body_is_limited_with_or_without_a_content_length() {
    let server = Server::start().await;
    let rig = small(&server, "").await;
    for kind in ["body", "until-closed"] {
        let result = rig.run(send(&server, &format!("/{kind}/{KIB_64}"))).await;
        assert_eq!((&result["status"], &result["length"]), (&json!(200), &json!(KIB_64)), "{kind}");
        let result = rig.run(send(&server, &format!("/{kind}/{}", KIB_64 + 1))).await;
        assert_eq!(status_or_error(&result), "too-large", "{kind}: {result}");
    }
    assert_eq!(status_or_error(&rig.run(send(&server, "/endless")).await), "too-large");
    // A reply to HEAD has a Content-Length but no body.
    let head = json!({ "do": "send", "method": "HEAD", "url": format!("{}/hello", server.origin()) });
    assert_eq!(status_or_error(&rig.run(head).await), "200");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_body_is_limited_with_or_without_a_content_length() {
    let server = Server::start().await;
    let rig = small(&server, "").await;
    let post = |bytes: usize| json!({ "do": "send", "method": "POST", "url": format!("{}/hello", server.origin()), "bytes": bytes });
    assert_eq!(status_or_error(&rig.run(post(KIB_64)).await), "200");
    assert_eq!(status_or_error(&rig.run(post(KIB_64 + 1)).await), "too-large");
    let seen = server.seen();
    assert_eq!(seen.len(), 1, "a request with too large a Content-Length is not sent");
    assert_eq!((seen[0].body, seen[0].is_whole), (KIB_64, true));

    let authority = format!("127.0.0.1:{}", server.port);
    let upload = |bytes: usize| json!({ "do": "upload", "authority": authority, "path": "/hello", "bytes": bytes, "is_finished": true });
    assert_eq!(rig.run(upload(KIB_64)).await, "Ok(200)");
    let result = rig.run(upload(KIB_64 + 1)).await;
    assert_eq!(result, "Err(ErrorCode::HttpRequestBodySize(Some(65536)))");
    until("the truncated request has arrived", async || (server.seen().len() == 3).then_some(())).await;
    let seen = server.seen();
    assert_eq!((seen[1].body, seen[1].is_whole), (KIB_64, true));
    assert!(!seen[2].is_whole, "a truncated body is not complete");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_limit_of_zero_allows_requests_without_a_body() {
    let server = Server::start().await;
    let rig = Rig::new(&format!("http = [\"{}\"]\n[limits]\nhttp_body = \"0B\"", server.origin())).await;
    assert_eq!(status_or_error(&rig.run(send(&server, "/body/0")).await), "200");
    assert_eq!(status_or_error(&rig.run(send(&server, "/body/1")).await), "too-large");
    let sent = server.seen().len();
    let mut act = send(&server, "/body/0");
    act["bytes"] = 1.into();
    assert_eq!(status_or_error(&rig.run(act).await), "too-large");
    assert_eq!(server.seen().len(), sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_whose_handler_trapped_is_never_complete() {
    let server = Server::start().await;
    let rig = small(&server, "").await;
    let authority = format!("127.0.0.1:{}", server.port);
    let id = rig
        .publish(
            &json!({ "do": "upload", "authority": authority, "path": "/early", "bytes": 10, "is_finished": false }),
        )
        .await;
    rig.gateway.until_outcome("fetch", &id, "trap").await;
    until("the server has seen it", async || (server.seen().len() == 1).then_some(())).await;
    assert!(!server.seen()[0].is_whole, "{:?}", server.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_limited_in_size() {
    let server = Server::start().await;
    let rig = small(&server, "").await;
    for (path, expected) in
        [("/headers/32000", "200"), ("/headers/100000", "too-large"), ("/many/90", "200"), ("/many/1000", "too-large")]
    {
        assert_eq!(status_or_error(&rig.run(send(&server, path)).await), expected, "{path}");
    }
    // Too large headers of a handler trap before the request is built.
    let with = |length: usize| {
        let mut act = send(&server, "/hello");
        act["headers"] = json!([["x-long", "x".repeat(length)]]);
        act
    };
    assert_eq!(status_or_error(&rig.run(with(32_000)).await), "200");
    let sent = server.seen().len();
    let id = rig.publish(&with(100_000)).await;
    rig.gateway.until_outcome("fetch", &id, "trap").await;
    assert_eq!(server.seen().len(), sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_of_a_run_are_limited() {
    let server = Server::start().await;
    let rig = small(&server, "http_requests = 2").await;
    // The server answers when two requests have arrived.
    let url = format!("{}/pair", server.origin());
    let together = |count: usize| json!({ "do": "together", "of": vec![json!({ "url": url }); count] });
    let statuses = |results: &Value| results.as_array().unwrap().iter().map(status_or_error).collect::<Vec<_>>();
    assert_eq!(statuses(&rig.run(together(2)).await), ["200", "200"]);
    assert_eq!(statuses(&rig.run(together(3)).await), ["200", "200", "too-many"]);
    // Finished requests free their slots.
    assert_eq!(statuses(&rig.run(together(2)).await), ["200", "200"]);
    assert!(rig.refused_requests()[0].contains("limits.http_requests"), "{:?}", rig.refused_requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_answers_blocks_only_its_own_message() {
    let server = Server::start().await;
    let grants = format!("http = [\"{}\"]\n[limits]\ntimeout = \"1s\"\nhttp_requests = 1", server.origin());
    let rig = Rig::new(&grants).await;
    // More requests than the limit allows at once: each frees its slot.
    for path in ["/hang", "/slow-head", "/slow-body", "/stall"] {
        let id = rig.publish(&send(&server, path)).await;
        rig.gateway.until_outcome("fetch", &id, "timeout").await;
    }
    assert_eq!(rig.get(&format!("{}/hello", server.origin())).await, "200");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_can_set_its_request_timeouts() {
    let server = Server::start().await;
    let rig = small(&server, "").await;
    for path in ["/hang", "/slow-head", "/stall"] {
        let mut act = send(&server, path);
        act["timeout_ms"] = 100.into();
        let result = rig.run(act).await;
        assert_eq!(result["error"], "timeout", "{path}: {result}");
    }
    // A timeout beyond the run's own is cut to it.
    let mut act = send(&server, "/hello");
    act["timeout_ms"] = u64::from(u32::MAX).into();
    assert_eq!(status_or_error(&rig.run(act).await), "200");
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_times_out_also_during_the_tls_handshake() {
    // Accepts connections and sends nothing, so the TLS handshake never begins.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("https://{}", silent.local_addr().unwrap());
    let rig = Rig::new(&format!("http = [\"{origin}\"]\n[limits]\ntimeout = \"1h\"")).await;
    let url = format!("{origin}/");
    rig.publish(&json!({ "do": "send", "url": url })).await;
    let own = rig.run(json!({ "do": "send", "url": url, "timeout_ms": 100 })).await;
    assert_eq!(own["error"], "timeout");
    assert_eq!(rig.redis.envelopes("mq:results").await.len(), 1, "the limit of the host is longer");
    let both = until("the limit of the host", async || {
        let results = rig.redis.envelopes("mq:results").await;
        (results.len() == 2).then_some(results)
    })
    .await;
    assert_eq!(both[1]["data"]["result"]["error"], "timeout", "{both:?}");
}

/// A connection that a run leaves open would be counted by no limit.
#[tokio::test(flavor = "multi_thread")]
async fn a_pooled_instance_holds_no_connections_of_earlier_runs() {
    let server = Server::start().await;
    let rig = small(&server, "http_requests = 1\n[instances]\nmax_calls = 1000\nidle_timeout = \"1h\"").await;
    let authority = format!("127.0.0.1:{}", server.port);
    for _ in 0..5 {
        let result = rig.run(json!({ "do": "leave", "authority": authority, "path": "/slow-body" })).await;
        assert_eq!(result, "Ok(200)");
    }
    until("all are closed", async || (server.closed().len() == 5).then_some(())).await;
    // An instance that has read its response completely is pooled.
    until("an instance is reused", async || {
        assert_eq!(status_or_error(&rig.run(send(&server, "/hello")).await), "200");
        (rig.run(json!({ "do": "count" })).await.as_u64() > Some(1)).then_some(())
    })
    .await;
}
