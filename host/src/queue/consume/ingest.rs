//! Moves messages from the list that plain clients push into to the work stream,
//! where they can be leased.

use crate::queue::error::QueueError;
use crate::queue::lua::scripts::{self, BATCH_BYTES};
use crate::queue::topic::TopicHandle;

/// The most that one script moves, since nothing else runs on the server meanwhile.
const BATCH: usize = 256;

/// An end of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListEnd {
    Left,
    Right,
}

impl ListEnd {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Right => "right",
        }
    }

    pub fn other(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
        }
    }
}

pub struct ListIntake {
    handle: TopicHandle,
}

impl ListIntake {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    /// Whether publishers have made a stream of the key since the list was emptied.
    pub async fn is_stream(&self) -> Result<bool, QueueError> {
        let mut command = redis::cmd("TYPE");
        let kind: String = command.arg(&self.handle.keys().main).query_async(&mut self.handle.shared()).await?;
        Ok(kind == "stream")
    }

    /// Moves one batch, in the order of that end. Returns how many messages it moved.
    pub async fn move_batch(&self, end: ListEnd) -> Result<usize, QueueError> {
        let keys = self.handle.keys();
        let mut script = scripts::INGEST.prepare_invoke();
        script.key(&[&keys.main, &keys.input, &keys.work, &keys.state][..]);
        script.arg(BATCH).arg(BATCH_BYTES).arg(end.name());
        Ok(script.invoke_async(&mut self.handle.shared()).await?)
    }
}
