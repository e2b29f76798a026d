//! A message that Redis has delivered to this worker, and the ways to settle it.

use super::keyspace::EntryId;
use super::settlement::{Disposition, DoneKind, Settlement};
use crate::message::Fields;
use crate::publication::Publication;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    pub entry: EntryId,
    /// How often the entry has been delivered; 1 is the first time. Together with
    /// the consumer it identifies this delivery.
    pub delivery_count: u32,
    /// How many workers were lost while they had it in flight.
    pub crash_count: u32,
    /// Empty where the entry was deleted while it was pending.
    pub fields: Fields,
}

impl Delivery {
    /// The first delivery of an entry.
    pub(crate) fn new(entry: EntryId, fields: Fields) -> Self {
        Self { entry, delivery_count: 1, crash_count: 0, fields }
    }

    pub fn bytes(&self) -> usize {
        self.fields.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// The run has succeeded. Other messages with the `dedup_key` are duplicates
    /// from now on; the publications are its follow-ups.
    pub fn done(&self, dedup_key: Option<String>, publications: Vec<Publication>) -> Settlement {
        let bytes = publications.iter().map(|one| one.body.len()).sum();
        self.settlement(Disposition::Done { kind: DoneKind::Done, dedup_key, publications }, bytes)
    }

    /// Removes the message without a run.
    pub fn discard(&self, kind: DoneKind) -> Settlement {
        self.settlement(Disposition::Done { kind, dedup_key: None, publications: Vec::new() }, 0)
    }

    /// `set_fields` are added to the entry, or replace its fields of these names.
    pub fn run_again(&self, after: Duration, set_fields: Fields) -> Settlement {
        self.settlement(Disposition::RunAgain { after, set_fields }, self.bytes())
    }

    /// `set_fields` are added to the entry, or replace its fields of these names.
    pub fn dead_letter(&self, set_fields: Fields) -> Settlement {
        self.settlement(Disposition::DeadLetter { set_fields }, self.bytes())
    }

    fn settlement(&self, disposition: Disposition, bytes: usize) -> Settlement {
        Settlement { entry: self.entry.clone(), delivery_count: self.delivery_count, disposition, bytes }
    }
}
