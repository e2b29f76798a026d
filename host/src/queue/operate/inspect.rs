//! Lists topics with their counts, for people.

use crate::queue::error::QueueError;
use crate::queue::keyspace::{self, KeyName, Keys, StreamKind};
use crate::queue::server::{Connection, KeyPages};
use crate::queue::workers::handled_topics;
use crate::text::escape_bytes;
use crate::topic::Topic;
use redis::Value;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// How many unservable keys are listed.
const UNSERVABLE_MAX: usize = 100;

/// All topics with their counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TopicList {
    pub topics: Vec<TopicState>,
    /// Keys under the prefix that belong to no legal topic, at most 100. Bytes
    /// that are not UTF-8 are written as `\xff`.
    pub unservable: Vec<String>,
    /// How many such keys there are.
    pub unservable_count: u64,
}

/// The names in [`TopicList`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicNames {
    pub topics: BTreeSet<Topic>,
    pub unservable: Vec<String>,
    pub unservable_count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TopicState {
    pub topic: String,
    /// Redis' name for the type of `mq:<topic>`; `none` where it is absent.
    pub kind: String,
    pub waiting: u64,
    pub in_flight: u64,
    pub delayed: u64,
    pub dead: u64,
    /// How many messages were ever settled as done.
    pub done: u64,
    pub is_paused: bool,
    /// Whether a recently seen worker has a handler for it.
    pub has_handler: bool,
    /// Keys for its delayed messages and dead letters that have another type, so
    /// that they are not counted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub misused: Vec<String>,
}

/// Every topic that has a key, by name.
pub async fn topics(connection: &Connection, prefix: &str, group: &str) -> Result<TopicList, QueueError> {
    let TopicNames { topics: names, unservable, unservable_count } = names(connection, prefix).await?;
    let handled = handled_topics(connection, prefix).await?;
    let mut topics = Vec::with_capacity(names.len());
    for topic in &names {
        topics.push(topic_state(connection, prefix, group, topic, handled.contains(topic)).await?);
    }
    Ok(TopicList { topics, unservable, unservable_count })
}

/// The topics that have a key on any server.
pub async fn names(connection: &Connection, prefix: &str) -> Result<TopicNames, QueueError> {
    let (mut topics, mut unservable) = (BTreeSet::new(), BTreeSet::new());
    let mut more_unservable = 0;
    let mut pages = KeyPages::new(connection, prefix).await?;
    while let Some((_, keys)) = pages.next().await? {
        for key in &keys {
            match KeyName::parse(prefix, key) {
                KeyName::Topic(topic, _) => drop(topics.insert(topic)),
                KeyName::Unservable if unservable.len() < UNSERVABLE_MAX => {
                    unservable.insert(escape_bytes(key));
                }
                // A scan may return a key twice, so the count is a little high in rare cases.
                KeyName::Unservable if !unservable.contains(&escape_bytes(key)) => more_unservable += 1,
                KeyName::Unservable | KeyName::Other => {}
            }
        }
    }
    let unservable_count = more_unservable + unservable.len() as u64;
    Ok(TopicNames { topics, unservable: unservable.into_iter().collect(), unservable_count })
}

/// `None` where the topic has a key or a recently seen worker handles it;
/// otherwise all other topics for which one of both is true.
pub async fn others_if_unknown(
    connection: &Connection,
    prefix: &str,
    topic: &Topic,
) -> Result<Option<Vec<Topic>>, QueueError> {
    // Usually one of its keys exists, and then this is cheaper than a scan.
    for key in Keys::new(prefix, topic).permanent() {
        if redis::cmd("EXISTS").arg(key).query_async(&mut connection.shared()).await? {
            return Ok(None);
        }
    }
    let mut all = handled_topics(connection, prefix).await?;
    if !all.contains(topic) {
        all.extend(names(connection, prefix).await?.topics);
    }
    Ok((!all.contains(topic)).then(|| all.into_iter().collect()))
}

/// The counts of one topic.
pub async fn topic_state(
    connection: &Connection,
    prefix: &str,
    group: &str,
    topic: &Topic,
    has_handler: bool,
) -> Result<TopicState, QueueError> {
    let keys = Keys::new(prefix, topic);
    let mut shared = connection.shared();
    let mut pipe = redis::pipe();
    pipe.cmd("TYPE").arg(&keys.main).hget(&keys.state, "done").hexists(&keys.state, "paused");
    let (kind, done, is_paused): (String, Option<u64>, bool) = pipe.query_async(&mut shared).await?;
    let (mut counts, mut misused) = ([0, 0], Vec::new());
    for (at, command, key) in [
        (0, "ZCARD", &keys.delayed),
        (0, "ZCARD", &keys.legacy_delayed),
        (1, "XLEN", &keys.dead),
        (1, "XLEN", &keys.legacy_dead),
    ] {
        match size(connection, command, key).await? {
            Some(size) => counts[at] += size,
            None => misused.push(key.clone()),
        }
    }
    let [delayed, dead] = counts;
    let (mut waiting, mut in_flight) = (list_length(connection, &keys, &kind).await?, 0);
    let group = keyspace::group(group, topic);
    for stream in StreamKind::ALL.into_iter().filter(|stream| *stream != StreamKind::Normal || kind == "stream") {
        let (behind, pending) = stream_backlog(connection, stream.key(&keys), &group).await?;
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

/// How many messages wait in the list of plain clients and in the intake list.
pub(crate) async fn list_length(connection: &Connection, keys: &Keys, kind: &str) -> Result<u64, QueueError> {
    let input = size(connection, "LLEN", &keys.input).await?.unwrap_or(0);
    let list = if kind == "list" { size(connection, "LLEN", &keys.main).await? } else { None };
    Ok(input + list.unwrap_or(0))
}

/// The size of a key; `None` where it has another type, because that must not
/// prevent a listing of all other topics.
async fn size(connection: &Connection, command: &str, key: &str) -> Result<Option<u64>, QueueError> {
    match redis::cmd(command).arg(key).query_async(&mut connection.shared()).await.map_err(QueueError::from) {
        Err(QueueError::WrongType(_)) => Ok(None),
        size => size,
    }
}

/// How many messages of a stream wait and how many are in flight; 0 where it is absent.
pub(crate) async fn stream_backlog(connection: &Connection, key: &str, group: &str) -> Result<(u64, u64), QueueError> {
    let mut shared = connection.shared();
    let Some(length) = size(connection, "XLEN", key).await? else { return Ok((0, 0)) };
    if redis::cmd("EXISTS").arg(key).query_async::<u64>(&mut shared).await? == 0 {
        return Ok((0, 0));
    }
    let groups: Vec<BTreeMap<String, Value>> =
        redis::cmd("XINFO").arg("GROUPS").arg(key).query_async(&mut shared).await?;
    Ok(backlog(length, &groups, group))
}

/// Where only our group reads, every entry of the stream waits or is in flight.
/// Other groups prevent the deletion of entries; then the group's lag counts.
fn backlog(length: u64, groups: &[BTreeMap<String, Value>], group: &str) -> (u64, u64) {
    let number = |info: &BTreeMap<String, Value>, key| match info.get(key) {
        Some(Value::Int(number)) => u64::try_from(*number).ok(),
        _ => None,
    };
    let is_own = |info: &&BTreeMap<String, Value>| info.get("name") == Some(&Value::BulkString(group.into()));
    let Some(own) = groups.iter().find(is_own) else { return (length, 0) };
    let pending = number(own, "pending").unwrap_or(0);
    match number(own, "lag") {
        Some(lag) if groups.len() > 1 => (lag, pending),
        _ => (length.saturating_sub(pending), pending),
    }
}

/// The directory where the server stores its data.
pub async fn data_dir(connection: &Connection) -> Result<String, QueueError> {
    let mut command = redis::cmd("CONFIG");
    let (_, dir): (String, String) = command.arg("GET").arg("dir").query_async(&mut connection.shared()).await?;
    Ok(dir)
}
