//! The consumer group of a stream.

use super::handle::TopicHandle;
use super::reply;
use crate::queue::error::QueueError;
use crate::queue::keyspace::StreamKind;
use redis::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// The idle time of a requeued entry. No live consumer lets an entry idle for a
/// day, so such an entry may be reclaimed at once.
pub(crate) const REQUEUED_IDLE: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) struct OwnGroup {
    /// How many other groups read the stream.
    pub(crate) others: usize,
    pub(crate) last_delivered: String,
}

/// Our group of a stream; `None` where the group or the stream does not exist.
pub(crate) async fn own_group(handle: &TopicHandle, stream: StreamKind) -> Result<Option<OwnGroup>, QueueError> {
    let mut command = redis::cmd("XINFO");
    command.arg("GROUPS").arg(handle.key(stream));
    let reply = command.query_async::<Vec<BTreeMap<String, Value>>>(&mut handle.shared()).await;
    let groups = match reply.map_err(QueueError::from) {
        Err(QueueError::WrongType(_)) => return Ok(None),
        Err(QueueError::Failed(error)) if error.contains("no such key") => return Ok(None),
        groups => groups?,
    };
    let others = groups.len().saturating_sub(1);
    let name = Value::BulkString(handle.group().into());
    let own = groups.into_iter().find(|info| info.get("name") == Some(&name));
    let last_delivered = own.and_then(|mut info| info.remove("last-delivered-id"));
    last_delivered.map(|id| Ok(OwnGroup { others, last_delivered: reply::text(id)? })).transpose()
}
