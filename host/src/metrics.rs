//! The metrics. The handles of a topic are created once, so that counting on the
//! message path is an atomic addition.

mod text_format;

pub use text_format::TextFormat;

use crate::topic::Topic;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The outcomes of a run, as logs and dead letters name them.
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
    "resource-limit",
    "host-call-limit",
    "bad-reply",
    "plugin-unavailable",
    "lease-expired",
];

/// The outcomes of messages that are not run.
pub const UNRUNNABLE: [&str; 6] = ["decode", "too-large", "expired", "duplicate", "poison-message", "entry-deleted"];

/// The reasons of dead letters.
pub const DEAD_REASONS: [&str; 16] = [
    "retry",
    "reject",
    "trap",
    "timeout",
    "cpu-limit",
    "memory-limit",
    "table-limit",
    "resource-limit",
    "host-call-limit",
    "bad-reply",
    "postponed-too-long",
    "decode",
    "too-large",
    "poison-message",
    "body-missing",
    "entry-deleted",
];

/// What is worse than it should be while the worker is ready.
pub const DEGRADED_KINDS: [&str; 7] =
    ["plugins-refused", "topics-paused", "topics-unserved", "clock-skew", "redis-policy", "presence", "prefix-overlap"];

/// The limits that evict dead letters.
pub const EVICTION_REASONS: [&str; 2] = ["age", "bytes"];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TopicLabel {
    topic: TopicName,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    topic: TopicName,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    topic: TopicName,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
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
    closed: ClosedFamilies,
    /// The series of each topic, so that all handles of a topic share them.
    series: Mutex<BTreeMap<Topic, Arc<OnceLock<Series>>>>,
    handler_seconds: Family<TopicLabel, Histogram>,
    admission_wait_seconds: Family<TopicLabel, Histogram>,
    wait_seconds: Family<TopicLabel, Histogram>,
    in_flight: Family<TopicLabel, Gauge>,
    reclaimed: Family<TopicLabel, Counter>,
    leases_lost: Family<TopicLabel, Counter>,
    parked: Family<TopicLabel, Counter>,
    reloads: Family<ResultLabel, Counter>,
    plugins: Family<PluginLabels, Gauge>,
    /// The number of plugins with a quarantined version.
    pub plugins_quarantined: Gauge,
    secret_reads: Family<SecretLabels, Counter>,
    /// 1 while Redis answers and takes writes.
    pub redis_connected: Gauge,
    is_ready: Gauge,
    degraded: Family<KindLabel, Gauge>,
    /// 1 while a worker is seen whose prefix begins this one's.
    pub prefix_overlap: Gauge,
    /// By how many seconds the host's clock is ahead of Redis'.
    pub clock_skew_seconds: Gauge<f64, AtomicU64>,
    /// Lines of the log that were not written.
    pub log_lines_dropped: Counter,
}

/// The counters with a closed set of labels besides the topic.
#[derive(Clone, Default)]
struct ClosedFamilies {
    outcomes: Family<OutcomeLabels, Counter>,
    dead_letters: Family<ReasonLabels, Counter>,
    evicted: Family<ReasonLabels, Counter>,
}

/// The counters of one topic in [`ClosedFamilies`], indexed like the lists of
/// their labels.
struct Series {
    outcomes: [Counter; OUTCOMES.len()],
    unrunnable: [Counter; UNRUNNABLE.len()],
    dead_letters: [Counter; DEAD_REASONS.len()],
    evicted: [Counter; EVICTION_REASONS.len()],
}

impl Series {
    fn new(families: &ClosedFamilies, topic: &TopicName) -> Self {
        let outcome = |outcome| families.outcomes.get_or_create_owned(&OutcomeLabels { topic: topic.clone(), outcome });
        let reason = |family: &Family<ReasonLabels, Counter>, reason| {
            family.get_or_create_owned(&ReasonLabels { topic: topic.clone(), reason })
        };
        Self {
            outcomes: OUTCOMES.map(outcome),
            unrunnable: UNRUNNABLE.map(outcome),
            dead_letters: DEAD_REASONS.map(|name| reason(&families.dead_letters, name)),
            evicted: EVICTION_REASONS.map(|name| reason(&families.evicted, name)),
        }
    }
}

/// The handles of one topic.
#[derive(Clone)]
pub struct TopicMetrics {
    topic: TopicName,
    families: ClosedFamilies,
    /// Created at the topic's first message, all counters at once: a rate needs a
    /// zero before the first increment, but a topic without messages needs no
    /// series.
    series: Arc<OnceLock<Series>>,
    /// Seconds that the handler ran.
    pub handler_seconds: Histogram,
    /// Seconds that a message waited for memory, CPU and call permits.
    pub admission_wait_seconds: Histogram,
    /// Seconds from the creation of the entry to the start of its handler.
    pub wait_seconds: Histogram,
    pub in_flight: Gauge,
    pub reclaimed: Counter,
    pub leases_lost: Counter,
    pub parked: Counter,
}

impl TopicMetrics {
    /// Creates the counters of the topic, if it has none. To be called when a
    /// message arrives; every counting method calls it.
    pub fn touch(&self) {
        self.series();
    }

    fn series(&self) -> &Series {
        self.series.get_or_init(|| Series::new(&self.families, &self.topic))
    }

    /// The counter of an outcome.
    ///
    /// # Panics
    ///
    /// If `outcome` is in neither [`OUTCOMES`] nor [`UNRUNNABLE`].
    pub fn outcome(&self, outcome: &'static str) -> &Counter {
        let series = self.series();
        let ran = index(&OUTCOMES, outcome).map(|index| &series.outcomes[index]);
        ran.or_else(|| index(&UNRUNNABLE, outcome).map(|index| &series.unrunnable[index]))
            .unwrap_or_else(|| panic!("unknown outcome {outcome}"))
    }

    /// Counts a new dead letter. `reason` is one of [`DEAD_REASONS`].
    pub fn dead_letter(&self, reason: &'static str) {
        let index = index(&DEAD_REASONS, reason);
        debug_assert!(index.is_some(), "{reason} is not in DEAD_REASONS");
        index.map(|index| self.series().dead_letters[index].inc());
    }

    /// Counts dead letters that were evicted. `reason` is one of
    /// [`EVICTION_REASONS`].
    pub fn dead_letters_evicted(&self, reason: &'static str, count: u64) {
        let index = index(&EVICTION_REASONS, reason);
        debug_assert!(index.is_some(), "{reason} is not in EVICTION_REASONS");
        index.map(|index| self.series().evicted[index].inc_by(count));
    }

    /// The outcomes that occurred, with their counts.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        let Some(series) = self.series.get() else { return BTreeMap::new() };
        let outcomes = OUTCOMES.into_iter().zip(&series.outcomes);
        let all = outcomes.chain(UNRUNNABLE.into_iter().zip(&series.unrunnable));
        all.map(|(name, counter)| (name, counter.get())).filter(|(_, count)| *count > 0).collect()
    }
}

/// The lists are short, so comparing their names is faster than hashing one.
fn index(names: &[&str], name: &str) -> Option<usize> {
    names.iter().position(|known| *known == name)
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 4.0, 12))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            closed: ClosedFamilies::default(),
            series: Mutex::default(),
            handler_seconds: Family::new_with_constructor(seconds),
            admission_wait_seconds: Family::new_with_constructor(seconds),
            wait_seconds: Family::new_with_constructor(seconds),
            in_flight: Family::default(),
            reclaimed: Family::default(),
            leases_lost: Family::default(),
            parked: Family::default(),
            reloads: Family::default(),
            plugins: Family::default(),
            plugins_quarantined: Gauge::default(),
            secret_reads: Family::default(),
            redis_connected: Gauge::default(),
            is_ready: Gauge::default(),
            degraded: Family::default(),
            prefix_overlap: Gauge::default(),
            clock_skew_seconds: Gauge::default(),
            log_lines_dropped: Counter::default(),
            registry: Registry::with_prefix("gateway"),
        };
        metrics.register_messages();
        metrics.register_worker();
        metrics
    }
}

impl Metrics {
    fn register_messages(&mut self) {
        let registry = &mut self.registry;
        registry.register("messages", "Messages by outcome of the run", self.closed.outcomes.clone());
        registry.register("dead_letters", "New dead letters by reason", self.closed.dead_letters.clone());
        let help = "Dead letters that were evicted, by the limit that they exceeded";
        registry.register("dead_letters_evicted", help, self.closed.evicted.clone());
        for (name, help, family) in [
            ("message_handler", "Run time of the handler", &self.handler_seconds),
            ("message_admission_wait", "Time that a message waited for resources to run", &self.admission_wait_seconds),
            (
                "message_wait",
                "Time from the creation of a stream entry to the start of its handler",
                &self.wait_seconds,
            ),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, family.clone());
        }
        registry.register("messages_in_flight", "Messages fetched and not yet settled", self.in_flight.clone());
        registry.register("messages_reclaimed", "Messages reclaimed from lost workers", self.reclaimed.clone());
        let help = "Messages delayed because another one with the same deduplication key was running";
        registry.register("messages_parked", help, self.parked.clone());
        registry.register("leases_lost", "Messages whose lease expired during the run", self.leases_lost.clone());
    }

    fn register_worker(&mut self) {
        let registry = &mut self.registry;
        registry.register("build", "Version of the worker", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        registry.register("plugin_reloads", "Plugin version load attempts, by result", self.reloads.clone());
        registry.register("plugin_info", "1 for each live version of a plugin", self.plugins.clone());
        let quarantined = self.plugins_quarantined.clone();
        registry.register("plugins_quarantined", "Plugins with a quarantined version", quarantined);
        registry.register("secret_reads", "Reads of secrets by handlers", self.secret_reads.clone());
        registry.register("redis_connected", "1 while Redis answers and takes writes", self.redis_connected.clone());
        registry.register("ready", "1 while /ready answers 200", self.is_ready.clone());
        registry.register("degraded", "1 for what is worse than it should be, by kind", self.degraded.clone());
        let help = "1 while the prefix of another deployment begins this worker's prefix";
        registry.register("prefix_overlap", help, self.prefix_overlap.clone());
        let skew = self.clock_skew_seconds.clone();
        registry.register_with_unit(
            "clock_skew",
            "Time by which the host's clock is ahead of Redis'",
            Unit::Seconds,
            skew,
        );
        let help = "Log lines that were dropped, because stdout was full, closed or not read";
        registry.register("log_lines_dropped", help, self.log_lines_dropped.clone());
    }

    /// The handles of a topic.
    pub fn topic(&self, topic: &Topic) -> TopicMetrics {
        let name = TopicName(topic.clone());
        let label = TopicLabel { topic: name.clone() };
        let series =
            self.series.lock().unwrap_or_else(PoisonError::into_inner).entry(topic.clone()).or_default().clone();
        TopicMetrics {
            families: self.closed.clone(),
            series,
            handler_seconds: self.handler_seconds.get_or_create_owned(&label),
            admission_wait_seconds: self.admission_wait_seconds.get_or_create_owned(&label),
            wait_seconds: self.wait_seconds.get_or_create_owned(&label),
            in_flight: self.in_flight.get_or_create_owned(&label),
            reclaimed: self.reclaimed.get_or_create_owned(&label),
            leases_lost: self.leases_lost.get_or_create_owned(&label),
            parked: self.parked.get_or_create_owned(&label),
            topic: name,
        }
    }

    /// Removes every series of a topic. A later handle begins at zero.
    pub fn retire(&self, topic: &Topic) {
        self.series.lock().unwrap_or_else(PoisonError::into_inner).remove(topic);
        let name = TopicName(topic.clone());
        let label = TopicLabel { topic: name.clone() };
        for histograms in [&self.handler_seconds, &self.admission_wait_seconds, &self.wait_seconds] {
            histograms.remove(&label);
        }
        for counters in [&self.reclaimed, &self.leases_lost, &self.parked] {
            counters.remove(&label);
        }
        self.in_flight.remove(&label);
        for outcome in OUTCOMES.into_iter().chain(UNRUNNABLE) {
            self.closed.outcomes.remove(&OutcomeLabels { topic: name.clone(), outcome });
        }
        let reasons = |family: &Family<ReasonLabels, Counter>, reasons: &[&'static str]| {
            for reason in reasons {
                family.remove(&ReasonLabels { topic: name.clone(), reason });
            }
        };
        reasons(&self.closed.dead_letters, &DEAD_REASONS);
        reasons(&self.closed.evicted, &EVICTION_REASONS);
    }

    /// `result` is `loaded`, `refused`, `removed`, `quarantined`,
    /// `rolled-back`, `restored` or `not-restored`.
    pub fn reload(&self, result: &'static str) {
        self.reloads.get_or_create(&ResultLabel { result }).inc();
    }

    /// Adds or removes the series of a live version.
    pub fn plugin(&self, plugin: &str, digest: &str, is_live: bool) {
        let labels = PluginLabels { plugin: plugin.to_owned(), digest: digest.to_owned() };
        if is_live {
            self.plugins.get_or_create(&labels).set(1);
        } else {
            self.plugins.remove(&labels);
        }
    }

    /// Whether the worker is ready, and which of [`DEGRADED_KINDS`] there are.
    pub fn ready(&self, is_ready: bool, degraded: impl Iterator<Item = &'static str>) {
        self.is_ready.set(i64::from(is_ready));
        let found: Vec<&str> = degraded.collect();
        for kind in DEGRADED_KINDS {
            self.degraded.get_or_create(&KindLabel { kind }).set(i64::from(found.contains(&kind)));
        }
    }

    pub fn secret_read(&self, plugin: &str, secret: &str) {
        let labels = SecretLabels { plugin: plugin.to_owned(), secret: secret.to_owned() };
        self.secret_reads.get_or_create(&labels).inc();
    }

    /// All metrics as text.
    pub fn text(&self, format: TextFormat) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(match format {
            TextFormat::OpenMetrics => text,
            TextFormat::Prometheus => text_format::from_open_metrics(&text),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Outcome;
    use std::time::Duration;

    fn topic(name: &str) -> Topic {
        Topic::parse(name).unwrap()
    }

    #[test]
    fn a_topic_that_is_gone_leaves_no_series() {
        let metrics = Metrics::default();
        let lines = || metrics.text(TextFormat::Prometheus).unwrap();
        let before = lines();
        let (gone, stays) = (metrics.topic(&topic("gone")), metrics.topic(&topic("stays")));
        for used in [&gone, &stays] {
            used.outcome("done").inc();
            used.dead_letter("retry");
            used.in_flight.set(1);
        }
        drop(gone);
        assert!(lines().contains("topic=\"gone\""));
        metrics.retire(&topic("gone"));
        assert!(!lines().contains("topic=\"gone\""));
        assert!(lines().contains("gateway_messages_total{topic=\"stays\",outcome=\"done\"} 1"));
        metrics.retire(&topic("stays"));
        assert_eq!(lines(), before);
        assert_eq!(metrics.topic(&topic("gone")).counts(), BTreeMap::new());
    }

    #[test]
    fn closed_sets_of_labels_exist_from_the_first_message_of_their_topic() {
        let metrics = Metrics::default();
        let (used, _unused) = (metrics.topic(&topic("used")), metrics.topic(&topic("unused")));
        assert_eq!(used.counts(), BTreeMap::new());
        assert!(!metrics.text(TextFormat::Prometheus).unwrap().contains("gateway_messages_total{"));

        used.outcome("done").inc();
        let text = metrics.text(TextFormat::Prometheus).unwrap();
        let lines = |name: &str| text.lines().filter(|line| line.starts_with(name)).collect::<Vec<_>>();
        for (name, label, values) in [
            ("gateway_messages_total{", "outcome", [&OUTCOMES[..], &UNRUNNABLE].concat()),
            ("gateway_dead_letters_total{", "reason", DEAD_REASONS.to_vec()),
            ("gateway_dead_letters_evicted_total{", "reason", EVICTION_REASONS.to_vec()),
        ] {
            let lines = lines(name);
            assert_eq!(lines.len(), values.len(), "{lines:#?}");
            for value in values {
                let count = if value == "done" { 1 } else { 0 };
                let line = format!("{name}topic=\"used\",{label}=\"{value}\"}} {count}");
                assert!(lines.contains(&line.as_str()), "{line}: {lines:#?}");
            }
        }
    }

    #[test]
    fn all_handles_of_a_topic_share_their_counters() {
        let metrics = Metrics::default();
        let (one, other) = (metrics.topic(&topic("t")), metrics.topic(&topic("t")));
        one.outcome("retry").inc();
        one.dead_letter("retry");
        other.outcome("poison-message").inc();
        other.dead_letters_evicted("bytes", 7);
        assert_eq!(one.counts(), BTreeMap::from([("poison-message", 1), ("retry", 1)]));
        let text = metrics.text(TextFormat::Prometheus).unwrap();
        for line in [
            "gateway_dead_letters_total{topic=\"t\",reason=\"retry\"} 1\n",
            "gateway_dead_letters_evicted_total{topic=\"t\",reason=\"age\"} 0\n",
            "gateway_dead_letters_evicted_total{topic=\"t\",reason=\"bytes\"} 7\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[test]
    fn an_arriving_message_creates_the_counters_without_counting() {
        let metrics = Metrics::default();
        metrics.topic(&topic("t")).touch();
        let text = metrics.text(TextFormat::Prometheus).unwrap();
        assert!(text.contains("gateway_messages_total{topic=\"t\",outcome=\"done\"} 0\n"), "{text}");
    }

    #[test]
    fn every_outcome_and_every_reason_for_a_dead_letter_has_a_counter() {
        let reason = String::new();
        let after = None;
        let counting = [
            Outcome::Retry { reason: reason.clone(), after },
            Outcome::Reject { code: String::new(), reason: reason.clone() },
            Outcome::Trap(String::new()),
            Outcome::Timeout(Duration::ZERO),
            Outcome::CpuLimit(Duration::ZERO),
            Outcome::MemoryLimit(1),
            Outcome::TableLimit(1),
            Outcome::ResourceLimit(1),
            Outcome::HostCallLimit(1),
            Outcome::BadReply(String::new()),
        ];
        for outcome in &counting {
            assert!(DEAD_REASONS.contains(&outcome.name()), "{}", outcome.name());
        }
        let others =
            [Outcome::Done(Vec::new()), Outcome::Postpone { reason, after }, Outcome::PluginUnavailable(String::new())];
        for outcome in counting.iter().chain(&others) {
            assert!(OUTCOMES.contains(&outcome.name()), "{}", outcome.name());
        }
    }
}
