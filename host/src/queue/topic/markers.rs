//! The markers of finished messages.

use super::handle::TopicHandle;
use crate::queue::error::QueueError;
use crate::queue::keyspace::digest;
use crate::queue::lua::scripts;

/// The most keys of one script.
const BATCH: usize = 256;

/// Which of these deduplication keys belong to a message that has finished within
/// the window of that time.
pub(crate) async fn finished(handle: &TopicHandle, dedup_keys: &[String]) -> Result<Vec<bool>, QueueError> {
    let mut finished = Vec::with_capacity(dedup_keys.len());
    for batch in dedup_keys.chunks(BATCH) {
        let mut script = scripts::FINISHED.key(&handle.keys().state);
        script.key(&handle.keys().claims);
        for dedup_key in batch {
            script.arg(digest(dedup_key));
        }
        let times: Vec<u64> = script.invoke_async(&mut handle.shared()).await?;
        finished.extend(times.into_iter().map(|time| time > 0));
    }
    Ok(finished)
}
