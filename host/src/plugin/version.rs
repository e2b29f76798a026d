//! What is said about a version of a plugin: what it claims, and why it does
//! not run or no longer.

use super::load_error::{Cause, LoadError};
use crate::topic::Topic;
use std::collections::BTreeSet;
use std::fmt;

/// What a plugin may have for itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    Topic(Topic),
    /// All topics that nobody else has.
    Rest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) digest: String,
    pub(super) claims: BTreeSet<Claim>,
}

impl Version {
    pub(super) fn topics(&self) -> BTreeSet<Topic> {
        let topic = |claim: &Claim| match claim {
            Claim::Topic(topic) => Some(topic.clone()),
            Claim::Rest => None,
        };
        self.claims.iter().filter_map(topic).collect()
    }
}

/// Why the version in the directory is not the one that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    pub kind: RefusalKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// It is no plugin, or not one for this host.
    Faulty,
    /// It can't be read or loaded now: it is tried again by itself.
    Passing,
    /// Another plugin has what it claims.
    Conflict,
    /// It was live, and was withdrawn.
    Held,
}

impl From<LoadError> for Refusal {
    fn from(error: LoadError) -> Self {
        let kind = match error.cause {
            Cause::Lasting => RefusalKind::Faulty,
            Cause::Passing => RefusalKind::Passing,
        };
        Self { reason: error.told, kind }
    }
}

/// Why a version that was live is kept out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Held {
    Quarantined,
    RolledBack,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quarantined => "quarantined: it crashed on several messages soon after it went live",
            Self::RolledBack => "rolled back by an operator",
        })
    }
}

/// Why a version is not changed as somebody wants it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("there is no plugin {0}")]
    Unknown(String),
    #[error("{0}")]
    Impossible(String),
}
