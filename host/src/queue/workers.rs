//! The recently seen workers, by Redis' clock, which all of them share. They are for
//! display only: no decision about a message depends on them.

use super::error::QueueError;
use super::keyspace;
use super::server::Connection;
use crate::topic::Topic;
use redis::{RedisResult, Value};
use std::collections::BTreeSet;

/// A worker that was last seen longer ago does not count.
const SEEN_WITHIN_SECONDS: i64 = 30;

/// Records in `mq::workers` that a worker is alive, or with `None` that it has
/// stopped. `stale` is its previous record. It fails where Redis takes no writes.
pub async fn announce(
    connection: &Connection,
    prefix: &str,
    member: Option<&str>,
    stale: Option<&str>,
) -> Result<(), QueueError> {
    let key = keyspace::workers(prefix);
    let announced = async {
        let now = connection.read_clock().await?.as_second();
        let mut pipe = redis::pipe();
        if let Some(stale) = stale {
            pipe.zrem(&key, stale);
        }
        if let Some(member) = member {
            pipe.zadd(&key, member, now);
        }
        pipe.zrembyscore(&key, "-inf", now - 86_400);
        // The errors of a pipeline have no codes; those of its commands have.
        let answers: Vec<RedisResult<Value>> = pipe.ignore_errors().query_async(&mut connection.shared()).await?;
        answers.into_iter().collect::<RedisResult<Vec<_>>>()?;
        Ok(())
    };
    connection.in_time(announced).await
}

/// The topics that recently seen workers have handlers for.
pub async fn handled_topics(connection: &Connection, prefix: &str) -> Result<BTreeSet<Topic>, QueueError> {
    let since = connection.read_clock().await?.as_second() - SEEN_WITHIN_SECONDS;
    let mut command = redis::cmd("ZRANGEBYSCORE");
    let members: Vec<String> =
        command.arg(keyspace::workers(prefix)).arg(since).arg("+inf").query_async(&mut connection.shared()).await?;
    let topics = |member: &String| -> Option<Vec<String>> {
        serde_json::from_str::<serde_json::Value>(member).ok()?.get("topics").cloned().map(serde_json::from_value)?.ok()
    };
    Ok(members.iter().filter_map(topics).flatten().filter_map(|topic| Topic::parse(&topic).ok()).collect())
}
