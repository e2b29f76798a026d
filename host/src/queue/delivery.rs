//! A message that Redis has delivered to this worker, and the ways to settle it.

use super::claim::Claim;
use super::keyspace::EntryId;
use super::settlement::{Disposition, DoneKind, Settlement};
use crate::message::{self, CRASHES_FIELD, FIRST_ENTRY_FIELD, Fields};
use crate::publication::Publication;
use std::str::FromStr;
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
        Self::counted(entry, 1, fields)
    }

    /// A delivery after others of which each lost its worker.
    pub(crate) fn counted(entry: EntryId, delivery_count: u32, fields: Fields) -> Self {
        // A message that was parked has a new entry, and its earlier crashes in a field.
        let earlier = number(&fields, CRASHES_FIELD).unwrap_or(0);
        let crash_count = delivery_count.saturating_sub(1).saturating_add(earlier);
        Self { entry, delivery_count, crash_count, fields }
    }

    /// The entry that the message had at first: a retry gives it another one.
    pub fn first_entry(&self) -> EntryId {
        number(&self.fields, FIRST_ENTRY_FIELD).unwrap_or_else(|| self.entry.clone())
    }

    pub fn bytes(&self) -> usize {
        self.fields.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// The run has succeeded. Other messages with the key of the `claim` are
    /// duplicates from now on; the publications are its follow-ups.
    pub fn done(&self, claim: Option<Claim>, publications: Vec<Publication>) -> Settlement {
        let bytes = publications.iter().map(|one| one.body.len()).sum();
        self.settlement(Disposition::Done { kind: DoneKind::Done, publications }, bytes).with_claim(claim)
    }

    /// Removes the message without a run.
    pub fn discard(&self, kind: DoneKind) -> Settlement {
        self.settlement(Disposition::Done { kind, publications: Vec::new() }, 0)
    }

    /// `set_fields` are added to the entry, or replace its fields of these names.
    pub fn run_again(&self, after: Duration, set_fields: Fields) -> Settlement {
        self.settlement(Disposition::RunAgain { after, set_fields }, self.bytes())
    }

    /// `set_fields` are added to the entry, or replace its fields of these names.
    pub fn dead_letter(&self, set_fields: Fields) -> Settlement {
        self.settlement(Disposition::DeadLetter { set_fields }, self.bytes())
    }

    /// The dead letter of a message whose entry was deleted while it was in flight.
    /// It is made of the fields in hand; `set_fields` replace those of their names.
    pub fn entry_deleted(&self, set_fields: Fields) -> Settlement {
        // What was known of a message that had not run yet ends with its run.
        let is_replaced =
            |name: &[u8]| matches!(name, b"gw-parked" | b"gw-crashes") || set_fields.iter().any(|(set, _)| set == name);
        let mut fields: Fields = self.fields.iter().filter(|(name, _)| !is_replaced(name)).cloned().collect();
        fields.extend(set_fields.iter().cloned());
        let bytes = self.bytes();
        self.settlement(Disposition::EntryDeleted { fields }, bytes)
    }

    fn settlement(&self, disposition: Disposition, bytes: usize) -> Settlement {
        let (entry, delivery_count) = (self.entry.clone(), self.delivery_count);
        Settlement { entry, delivery_count, disposition, claim: None, bytes }
    }
}

/// A value of a host field; none if it can't be parsed.
fn number<T: FromStr>(fields: &Fields, name: &str) -> Option<T> {
    std::str::from_utf8(message::field(fields, name)?).ok()?.parse().ok()
}
