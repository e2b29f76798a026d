//! `mq::topics`: the topics that our publishers have made, so that a worker with a
//! catch-all plugin finds new ones without a scan of all keys. It is only a hint: a
//! publisher that may not write to it publishes nevertheless, and the scan finds what
//! other publishers make.

use super::error::QueueError;
use super::keyspace;
use super::server::Connection;
use super::topic::TopicHandle;
use crate::topic::Topic;

/// A topic that no publisher has named for so long is forgotten. The scan still finds
/// it while it has keys.
const FORGOTTEN_MS: i64 = 30 * 24 * 3600 * 1000;

/// To be called before a message is published to the topic.
pub(crate) async fn register(handle: &TopicHandle, topic: &Topic) {
    let connection = handle.connection();
    if !connection.may_register(topic) {
        return;
    }
    let mut command = redis::cmd("ZADD");
    command.arg(handle.registry_key()).arg(handle.now().as_millisecond()).arg(topic.as_str());
    if command.query_async::<()>(&mut connection.shared()).await.is_ok() {
        connection.set_registered(topic);
    }
}

/// The topics that were registered at this time in ms or later, and when the last of
/// them was.
pub(crate) async fn registered_since(
    connection: &Connection,
    prefix: &str,
    since_ms: i64,
) -> Result<(Vec<Topic>, i64), QueueError> {
    let key = keyspace::topics(prefix);
    let mut pipe = redis::pipe();
    pipe.zrembyscore(&key, "-inf", connection.now().as_millisecond() - FORGOTTEN_MS).ignore();
    pipe.cmd("ZRANGEBYSCORE").arg(&key).arg(since_ms).arg("+inf").arg("WITHSCORES");
    let (found,): (Vec<(String, f64)>,) = pipe.query_async(&mut connection.shared()).await?;
    #[expect(clippy::cast_possible_truncation, reason = "times in ms are far below 2^53")]
    let last = found.iter().map(|(_, at)| *at as i64).max().unwrap_or(since_ms);
    Ok((found.into_iter().filter_map(|(name, _)| Topic::parse(&name).ok()).collect(), last))
}
