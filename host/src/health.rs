//! Asks Redis whether it answers, and announces this worker there.

use crate::events;
use crate::metrics::Metrics;
use crate::plugin::Routes;
use crate::queue::{Connection, Health, QueueError, announce, check_policy, has_keys};
use crate::topic::Topic;
use crate::worker::Worker;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const PING_INTERVAL: Duration = Duration::from_secs(1);
/// The worker is announced again after this many pings.
const ANNOUNCE_EVERY: u32 = 5;
/// Clocks may differ by this many seconds without a report.
const SKEW_MAX: f64 = 1.0;

pub struct HealthLoop {
    pub connection: Connection,
    pub prefix: String,
    pub worker_id: String,
    pub metrics: Arc<Metrics>,
    pub routes: watch::Receiver<Arc<Routes>>,
    pub worker: Arc<Worker>,
    pub health: watch::Sender<Option<Health>>,
}

impl HealthLoop {
    pub async fn run(mut self, stop: CancellationToken) {
        let (mut pings, mut announced, mut warned) = (0_u32, None::<String>, BTreeSet::new());
        let mut skew = None;
        while !stop.is_cancelled() {
            let health = self.connection.ping().await;
            let is_connected = health == Health::Connected;
            self.metrics.redis_connected.set(i64::from(is_connected));
            self.set_health(health).await;
            if is_connected && self.connection.read_clock().await.is_ok() {
                self.report_skew(&mut skew);
            }
            let member = self.member();
            if is_connected && (pings % ANNOUNCE_EVERY == 0 || announced.as_ref() != Some(&member)) {
                let stale = announced.take().filter(|stale| *stale != member);
                let _ = announce(&self.connection, &self.prefix, Some(&member), stale.as_deref()).await;
                announced = Some(member);
                let _ = self.warn_of_underscored_topics(&mut warned).await;
            }
            self.worker.retire_metrics();
            pings = pings.wrapping_add(1);
            tokio::select! {
                () = tokio::time::sleep(PING_INTERVAL) => {}
                // Commands that ask which topics have a handler want the new answer.
                Ok(()) = self.routes.changed() => {}
                () = stop.cancelled() => {}
            }
        }
        if let Some(stale) = announced {
            let _ = announce(&self.connection, &self.prefix, None, Some(&stale)).await;
        }
    }

    /// Passes the answer on, and logs it where it has changed.
    async fn set_health(&self, health: Health) {
        let before = self.health.send_replace(Some(health.clone()));
        match (&before, &health) {
            (Some(Health::Connected), Health::Connected) | (Some(Health::Away(_)), Health::Away(_)) => {}
            (_, Health::Connected) => {
                tracing::info!("Redis answers");
                for warning in check_policy(&self.connection).await {
                    tracing::warn!("{warning}");
                }
            }
            (_, Health::Away(reason)) => tracing::error!(reason, "Redis does not answer"),
        }
    }

    /// Shows by how much the clocks differ, and logs it once per change. `logged` is
    /// what was logged last; `None` while the clocks agree.
    fn report_skew(&self, logged: &mut Option<f64>) {
        let Some(seconds) = self.connection.clock_skew_seconds() else { return };
        self.metrics.clock_skew_seconds.set(seconds);
        let is_change = logged.is_none_or(|logged| (seconds - logged).abs() > SKEW_MAX);
        if seconds.abs() > SKEW_MAX && is_change {
            tracing::warn!(skew_seconds = seconds, "{}", events::CLOCK_SKEWED);
            *logged = Some(seconds);
        } else if seconds.abs() < SKEW_MAX / 2.0 && logged.take().is_some() {
            tracing::info!("{}", events::CLOCKS_AGREE);
        }
    }

    /// Cargo writes the crate `inventory-alert` to the file `inventory_alert.wasm`,
    /// which would wait for ever for messages of `inventory.alert`.
    async fn warn_of_underscored_topics(&self, warned: &mut BTreeSet<Topic>) -> Result<(), QueueError> {
        let routes = self.routes.borrow().clone();
        for (topic, plugin) in routes.by_topic.iter().filter(|(topic, _)| topic.as_str().contains('_')) {
            let Ok(dotted) = Topic::parse(&topic.as_str().replace('_', ".")) else { continue };
            if warned.contains(topic) || routes.by_topic.contains_key(&dotted) {
                continue;
            }
            if has_keys(&self.connection, &self.prefix, topic).await? {
                warned.insert(topic.clone());
            } else if has_keys(&self.connection, &self.prefix, &dotted).await? {
                warned.insert(topic.clone());
                let plugin = plugin.name();
                tracing::warn!(plugin, %topic, %dotted, "{}; did you mean {dotted}.wasm, or topics = [\"{dotted}\"] in {plugin}.toml?", events::UNDERSCORED_TOPIC);
            }
        }
        Ok(())
    }

    /// The entry of this worker in `mq::workers`.
    fn member(&self) -> String {
        let mut topics: BTreeSet<String> = self.routes.borrow().by_topic.keys().map(ToString::to_string).collect();
        topics.extend(self.worker.topics().keys().map(ToString::to_string));
        serde_json::json!({ "id": self.worker_id, "pid": std::process::id(), "topics": topics }).to_string()
    }
}
