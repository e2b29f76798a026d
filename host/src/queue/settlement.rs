//! What happens to a delivered message once its run has ended.

use super::claim::Claim;
use super::keyspace::EntryId;
use crate::message::Fields;
use crate::publication::Publication;
use std::time::Duration;

/// The field of a dead letter that says why the message died.
pub const ERROR_FIELD: &str = "gw-error";

#[derive(Debug, Clone, PartialEq)]
pub struct Settlement {
    pub entry: EntryId,
    pub(crate) delivery_count: u32,
    pub(crate) disposition: Disposition,
    /// The message's claim, where its topic deduplicates.
    pub(crate) claim: Option<Claim>,
    /// The bytes that its script reads and is sent.
    pub(crate) bytes: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Disposition {
    Done {
        kind: DoneKind,
        publications: Vec<Publication>,
    },
    RunAgain {
        after: Duration,
        set_fields: Fields,
    },
    DeadLetter {
        set_fields: Fields,
    },
    /// A dead letter of a message whose entry was deleted while it was in flight:
    /// these are all of its fields.
    EntryDeleted {
        fields: Fields,
    },
}

/// Which counter of the topic a finished message adds to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DoneKind {
    Done,
    /// Another message with its deduplication key had finished before.
    Duplicate,
    Expired,
}

impl DoneKind {
    pub(crate) const ALL: [Self; 3] = [Self::Done, Self::Duplicate, Self::Expired];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Duplicate => "duplicate",
            Self::Expired => "expired",
        }
    }
}

impl Settlement {
    /// The same, which also frees this claim, or holds it until the message runs again.
    pub fn with_claim(self, claim: Option<Claim>) -> Self {
        Self { claim, ..self }
    }

    pub fn is_dead_letter(&self) -> bool {
        matches!(self.disposition, Disposition::DeadLetter { .. } | Disposition::EntryDeleted { .. })
    }

    /// The delay before the message runs again, if it does.
    pub fn runs_again_in(&self) -> Option<Duration> {
        match self.disposition {
            Disposition::RunAgain { after, .. } => Some(after),
            _ => None,
        }
    }

    /// Its kind, if it needs no more than an acknowledgement.
    pub(crate) fn acknowledgement(&self) -> Option<DoneKind> {
        match &self.disposition {
            Disposition::Done { kind, publications, .. } if publications.is_empty() => Some(*kind),
            _ => None,
        }
    }

    pub(crate) fn publications(&self) -> &[Publication] {
        match &self.disposition {
            Disposition::Done { publications, .. } => publications,
            _ => &[],
        }
    }
}
