//! A delivery on its way to a run, with the message that was read from it. An
//! entry is parsed once: by deduplication, which needs the message's key, or
//! else by the run.

use crate::message::{self, Message, Undecodable};
use crate::queue::{Delivery, EntryId};
use crate::topic::Topic;

/// From this many crashes on, a message runs in isolation.
const ISOLATE_AFTER: u32 = 2;

pub(super) struct WorkItem {
    pub(super) delivery: Delivery,
    parsed: Option<Result<Message, Undecodable>>,
}

impl WorkItem {
    pub(super) fn new(delivery: Delivery) -> Self {
        Self { delivery, parsed: None }
    }

    pub(super) fn entry(&self) -> &EntryId {
        &self.delivery.entry
    }

    /// Whether workers crashed with it often enough that it may be the reason.
    pub(super) fn needs_isolation(&self) -> bool {
        self.delivery.crash_count >= ISOLATE_AFTER
    }

    /// What other copies of the message are recognised by, if it can have any.
    pub(super) fn deduplication_key(&mut self, topic: &Topic) -> Option<String> {
        let delivery = &self.delivery;
        let parsed = self.parsed.get_or_insert_with(|| message::read(topic, &delivery.entry.id, &delivery.fields));
        parsed.as_ref().ok()?.deduplication_key().cloned()
    }

    /// The message, for a run. Another run of the same delivery parses it again,
    /// because the first one has handed its data to the handler.
    pub(super) fn take_message(&mut self, topic: &Topic) -> Result<Message, Undecodable> {
        let delivery = &self.delivery;
        self.parsed.take().unwrap_or_else(|| message::read(topic, &delivery.entry.id, &delivery.fields))
    }
}
