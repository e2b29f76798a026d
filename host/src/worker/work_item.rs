//! A delivery on its way to a run, with the message that was read from it. An
//! entry is parsed once: by deduplication, which needs the message's key, or
//! else by the run.

use crate::message::{self, Message, Undecodable};
use crate::queue::{Claim, ClaimRequest, Delivery, EntryId};
use crate::topic::Topic;
use std::time::Duration;

/// From this many crashes on, a message runs in isolation.
const ISOLATE_AFTER: u32 = 2;

pub(super) struct WorkItem {
    pub(super) delivery: Delivery,
    parsed: Option<Result<Message, Undecodable>>,
    /// The claim that it needs to run, where its topic deduplicates.
    pub(super) claim: Option<Claim>,
}

impl WorkItem {
    pub(super) fn new(delivery: Delivery) -> Self {
        Self { delivery, parsed: None, claim: None }
    }

    pub(super) fn entry(&self) -> &EntryId {
        &self.delivery.entry
    }

    /// Whether workers crashed with it often enough that it may be the reason.
    pub(super) fn needs_isolation(&self) -> bool {
        self.delivery.crash_count >= ISOLATE_AFTER
    }

    /// Finds out which claim it needs. A message without a key has no copies, and
    /// needs none.
    pub(super) fn determine_claim(&mut self, topic: &Topic, lease: Duration) {
        let delivery = &self.delivery;
        let parsed = self.parsed.get_or_insert_with(|| message::read(topic, &delivery.entry.id, &delivery.fields));
        let key = parsed.as_ref().ok().and_then(Message::deduplication_key);
        self.claim = key.map(|key| Claim::new(key, delivery.first_entry(), lease));
    }

    /// What asks for its claim, if it needs one.
    pub(super) fn claim_request(&self) -> Option<ClaimRequest<'_>> {
        let expires_at = self.parsed.as_ref().and_then(|parsed| parsed.as_ref().ok()?.expires_at);
        Some(ClaimRequest { delivery: &self.delivery, claim: self.claim.as_ref()?, expires_at })
    }

    /// The message's id, if it has been read.
    pub(super) fn message_id(&self) -> Option<String> {
        Some(self.parsed.as_ref()?.as_ref().ok()?.id.clone())
    }

    /// The message, for a run. Another run of the same delivery parses it again,
    /// because the first one has handed its data to the handler.
    pub(super) fn take_message(&mut self, topic: &Topic) -> Result<Message, Undecodable> {
        let delivery = &self.delivery;
        self.parsed.take().unwrap_or_else(|| message::read(topic, &delivery.entry.id, &delivery.fields))
    }
}
