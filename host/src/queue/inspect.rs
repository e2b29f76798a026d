//! What lies where, for people: topics with their counts.

use super::QueueError;
use super::connection::Connection;
use super::keys::{self, Keys};
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
    let mut found = BTreeSet::new();
    for mut master in connection.masters().await? {
        for pattern in [format!("{prefix}*"), format!("{{{prefix}*")] {
            let mut cursor = 0_u64;
            loop {
                let mut command = redis::cmd("SCAN");
                command.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(1000);
                let (next, keys): (u64, Vec<String>) = command.query_async(&mut master.connection).await?;
                found.extend(keys.iter().filter_map(|key| Keys::topic_of(prefix, key)));
                if next == 0 {
                    break;
                }
                cursor = next;
            }
        }
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
    // One pipeline for what lies in one slot; the original's keys lie in others.
    let mut pipe = redis::pipe();
    pipe.cmd("TYPE").arg(&keys.stream).zcard(&keys.later);
    pipe.cmd("XLEN").arg(&keys.dead).hget(&keys.state, "done").hexists(&keys.state, "paused");
    let (kind, later, dead, done, is_paused): (String, u64, u64, Option<u64>, bool) =
        pipe.query_async(&mut shared).await?;
    let legacy_later: u64 = redis::cmd("ZCARD").arg(&keys.legacy_delay).query_async(&mut shared).await?;
    let legacy_dead: u64 = redis::cmd("XLEN").arg(&keys.legacy_dead).query_async(&mut shared).await?;
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
        delayed: later + legacy_later,
        dead: dead + legacy_dead,
        done: done.unwrap_or(0),
        is_paused,
        has_handler,
    })
}

/// How many wait in the list of plain clients, and on their way out of it.
pub(super) async fn listed(connection: &Connection, keys: &Keys, kind: &str) -> Result<u64, QueueError> {
    let mut pipe = redis::pipe();
    pipe.llen(&keys.input);
    if kind == "list" {
        pipe.llen(&keys.stream);
    }
    let lengths: Vec<u64> = pipe.query_async(&mut connection.shared()).await?;
    Ok(lengths.iter().sum())
}

/// What waits in a stream and what of it is in flight; nothing where it is absent.
pub(super) async fn stream_backlog(connection: &Connection, key: &str, group: &str) -> Result<(u64, u64), QueueError> {
    let mut shared = connection.shared();
    let length: u64 = redis::cmd("XLEN").arg(key).query_async(&mut shared).await?;
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
