//! Looks for another deployment whose prefix begins ours, because our keys look to
//! it like its own: a topic `eu:orders` of the prefix `mq:` is the topic `orders`
//! of the prefix `mq:eu:`. It can't see us, so we look.

use super::error::QueueError;
use super::keyspace;
use super::server::Connection;

/// A worker that was last seen longer ago has ended.
const SEEN_WITHIN_SECONDS: f64 = 60.0;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Overlap {
    None,
    /// A worker with this shorter prefix was seen lately.
    With(String),
    /// Redis lets us not look, as it says in this text.
    Unknown(String),
}

/// Looks at the workers of every proper beginning of the prefix.
pub async fn overlap(connection: &Connection, prefix: &str) -> Result<Overlap, QueueError> {
    let mut refusal = None;
    for (end, _) in prefix.char_indices() {
        match is_in_use(connection, &prefix[..end]).await {
            Ok(true) => return Ok(Overlap::With(prefix[..end].to_owned())),
            Ok(false) => {}
            Err(error) if error.code() == Some("NOPERM") => refusal = Some(error.to_string()),
            Err(error) => match QueueError::from(error) {
                // A key of this name that is no set of workers is a topic of ours.
                QueueError::WrongType(_) => {}
                error => return Err(error),
            },
        }
    }
    Ok(refusal.map_or(Overlap::None, Overlap::Unknown))
}

async fn is_in_use(connection: &Connection, prefix: &str) -> redis::RedisResult<bool> {
    let (key, mut shared) = (keyspace::workers(prefix), connection.shared());
    if !redis::cmd("EXISTS").arg(&key).query_async(&mut shared).await? {
        return Ok(false);
    }
    let mut newest = redis::cmd("ZRANGE");
    newest.arg(&key).arg(0).arg(0).arg("REV").arg("WITHSCORES");
    let newest: Vec<(Vec<u8>, f64)> = newest.query_async(&mut shared).await?;
    let (now, _): (f64, f64) = redis::cmd("TIME").query_async(&mut shared).await?;
    Ok(newest.first().is_some_and(|(_, seen)| now - seen <= SEEN_WITHIN_SECONDS))
}
