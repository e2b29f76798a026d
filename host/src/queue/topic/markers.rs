//! The markers of finished messages.

use super::handle::TopicHandle;
use crate::queue::error::QueueError;

/// Which of these deduplication keys belong to a message that has finished
/// within the topic's window.
pub(crate) async fn finished(handle: &TopicHandle, dedup_keys: &[String]) -> Result<Vec<bool>, QueueError> {
    let mut command = redis::cmd("MGET");
    for dedup_key in dedup_keys {
        command.arg(handle.keys().done(dedup_key));
    }
    let found: Vec<Option<String>> = command.query_async(&mut handle.shared()).await?;
    Ok(found.iter().map(Option::is_some).collect())
}
