//! A handler reaches the HTTP origins that its manifest grants, and no others, however
//! they are spelled.

use crate::http_rig::{Rig, manifest, status_or_error};
use crate::http_server::Server;
use crate::support::{Gateway, Plugins, Redis, built, until};
use gateway_worker::events;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_granted_origin_is_reached_and_others_are_not() {
    let (server, other) = (Server::start().await, Server::start().await);
    let (origin, port) = (server.origin(), server.port);
    // Nothing listens there: handlers ignore the proxies of the environment.
    let env = [
        ("http_proxy", "http://127.0.0.1:9"),
        ("HTTP_PROXY", "http://127.0.0.1:9"),
        ("ALL_PROXY", "http://127.0.0.1:9"),
    ];
    let rig = Rig::with_env(&format!("http = [\"{origin}\"]"), &env).await;
    let result = rig.run(json!({ "do": "send", "url": format!("{origin}/hello?a=1") })).await;
    assert_eq!((&result["status"], &result["body"]), (&json!(200), &json!("hello")));
    let head = &server.seen()[0].head;
    assert!(head.starts_with("GET /hello?a=1 HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("host: 127.0.0.1:{port}\r\n")), "{head}");

    // Another port, another scheme, another host.
    for url in [
        format!("{}/hello", other.origin()),
        format!("https://127.0.0.1:{port}/hello"),
        format!("http://localhost:{port}/hello"),
    ] {
        assert_eq!(rig.get(&url).await, "denied", "{url}");
        assert_eq!(rig.get(&url).await, "denied", "{url}");
        let granted = url.trim_end_matches("/hello");
        let line = format!("fetch.toml does not grant it: under [grants], write http = [\"{granted}\"]");
        let count = rig.refused_requests().iter().filter(|refused| refused.ends_with(&line)).count();
        assert_eq!(count, 1, "logged once: {:?}", rig.refused_requests());
    }
    assert_eq!((server.seen().len(), other.seen().len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_grants_a_component_that_imports_http_loads_and_is_denied() {
    let server = Server::start().await;
    let rig = Rig::new("").await;
    assert_eq!(rig.get(&format!("{}/hello", server.origin())).await, "denied");
    assert!(server.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_self_test_has_no_network() {
    let server = Server::start().await;
    let url = format!("{}/hello", server.origin());
    let text = manifest(&format!("http = [\"{}\"]\n[config]\ncheck = \"{url}\"", server.origin()));
    let redis = Redis::start();
    let plugins = Plugins::with("fetch", &built("fetch"), &text);
    let gateway = Gateway::start(&redis, &plugins);
    let reason = gateway.until_refused("fetch").await;
    assert!(reason.starts_with("its self-test failed: denied: "), "{reason}");
    assert!(server.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_resolves_to_a_private_address_needs_a_network_grant() {
    let server = Server::start().await;
    let origin = format!("http://localhost:{}", server.port);
    let rig = Rig::new(&format!("http = [\"{origin}\"]")).await;
    assert_eq!(rig.get(&format!("{origin}/hello")).await, "denied");
    let refused = rig.refused_requests();
    assert!(
        refused[0].contains("which is not public") && refused[0].contains("write private_networks = [\""),
        "{refused:?}"
    );
    assert!(server.seen().is_empty());

    let granted = Rig::new(&format!("http = [\"{origin}\"]\nprivate_networks = [\"127.0.0.0/8\"]")).await;
    assert_eq!(granted.get(&format!("{origin}/hello")).await, "200");
    // A trailing dot and capitals do not change the name.
    assert_eq!(granted.get(&format!("http://localhost.:{}/hello", server.port)).await, "200");
    assert_eq!(granted.get(&format!("http://LOCALHOST:{}/hello", server.port)).await, "200");
    let host = format!("host: localhost:{}\r\n", server.port);
    assert!(server.seen().iter().all(|seen| seen.head.contains(&host)), "{:?}", server.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_rejected() {
    let server = Server::start().await;
    let (origin, port) = (server.origin(), server.port);
    let rig = Rig::new(&format!("http = [\"{origin}\"]")).await;
    for host in ["2130706433", "0x7f.1", "127.1", "0177.0.0.1", "user:word@127.0.0.1"] {
        assert_eq!(rig.get(&format!("http://{host}:{port}/hello")).await, "invalid", "{host}");
    }
    for method in ["CONNECT", "TRACE", "trace"] {
        let result = rig.run(json!({ "do": "send", "method": method, "url": format!("{origin}/hello") })).await;
        assert_eq!(status_or_error(&result), "invalid", "{method}");
    }
    for header in ["host", "connection", "transfer-encoding", "te", "trailer", "upgrade", "proxy-authorization"] {
        let headers = [[header, "x"]];
        let result = rig.run(json!({ "do": "send", "url": format!("{origin}/hello"), "headers": headers })).await;
        assert_eq!(status_or_error(&result), "invalid", "{header}");
    }
    assert!(server.seen().is_empty());
    let result = rig.run(json!({ "do": "send", "method": "PURGE", "url": format!("{origin}/hello") })).await;
    assert_eq!(status_or_error(&result), "200");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_returned_to_the_handler() {
    let server = Server::start().await;
    let rig = Rig::new(&format!("http = [\"{}\"]", server.origin())).await;
    let result = rig.run(json!({ "do": "send", "url": format!("{}/redirect", server.origin()) })).await;
    assert_eq!(result["status"], 302);
    assert!(result["headers"].as_array().unwrap().contains(&json!(["location", "/hello"])), "{result}");
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn manifest_headers_go_only_to_their_origin_and_stay_hidden_from_the_handler() {
    let (server, other) = (Server::start().await, Server::start().await);
    let (granted, also) = (server.origin(), other.origin());
    let rig = Rig::new(&format!(
        "http = [\"{granted}\", \"{also}\"]\n[http_headers.\"{granted}\"]\nAuthorization = \"Bearer host\"\nX-Team = \"a\""
    ))
    .await;
    let headers = [["authorization", "Bearer guest"], ["authorization", "Bearer second"], ["x-own", "mine"]];
    for origin in [&granted, &also] {
        let result = rig.run(json!({ "do": "send", "url": format!("{origin}/hello"), "headers": headers })).await;
        assert_eq!(result["status"], 200);
        assert!(!result.to_string().contains("Bearer host"), "{result}");
    }
    let (head, elsewhere) = (&server.seen()[0].head, &other.seen()[0].head);
    assert_eq!(head.matches("authorization: ").count(), 1, "{head}");
    assert!(head.contains("authorization: Bearer host\r\n") && head.contains("x-team: a\r\n"), "{head}");
    assert!(head.contains("x-own: mine\r\n"), "{head}");
    assert!(elsewhere.contains("authorization: Bearer guest\r\n") && !elsewhere.contains("x-team"), "{elsewhere}");
    assert!(rig.gateway.logged("Bearer").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_with_a_missing_secret_blocks_the_request() {
    let server = Server::start().await;
    let origin = server.origin();
    let rig =
        Rig::new(&format!("http = [\"{origin}\"]\n[http_headers.\"{origin}\"]\nX-Key = \"${{secret:NONE}}\"")).await;
    assert_eq!(rig.get(&format!("{origin}/hello")).await, "unavailable");
    assert!(rig.refused_requests()[0].contains("the header `x-key` can't be set"), "{:?}", rig.refused_requests());
    assert!(server.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_pooled_between_runs_but_not_between_versions() {
    let server = Server::start().await;
    let grants = format!("http = [\"{}\"]", server.origin());
    let rig = Rig::new(&grants).await;
    let url = format!("{}/hello", server.origin());
    for _ in 0..3 {
        assert_eq!(rig.get(&url).await, "200");
    }
    assert!(server.seen().iter().all(|seen| seen.connection == 0), "{:?}", server.seen());
    assert!(server.closed().is_empty());

    rig.plugins.put("fetch", &built("fetch"), &manifest(&format!("{grants}\n[config]\nversion = \"2\"")));
    until("the second version", async || (rig.gateway.logged(events::PLUGIN_LOADED).len() == 2).then_some(())).await;
    assert_eq!(rig.get(&url).await, "200");
    assert_eq!(server.seen()[3].connection, 1);
    until("the first version's is closed", async || (server.closed() == [0]).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_server_failure_has_its_error_code() {
    let server = Server::start().await;
    let closed = crate::process::free_port();
    let origin = server.origin();
    let grants = format!("http = [\"{origin}\", \"http://127.0.0.1:{closed}\", \"http://no.such.name.invalid\"]");
    let rig = Rig::new(&grants).await;
    for (url, reason) in [
        (format!("{origin}/cut"), "HttpResponseIncomplete"),
        (format!("{origin}/no-http"), "HttpProtocolError"),
        (format!("http://127.0.0.1:{closed}/"), "ConnectionRefused"),
        ("http://no.such.name.invalid/".to_owned(), "DnsError"),
    ] {
        let result = rig.run(json!({ "do": "send", "url": url })).await;
        assert_eq!(result["error"], "unavailable", "{url}");
        assert!(result["reason"].as_str().unwrap().contains(reason), "{result}");
    }
}
