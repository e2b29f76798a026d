//! Entries that were passed over before a worker first opened the group: nobody
//! has read them, and only an operator knows whether they are to run.

use super::search::Progress;
use crate::queue::error::QueueError;
use crate::queue::keyspace::StreamKind;
use crate::queue::lua::scripts::{self, BATCH_BYTES};
use crate::queue::topic::TopicHandle;

/// The most that one script reads, since nothing else runs on the server meanwhile.
const BATCH: usize = 500;

pub(super) async fn count(handle: &TopicHandle, stream: StreamKind) -> Result<u64, QueueError> {
    each(handle, stream, false, &mut |_| ()).await
}

/// Returns how many were deleted.
pub(super) async fn delete(
    handle: &TopicHandle,
    stream: StreamKind,
    progress: &mut Progress<'_>,
) -> Result<u64, QueueError> {
    each(handle, stream, true, progress).await
}

async fn each(
    handle: &TopicHandle,
    stream: StreamKind,
    deletes: bool,
    progress: &mut Progress<'_>,
) -> Result<u64, QueueError> {
    let (mut from, mut total) = ("-".to_owned(), 0);
    loop {
        let mut script = scripts::NEVER_OURS.key(handle.key(stream));
        script.key(&handle.keys().state).arg(handle.group()).arg(stream.class());
        script.arg(&from).arg(BATCH).arg(BATCH_BYTES).arg(u8::from(deletes));
        let (next, count): (String, u64) = script.invoke_async(&mut handle.shared()).await?;
        if count > 0 {
            progress(count);
        }
        total += count;
        if next.is_empty() {
            return Ok(total);
        }
        from = next;
    }
}
