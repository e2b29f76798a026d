//! The workers seen lately, for display only: nothing is decided by it.

use super::connection::Connection;
use super::{QueueError, keys};

/// Says in `mq::workers` that a worker lives, or no longer does. `stale` is
/// what it said before.
pub async fn announce(
    connection: &Connection,
    prefix: &str,
    member: Option<&str>,
    stale: Option<&str>,
) -> Result<(), QueueError> {
    let key = keys::workers(prefix);
    let now = jiff::Timestamp::now().as_second();
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
