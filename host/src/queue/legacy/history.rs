//! Sweeps what was delivered and is not pending: deletes the history that legacy
//! workers and other groups leave, and finds what was never ours or is unfinished.
//! `delivered.lua` says how these are told apart.

use super::pending::LegacyPending;
use crate::queue::error::QueueError;
use crate::queue::keyspace::{EntryId, StreamKind};
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

/// What one batch of a sweep has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// `None` at the end.
    pub next: Option<SweepCursor>,
    /// Finished, and deleted.
    pub history: Vec<EntryId>,
    /// Passed over before we first opened the group, and kept.
    pub never_ours: Vec<EntryId>,
    /// To be made pending again by [`Leases::restore`](crate::queue::Leases::restore).
    pub unfinished: Vec<EntryId>,
}

pub struct LegacyHistory {
    handle: TopicHandle,
}

impl LegacyHistory {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    /// Sweeps one batch of a stream from where the last call ended; `None` starts a
    /// sweep. `passes_over` leaves out what was never ours, if the sweep starts.
    pub async fn sweep(
        &self,
        stream: StreamKind,
        from: Option<&SweepCursor>,
        passes_over: bool,
    ) -> Result<Swept, QueueError> {
        let SweepCursor { at, end } = match from {
            Some(cursor) => cursor.clone(),
            None => self.start(stream).await?,
        };
        let handle = &self.handle;
        let mut script = scripts::SWEEP.key(handle.key(stream));
        script.key(&handle.keys().state).arg(handle.group()).arg(at).arg(&end).arg(BATCH).arg(BATCH_BYTES);
        script.arg(stream.class()).arg(u8::from(passes_over));
        type Reply = (String, usize, Vec<String>, Vec<String>, Vec<String>);
        let (at, others, history, never_ours, unfinished): Reply = script.invoke_async(&mut handle.shared()).await?;
        handle.set_other_groups(stream, others);
        let entries = |ids: Vec<String>| ids.into_iter().map(|id| EntryId { stream, id }).collect();
        Ok(Swept {
            next: (!at.is_empty()).then_some(SweepCursor { at, end }),
            history: entries(history),
            never_ours: entries(never_ours),
            unfinished: entries(unfinished),
        })
    }

    async fn start(&self, stream: StreamKind) -> Result<SweepCursor, QueueError> {
        let group = own_group(&self.handle, stream).await?;
        let end = group.ok_or(QueueError::GroupLost)?.last_delivered;
        // The history may contain the only evidence that a legacy worker has failed at a pending entry.
        if stream == StreamKind::Normal {
            LegacyPending::new(self.handle.clone()).acknowledge_copied_up_to(Duration::ZERO, &end).await?;
        }
        Ok(SweepCursor { at: "-".to_owned(), end })
    }
}
