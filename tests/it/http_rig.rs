//! A worker with the guest `fetch`, which makes HTTP requests and opens files as its
//! messages say, and publishes the results.

use crate::support::{BINARY, Gateway, Plugins, Redis, built, until};
use gateway_worker::events;
use serde_json::{Value, json};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) struct Rig {
    pub(crate) redis: Redis,
    pub(crate) plugins: Plugins,
    pub(crate) gateway: Gateway,
    count: AtomicU32,
}

impl Rig {
    /// Starts a worker with these lines after `[grants]` in the manifest.
    pub(crate) async fn new(grants: &str) -> Self {
        Self::with_env(grants, &[]).await
    }

    pub(crate) async fn with_env(grants: &str, env: &[(&str, &str)]) -> Self {
        let redis = Redis::start();
        let plugins = Plugins::with("fetch", &built("fetch"), &manifest(grants));
        let mut command = Command::new(BINARY);
        command.args(["run", "--listen", "127.0.0.1:0", "--log-level", "debug", "--redis-url", &redis.url()]);
        command.arg("--plugins").arg(plugins.path()).env_remove("SSL_CERT_DIR").envs(env.iter().copied());
        let gateway = Gateway::spawn(&mut command);
        gateway.until_loaded("fetch").await;
        Self { redis, plugins, gateway, count: AtomicU32::new(0) }
    }

    /// Publishes an action for the guest. Returns the message id.
    pub(crate) async fn publish(&self, act: &Value) -> String {
        let id = format!("m{}", self.count.fetch_add(1, Ordering::Relaxed));
        self.redis.publish("fetch", &id, &act.to_string()).await;
        id
    }

    /// Publishes an action and waits for its result.
    pub(crate) async fn run(&self, act: Value) -> Value {
        let id = self.publish(&act).await;
        until(&format!("the result of {act}"), async || {
            let results = self.redis.envelopes("mq:results").await;
            results.iter().find(|one| one["data"]["of"] == id.as_str()).map(|one| one["data"]["result"].clone())
        })
        .await
    }

    /// The status of a GET request, or the code of its error.
    pub(crate) async fn get(&self, url: &str) -> String {
        status_or_error(&self.run(json!({ "do": "send", "url": url })).await)
    }

    /// The log messages of requests that the host refused to make.
    pub(crate) fn refused_requests(&self) -> Vec<String> {
        let lines = self.gateway.logged(events::REQUEST_NOT_MADE);
        lines.iter().map(|line| line["message"].as_str().unwrap().to_owned()).collect()
    }
}

pub(crate) fn manifest(grants: &str) -> String {
    format!("concurrency = 2\n[retry]\nattempts = 1\n[grants]\npublish = [\"results\"]\n{grants}\n")
}

/// The status of a response, or the code of an error.
pub(crate) fn status_or_error(result: &Value) -> String {
    result["error"].as_str().map_or_else(|| result["status"].to_string(), str::to_owned)
}
