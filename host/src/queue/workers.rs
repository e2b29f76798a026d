//! The recently seen workers, by Redis' clock, which all of them share. They are for
//! display only: no decision about a message depends on them.

use super::error::QueueError;
use super::keyspace;
use super::server::Connection;
use crate::topic::Topic;
use serde_json::Value;
use std::collections::BTreeSet;

/// A worker that was last seen longer ago does not count.
const SEEN_WITHIN_SECONDS: i64 = 30;

/// Records in `mq::workers` that a worker is alive, or with `None` that it has
/// stopped. `stale` is its previous record.
pub async fn announce(
    connection: &Connection,
    prefix: &str,
    member: Option<&str>,
    stale: Option<&str>,
) -> Result<(), QueueError> {
    let key = keyspace::workers(prefix);
    let now = connection.read_clock().await?.as_second();
    let mut pipe = redis::pipe();
    if let Some(stale) = stale {
        pipe.zrem(&key, stale).ignore();
    }
    if let Some(member) = member {
        pipe.zadd(&key, member, now).ignore();
    }
    pipe.zrembyscore(&key, "-inf", now - 86_400).ignore();
    Ok(pipe.query_async(&mut connection.shared()).await?)
}

/// The topics that recently seen workers have handlers for.
pub async fn handled_topics(connection: &Connection, prefix: &str) -> Result<BTreeSet<Topic>, QueueError> {
    let since = connection.read_clock().await?.as_second() - SEEN_WITHIN_SECONDS;
    let mut command = redis::cmd("ZRANGEBYSCORE");
    let members: Vec<String> =
        command.arg(keyspace::workers(prefix)).arg(since).arg("+inf").query_async(&mut connection.shared()).await?;
    let topics = |member: &String| -> Option<Vec<String>> {
        serde_json::from_str::<Value>(member).ok()?.get("topics").cloned().map(serde_json::from_value)?.ok()
    };
    Ok(members.iter().filter_map(topics).flatten().filter_map(|topic| Topic::parse(&topic).ok()).collect())
}
