//! Parses a manifest, and collects all faults.

use super::headers::Header;
use super::section::{Faults, Located, Section};
use super::value::{
    AbsolutePath, Bytes, BytesPerSecond, Count, DAY, GIB, HOUR, KIB, MIB, Publishable, RawTopic, SecretName, Span,
};
use super::{
    Batch, CONCURRENCY, CatchAll, Grants, Instances, InvalidManifest, Limits, Manifest, Origin, Rate, topic_from_stem,
};
use crate::schedule::Schedule;
use crate::text::span;
use crate::topic::Topic;
use crate::verdict::RetryPolicy;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;

const ARGS_MAX: usize = 100;
const ARGS_BYTES_MAX: usize = 64 << 10;

impl Manifest {
    /// Parses a manifest. Without `topics`, `stem`, its file name without `.toml`,
    /// names the topic.
    pub fn parse(text: &str, stem: &str) -> Result<Self, InvalidManifest> {
        let (mut faults, mut root) = Faults::parse(text);
        let manifest = manifest(&mut root, stem, &mut faults);
        root.finish(&mut faults);
        let found = faults.into_found();
        if found.is_empty() { Ok(manifest) } else { Err(InvalidManifest(found)) }
    }
}

/// The manifest as far as it can be parsed.
fn manifest<'t>(root: &mut Section<'t>, stem: &str, faults: &mut Faults<'t>) -> Manifest {
    let (topics, catch_all, topics_at) = topics(root, stem, faults);
    let batch = batch(root, faults);
    let size = batch.map_or(0, |batch| batch.size);
    let concurrency = root.take_located::<Count<10_000>>("concurrency", faults);
    if let Some(Located { value: Count(count), span }) = &concurrency
        && (*count as usize) < size
    {
        faults.add(
            span.clone(),
            format!("batch.size = {size} is more than concurrency = {count}: a batch would never fill"),
        );
    }
    let total = root.take_located::<Count<1_000_000>>("global_concurrency", faults);
    if let Some(Located { value: Count(total), span }) = &total
        && (*total as usize) < size
    {
        let message =
            format!("batch.size = {size} is more than global_concurrency = {total}: a batch would never fill");
        faults.add(span.clone(), message);
    }
    let rate = rate(root, batch, faults);
    let schedule = schedule(root, faults);
    if schedule.is_some() && topics.len() != 1 {
        faults.add(
            topics_at,
            format!(
                "`[schedule]` publishes to one topic, and `topics` names {}: give the schedule a plugin with one",
                if catch_all.is_some() { "all".to_owned() } else { topics.len().to_string() }
            ),
        );
    }
    let instances = instances(root, faults);
    let grants = grants(root, faults);
    let http_headers = http_headers(root, &grants.http, faults);
    Manifest {
        topics,
        catch_all,
        // One batch is collected while another runs.
        concurrency: concurrency.map_or(CONCURRENCY.max(2 * size), |located| located.value.0 as usize),
        global_concurrency: total.map(|located| located.value.0 as usize),
        instances,
        args: args(root, faults),
        rate,
        batch,
        dedup: section(root, "dedup", faults, |section, faults| {
            section.require("window", faults).map(|Span::<1000, { 366 * DAY }>(window)| window)
        }),
        schedule,
        limits: limits(root, faults),
        retry: retry(root, faults),
        grants,
        config: config(root, faults),
        http_headers,
    }
}

/// Reads an optional table, and reports its unknown keys.
fn section<'t, T>(
    root: &mut Section<'t>,
    key: &'static str,
    faults: &mut Faults<'t>,
    read: impl FnOnce(&mut Section<'t>, &mut Faults<'t>) -> Option<T>,
) -> Option<T> {
    let mut section = root.section(key, faults)?;
    let value = read(&mut section, faults);
    section.finish(faults);
    value
}

/// The topics, or which ones a catch-all handles, and where `topics` is.
fn topics<'t>(
    root: &mut Section<'t>,
    stem: &str,
    faults: &mut Faults<'t>,
) -> (Vec<Topic>, Option<CatchAll>, Range<usize>) {
    let Some(Located { value: listed, span }) = root.list::<RawTopic>("topics", faults) else {
        let topic = topic_from_stem(stem);
        if let Err(error) = &topic {
            faults.add(
                0..0,
                format!("no `topics`, and the file name is not a topic: {error}; name the topic in `topics`"),
            );
        }
        return (topic.into_iter().collect(), None, 0..0);
    };
    let (mut topics, mut any, mut any_with_colon) = (Vec::new(), false, false);
    let is_empty = listed.is_empty();
    for Located { value, span } in listed {
        let is_repeated = match &value {
            RawTopic::Any => std::mem::replace(&mut any, true),
            RawTopic::AnyWithColon => std::mem::replace(&mut any_with_colon, true),
            RawTopic::Named(topic) => topics.contains(topic),
        };
        match value {
            _ if is_repeated => faults.add(span, format!("{value} is named twice")),
            RawTopic::Named(topic) => topics.push(topic),
            RawTopic::Any | RawTopic::AnyWithColon => {}
        }
    }
    match (any, any_with_colon) {
        (false, false) if is_empty => faults.add(span.clone(), "`topics` is empty: name at least one topic"),
        (false, true) => faults.add(span.clone(), "\"*:*\" needs \"*\": write topics = [\"*\", \"*:*\"]"),
        (true, _) if !topics.is_empty() => {
            faults.add(
                span.clone(),
                "\"*\" can't be mixed with topics: it takes every topic that no other plugin claims",
            );
        }
        _ => {}
    }
    let catch_all = any.then_some(CatchAll { with_colons: any_with_colon });
    (topics, catch_all, span)
}

fn batch<'t>(root: &mut Section<'t>, faults: &mut Faults<'t>) -> Option<Batch> {
    section(root, "batch", faults, |section, faults| {
        let size = section.require("size", faults).map(|Count::<1000>(size)| size as usize);
        let wait = section.require("wait", faults).map(|Span::<0, 60_000>(wait)| wait);
        Some(Batch { size: size?, wait: wait? })
    })
}

fn schedule<'t>(root: &mut Section<'t>, faults: &mut Faults<'t>) -> Option<Schedule> {
    section(root, "schedule", faults, |section, faults| {
        let expression = section.require("cron", faults);
        let (zone, data) = (section.take("timezone", faults), section.take("data", faults));
        let catch_up = section.take("catch_up", faults).unwrap_or_default();
        Some(Schedule::new(expression?, zone, data, catch_up))
    })
}

fn rate<'t>(root: &mut Section<'t>, batch: Option<Batch>, faults: &mut Faults<'t>) -> Option<Rate> {
    section(root, "rate", faults, |section, faults| {
        let limit = section.require_located::<Count<1_000_000>>("limit", faults);
        let per = section.require("per", faults).map(|Span::<100, DAY>(per)| per);
        let (Located { value: Count(limit), span }, per) = limit.zip(per)?;
        if let Some(Batch { size, wait }) = batch {
            // At most this many rate windows start while the first message waits.
            let windows = wait.as_millis() / per.as_millis().max(1) + 1;
            if size as u128 > u128::from(limit) * windows {
                faults.add(
                    span,
                    format!(
                        "batch.size = {size} is more than rate.limit = {limit} lets start within batch.wait: \
                         a batch would never fill"
                    ),
                );
            }
        }
        Some(Rate { limit, per })
    })
}

/// `"per-message"`, or `{ max_calls = 1000, idle_timeout = "30s" }`.
fn instances<'t>(root: &mut Section<'t>, faults: &mut Faults<'t>) -> Instances {
    if !root.is_table("instances") {
        if let Some(Located { value, span }) = root.take_located::<String>("instances", faults)
            && value != "per-message"
        {
            let message =
                "`instances` is \"per-message\", or a table like { max_calls = 1000, idle_timeout = \"30s\" }";
            faults.add(span, message);
        }
        return Instances::PerMessage;
    }
    let reused = section(root, "instances", faults, |section, faults| {
        let max_calls = section.require("max_calls", faults).map(|Count::<1_000_000>(calls)| calls);
        let idle_timeout = section.take("idle_timeout", faults).map_or(IDLE_TIMEOUT, |Span::<100, HOUR>(span)| span);
        Some(Instances::Reused { max_calls: max_calls?, idle_timeout })
    });
    reused.unwrap_or_default()
}

const IDLE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

fn args<'t>(root: &mut Section<'t>, faults: &mut Faults<'t>) -> Vec<String> {
    let Some(Located { value, span }) = root.list::<String>("args", faults) else { return Vec::new() };
    let args: Vec<String> = value.into_iter().map(|arg| arg.value).collect();
    if args.len() > ARGS_MAX || args.iter().map(String::len).sum::<usize>() > ARGS_BYTES_MAX {
        faults.add(span.clone(), format!("`args` has more than {ARGS_MAX} arguments or {ARGS_BYTES_MAX} bytes"));
    }
    if args.iter().any(|arg| arg.contains('\0')) {
        faults.add(span, "an argument in `args` has a zero byte");
    }
    args
}

fn limits<'t>(root: &mut Section<'t>, faults: &mut Faults<'t>) -> Limits {
    let default = Limits::default();
    let limits = section(root, "limits", faults, |section, faults| {
        let default = &default;
        Some(Limits {
            timeout: section.take("timeout", faults).map_or(default.timeout, |Span::<1, HOUR>(span)| span),
            cpu: section.take("cpu", faults).map_or(default.cpu, |Span::<1, HOUR>(span)| span),
            memory: section
                .take("memory", faults)
                .map_or(default.memory, |Bytes::<{ 64 * KIB }, { 4 * GIB }>(bytes)| bytes),
            table_elements: section
                .take("table_elements", faults)
                .map_or(default.table_elements, |Count::<100_000>(count)| count),
            resources: section.take("resources", faults).map_or(default.resources, |Count::<100_000>(count)| count),
            host_call_bytes: section
                .take("host_call_bytes", faults)
                .map_or(default.host_call_bytes, |Bytes::<KIB, { 256 * MIB }>(bytes)| bytes),
            log: section.take("log", faults).map_or(default.log, |BytesPerSecond(bytes)| bytes),
            http_body: section.take("http_body", faults).map_or(default.http_body, |Bytes::<0, GIB>(bytes)| bytes),
            http_requests: section
                .take("http_requests", faults)
                .map_or(default.http_requests, |Count::<1000>(count)| count),
            keyvalue: section
                .take("keyvalue", faults)
                .map_or(default.keyvalue, |Bytes::<KIB, { 64 * GIB }>(bytes)| bytes),
            keyvalue_keys: section
                .take("keyvalue_keys", faults)
                .map_or(default.keyvalue_keys, |Count::<100_000_000>(count)| count.into()),
        })
    });
    limits.unwrap_or(default)
}

fn retry<'t>(root: &mut Section<'t>, faults: &mut Faults<'t>) -> RetryPolicy {
    let default = RetryPolicy::default();
    let retry = section(root, "retry", faults, |section, faults| {
        let base = section.take_located::<Span<1, DAY>>("base", faults);
        let cap = section.take_located::<Span<1, DAY>>("cap", faults);
        let at = base.as_ref().map(|located| located.span.clone());
        let policy = RetryPolicy {
            attempts: section.take("attempts", faults).map(|Count::<1000>(count)| count),
            backoff: section.take("backoff", faults).unwrap_or(default.backoff),
            base: base.map_or(default.base, |located| located.value.0),
            cap: cap.map_or(default.cap, |located| located.value.0),
        };
        if let Some(at) = at.filter(|_| policy.base > policy.cap) {
            let (base, cap) = (span(policy.base), span(policy.cap));
            faults.add(at, format!("retry.base = {base} is more than retry.cap = {cap}: every delay would be the cap"));
        }
        Some(policy)
    });
    retry.unwrap_or(default)
}

fn grants<'t>(root: &mut Section<'t>, faults: &mut Faults<'t>) -> Grants {
    fn set<T>(list: Option<Located<Vec<Located<T>>>>) -> impl Iterator<Item = T> {
        list.into_iter().flat_map(|list| list.value).map(|item| item.value)
    }
    let grants = section(root, "grants", faults, |section, faults| {
        Some(Grants {
            http: set(section.list::<Origin>("http", faults)).collect(),
            private_networks: private_networks(section, faults),
            publish: set(section.list::<Publishable>("publish", faults)).map(|topic| topic.0).collect(),
            mail: section.take("mail", faults).unwrap_or_default(),
            keyvalue: section.take("keyvalue", faults).unwrap_or_default(),
            secrets: set(section.list::<SecretName>("secrets", faults)).collect(),
            read: directories(section, "read", faults),
            write: directories(section, "write", faults),
        })
    });
    grants.unwrap_or_default()
}

fn private_networks<'t>(section: &mut Section<'t>, faults: &mut Faults<'t>) -> Vec<IpNet> {
    let listed = section.list::<String>("private_networks", faults);
    let mut networks = Vec::new();
    for Located { value, span } in listed.into_iter().flat_map(|list| list.value) {
        match value.parse::<IpNet>() {
            Ok(network) => networks.push(network),
            Err(_) => {
                faults.add(span, format!("\"{value}\": a network is written like \"10.0.0.0/8\" or \"fd00::/8\""))
            }
        }
    }
    networks
}

fn directories<'t>(
    section: &mut Section<'t>,
    key: &'static str,
    faults: &mut Faults<'t>,
) -> BTreeMap<PathBuf, PathBuf> {
    let mut mounts = BTreeMap::new();
    for (guest, host) in section.pairs::<AbsolutePath>(key, faults) {
        match AbsolutePath::try_from(guest.value) {
            Ok(guest) => drop(mounts.insert(guest.0, host.value.0)),
            Err(error) => faults.add(guest.span, error),
        }
    }
    mounts
}

fn config<'t>(root: &mut Section<'t>, faults: &mut Faults<'t>) -> BTreeMap<String, String> {
    let Some(section) = root.section("config", faults) else { return BTreeMap::new() };
    section.into_texts(faults).into_iter().map(|(key, value)| (key.value, value.value)).collect()
}

fn http_headers<'t>(
    root: &mut Section<'t>,
    granted: &BTreeSet<Origin>,
    faults: &mut Faults<'t>,
) -> BTreeMap<Origin, Vec<Header>> {
    let mut by_origin = BTreeMap::new();
    for (origin, section) in root.sections("http_headers", faults) {
        let headers = section.into_texts(faults).into_iter().filter_map(|(name, value)| {
            Header::parse(&name.value, &value.value).map_err(|error| faults.add(value.span, error)).ok()
        });
        let headers: Vec<Header> = headers.collect();
        match Origin::parse(&origin.value) {
            Ok(parsed) if granted.contains(&parsed) => drop(by_origin.insert(parsed, headers)),
            Ok(parsed) => faults.add(origin.span, format!("{parsed} is not granted: add it to grants.http")),
            Err(error) => faults.add(origin.span, error),
        }
    }
    by_origin
}
