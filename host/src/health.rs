//! Asks Redis how it is, and tells Redis that we live.

use crate::lanes::Lanes;
use crate::metrics::Metrics;
use crate::plugin::Routes;
use crate::queue::{Connection, Health, QueueError, announce, check_policy, inspect};
use crate::topic::Topic;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const PING: Duration = Duration::from_secs(1);
/// Every so many pings the worker is announced.
const ANNOUNCE_EVERY: u32 = 5;

pub struct HealthLoop {
    pub connection: Connection,
    pub prefix: String,
    pub worker_id: String,
    pub metrics: Arc<Metrics>,
    pub routes: watch::Receiver<Arc<Routes>>,
    pub lanes: Arc<Lanes>,
    pub health: watch::Sender<Option<Health>>,
}

impl HealthLoop {
    pub async fn run(mut self, stop: CancellationToken) {
        let (mut pings, mut announced, mut twins) = (0_u32, None::<String>, BTreeSet::new());
        while !stop.is_cancelled() {
            let health = self.connection.ping().await;
            let is_connected = health == Health::Connected;
            self.metrics.redis_connected.set(i64::from(is_connected));
            let before = self.health.send_replace(Some(health.clone()));
            match (&before, &health) {
                (Some(Health::Connected), Health::Connected) => {}
                (_, Health::Connected) => {
                    tracing::info!("Redis answers");
                    for warning in check_policy(&self.connection).await {
                        tracing::warn!("{warning}");
                    }
                }
                (Some(Health::Away(_)), Health::Away(_)) => {}
                (_, Health::Away(reason)) => tracing::error!(reason, "Redis does not answer"),
            }
            let member = self.member();
            if is_connected && (pings % ANNOUNCE_EVERY == 0 || announced.as_ref() != Some(&member)) {
                let stale = announced.take().filter(|stale| *stale != member);
                let _ = announce(&self.connection, &self.prefix, Some(&member), stale.as_deref()).await;
                announced = Some(member);
                let _ = self.warn_of_twins(&mut twins).await;
            }
            pings = pings.wrapping_add(1);
            tokio::select! {
                () = tokio::time::sleep(PING) => {}
                // Who asks what is handled wants to know it now.
                Ok(()) = self.routes.changed() => {}
                () = stop.cancelled() => {}
            }
        }
        if let Some(stale) = announced {
            let _ = announce(&self.connection, &self.prefix, None, Some(&stale)).await;
        }
    }

    /// Cargo names the file of a crate `inventory-alert` `inventory_alert.wasm`,
    /// and so it would wait for ever for messages of `inventory.alert`.
    async fn warn_of_twins(&self, known: &mut BTreeSet<Topic>) -> Result<(), QueueError> {
        let routes = self.routes.borrow().clone();
        for (topic, plugin) in routes.by_topic.iter().filter(|(topic, _)| topic.as_str().contains('_')) {
            let Ok(twin) = Topic::parse(&topic.as_str().replace('_', ".")) else { continue };
            if known.contains(topic) || routes.by_topic.contains_key(&twin) {
                continue;
            }
            if inspect::has_keys(&self.connection, &self.prefix, topic).await? {
                known.insert(topic.clone());
            } else if inspect::has_keys(&self.connection, &self.prefix, &twin).await? {
                known.insert(topic.clone());
                let plugin = plugin.name();
                tracing::warn!(plugin, %topic, %twin, "nothing was ever published to this topic, but to its twin with dots, which has no handler here: is {twin}.wasm meant, or topics = [\"{twin}\"] in {plugin}.toml?");
            }
        }
        Ok(())
    }

    /// What `mq::workers` says of us.
    fn member(&self) -> String {
        let mut topics: BTreeSet<String> = self.routes.borrow().by_topic.keys().map(ToString::to_string).collect();
        topics.extend(self.lanes.running().keys().map(ToString::to_string));
        serde_json::json!({ "id": self.worker_id, "pid": std::process::id(), "topics": topics }).to_string()
    }
}
