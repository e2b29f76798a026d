//! What lies where, for people: topics with their counts.

use super::QueueError;
use super::connection::Connection;
use super::keys::{self, Keys};
use super::scan::Pages;
use super::source::Source;
use crate::topic::Topic;
use redis::Value;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A worker that was not seen for this long is not counted on.
const WORKER_SEEN_SECONDS: i64 = 30;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TopicState {
    pub topic: String,
    /// Redis' name for the type of `mq:<topic>`; `none` where it is absent.
    pub kind: String,
    pub waiting: u64,
    pub in_flight: u64,
    pub delayed: u64,
    pub dead: u64,
    /// Settled as done by this successor, in all.
    pub done: u64,
    pub is_paused: bool,
    /// Whether a worker seen lately has a handler for it.
    pub has_handler: bool,
    /// Keys for its delayed messages and dead letters that hold something else,
    /// which is not counted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub misused: Vec<String>,
}

/// Every topic that Redis knows of, by name.
pub async fn topics(connection: &Connection, prefix: &str, group: &str) -> Result<Vec<TopicState>, QueueError> {
    let found = names(connection, prefix).await?;
    let handled = handled(connection, prefix).await?;
    let mut topics = Vec::with_capacity(found.len());
    for topic in &found {
        topics.push(topic_state(connection, prefix, group, topic, handled.contains(topic)).await?);
    }
    Ok(topics)
}

/// The topics that have a key, on whatever server it is.
pub(super) async fn names(connection: &Connection, prefix: &str) -> Result<BTreeSet<Topic>, QueueError> {
    let (mut found, mut pages) = (BTreeSet::new(), Pages::of(connection, prefix).await?);
    while let Some((_, keys)) = pages.next().await? {
        found.extend(keys.iter().filter_map(|key| Keys::topic_of(prefix, key)));
    }
    Ok(found)
}

/// The topics that workers seen lately have handlers for.
pub async fn handled(connection: &Connection, prefix: &str) -> Result<BTreeSet<Topic>, QueueError> {
    let since = jiff::Timestamp::now().as_second() - WORKER_SEEN_SECONDS;
    let mut command = redis::cmd("ZRANGEBYSCORE");
    let members: Vec<String> =
        command.arg(keys::workers(prefix)).arg(since).arg("+inf").query_async(&mut connection.shared()).await?;
    let topics = |member: &String| -> Option<Vec<String>> {
        serde_json::from_str::<serde_json::Value>(member).ok()?.get("topics").cloned().map(serde_json::from_value)?.ok()
    };
    Ok(members.iter().filter_map(topics).flatten().filter_map(|topic| Topic::parse(&topic).ok()).collect())
}

async fn topic_state(
    connection: &Connection,
    prefix: &str,
    group: &str,
    topic: &Topic,
    has_handler: bool,
) -> Result<TopicState, QueueError> {
    let keys = Keys::new(prefix, topic);
    let mut shared = connection.shared();
    let mut pipe = redis::pipe();
    pipe.cmd("TYPE").arg(&keys.stream).hget(&keys.state, "done").hexists(&keys.state, "paused");
    let (kind, done, is_paused): (String, Option<u64>, bool) = pipe.query_async(&mut shared).await?;
    let (mut counts, mut misused) = ([0, 0], Vec::new());
    for (at, command, key) in [
        (0, "ZCARD", &keys.later),
        (0, "ZCARD", &keys.legacy_delay),
        (1, "XLEN", &keys.dead),
        (1, "XLEN", &keys.legacy_dead),
    ] {
        match size(connection, command, key).await? {
            Some(size) => counts[at] += size,
            None => misused.push(key.clone()),
        }
    }
    let [delayed, dead] = counts;
    let (mut waiting, mut in_flight) = (listed(connection, &keys, &kind).await?, 0);
    let group = keys::group(group, topic);
    for source in Source::ALL.into_iter().filter(|source| *source != Source::Normal || kind == "stream") {
        let (behind, pending) = stream_backlog(connection, source.key(&keys), &group).await?;
        waiting += behind;
        in_flight += pending;
    }
    Ok(TopicState {
        topic: topic.to_string(),
        kind,
        waiting,
        in_flight,
        delayed,
        dead,
        done: done.unwrap_or(0),
        is_paused,
        has_handler,
        misused,
    })
}

/// How many wait in the list of plain clients, and on their way out of it.
pub(super) async fn listed(connection: &Connection, keys: &Keys, kind: &str) -> Result<u64, QueueError> {
    let put_aside = size(connection, "LLEN", &keys.input).await?.unwrap_or(0);
    let list = if kind == "list" { size(connection, "LLEN", &keys.stream).await? } else { None };
    Ok(put_aside + list.unwrap_or(0))
}

/// How many a key holds; nothing where it is of another type than it should be,
/// which is no reason to keep silent about all others.
async fn size(connection: &Connection, command: &str, key: &str) -> Result<Option<u64>, QueueError> {
    match redis::cmd(command).arg(key).query_async(&mut connection.shared()).await.map_err(QueueError::from) {
        Err(QueueError::WrongType(_)) => Ok(None),
        size => size,
    }
}

/// What waits in a stream and what of it is in flight; nothing where it is absent.
pub(super) async fn stream_backlog(connection: &Connection, key: &str, group: &str) -> Result<(u64, u64), QueueError> {
    let mut shared = connection.shared();
    let Some(length) = size(connection, "XLEN", key).await? else { return Ok((0, 0)) };
    if redis::cmd("EXISTS").arg(key).query_async::<u64>(&mut shared).await? == 0 {
        return Ok((0, 0));
    }
    let groups: Vec<BTreeMap<String, Value>> =
        redis::cmd("XINFO").arg("GROUPS").arg(key).query_async(&mut shared).await?;
    Ok(backlog(length, &groups, group))
}

/// What waits and what is in flight. Where only our group reads, everything
/// in the stream is one or the other; with other groups, which keep entries
/// alive, the group's lag tells.
fn backlog(length: u64, groups: &[BTreeMap<String, Value>], group: &str) -> (u64, u64) {
    let number = |info: &BTreeMap<String, Value>, key| match info.get(key) {
        Some(Value::Int(number)) => u64::try_from(*number).ok(),
        _ => None,
    };
    let is_ours = |info: &&BTreeMap<String, Value>| info.get("name") == Some(&Value::BulkString(group.into()));
    let Some(ours) = groups.iter().find(is_ours) else { return (length, 0) };
    let pending = number(ours, "pending").unwrap_or(0);
    match number(ours, "lag") {
        Some(lag) if groups.len() > 1 => (lag, pending),
        _ => (length.saturating_sub(pending), pending),
    }
}

/// Whether anything was ever published to it and not purged: the names of its
/// keys tell.
pub async fn has_keys(connection: &Connection, prefix: &str, topic: &Topic) -> Result<bool, QueueError> {
    let keys = Keys::new(prefix, topic);
    let mut command = redis::cmd("EXISTS");
    for key in keys.for_publish().into_iter().filter(|key| *key != keys.state) {
        command.arg(key);
    }
    let found: u64 = command.query_async(&mut connection.shared()).await?;
    Ok(found > 0)
}

/// Where the server keeps its data.
pub async fn data_folder(connection: &Connection) -> Result<String, QueueError> {
    let mut command = redis::cmd("CONFIG");
    let (_, folder): (String, String) = command.arg("GET").arg("dir").query_async(&mut connection.shared()).await?;
    Ok(folder)
}
