//! One topic's state and counts, for people.

use super::inspect;
use super::location::Section;
use super::never_ours;
use super::search::{SearchQuery, search};
use crate::message::{self, MESSAGE_FIELD};
use crate::queue::error::QueueError;
use crate::queue::keyspace::StreamKind;
use crate::queue::legacy::LegacyDelayed;
use crate::queue::topic::{TopicHandle, reply};
use jiff::Timestamp;
use redis::Value;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TopicDetails {
    pub topic: String,
    /// Redis' name for the type of `mq:<topic>`; `none` where it is absent.
    pub kind: String,
    pub is_paused: bool,
    /// Whether a recently seen worker has a handler for it.
    pub has_handler: bool,
    /// By stream: `high`, `normal`, `work`, `low`, and `list`.
    pub waiting: BTreeMap<String, u64>,
    /// When the oldest waiting message came. Of a list only the ends are read.
    #[serde(serialize_with = "as_text")]
    pub oldest_waiting: Option<Timestamp>,
    pub delayed: u64,
    pub legacy_delayed: u64,
    /// Those of them that are due after the year 9999: their scores are probably in
    /// milliseconds, not in seconds.
    pub legacy_due_far: u64,
    #[serde(serialize_with = "as_text")]
    pub next_due: Option<Timestamp>,
    pub in_flight: Vec<ConsumerState>,
    /// The streams with messages that no worker will run unless an operator says so.
    pub passed_over: Vec<PassedOver>,
    pub dead: u64,
    pub legacy_dead: u64,
    /// How many follow-ups are in the outbox.
    pub outbox: u64,
    /// How messages have ended since the topic exists.
    pub counters: BTreeMap<String, u64>,
}

/// The messages that one worker has in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConsumerState {
    pub name: String,
    pub in_flight: u64,
    /// The longest time since the renewal of one of its leases.
    pub idle_ms: u64,
}

/// Messages that were passed over before a worker first read a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PassedOver {
    pub key: String,
    pub group: String,
    pub count: u64,
}

fn as_text<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(message::rfc3339).serialize(serializer)
}

const COUNTERS: [&str; 11] = [
    "done",
    "retried",
    "dead",
    "duplicate",
    "parked",
    "expired",
    "cancelled",
    "purged",
    "dead-evicted",
    "swept",
    "restored",
];

/// Of `COUNTERS` those of messages that were never run, except for zeros.
pub async fn ended_unrun(handle: &TopicHandle) -> Result<Vec<(&'static str, u64)>, QueueError> {
    const UNRUN: [&str; 4] = ["expired", "cancelled", "duplicate", "purged"];
    let mut command = redis::cmd("HMGET");
    command.arg(&handle.keys().state).arg(&UNRUN);
    let counts: Vec<Option<u64>> = command.query_async(&mut handle.shared()).await?;
    let counts = UNRUN.into_iter().zip(counts).filter_map(|(name, count)| Some((name, count?)));
    Ok(counts.filter(|(_, count)| *count > 0).collect())
}

pub async fn topic_details(handle: &TopicHandle, has_handler: bool) -> Result<TopicDetails, QueueError> {
    let (keys, mut shared) = (handle.keys(), handle.shared());
    let mut pipe = redis::pipe();
    pipe.cmd("TYPE").arg(&keys.main).hexists(&keys.state, "paused").zcard(&keys.delayed);
    pipe.zrange_withscores(&keys.delayed, 0, 0).cmd("XLEN").arg(&keys.dead).cmd("XLEN").arg(&keys.outbox);
    pipe.cmd("HMGET").arg(&keys.state).arg(&COUNTERS);
    type Reply = (String, bool, u64, Vec<(String, f64)>, u64, u64, Vec<Option<u64>>);
    let (kind, is_paused, delayed, next, dead, outbox, counted): Reply = pipe.query_async(&mut shared).await?;
    let legacy_delayed: u64 = redis::cmd("ZCARD").arg(&keys.legacy_delayed).query_async(&mut shared).await?;
    let legacy_dead: u64 = redis::cmd("XLEN").arg(&keys.legacy_dead).query_async(&mut shared).await?;
    let mut command = redis::cmd("ZRANGE");
    command.arg(&keys.legacy_delayed).arg(0).arg(0).arg("WITHSCORES");
    let legacy_next: Vec<(Vec<u8>, f64)> = command.query_async(&mut shared).await?;
    let due = |score: f64, unit: f64| Timestamp::from_millisecond((score * unit) as i64).ok();
    let next = next.first().and_then(|(_, score)| due(*score, 1.0));
    let legacy_next = legacy_next.first().and_then(|(_, score)| due(*score, 1000.0));
    let waiting = waiting(handle, &kind).await?;
    let counters = COUNTERS.iter().zip(counted);
    Ok(TopicDetails {
        topic: handle.topic().to_string(),
        is_paused,
        has_handler,
        oldest_waiting: oldest_waiting(handle, &kind).await?,
        waiting,
        delayed,
        legacy_delayed,
        legacy_due_far: LegacyDelayed::new(handle.clone()).due_far().await?,
        next_due: next.into_iter().chain(legacy_next).min(),
        in_flight: consumers(handle, &kind).await?,
        passed_over: passed_over(handle, &kind).await?,
        dead,
        legacy_dead,
        outbox,
        counters: counters.map(|(name, count)| ((*name).to_owned(), count.unwrap_or(0))).collect(),
        kind,
    })
}

/// The keys that are no list, if the main key has this type.
fn streams(kind: &str) -> impl Iterator<Item = StreamKind> {
    StreamKind::ALL.into_iter().filter(move |stream| *stream != StreamKind::Normal || kind == "stream")
}

async fn waiting(handle: &TopicHandle, kind: &str) -> Result<BTreeMap<String, u64>, QueueError> {
    let mut waiting = BTreeMap::new();
    for stream in streams(kind) {
        let (count, _) = inspect::stream_backlog(handle.connection(), handle.key(stream), handle.group()).await?;
        let name = if stream == StreamKind::Normal { "normal" } else { stream.class() };
        waiting.insert(name.to_owned(), count);
    }
    let list = inspect::list_length(handle.connection(), handle.keys(), kind).await?;
    waiting.insert("list".to_owned(), list);
    Ok(waiting)
}

async fn oldest_waiting(handle: &TopicHandle, kind: &str) -> Result<Option<Timestamp>, QueueError> {
    let mut oldest = oldest_entry(handle).await?;
    let lists = [(kind == "list").then_some(&handle.keys().main), Some(&handle.keys().input)];
    for key in lists.into_iter().flatten() {
        for end in [0, -1] {
            let mut command = redis::cmd("LINDEX");
            let item: Option<Vec<u8>> = command.arg(key).arg(end).query_async(&mut handle.shared()).await?;
            let read = |item| message::read(handle.topic(), "", &vec![(MESSAGE_FIELD.into(), item)]).ok();
            // A message without an id of its own has no time either.
            let published = item.and_then(read).filter(|one| one.has_own_id).map(|one| one.published_at);
            oldest = oldest.into_iter().chain(published).min();
        }
    }
    Ok(oldest)
}

/// When the entry was added that waits longest in a stream.
async fn oldest_entry(handle: &TopicHandle) -> Result<Option<Timestamp>, QueueError> {
    let mut oldest = None;
    for section in Section::WAITING {
        if matches!(section, Section::Waiting(_)) {
            let first = search(handle, section, &SearchQuery::all(1), &mut |_| ()).await?;
            let added = first.first().map(|one| message::entry_time(&String::from_utf8_lossy(&one.handle)));
            oldest = oldest.into_iter().chain(added).min();
        }
    }
    Ok(oldest)
}

async fn passed_over(handle: &TopicHandle, kind: &str) -> Result<Vec<PassedOver>, QueueError> {
    let mut found = Vec::new();
    for stream in streams(kind) {
        let count = never_ours::count(handle, stream).await?;
        if count > 0 {
            found.push(PassedOver { key: handle.key(stream).to_owned(), group: handle.group().to_owned(), count });
        }
    }
    Ok(found)
}

async fn consumers(handle: &TopicHandle, kind: &str) -> Result<Vec<ConsumerState>, QueueError> {
    const PAGE: usize = 1000;
    let mut consumers: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for stream in streams(kind) {
        let mut from = "-".to_owned();
        loop {
            let mut command = redis::cmd("XPENDING");
            command.arg(handle.key(stream)).arg(handle.group()).arg(&from).arg("+").arg(PAGE);
            let rows: Vec<Value> = match command.query_async(&mut handle.shared()).await.map_err(QueueError::from) {
                Ok(rows) => rows,
                Err(QueueError::GroupLost) => break,
                Err(error) => return Err(error),
            };
            let is_last = rows.len() < PAGE;
            for row in rows {
                let [id, name, idle, _] = reply::array(row)?;
                let idle = u64::try_from(reply::number(idle)?).unwrap_or(0);
                let known = consumers.entry(reply::text(name)?).or_default();
                *known = (known.0 + 1, known.1.max(idle));
                from = format!("({}", reply::text(id)?);
            }
            if is_last {
                break;
            }
        }
    }
    let consumer = |(name, (in_flight, idle_ms))| ConsumerState { name, in_flight, idle_ms };
    Ok(consumers.into_iter().map(consumer).collect())
}
