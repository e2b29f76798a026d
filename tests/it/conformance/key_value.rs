//! The scenario of the key-value store.

use super::start;
use crate::key_value::manifest;
use crate::servers::Server;
use crate::support::{Plugins, built};

pub(super) async fn plugins_store_values_over_two_workers(server: &Server) {
    let limits = "[limits]\nkeyvalue_keys = 3\n";
    let plugins = Plugins::with("store", &built("store"), &manifest("keyvalue = true", limits));
    let workers = [start(server, &plugins, &[]), start(server, &plugins, &[])];
    for number in 0..20 {
        server.publish("store", &number.to_string(), r#"{"acts":[{"do":"increase","key":"n"}]}"#).await;
    }
    server.is("all have counted", "GET {mq::kv:store}:n", 20).await;
    let more = r#"{"acts":[{"do":"fill","key":"k","count":2,"bytes":9,"ttl":3600},{"do":"delete","key":"n"},
        {"do":"fill","key":"m","count":2,"bytes":9}],"end":"fault"}"#;
    server.publish("store", "more", more).await;
    let dead = server.dead("store").await;
    assert!(crate::support::text(&dead, "gw-error").starts_with("too-many: limits.keyvalue_keys = 3"), "{dead:?}");
    assert_eq!(server.run::<i64>("HLEN {mq::kv:store}-sizes").await, 4);
    assert_eq!(server.run::<i64>("EXISTS {mq::kv:store}:n").await, 0);
    drop(workers);
}
