//! The health and metrics endpoints.

use crate::support::{Gateway, OK, Plugins, Redis, guest};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn the_health_endpoints_have_stable_shapes() {
    let redis = Redis::start();
    let plugins = Plugins::empty();
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_ready().await;
    for path in ["/healthz", "/livez"] {
        let (status, body) = gateway.json(path).await;
        assert_eq!((status, &body["status"], &body["service"]), (200, &json!("ok"), &json!("gateway-worker")));
        body["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    }
    for path in ["/ready", "/readyz"] {
        let ready = json!({ "status": "ready", "service": "gateway-worker", "consumers": "running" });
        assert_eq!(gateway.json(path).await, (200, ready));
    }
    assert_eq!(gateway.get("/nothing").await.0, 404);
    for path in ["/healthz", "/ready"] {
        // `wget --spider` sends HEAD.
        assert_eq!(gateway.request("HEAD", path, "").await, (200, String::new()));
        assert_eq!(gateway.request("POST", path, "").await.0, 405);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_correct_in_json_and_prometheus_format() {
    let redis = Redis::start();
    let plugins = Plugins::with("b", &guest(OK), "").and("a", &guest("(unreachable)"), "[retry]\nattempts = 1\n");
    let gateway = Gateway::start(&redis, &plugins);
    for number in 0..3 {
        redis.publish("b", &number.to_string(), "{}").await;
    }
    redis.publish("a", "x", "{}").await;
    redis.dead("a").await;
    redis.is("settled", "XLEN mq:b", 0).await;
    let (status, body) = gateway.json("/metrics").await;
    assert_eq!((status, &body["service"], &body["status"]), (200, &json!("gateway-worker"), &json!("running")));
    assert_eq!(body["consumers"], json!({ "active": 2, "topics": ["a", "b"] }));
    assert!(body["uptime"].as_str().unwrap().ends_with('s'));
    assert!(body.get("code").is_none() && body.get("data").is_none());
    assert_eq!(body["topics"][0]["outcomes"], json!({ "trap": 1 }));
    assert_eq!(body["topics"][1]["outcomes"], json!({ "done": 3 }));

    let (_, plain) = gateway.get("/metrics/prometheus").await;
    for line in [
        "gateway_messages_total{topic=\"b\",outcome=\"done\"} 3",
        "gateway_messages_total{topic=\"a\",outcome=\"trap\"} 1",
        "gateway_dead_letters_total{topic=\"a\",reason=\"trap\"} 1",
        "gateway_message_handler_seconds_count{topic=\"b\"} 3",
        "gateway_message_wait_seconds_count{topic=\"b\"} 3",
        "gateway_messages_in_flight{topic=\"b\"} 0",
        "gateway_plugin_reloads_total{result=\"loaded\"} 2",
        "gateway_redis_connected 1",
    ] {
        assert!(plain.contains(line), "{line} is not in\n{plain}");
    }
    // Only who asks for OpenMetrics gets it.
    assert!(plain.contains("# TYPE gateway_messages_total counter\n") && !plain.contains("# EOF"), "{plain}");
    let get = async |path: &str, accept: &str| gateway.request("GET", path, accept).await;
    let open = "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n";
    for path in ["/metrics", "/metrics/prometheus"] {
        let (_, accepted) = get(path, open).await;
        assert!(accepted.contains("# TYPE gateway_messages counter\n") && accepted.ends_with("# EOF\n"), "{accepted}");
        let (_, accepted) = get(path, "Accept: application/json;q=0.1\r\nAccept: text/plain\r\n").await;
        assert!(accepted.contains("# TYPE gateway_messages_total counter\n"), "{accepted}");
    }
    let (status, json) = get("/metrics", "Accept: application/json, text/plain, */*\r\n").await;
    assert!(status == 200 && json.starts_with('{'), "{json}");
    let (status, problem) = get("/metrics", "Accept: image/png\r\n").await;
    assert!(status == 406 && problem.contains("application/json"), "{problem}");
    assert_eq!(get("/metrics/prometheus", "Accept: image/png\r\n").await.0, 200);
}
