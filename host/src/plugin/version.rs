//! A version of a plugin: what it claims, and why it does not run.

use super::load_error::{LoadError, LoadErrorKind};
use crate::topic::Topic;
use std::collections::BTreeSet;
use std::fmt;

/// A topic, or all unclaimed topics: only one plugin at a time may handle it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    Topic(Topic),
    /// All topics that no other plugin claims.
    CatchAll,
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
            Claim::CatchAll => None,
        };
        self.claims.iter().filter_map(topic).collect()
    }
}

/// Why the version in the directory is not the live one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    pub kind: RefusalKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// It is not a plugin, or not one for this host.
    Invalid,
    /// It can't be read or loaded now; the host retries by itself.
    Transient,
    /// Another plugin has what it claims.
    Conflict,
    /// It was quarantined or rolled back.
    Blocked,
}

impl RefusalKind {
    /// Its name in the HTTP API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Transient => "transient",
            Self::Conflict => "conflict",
            Self::Blocked => "blocked",
        }
    }
}

impl From<LoadError> for Refusal {
    fn from(error: LoadError) -> Self {
        let kind = match error.kind {
            LoadErrorKind::Permanent => RefusalKind::Invalid,
            LoadErrorKind::Transient => RefusalKind::Transient,
        };
        Self { reason: error.message, kind }
    }
}

/// Why a version that was live must not be loaded again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockReason {
    Quarantined,
    RolledBack,
}

impl BlockReason {
    /// Its name in the HTTP API and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quarantined => "quarantined",
            Self::RolledBack => "rolled-back",
        }
    }
}

impl fmt::Display for BlockReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quarantined => "quarantined: it crashed on several messages soon after it went live",
            Self::RolledBack => "rolled back by an operator",
        })
    }
}

/// Why a request to roll back or unblock a version fails.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    #[error("there is no plugin {0}")]
    Unknown(String),
    #[error("{0}")]
    Impossible(String),
}
