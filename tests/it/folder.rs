//! What the worker takes from the plugins directory, and what it says about
//! files that others could have written.

use crate::support::{Gateway, OK, Plugins, Redis, guest};
use gateway_worker::events;
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn chmod(plugins: &Plugins, name: &str, mode: u32) {
    fs::set_permissions(plugins.path().join(name), PermissionsExt::from_mode(mode)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_others_can_write_is_warned_about_or_refused() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "");
    chmod(&plugins, "topic.toml", 0o666);
    let start = |how| Gateway::start_with(&redis.url(), &plugins, &["--plugins-check-files", how]);

    let gateway = start("refuse");
    let reason = gateway.until_refused("topic").await;
    assert!(reason.contains("topic.toml can't be trusted") && reason.contains("chmod go-w"), "{reason}");
    // Mending it is enough.
    chmod(&plugins, "topic.toml", 0o644);
    gateway.signal(Signal::HUP);
    gateway.until_loaded("topic").await;
    drop(gateway);

    chmod(&plugins, "", 0o777);
    let gateway = start("refuse");
    assert!(gateway.until_refused("topic").await.contains("its mode is 777"));
    drop(gateway);
    let gateway = start("warn");
    gateway.until_loaded("topic").await;
    assert_eq!(gateway.logged("its mode is 777").len(), 1);
    drop(gateway);
    let gateway = start("off");
    gateway.until_loaded("topic").await;
    assert!(gateway.logged("its mode is 777").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_plugins_are_looked_at_and_no_more() {
    let redis = Redis::start();
    let plugins = Plugins::empty();
    for number in 0..=1000 {
        // Neither compiled nor much to read.
        fs::write(plugins.path().join(format!("topic-{number:04}.wasm")), "no").unwrap();
    }
    let gateway = Gateway::start(&redis, &plugins);
    let line = gateway.until_logged(events::TOO_MANY_PLUGINS, |_| true).await;
    assert_eq!((line["found"].as_u64(), line["first"].as_str()), (Some(1001), Some("topic-1000")));
    gateway.until_refused("topic-0999").await;
    gateway.until_ready().await;
    assert!(!gateway.logged(events::PLUGIN_REFUSED).iter().any(|line| line["plugin"] == "topic-1000"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_with_an_underscore_whose_dotted_twin_has_messages_is_warned_about() {
    let redis = Redis::start();
    let plugins = Plugins::with("stock_alert", &guest(OK), "").and("any_topic", &guest(OK), "");
    redis.publish("stock.alert", "a", "{}").await;
    redis.publish("any.topic", "a", "{}").await;
    redis.publish("any_topic", "a", "{}").await;
    let gateway = Gateway::start(&redis, &plugins);
    let line = gateway.until_logged("is stock.alert.wasm meant", |_| true).await;
    assert_eq!((line["plugin"].as_str(), line["topic"].as_str()), (Some("stock_alert"), Some("stock_alert")));
    assert_eq!(gateway.logged("twin with dots").len(), 1);
}

/// Who takes the rest is trusted with more than others, and looked at like them.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_somebody_elses_does_not_get_the_topics_that_nobody_names() {
    let redis = Redis::start();
    redis.publish("whose", "a", "{}").await;
    let plugins = Plugins::with("rest", &guest(OK), "topics = [\"*\"]\n");
    let start = |how| Gateway::start_with(&redis.url(), &plugins, &["--plugins-check-files", how]);
    chmod(&plugins, "rest.wasm", 0o664);
    let gateway = start("refuse");
    let reason = gateway.until_refused("rest").await;
    assert!(reason.contains("rest.wasm can't be trusted") && reason.contains("its mode is 664"), "{reason}");
    chmod(&plugins, "rest.wasm", 0o644);
    // Only root can give a file away.
    let wasm = plugins.path().join("rest.wasm");
    if std::os::unix::fs::chown(&wasm, Some(65534), None).is_ok() {
        gateway.signal(Signal::HUP);
        let is_told = |line: &serde_json::Value| line["reason"].as_str().unwrap().contains("it belongs to user 65534");
        gateway.until_logged(events::PLUGIN_REFUSED, is_told).await;
        assert_eq!(redis.run::<i64>("XLEN mq:whose").await, 1);
        drop(gateway);
        let gateway = start("warn");
        gateway.until_outcome("whose", "a", "done").await;
        assert_eq!(gateway.logged("it belongs to user 65534").len(), 1);
        std::os::unix::fs::chown(&wasm, Some(rustix::process::geteuid().as_raw()), None).unwrap();
        redis.publish("whose", "b", "{}").await;
    }
    let gateway = start("refuse");
    gateway.until_loaded("rest").await;
    redis.is("what waited is handled", "XLEN mq:whose", 0).await;
}
