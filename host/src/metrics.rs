//! What is counted. The handles of a topic are looked up once, so counting on
//! the message path is an atomic addition.

use crate::topic::Topic;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// The outcomes of a run, in the words of logs and dead letters.
pub const OUTCOMES: [&str; 14] = [
    "done",
    "retry",
    "postpone",
    "reject",
    "trap",
    "timeout",
    "cpu-limit",
    "memory-limit",
    "table-limit",
    "handle-limit",
    "host-call-limit",
    "bad-reply",
    "plugin-unavailable",
    "worker-lost",
];

/// What keeps a message from being run.
pub const UNRUNNABLE: [&str; 5] = ["decode", "too-large", "expired", "duplicate", "crash-loop"];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TopicLabel {
    topic: TopicName,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    topic: TopicName,
    outcome: Cow<'static, str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    topic: TopicName,
    reason: Cow<'static, str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PluginLabels {
    plugin: String,
    digest: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SecretLabels {
    plugin: String,
    secret: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct TopicName(Topic);

impl EncodeLabelValue for TopicName {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.0.as_str().encode(encoder)
    }
}

pub struct Metrics {
    registry: Registry,
    messages: Family<OutcomeLabels, Counter>,
    dead_letters: Family<ReasonLabels, Counter>,
    dead_dropped: Family<TopicLabel, Counter>,
    processing: Family<TopicLabel, Histogram>,
    queue_time: Family<TopicLabel, Histogram>,
    in_flight: Family<TopicLabel, Gauge>,
    taken_over: Family<TopicLabel, Counter>,
    leases_lost: Family<TopicLabel, Counter>,
    reloads: Family<ResultLabel, Counter>,
    plugins: Family<PluginLabels, Gauge>,
    /// Plugins of which a version is in quarantine.
    pub plugins_quarantined: Gauge,
    secret_reads: Family<SecretLabels, Counter>,
    pub redis_connected: Gauge,
}

/// The handles of one topic.
#[derive(Clone)]
pub struct TopicMetrics {
    outcomes: BTreeMap<&'static str, Counter>,
    dead_letters: Family<ReasonLabels, Counter>,
    topic: TopicName,
    /// Seconds in the handler.
    pub processing: Histogram,
    /// Seconds from the entry's birth to the start of its handler.
    pub queue_time: Histogram,
    pub in_flight: Gauge,
    pub taken_over: Counter,
    pub leases_lost: Counter,
    /// Dead letters that were over the caps.
    pub dead_dropped: Counter,
}

impl TopicMetrics {
    /// `outcome` is one of [`OUTCOMES`] or [`UNRUNNABLE`].
    pub fn outcome(&self, outcome: &'static str) -> &Counter {
        &self.outcomes[outcome]
    }

    pub fn dead_letter(&self, reason: &'static str) {
        let labels = ReasonLabels { topic: self.topic.clone(), reason: Cow::Borrowed(reason) };
        self.dead_letters.get_or_create(&labels).inc();
    }

    /// How often each outcome was counted, the ones that never were left out.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.outcomes.iter().map(|(name, counter)| (*name, counter.get())).filter(|(_, count)| *count > 0).collect()
    }
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 4.0, 12))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("gateway");
        let metrics = Self {
            messages: Family::default(),
            dead_letters: Family::default(),
            dead_dropped: Family::default(),
            processing: Family::new_with_constructor(seconds),
            queue_time: Family::new_with_constructor(seconds),
            in_flight: Family::default(),
            taken_over: Family::default(),
            leases_lost: Family::default(),
            reloads: Family::default(),
            plugins: Family::default(),
            plugins_quarantined: Gauge::default(),
            secret_reads: Family::default(),
            redis_connected: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register("build", "The version that runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        registry.register("messages", "Runs of messages by outcome", metrics.messages.clone());
        registry.register("dead_letters", "Messages dead-lettered by reason", metrics.dead_letters.clone());
        let dropped = metrics.dead_dropped.clone();
        registry.register("dead_letters_dropped", "Dead letters dropped by age or bytes", dropped);
        registry.register_with_unit(
            "message_processing",
            "Time in the handler, with the wait for room to run",
            Unit::Seconds,
            metrics.processing.clone(),
        );
        registry.register_with_unit(
            "message_queue_time",
            "Time from the birth of a stream entry to the start of its handler",
            Unit::Seconds,
            metrics.queue_time.clone(),
        );
        registry.register("messages_in_flight", "Messages taken and not settled", metrics.in_flight.clone());
        registry.register("messages_taken_over", "Messages taken over from lost workers", metrics.taken_over.clone());
        registry.register("leases_lost", "Messages whose lease was lost while they ran", metrics.leases_lost.clone());
        registry.register("plugin_reloads", "What became of versions of plugins, by result", metrics.reloads.clone());
        registry.register("plugin_info", "1 for each version that is live", metrics.plugins.clone());
        let quarantined = metrics.plugins_quarantined.clone();
        registry.register("plugins_quarantined", "Plugins of which a version is in quarantine", quarantined);
        registry.register("secret_reads", "Secrets read by handlers", metrics.secret_reads.clone());
        registry.register("redis_connected", "1 while Redis answers", metrics.redis_connected.clone());
        Self { registry, ..metrics }
    }
}

impl Metrics {
    pub fn topic(&self, topic: &Topic) -> TopicMetrics {
        let name = TopicName(topic.clone());
        let label = TopicLabel { topic: name.clone() };
        let counter = |outcome: &&'static str| {
            let labels = OutcomeLabels { topic: name.clone(), outcome: Cow::Borrowed(*outcome) };
            (*outcome, self.messages.get_or_create_owned(&labels))
        };
        TopicMetrics {
            outcomes: OUTCOMES.iter().chain(&UNRUNNABLE).map(counter).collect(),
            dead_letters: self.dead_letters.clone(),
            processing: self.processing.get_or_create_owned(&label),
            queue_time: self.queue_time.get_or_create_owned(&label),
            in_flight: self.in_flight.get_or_create_owned(&label),
            taken_over: self.taken_over.get_or_create_owned(&label),
            leases_lost: self.leases_lost.get_or_create_owned(&label),
            dead_dropped: self.dead_dropped.get_or_create_owned(&label),
            topic: name,
        }
    }

    /// `result` is `loaded`, `refused`, `removed`, `quarantined`,
    /// `rolled-back`, `restored` or `not-restored`.
    pub fn reload(&self, result: &'static str) {
        self.reloads.get_or_create(&ResultLabel { result }).inc();
    }

    /// Shows a version as live, or no longer.
    pub fn plugin(&self, plugin: &str, digest: &str, is_live: bool) {
        let labels = PluginLabels { plugin: plugin.to_owned(), digest: digest.to_owned() };
        if is_live {
            self.plugins.get_or_create(&labels).set(1);
        } else {
            self.plugins.remove(&labels);
        }
    }

    pub fn secret_read(&self, plugin: &str, secret: &str) {
        let labels = SecretLabels { plugin: plugin.to_owned(), secret: secret.to_owned() };
        self.secret_reads.get_or_create(&labels).inc();
    }

    /// All of it as OpenMetrics text.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
