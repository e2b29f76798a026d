//! Deletes the history of a legacy stream: entries that were delivered and
//! acknowledged, which legacy workers never delete.

use super::pending::LegacyPending;
use crate::queue::error::QueueError;
use crate::queue::keyspace::StreamKind;
use crate::queue::lua::scripts::{self, BATCH_BYTES};
use crate::queue::topic::TopicHandle;
use crate::queue::topic::groups::own_group;
use std::time::Duration;

/// The most that one script reads, since nothing else runs on the server meanwhile.
const BATCH: usize = 100;

/// The position of a sweep, and where it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweepCursor {
    at: String,
    end: String,
}

pub struct LegacyHistory {
    handle: TopicHandle,
}

impl LegacyHistory {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    /// Sweeps one batch from where the last call ended; `None` starts a sweep.
    /// Returns `None` at the end.
    pub async fn sweep(&self, from: Option<&SweepCursor>) -> Result<Option<SweepCursor>, QueueError> {
        let SweepCursor { at, end } = match from {
            Some(cursor) => cursor.clone(),
            None => self.start().await?,
        };
        let handle = &self.handle;
        let mut script = scripts::LEGACY_SWEEP.key(handle.key(StreamKind::Normal));
        script.key(&handle.keys().state).arg(handle.group()).arg(at).arg(&end).arg(BATCH).arg(BATCH_BYTES);
        let (at, swept, others): (String, usize, usize) = script.invoke_async(&mut handle.shared()).await?;
        handle.set_other_groups(StreamKind::Normal, others);
        if swept > 0 {
            tracing::debug!(topic = %handle.topic(), swept, "delivered history deleted");
        }
        Ok((!at.is_empty()).then_some(SweepCursor { at, end }))
    }

    async fn start(&self) -> Result<SweepCursor, QueueError> {
        let group = own_group(&self.handle, StreamKind::Normal).await?;
        let end = group.ok_or(QueueError::GroupLost)?.last_delivered;
        // The history may contain the only evidence that a legacy worker has failed at a pending entry.
        LegacyPending::new(self.handle.clone()).acknowledge_copied_up_to(Duration::ZERO, &end).await?;
        Ok(SweepCursor { at: "-".to_owned(), end })
    }
}
