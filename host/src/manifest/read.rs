//! From text to a manifest, with every fault on the way.

use super::headers::Header;
use super::text::{Faults, Placed, Section};
use super::value::{
    AbsolutePath, Bytes, BytesPerSecond, Count, DAY, GIB, HOUR, KIB, MIB, Publishable, RawTopic, SecretName, Span,
};
use super::{BadManifest, Batch, CONCURRENCY, Grants, Instances, Limits, Manifest, Origin, Rate};
use crate::schedule::Schedule;
use crate::topic::Topic;
use crate::verdict::RetryPolicy;
use humantime::format_duration;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;

const ARGS_MAX: usize = 100;
const ARGS_BYTES_MAX: usize = 64 << 10;

impl Manifest {
    /// Reads a manifest. `stem` is its file name without `.toml`, which names
    /// the topic where the manifest names none.
    pub fn parse(text: &str, stem: &str) -> Result<Self, BadManifest> {
        let (mut faults, mut all) = Faults::read(text);
        let manifest = manifest(&mut all, stem, &mut faults);
        all.end(&mut faults);
        let found = faults.into_found();
        if found.is_empty() { Ok(manifest) } else { Err(BadManifest(found)) }
    }
}

/// The manifest as far as it can be read.
fn manifest<'t>(all: &mut Section<'t>, stem: &str, faults: &mut Faults<'t>) -> Manifest {
    let (topics, topics_at) = topics(all, stem, faults);
    let batch = batch(all, faults);
    let size = batch.map_or(0, |batch| batch.size);
    let concurrency = all.take_placed::<Count<10_000>>("concurrency", faults);
    if let Some(Placed { value: Count(count), span }) = &concurrency
        && (*count as usize) < size
    {
        faults.add(
            span.clone(),
            format!("batch.size = {size} is more than concurrency = {count}: a batch would never fill"),
        );
    }
    let total = all.take_placed::<Count<1_000_000>>("concurrency_total", faults);
    if let Some(Placed { value: Count(total), span }) = &total
        && (*total as usize) < size
    {
        let told = format!("batch.size = {size} is more than concurrency_total = {total}: a batch would never fill");
        faults.add(span.clone(), told);
    }
    let rate = rate(all, batch, faults);
    let schedule = schedule(all, faults);
    if schedule.is_some() && topics.len() != 1 {
        faults.add(
            topics_at,
            format!(
                "`[schedule]` publishes to one topic, and `topics` names {}: give the schedule a plugin with one",
                if topics.is_empty() { "all".to_owned() } else { topics.len().to_string() }
            ),
        );
    }
    let instances = instances(all, faults);
    let grants = grants(all, faults);
    let http_headers = http_headers(all, &grants.http, faults);
    Manifest {
        topics,
        // One batch gathers while another runs.
        concurrency: concurrency.map_or(CONCURRENCY.max(2 * size), |placed| placed.value.0 as usize),
        concurrency_total: total.map(|placed| placed.value.0 as usize),
        instances,
        args: args(all, faults),
        rate,
        batch,
        dedup: section(all, "dedup", faults, |section, faults| {
            section.need("window", faults).map(|Span::<1000, { 366 * DAY }>(window)| window)
        }),
        schedule,
        limits: limits(all, faults),
        retry: retry(all, faults),
        grants,
        config: config(all, faults),
        http_headers,
    }
}

/// Reads a table that may be missing, and tells what is left in it.
fn section<'t, T>(
    all: &mut Section<'t>,
    key: &'static str,
    faults: &mut Faults<'t>,
    read: impl FnOnce(&mut Section<'t>, &mut Faults<'t>) -> Option<T>,
) -> Option<T> {
    let mut section = all.section(key, faults)?;
    let value = read(&mut section, faults);
    section.end(faults);
    value
}

fn topics<'t>(all: &mut Section<'t>, stem: &str, faults: &mut Faults<'t>) -> (Vec<Topic>, Range<usize>) {
    let Some(Placed { value: listed, span }) = all.list::<RawTopic>("topics", faults) else {
        let topic = Topic::from_file_name(stem);
        if let Err(error) = &topic {
            faults.add(0..0, format!("no `topics`, and the file name is none: {error}"));
        }
        return (topic.into_iter().collect(), 0..0);
    };
    let takes_any = listed.iter().any(|topic| matches!(topic.value, RawTopic::Any));
    if listed.is_empty() {
        faults.add(span.clone(), "`topics` names none: name at least one");
    } else if takes_any && listed.len() > 1 {
        faults.add(span.clone(), "\"*\" stands alone: it takes every topic that no other plugin claims");
    }
    let mut topics = Vec::new();
    for Placed { value, span } in listed {
        match value {
            RawTopic::Any => {}
            RawTopic::Named(topic) if topics.contains(&topic) => faults.add(span, format!("{topic} is named twice")),
            RawTopic::Named(topic) => topics.push(topic),
        }
    }
    (if takes_any { Vec::new() } else { topics }, span)
}

fn batch<'t>(all: &mut Section<'t>, faults: &mut Faults<'t>) -> Option<Batch> {
    section(all, "batch", faults, |section, faults| {
        let size = section.need("size", faults).map(|Count::<1000>(size)| size as usize);
        let wait = section.need("wait", faults).map(|Span::<0, 60_000>(wait)| wait);
        Some(Batch { size: size?, wait: wait? })
    })
}

fn schedule<'t>(all: &mut Section<'t>, faults: &mut Faults<'t>) -> Option<Schedule> {
    section(all, "schedule", faults, |section, faults| {
        let expression = section.need("cron", faults);
        let (zone, data) = (section.take("timezone", faults), section.take("data", faults));
        let catch_up = section.take("catch_up", faults).unwrap_or_default();
        Some(Schedule::new(expression?, zone, data, catch_up))
    })
}

fn rate<'t>(all: &mut Section<'t>, batch: Option<Batch>, faults: &mut Faults<'t>) -> Option<Rate> {
    section(all, "rate", faults, |section, faults| {
        let limit = section.need_placed::<Count<1_000_000>>("limit", faults);
        let per = section.need("per", faults).map(|Span::<100, DAY>(per)| per);
        let (Placed { value: Count(limit), span }, per) = limit.zip(per)?;
        if let Some(Batch { size, wait }) = batch {
            // While the first one waits, so many spans begin at the most.
            let spans = wait.as_millis() / per.as_millis().max(1) + 1;
            if size as u128 > u128::from(limit) * spans {
                let told = "a batch would never fill while the first message waits for the others";
                faults.add(span, format!("batch.size = {size} is more than rate.limit = {limit} lets begin: {told}"));
            }
        }
        Some(Rate { limit, per })
    })
}

/// `"per-message"`, or `{ reuse = 1000, idle = "30s" }`.
fn instances<'t>(all: &mut Section<'t>, faults: &mut Faults<'t>) -> Instances {
    if !all.is_table("instances") {
        if let Some(Placed { value, span }) = all.take_placed::<String>("instances", faults)
            && value != "per-message"
        {
            let told = "`instances` is \"per-message\", or a table like { reuse = 1000, idle = \"30s\" }";
            faults.add(span, told);
        }
        return Instances::PerMessage;
    }
    let reused = section(all, "instances", faults, |section, faults| {
        let calls = section.need("reuse", faults).map(|Count::<1_000_000>(calls)| calls);
        let idle = section.take("idle", faults).map_or(REUSE_IDLE, |Span::<100, HOUR>(idle)| idle);
        Some(Instances::Reused { calls: calls?, idle })
    });
    reused.unwrap_or_default()
}

const REUSE_IDLE: std::time::Duration = std::time::Duration::from_secs(30);

fn args<'t>(all: &mut Section<'t>, faults: &mut Faults<'t>) -> Vec<String> {
    let Some(Placed { value, span }) = all.list::<String>("args", faults) else { return Vec::new() };
    let args: Vec<String> = value.into_iter().map(|arg| arg.value).collect();
    if args.len() > ARGS_MAX || args.iter().map(String::len).sum::<usize>() > ARGS_BYTES_MAX {
        faults.add(span.clone(), format!("`args` has more than {ARGS_MAX} words or {ARGS_BYTES_MAX} bytes"));
    }
    if args.iter().any(|arg| arg.contains('\0')) {
        faults.add(span, "a word of `args` has a zero byte");
    }
    args
}

fn limits<'t>(all: &mut Section<'t>, faults: &mut Faults<'t>) -> Limits {
    let or = Limits::default();
    let limits = section(all, "limits", faults, |section, faults| {
        let or = &or;
        Some(Limits {
            timeout: section.take("timeout", faults).map_or(or.timeout, |Span::<1, HOUR>(span)| span),
            cpu: section.take("cpu", faults).map_or(or.cpu, |Span::<1, HOUR>(span)| span),
            memory: section.take("memory", faults).map_or(or.memory, |Bytes::<{ 64 * KIB }, { 4 * GIB }>(bytes)| bytes),
            table_elements: section
                .take("table_elements", faults)
                .map_or(or.table_elements, |Count::<100_000>(count)| count),
            handles: section.take("handles", faults).map_or(or.handles, |Count::<100_000>(count)| count),
            host_call: section
                .take("host_call", faults)
                .map_or(or.host_call, |Bytes::<KIB, { 256 * MIB }>(bytes)| bytes),
            log: section.take("log", faults).map_or(or.log, |BytesPerSecond(bytes)| bytes),
            http_body: section.take("http_body", faults).map_or(or.http_body, |Bytes::<0, GIB>(bytes)| bytes),
            http_requests: section.take("http_requests", faults).map_or(or.http_requests, |Count::<1000>(count)| count),
            keyvalue: section.take("keyvalue", faults).map_or(or.keyvalue, |Bytes::<KIB, { 64 * GIB }>(bytes)| bytes),
            keyvalue_keys: section
                .take("keyvalue_keys", faults)
                .map_or(or.keyvalue_keys, |Count::<100_000_000>(count)| count.into()),
        })
    });
    limits.unwrap_or(or)
}

fn retry<'t>(all: &mut Section<'t>, faults: &mut Faults<'t>) -> RetryPolicy {
    let or = RetryPolicy::default();
    let retry = section(all, "retry", faults, |section, faults| {
        let base = section.take_placed::<Span<1, DAY>>("base", faults);
        let cap = section.take_placed::<Span<1, DAY>>("cap", faults);
        let at = base.as_ref().map(|placed| placed.span.clone());
        let policy = RetryPolicy {
            attempts: section.take("attempts", faults).map(|Count::<1000>(count)| count),
            backoff: section.take("backoff", faults).unwrap_or(or.backoff),
            base: base.map_or(or.base, |placed| placed.value.0),
            cap: cap.map_or(or.cap, |placed| placed.value.0),
        };
        if let Some(at) = at.filter(|_| policy.base > policy.cap) {
            let (base, cap) = (format_duration(policy.base), format_duration(policy.cap));
            faults.add(at, format!("retry.base = {base} is more than retry.cap = {cap}: every pause would be the cap"));
        }
        Some(policy)
    });
    retry.unwrap_or(or)
}

fn grants<'t>(all: &mut Section<'t>, faults: &mut Faults<'t>) -> Grants {
    fn set<T>(list: Option<Placed<Vec<Placed<T>>>>) -> impl Iterator<Item = T> {
        list.into_iter().flat_map(|list| list.value).map(|item| item.value)
    }
    let grants = section(all, "grants", faults, |section, faults| {
        Some(Grants {
            http: set(section.list::<Origin>("http", faults)).collect(),
            networks: networks(section, faults),
            publish: set(section.list::<Publishable>("publish", faults)).map(|topic| topic.0).collect(),
            mail: section.take("mail", faults).unwrap_or_default(),
            keyvalue: section.take("keyvalue", faults).unwrap_or_default(),
            secrets: set(section.list::<SecretName>("secrets", faults)).collect(),
            read: folders(section, "read", faults),
            write: folders(section, "write", faults),
        })
    });
    grants.unwrap_or_default()
}

fn networks<'t>(section: &mut Section<'t>, faults: &mut Faults<'t>) -> Vec<IpNet> {
    let listed = section.list::<String>("networks", faults);
    let mut networks = Vec::new();
    for Placed { value, span } in listed.into_iter().flat_map(|list| list.value) {
        match value.parse::<IpNet>() {
            Ok(network) => networks.push(network),
            Err(_) => {
                faults.add(span, format!("\"{value}\": a network is written like \"10.0.0.0/8\" or \"fd00::/8\""))
            }
        }
    }
    networks
}

fn folders<'t>(section: &mut Section<'t>, key: &'static str, faults: &mut Faults<'t>) -> BTreeMap<PathBuf, PathBuf> {
    let mut folders = BTreeMap::new();
    for (guest, host) in section.pairs::<AbsolutePath>(key, faults) {
        match AbsolutePath::try_from(guest.value) {
            Ok(guest) => drop(folders.insert(guest.0, host.value.0)),
            Err(told) => faults.add(guest.span, told),
        }
    }
    folders
}

fn config<'t>(all: &mut Section<'t>, faults: &mut Faults<'t>) -> BTreeMap<String, String> {
    let Some(section) = all.section("config", faults) else { return BTreeMap::new() };
    section.into_texts(faults).into_iter().map(|(key, value)| (key.value, value.value)).collect()
}

fn http_headers<'t>(
    all: &mut Section<'t>,
    granted: &BTreeSet<Origin>,
    faults: &mut Faults<'t>,
) -> BTreeMap<Origin, Vec<Header>> {
    let mut by_origin = BTreeMap::new();
    for (origin, section) in all.sections("http_headers", faults) {
        let headers = section.into_texts(faults).into_iter().filter_map(|(name, value)| {
            Header::parse(&name.value, &value.value).map_err(|told| faults.add(value.span, told)).ok()
        });
        let headers: Vec<Header> = headers.collect();
        match Origin::parse(&origin.value) {
            Ok(parsed) if granted.contains(&parsed) => drop(by_origin.insert(parsed, headers)),
            Ok(parsed) => {
                faults.add(origin.span, format!("{parsed} is not granted: write it into grants.http as well"))
            }
            Err(told) => faults.add(origin.span, told),
        }
    }
    by_origin
}
