//! The claim that a message needs to run where its topic deduplicates: of all
//! messages with one deduplication key, one has it at a time.

use super::keyspace::{EntryId, digest};
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub(crate) key_hash: String,
    /// The message's first entry identifies it over all its retries.
    pub(crate) first_entry: EntryId,
    /// How long it lasts unless it is extended.
    pub(crate) lasts: Duration,
}

impl Claim {
    /// The claim of a message with this deduplication key. It outlives its worker by
    /// two leases at most.
    pub fn new(dedup_key: &str, first_entry: EntryId, lease: Duration) -> Self {
        Self { key_hash: digest(dedup_key), first_entry, lasts: lease * 2 }
    }

    /// The hash of the deduplication key, as entries name it.
    pub fn key_hash(&self) -> &str {
        &self.key_hash
    }

    pub fn first_entry(&self) -> &EntryId {
        &self.first_entry
    }
}
