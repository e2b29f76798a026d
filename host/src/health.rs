//! Asks Redis whether it answers, and announces this worker there, which also shows
//! whether it takes writes.

use crate::events;
use crate::metrics::Metrics;
use crate::plugin::Routes;
use crate::queue::{Connection, Health, PolicyProblem, QueueError, Trouble, announce, check_policy, has_keys};
use crate::topic::Topic;
use crate::worker::{Service, Worker};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const PING_INTERVAL: Duration = Duration::from_secs(1);
/// The worker is announced again after this many pings.
const ANNOUNCE_EVERY: u32 = 5;
/// The shortest pause, where commands fail one after the other.
const PING_INTERVAL_MIN: Duration = Duration::from_millis(250);
/// The configuration of Redis is looked at again after this many pings.
const CHECK_POLICY_EVERY: u32 = 60;
/// Clocks may differ by this many seconds without a report.
pub const SKEW_MAX: f64 = 1.0;

pub struct HealthLoop {
    pub connection: Connection,
    pub prefix: String,
    pub worker_id: String,
    pub metrics: Arc<Metrics>,
    pub routes: watch::Receiver<Arc<Routes>>,
    pub worker: Arc<Worker>,
    pub health: watch::Sender<Option<Health>>,
    pub concerns: watch::Sender<RedisConcerns>,
}

/// What is worse than it should be about a Redis that serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisConcerns {
    pub policy: Vec<PolicyProblem>,
    /// Why this worker can't be announced.
    pub presence: Option<Trouble>,
}

impl HealthLoop {
    pub async fn run(mut self, stop: CancellationToken) {
        let (mut pings, mut announced, mut warned) = (0_u32, None::<String>, BTreeSet::new());
        let (mut skew, mut is_writable) = (None, false);
        while !stop.is_cancelled() {
            let mut health = self.connection.ping().await;
            let is_connected = health == Health::Connected;
            if is_connected && self.connection.read_clock().await.is_ok() {
                self.report_skew(&mut skew);
            }
            let member = self.member();
            let is_due = pings % ANNOUNCE_EVERY == 0 || !is_writable || announced.as_ref() != Some(&member);
            if is_connected && is_due {
                let stale = announced.clone().filter(|stale| *stale != member);
                let written = announce(&self.connection, &self.prefix, Some(&member), stale.as_deref()).await;
                is_writable = written.is_ok();
                match written {
                    Ok(()) => {
                        self.set_presence(None);
                        announced = Some(member);
                        let _ = self.warn_of_underscored_topics(&mut warned).await;
                    }
                    Err(error) => health = self.unwritable(&error),
                }
            }
            let has_returned = self.set_health(health);
            if is_connected && (has_returned || pings % CHECK_POLICY_EVERY == 0) {
                self.check_policy().await;
            }
            self.worker.retire_metrics();
            pings = pings.wrapping_add(1);
            tokio::select! {
                () = tokio::time::sleep(PING_INTERVAL) => {}
                // Commands that ask which topics have a handler want the new answer.
                Ok(()) = self.routes.changed() => {}
                () = suspicion(&self.connection) => is_writable = false,
                () = stop.cancelled() => {}
            }
        }
        if let Some(stale) = announced {
            let _ = announce(&self.connection, &self.prefix, None, Some(&stale)).await;
        }
    }

    /// What a refused write says of Redis. Where this user may do all but this write,
    /// messages are handled nevertheless.
    fn unwritable(&self, error: &QueueError) -> Health {
        let trouble = Trouble::from(error);
        let is_consumed = || self.worker.topics().values().any(|topic| topic.service() == Service::Consumed);
        if trouble.is_no_permission && is_consumed() {
            self.set_presence(Some(trouble));
            return Health::Connected;
        }
        if error.is_outage() { Health::Away(trouble) } else { Health::Unwritable(trouble) }
    }

    fn set_presence(&self, trouble: Option<Trouble>) {
        let reason = trouble.as_ref().map(|trouble| trouble.text.clone());
        let mut is_news = false;
        self.concerns.send_modify(|concerns| {
            is_news = concerns.presence.is_none() && trouble.is_some();
            concerns.presence = trouble;
        });
        if is_news {
            tracing::warn!(reason, "{}", events::PRESENCE_REFUSED);
        }
    }

    /// Passes the answer on, and logs it where it has changed. Returns whether Redis
    /// serves again.
    fn set_health(&self, health: Health) -> bool {
        let is_connected = health == Health::Connected;
        self.metrics.redis_connected.set(i64::from(is_connected));
        let before = self.health.send_replace(Some(health.clone()));
        let has_changed = before.as_ref().map(std::mem::discriminant) != Some(std::mem::discriminant(&health));
        if has_changed {
            match &health {
                Health::Connected => tracing::info!("{}", events::REDIS_SERVES),
                Health::Away(trouble) => tracing::error!(reason = trouble.text, "{}", events::REDIS_AWAY),
                Health::Unwritable(trouble) => tracing::error!(reason = trouble.text, "{}", events::REDIS_UNWRITABLE),
            }
        }
        // What it can't do is in the log now.
        self.connection.set_away(!is_connected);
        has_changed && is_connected
    }

    /// Logs what is unsuitable about the configuration, where it is new.
    async fn check_policy(&self) {
        let found = check_policy(&self.connection).await;
        let known = self.concerns.borrow().policy.clone();
        for problem in found.iter().filter(|problem| !known.contains(problem)) {
            tracing::warn!("{}: {}", problem.server, problem.text);
        }
        self.concerns.send_modify(|concerns| concerns.policy = found);
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

/// Waits until a command of the worker has failed: whether Redis takes writes is asked
/// at once then.
async fn suspicion(connection: &Connection) {
    connection.suspected().await;
    tokio::time::sleep(PING_INTERVAL_MIN).await;
}
