//! One plugin name: its file, its live version, the load in progress, and what is
//! blocked.

use super::retry::Retry;
use super::{Command, Target};
use crate::manifest::topic_from_stem;
use crate::plugin::version::{BlockReason, Claim, Refusal, Version};
use crate::plugin::version_store::Record;
use crate::topic::Topic;
use std::collections::BTreeSet;
use std::time::Duration;

/// At most this many digests of a plugin are blocked; the oldest are dropped
/// first.
const BLOCKED_MAX: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum File<S> {
    /// There is no file; the entry has only state from before.
    Absent,
    Missing {
        since: Duration,
    },
    Unstable {
        fingerprint: S,
        since: Duration,
    },
    Loading(S),
    Known(S),
}

#[derive(Debug)]
pub(super) struct LoadRequest {
    pub(super) command: Command,
    pub(super) candidate: Option<Version>,
}

#[derive(Debug)]
pub(in crate::plugin) struct Entry<S> {
    pub(super) file: File<S>,
    /// When the file last left the states `Known` and `Absent`.
    pub(super) unstable_since: Option<Duration>,
    pub(super) request: Option<LoadRequest>,
    pub(in crate::plugin) live: Option<Version>,
    /// Whether the live version passed its probation or needed none.
    pub(super) is_proven: bool,
    /// The proven version that a rollback restores.
    pub(in crate::plugin) previous: Option<String>,
    pub(in crate::plugin) blocked: Vec<(String, BlockReason)>,
    pub(in crate::plugin) refusal: Option<Refusal>,
    /// The retry of the last transient failure.
    pub(super) retry: Option<Retry>,
    /// The version that is refused because other plugins have its claims.
    pub(super) conflicting: Option<Version>,
    /// Topics that it has handled: the catch-all does not get them.
    pub(in crate::plugin) previous_topics: BTreeSet<Topic>,
    /// Topics that the file claims, live or not.
    pub(super) requested_topics: BTreeSet<Topic>,
    pub(super) remembered: Option<Remembered>,
}

/// The version that was live before the start, and its previous version.
#[derive(Debug, Clone)]
pub(super) struct Remembered {
    pub(super) live: String,
    pub(super) is_proven: bool,
    pub(super) previous: Option<String>,
}

impl Remembered {
    pub(super) fn from_record(record: &Record) -> Option<Self> {
        let previous = record.previous.clone();
        // Without a previous version there was no probation.
        Some(Self { live: record.live.clone()?, is_proven: record.is_proven || previous.is_none(), previous })
    }
}

impl<S> Entry<S> {
    pub(super) fn new() -> Self {
        Self {
            file: File::Absent,
            unstable_since: None,
            request: None,
            live: None,
            is_proven: false,
            previous: None,
            blocked: Vec::new(),
            refusal: None,
            retry: None,
            conflicting: None,
            previous_topics: BTreeSet::new(),
            requested_topics: BTreeSet::new(),
            remembered: None,
        }
    }

    pub(in crate::plugin) fn is_present(&self) -> bool {
        self.has_file() || self.live.is_some()
    }

    pub(super) fn has_file(&self) -> bool {
        matches!(self.file, File::Unstable { .. } | File::Loading(_) | File::Known(_))
    }

    pub(in crate::plugin) fn is_loading(&self) -> bool {
        self.request.is_some()
    }

    pub(super) fn is_unstable(&self) -> bool {
        matches!(self.file, File::Unstable { .. } | File::Missing { .. })
    }

    /// The time of the next retry, on the clock of scans.
    pub(in crate::plugin) fn retry_at(&self) -> Option<Duration> {
        let is_under_way =
            |retry: &&Retry| self.request.as_ref().is_some_and(|request| request.command.target == retry.target);
        self.retry.as_ref().filter(|retry| !is_under_way(retry) && self.is_wanted(retry)).map(|retry| retry.at)
    }

    /// Whether the retry still makes sense.
    pub(super) fn is_wanted(&self, retry: &Retry) -> bool {
        match &retry.target {
            Target::File => matches!(self.file, File::Known(_)),
            Target::Restore { instead_of: Some((withdrawn, _)), .. } => self.is_live(withdrawn),
            Target::Restore { digest, instead_of: None } => {
                self.live.is_none() && self.remembered.as_ref().is_some_and(|last| last.live == *digest)
            }
        }
    }

    pub(super) fn due(&self, now: Duration) -> Option<Target> {
        self.retry_at().filter(|at| *at <= now && self.request.is_none())?;
        self.retry.as_ref().map(|retry| retry.target.clone())
    }

    /// A retry of the file has priority: if it loads, no restore is needed.
    pub(super) fn schedule_retry(&mut self, target: &Target, now: Duration) {
        let is_rollback = matches!(target, Target::Restore { instead_of: Some((_, BlockReason::RolledBack)), .. });
        let is_file = self.retry.as_ref().is_some_and(|retry| retry.target == Target::File);
        // A failed rollback was reported to the operator and is not retried.
        if !is_rollback && (*target == Target::File || !is_file) {
            self.retry = Some(Retry::after(self.retry.as_ref(), target, now));
        }
    }

    /// Called when the target succeeded, failed for good or is obsolete.
    pub(super) fn clear_retry(&mut self, target: &Target) {
        self.retry.take_if(|retry| retry.target == *target);
    }

    /// The topics that it claims. Before its file is read, its name is taken for the
    /// topic.
    pub(super) fn wanted_topics(&self, name: &str) -> Vec<Topic> {
        let is_unread = matches!(self.file, File::Unstable { .. } | File::Loading(_))
            && self.live.is_none()
            && self.requested_topics.is_empty();
        let named = topic_from_stem(name).ok().filter(|_| is_unread);
        self.requested_topics.iter().filter(|_| self.is_present()).cloned().chain(named).collect()
    }

    pub(super) fn is_live(&self, digest: &str) -> bool {
        self.live.as_ref().is_some_and(|live| live.digest == digest)
    }

    pub(super) fn is_restoring(&self) -> bool {
        matches!(self.request.as_ref().map(|request| &request.command.target), Some(Target::Restore { .. }))
    }

    pub(super) fn block_reason(&self, digest: &str) -> Option<BlockReason> {
        self.blocked.iter().find(|(blocked, _)| blocked == digest).map(|(_, why)| *why)
    }

    pub(super) fn block(&mut self, digest: String, why: BlockReason) {
        self.blocked.retain(|(blocked, _)| *blocked != digest);
        self.blocked.push((digest, why));
        let over = self.blocked.len().saturating_sub(BLOCKED_MAX);
        self.blocked.drain(..over);
    }

    pub(super) fn claims(&self) -> impl Iterator<Item = &Claim> {
        let candidate = self.request.as_ref().and_then(|request| request.candidate.as_ref());
        self.live.iter().chain(candidate).flat_map(|version| &version.claims)
    }

    /// The state that has to survive a restart.
    pub(in crate::plugin) fn record(&self) -> Record {
        let (live, is_proven, previous) = match (&self.live, &self.remembered) {
            (Some(live), _) => (Some(live.digest.clone()), self.is_proven, self.previous.clone()),
            (None, Some(last)) => (Some(last.live.clone()), last.is_proven, last.previous.clone()),
            (None, None) => (None, false, None),
        };
        Record { live, is_proven, previous, blocked: self.blocked.clone(), topics: self.previous_topics.clone() }
    }
}

impl<S: Clone> Entry<S> {
    /// Makes the next scan that finds the file unchanged read it again.
    pub(super) fn reread(&mut self, now: Duration) {
        if let File::Known(fingerprint) | File::Loading(fingerprint) = &self.file {
            self.file = File::Unstable { fingerprint: fingerprint.clone(), since: now };
            self.unstable_since.get_or_insert(now);
        }
    }
}
