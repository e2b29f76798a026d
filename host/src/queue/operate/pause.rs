//! Pauses and resumes topics.

use crate::queue::error::QueueError;
use crate::queue::topic::TopicHandle;

/// Returns whether the state has changed.
pub async fn set_paused(handle: &TopicHandle, is_paused: bool) -> Result<bool, QueueError> {
    let mut command = redis::cmd(if is_paused { "HSET" } else { "HDEL" });
    command.arg(&handle.keys().state).arg("paused");
    if is_paused {
        command.arg("1");
    }
    Ok(command.query_async::<u64>(&mut handle.shared()).await? > 0)
}
