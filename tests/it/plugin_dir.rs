//! Which files of the plugins directory are loaded, and the checks of their
//! permissions.

use crate::support::{Gateway, OK, Plugins, Redis, guest, until};
use gateway_worker::events;
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn chmod(plugins: &Plugins, name: &str, mode: u32) {
    fs::set_permissions(plugins.path().join(name), PermissionsExt::from_mode(mode)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_writable_by_others_is_warned_about_or_rejected() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "");
    chmod(&plugins, "topic.toml", 0o666);
    let start = |how| Gateway::start_with(&redis.url(), &plugins, &["--plugins-file-permissions", how]);

    let gateway = start("enforce");
    let reason = gateway.until_refused("topic").await;
    assert!(reason.contains("topic.toml can't be trusted") && reason.contains("chmod go-w"), "{reason}");
    // Correcting the mode is enough.
    chmod(&plugins, "topic.toml", 0o644);
    gateway.signal(Signal::HUP);
    gateway.until_loaded("topic").await;
    drop(gateway);

    chmod(&plugins, "", 0o777);
    let gateway = start("enforce");
    assert!(gateway.until_refused("topic").await.contains("its mode is 777"));
    drop(gateway);
    let gateway = start("warn");
    gateway.until_loaded("topic").await;
    assert_eq!(gateway.logged("its mode is 777").len(), 1);
    drop(gateway);
    let gateway = start("ignore");
    gateway.until_loaded("topic").await;
    assert!(gateway.logged("its mode is 777").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn at_most_a_thousand_plugins_are_loaded() {
    let redis = Redis::start();
    let plugins = Plugins::empty();
    for number in 0..=1000 {
        // Invalid and small, so that nothing is compiled.
        fs::write(plugins.path().join(format!("topic-{number:04}.wasm")), "no").unwrap();
    }
    let gateway = Gateway::start(&redis, &plugins);
    let line = gateway.until_logged(events::TOO_MANY_PLUGINS, |_| true).await;
    assert_eq!((line["found"].as_u64(), line["first"].as_str()), (Some(1001), Some("topic-1000")));
    gateway.until_refused("topic-0999").await;
    // Every one of them is refused, so the worker is not ready.
    until("it is not ready", async || (gateway.get("/ready").await.0 == 503).then_some(())).await;
    assert!(!gateway.logged(events::PLUGIN_REFUSED).iter().any(|line| line["plugin"] == "topic-1000"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_with_an_underscore_is_warned_about_if_the_dotted_topic_has_messages() {
    let redis = Redis::start();
    let plugins = Plugins::with("stock_alert", &guest(OK), "").and("any_topic", &guest(OK), "");
    redis.publish("stock.alert", "a", "{}").await;
    redis.publish("any.topic", "a", "{}").await;
    redis.publish("any_topic", "a", "{}").await;
    let gateway = Gateway::start(&redis, &plugins);
    let line = gateway.until_logged("did you mean stock.alert.wasm", |_| true).await;
    assert_eq!((line["plugin"].as_str(), line["topic"].as_str()), (Some("stock_alert"), Some("stock_alert")));
    assert_eq!(gateway.logged(events::UNDERSCORED_TOPIC).len(), 1);
}

/// A catch-all plugin gets the same permission checks.
#[tokio::test(flavor = "multi_thread")]
async fn a_catch_all_file_owned_by_another_user_is_rejected() {
    let redis = Redis::start();
    redis.publish("whose", "a", "{}").await;
    let plugins = Plugins::with("rest", &guest(OK), "topics = [\"*\"]\n");
    let start = |how| Gateway::start_with(&redis.url(), &plugins, &["--plugins-file-permissions", how]);
    chmod(&plugins, "rest.wasm", 0o664);
    let gateway = start("enforce");
    let reason = gateway.until_refused("rest").await;
    assert!(reason.contains("rest.wasm can't be trusted") && reason.contains("its mode is 664"), "{reason}");
    chmod(&plugins, "rest.wasm", 0o644);
    // Only root can change the owner of a file.
    let wasm = plugins.path().join("rest.wasm");
    if std::os::unix::fs::chown(&wasm, Some(65534), None).is_ok() {
        gateway.signal(Signal::HUP);
        let names_the_owner =
            |line: &serde_json::Value| line["reason"].as_str().unwrap().contains("it belongs to user 65534");
        gateway.until_logged(events::PLUGIN_REFUSED, names_the_owner).await;
        assert_eq!(redis.run::<i64>("XLEN mq:whose").await, 1);
        drop(gateway);
        let gateway = start("warn");
        gateway.until_outcome("whose", "a", "done").await;
        assert_eq!(gateway.logged("it belongs to user 65534").len(), 1);
        std::os::unix::fs::chown(&wasm, Some(rustix::process::geteuid().as_raw()), None).unwrap();
        redis.publish("whose", "b", "{}").await;
    }
    let gateway = start("enforce");
    gateway.until_loaded("rest").await;
    redis.is("the waiting message is handled", "XLEN mq:whose", 0).await;
}
