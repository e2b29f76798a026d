//! What a plugin may and how it is run: `<name>.toml` beside `<name>.wasm`.
//! Unknown keys are refused, and every error has its line and column.

use crate::schedule::Schedule;
use crate::topic::Topic;
use crate::verdict::{Backoff, RetryPolicy};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

const MIB: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    pub topics: Vec<Topic>,
    /// Messages in flight per topic and worker.
    pub concurrency: usize,
    /// Messages in flight per topic over all workers.
    pub concurrency_total: Option<usize>,
    pub rate: Option<Rate>,
    pub batch: Option<Batch>,
    /// A message that has finished is not run again for so long.
    pub dedup: Option<Duration>,
    pub schedule: Option<Schedule>,
    pub limits: Limits,
    pub retry: RetryPolicy,
    pub grants: Grants,
    pub config: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Wall clock of a run, waiting in host calls included.
    pub timeout: Duration,
    pub cpu: Duration,
    /// Bytes over all memories of an instance.
    pub memory: u64,
    /// Bytes of log a second.
    pub log: u64,
}

/// How many messages of a topic may begin in how long, over all workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub limit: u32,
    pub per: Duration,
}

/// How many messages a batch handler gets at once at the most, and how long
/// the first of them waits for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    pub size: usize,
    pub wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(30), cpu: Duration::from_secs(1), memory: 64 * MIB, log: 64 << 10 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grants {
    /// Topics that it may publish to.
    pub publish: BTreeSet<Topic>,
}

#[derive(Debug, thiserror::Error, PartialEq)]
#[error("{0}")]
pub struct BadManifest(String);

impl Manifest {
    /// What applies without a manifest: the file's stem is the topic, and
    /// nothing is granted.
    pub fn default_for(topic: Topic) -> Self {
        Self {
            topics: vec![topic],
            concurrency: CONCURRENCY,
            concurrency_total: None,
            rate: None,
            batch: None,
            dedup: None,
            schedule: None,
            limits: Limits::default(),
            retry: RetryPolicy::default(),
            grants: Grants::default(),
            config: BTreeMap::new(),
        }
    }

    /// Reads a manifest. `stem` is its file name without `.toml`, which names
    /// the topic where the manifest names none.
    pub fn parse(text: &str, stem: &str) -> Result<Self, BadManifest> {
        let raw: Raw = toml::from_str(text).map_err(|error| BadManifest(error.to_string().trim_end().to_owned()))?;
        let topics = match raw.topics {
            Some(topics) => topics.into_iter().map(|topic| topic.0).collect(),
            None => vec![
                Topic::parse(stem)
                    .map_err(|error| BadManifest(format!("no `topics`, and the file name is none: {error}")))?,
            ],
        };
        if topics.is_empty() {
            return Err(BadManifest("`topics` is empty: name at least one".to_owned()));
        }
        if raw.schedule.is_some() && topics.len() > 1 {
            return Err(BadManifest(format!(
                "`[schedule]` publishes to one topic, and `topics` names {}: give the schedule a plugin with one",
                topics.len()
            )));
        }
        let (limits, retry) = (Limits::default(), RetryPolicy::default());
        let batch =
            raw.batch.map(|RawBatch { size: Count(size), wait: Span(wait) }| Batch { size: size as usize, wait });
        let size = batch.map_or(0, |batch| batch.size);
        // One batch gathers while another runs.
        let concurrency = raw.concurrency.map_or(CONCURRENCY.max(2 * size), |Count(count)| count as usize);
        if concurrency < size {
            let told =
                format!("batch.size = {size} is more than concurrency = {concurrency}: a batch would never fill");
            return Err(BadManifest(told));
        }
        Ok(Self {
            topics,
            concurrency,
            batch,
            concurrency_total: raw.concurrency_total.map(|Count::<CONCURRENCY_TOTAL_MAX>(count)| count as usize),
            rate: raw.rate.map(|RawRate { limit: Count(limit), per: Span(per) }| Rate { limit, per }),
            dedup: raw.dedup.map(|RawDedup { window: Span(window) }| window),
            schedule: raw.schedule,
            limits: Limits {
                timeout: raw.limits.timeout.map_or(limits.timeout, |Span::<1, HOUR>(span)| span),
                cpu: raw.limits.cpu.map_or(limits.cpu, |Span::<1, HOUR>(span)| span),
                memory: raw.limits.memory.map_or(limits.memory, |Bytes::<65_536, { 4096 * MIB }>(bytes)| bytes),
                log: raw.limits.log.map_or(limits.log, |BytesPerSecond(bytes)| bytes),
            },
            retry: RetryPolicy {
                attempts: raw.retry.attempts.map(|Count::<1000>(count)| count),
                backoff: raw.retry.backoff.unwrap_or(retry.backoff),
                base: raw.retry.base.map_or(retry.base, |Span::<1, DAY>(span)| span),
                cap: raw.retry.cap.map_or(retry.cap, |Span::<1, DAY>(span)| span),
            },
            grants: Grants { publish: raw.grants.publish.into_iter().map(|topic| topic.0).collect() },
            config: raw.config,
        })
    }
}

const CONCURRENCY: usize = 64;
const CONCURRENCY_MAX: u32 = 10_000;
const CONCURRENCY_TOTAL_MAX: u32 = 1_000_000;
const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    topics: Option<Vec<RawTopic>>,
    concurrency: Option<Count<CONCURRENCY_MAX>>,
    concurrency_total: Option<Count<CONCURRENCY_TOTAL_MAX>>,
    rate: Option<RawRate>,
    batch: Option<RawBatch>,
    dedup: Option<RawDedup>,
    schedule: Option<Schedule>,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    retry: RawRetry,
    #[serde(default)]
    grants: RawGrants,
    #[serde(default)]
    config: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    timeout: Option<Span<1, HOUR>>,
    cpu: Option<Span<1, HOUR>>,
    memory: Option<Bytes<65_536, { 4096 * MIB }>>,
    log: Option<BytesPerSecond>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawRetry {
    attempts: Option<Count<1000>>,
    backoff: Option<Backoff>,
    base: Option<Span<1, DAY>>,
    cap: Option<Span<1, DAY>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRate {
    limit: Count<1_000_000>,
    per: Span<100, DAY>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBatch {
    size: Count<1000>,
    wait: Span<0, 60_000>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDedup {
    window: Span<1000, { 366 * DAY }>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawGrants {
    #[serde(default)]
    publish: Vec<RawTopic>,
}

// Checked while it is read, so that the error has its line and column.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct RawTopic(Topic);

#[derive(Deserialize)]
#[serde(try_from = "i64")]
struct Count<const MAX: u32>(u32);

/// A time like `30s`, within bounds in milliseconds.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Span<const MIN_MS: u64, const MAX_MS: u64>(Duration);

/// A size like `64MiB`, within bounds in bytes.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Bytes<const MIN: u64, const MAX: u64>(u64);

/// A rate like `64KiB/s`.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct BytesPerSecond(u64);

impl TryFrom<String> for RawTopic {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Topic::parse(&text).map(Self).map_err(|error| error.to_string())
    }
}

impl<const MAX: u32> TryFrom<i64> for Count<MAX> {
    type Error = String;

    fn try_from(count: i64) -> Result<Self, String> {
        within(count, 1..=i64::from(MAX))?;
        u32::try_from(count).map(Self).map_err(|error| error.to_string())
    }
}

impl<const MIN_MS: u64, const MAX_MS: u64> TryFrom<String> for Span<MIN_MS, MAX_MS> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let span = humantime::parse_duration(&text)
            .map_err(|error| format!("\"{text}\": {error}; a time is written like \"500ms\", \"30s\" or \"5m\""))?;
        let shown = |ms| humantime::format_duration(Duration::from_millis(ms)).to_string();
        if (Duration::from_millis(MIN_MS)..=Duration::from_millis(MAX_MS)).contains(&span) {
            Ok(Self(span))
        } else {
            Err(format!("\"{text}\" is out of range: {} to {}", shown(MIN_MS), shown(MAX_MS)))
        }
    }
}

impl<const MIN: u64, const MAX: u64> TryFrom<String> for Bytes<MIN, MAX> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        size(&text, MIN..=MAX).map(Self)
    }
}

impl TryFrom<String> for BytesPerSecond {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bytes = text.strip_suffix("/s").ok_or_else(|| format!("\"{text}\": a rate is written like \"64KiB/s\""))?;
        size(bytes, 1..=1024 * MIB).map(Self)
    }
}

fn size(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let bytes: bytesize::ByteSize =
        text.parse().map_err(|_| format!("\"{text}\": a size is written like \"64MiB\" or \"512KiB\""))?;
    within(bytes.as_u64(), range)?;
    Ok(bytes.as_u64())
}

fn within<T: PartialOrd + fmt::Display>(value: T, range: RangeInclusive<T>) -> Result<(), String> {
    if range.contains(&value) {
        Ok(())
    } else {
        Err(format!("{value} is out of range: {} to {}", range.start(), range.end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Manifest, String> {
        Manifest::parse(text, "order.reminder").map_err(|error| error.to_string())
    }

    #[test]
    fn everything_has_a_default() {
        let topic = Topic::parse("order.reminder").unwrap();
        assert_eq!(parse("").unwrap(), Manifest::default_for(topic));
    }

    #[test]
    fn everything_can_be_said() {
        let manifest = parse(
            r#"
            topics = ["a.b", "c"]
            concurrency = 2
            concurrency_total = 5
            [rate]
            limit = 100
            per = "1s"
            [batch]
            size = 2
            wait = "50ms"
            [dedup]
            window = "24h"
            [limits]
            timeout = "5s"
            cpu = "200ms"
            memory = "1MiB"
            log = "1KiB/s"
            [retry]
            attempts = 7
            backoff = "linear"
            base = "2s"
            cap = "1m"
            [grants]
            publish = ["email.send"]
            [config]
            key = "value"
            "#,
        )
        .unwrap();
        assert_eq!(manifest.topics.iter().map(Topic::as_str).collect::<Vec<_>>(), ["a.b", "c"]);
        assert_eq!((manifest.concurrency, manifest.limits.cpu), (2, Duration::from_millis(200)));
        assert_eq!(manifest.concurrency_total, Some(5));
        assert_eq!(manifest.rate, Some(Rate { limit: 100, per: Duration::from_secs(1) }));
        assert_eq!(manifest.batch, Some(Batch { size: 2, wait: Duration::from_millis(50) }));
        assert_eq!(manifest.dedup, Some(Duration::from_secs(86_400)));
        assert_eq!(
            (manifest.limits.timeout, manifest.limits.memory, manifest.limits.log),
            (Duration::from_secs(5), MIB, 1024)
        );
        assert_eq!((manifest.retry.attempts, manifest.retry.backoff), (Some(7), Backoff::Linear));
        assert_eq!((manifest.retry.base, manifest.retry.cap), (Duration::from_secs(2), Duration::from_secs(60)));
        assert!(manifest.grants.publish.contains(&Topic::parse("email.send").unwrap()));
        assert_eq!(manifest.config["key"], "value");
    }

    #[test]
    fn a_fault_is_told_with_its_place_and_what_is_allowed() {
        for (text, told) in [
            ("[limits]\ncpuu = \"1s\"", &["line 2, column 1", "unknown field `cpuu`", "`cpu`"][..]),
            ("topics = [\"a b\"]", &["line 1, column 10", "illegal topic name"]),
            ("concurrency = 0", &["line 1, column 15", "1 to 10000"]),
            ("concurrency = 10001", &["1 to 10000"]),
            ("[limits]\n\ncpu = \"1x\"", &["line 3, column 7", "500ms"]),
            ("[limits]\ncpu = \"0s\"", &["1ms to 1h"]),
            ("[limits]\ntimeout = \"61m\"", &["1ms to 1h"]),
            ("[rate]\nlimit = 5", &["missing field `per`"]),
            ("[rate]\nlimit = 0\nper = \"1s\"", &["line 2, column 9", "1 to 1000000"]),
            ("[rate]\nlimit = 1\nper = \"99ms\"", &["line 3, column 7", "100ms to 1day"]),
            ("[batch]\nsize = 1001\nwait = \"1ms\"", &["line 2, column 8", "1 to 1000"]),
            ("[batch]\nsize = 9\nwait = \"61s\"", &["line 3, column 8", "0s to 1m"]),
            ("concurrency = 8\n[batch]\nsize = 9\nwait = \"1s\"", &["batch.size = 9 is more than concurrency = 8"]),
            ("[dedup]\nwindow = \"999ms\"", &["1s to"]),
            ("concurrency_total = 0", &["1 to 1000000"]),
            ("[limits]\nmemory = \"64KB\"", &["65536 to"]),
            ("[limits]\nmemory = 64", &["line 2, column 10", "a string"]),
            ("[limits]\nlog = \"64KiB\"", &["64KiB/s"]),
            ("[retry]\nbackoff = \"random\"", &["`exponential`, `linear`", "line 2"]),
            ("[config]\nn = 5", &["line 2, column 5", "a string"]),
            ("topics = []", &["at least one"]),
            ("topics = [", &["line 1"]),
        ] {
            let error = parse(text).unwrap_err();
            for part in told {
                assert!(error.contains(part), "{text:?}: {error}");
            }
        }
    }

    #[test]
    fn a_schedule_wants_one_topic() {
        let with = |topics| parse(&format!("topics = {topics}\n[schedule]\ncron = \"@daily\""));
        assert!(with("[\"a\"]").unwrap().schedule.is_some());
        assert!(with("[\"a\", \"b\"]").unwrap_err().contains("`topics` names 2"));
        assert!(parse("[schedule]\ncron = \"@daily\"").unwrap().schedule.is_some());
        let error = parse("\n[schedule]\ncron = \"0 0 30 2 *\"").unwrap_err();
        assert!(error.contains("line 3, column 8") && error.contains("never fires"), "{error}");
    }

    #[test]
    fn limits_hold_from_both_sides() {
        for (text, is_legal) in [
            ("[limits]\nmemory = \"64KiB\"", true),
            ("[limits]\nmemory = \"65535B\"", false),
            ("[limits]\nmemory = \"4GiB\"", true),
            ("[limits]\nmemory = \"4097MiB\"", false),
            ("[limits]\ntimeout = \"1h\"", true),
            ("[retry]\nattempts = 1000", true),
            ("[retry]\nattempts = 1001", false),
            ("[retry]\nattempts = -1", false),
        ] {
            assert_eq!(parse(text).is_ok(), is_legal, "{text}: {:?}", parse(text));
        }
    }
}
