//! A worker with the guest `fetch`, which goes outside as a message says and
//! publishes what came of it.

use crate::support::{BINARY, Gateway, Plugins, Redis, built, until};
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
    /// With these grants, and what follows them in the manifest.
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

    /// Has something done; returns the message's id.
    pub(crate) async fn publish(&self, act: &Value) -> String {
        let id = format!("m{}", self.count.fetch_add(1, Ordering::Relaxed));
        self.redis.publish("fetch", &id, &act.to_string()).await;
        id
    }

    /// Has something done, and waits for what came of it.
    pub(crate) async fn told(&self, act: Value) -> Value {
        let id = self.publish(&act).await;
        until(&format!("what came of {act}"), async || {
            let told = self.redis.envelopes("mq:results").await;
            told.iter().find(|told| told["data"]["of"] == id.as_str()).map(|told| told["data"]["result"].clone())
        })
        .await
    }

    /// The status of what a GET brings, or the error's code.
    pub(crate) async fn get(&self, url: &str) -> String {
        word(&self.told(json!({ "do": "send", "url": url })).await)
    }

    /// What the log says of requests that were not made.
    pub(crate) fn not_made(&self) -> Vec<String> {
        let lines = self.gateway.logged("request not made");
        lines.iter().map(|line| line["message"].as_str().unwrap().to_owned()).collect()
    }
}

pub(crate) fn manifest(grants: &str) -> String {
    format!("concurrency = 2\n[retry]\nattempts = 1\n[grants]\npublish = [\"results\"]\n{grants}\n")
}

/// The status of a reply, or the code of an error.
pub(crate) fn word(told: &Value) -> String {
    told["error"].as_str().map_or_else(|| told["status"].to_string(), str::to_owned)
}
