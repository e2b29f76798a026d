//! Asks Redis how it is, and tells Redis that we live.

use crate::metrics::Metrics;
use crate::plugin::Routes;
use crate::queue::{Connection, Health, announce, check_policy};
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
    pub health: watch::Sender<Option<Health>>,
}

impl HealthLoop {
    pub async fn run(mut self, stop: CancellationToken) {
        let (mut pings, mut announced) = (0_u32, None::<String>);
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

    /// What `mq::workers` says of us.
    fn member(&self) -> String {
        let topics: Vec<String> = self.routes.borrow().by_topic.keys().map(ToString::to_string).collect();
        serde_json::json!({ "id": self.worker_id, "pid": std::process::id(), "topics": topics }).to_string()
    }
}
