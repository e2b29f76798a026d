//! One plugin name: its file, what is live of it, what is under way, and what
//! is held against it.

use super::again::Again;
use super::{Goal, Order};
use crate::plugin::archive::Record;
use crate::plugin::version::{Claim, Held, Refusal, Version};
use crate::topic::Topic;
use std::collections::BTreeSet;
use std::time::Duration;

/// So many digests of a plugin are kept out at a time; the oldest go first.
const HELD_MAX: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum File<S> {
    /// Only what was before is known.
    Absent,
    Missing {
        since: Duration,
    },
    Moving {
        stamp: S,
        since: Duration,
    },
    Loading(S),
    Known(S),
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) order: Order,
    pub(super) candidate: Option<Version>,
}

/// One plugin name.
#[derive(Debug)]
pub(in crate::plugin) struct Entry<S> {
    pub(super) file: File<S>,
    /// Since when it has not been read or refused, or gone for good.
    pub(super) restless_since: Option<Duration>,
    pub(super) job: Option<Job>,
    pub(in crate::plugin) live: Option<Version>,
    /// Whether what is live has stood its probation, or had none to stand.
    pub(super) is_proven: bool,
    /// The way back: one that was proven.
    pub(in crate::plugin) previous: Option<String>,
    pub(in crate::plugin) held: Vec<(String, Held)>,
    pub(in crate::plugin) refusal: Option<Refusal>,
    /// What failed last for a cause that may pass.
    pub(super) again: Option<Again>,
    /// What is refused because others have what it claims.
    pub(super) conflicting: Option<Version>,
    /// Topics that it once had: nobody gets them as part of the rest.
    pub(in crate::plugin) had: BTreeSet<Topic>,
    /// Topics that the file asks for, live or not.
    pub(super) asked: BTreeSet<Topic>,
    pub(super) remembered: Option<Remembered>,
}

/// What ran before the start, and what that had to go back to.
#[derive(Debug, Clone)]
pub(super) struct Remembered {
    pub(super) live: String,
    pub(super) is_proven: bool,
    pub(super) previous: Option<String>,
}

impl Remembered {
    pub(super) fn of(record: &Record) -> Option<Self> {
        let previous = record.previous.clone();
        // Who could go back to nothing had nothing to stand.
        Some(Self { live: record.live.clone()?, is_proven: record.is_proven || previous.is_none(), previous })
    }
}

impl<S> Entry<S> {
    pub(super) fn new() -> Self {
        Self {
            file: File::Absent,
            restless_since: None,
            job: None,
            live: None,
            is_proven: false,
            previous: None,
            held: Vec::new(),
            refusal: None,
            again: None,
            conflicting: None,
            had: BTreeSet::new(),
            asked: BTreeSet::new(),
            remembered: None,
        }
    }

    pub(in crate::plugin) fn is_there(&self) -> bool {
        self.file_is_there() || self.live.is_some()
    }

    pub(super) fn file_is_there(&self) -> bool {
        matches!(self.file, File::Moving { .. } | File::Loading(_) | File::Known(_))
    }

    pub(in crate::plugin) fn is_loading(&self) -> bool {
        self.job.is_some()
    }

    pub(super) fn is_moving(&self) -> bool {
        matches!(self.file, File::Moving { .. } | File::Missing { .. })
    }

    /// When what failed is tried again by itself, on the clock of scans.
    pub(in crate::plugin) fn again_at(&self) -> Option<Duration> {
        let is_under_way = |again: &&Again| self.job.as_ref().is_some_and(|job| job.order.goal == again.goal);
        self.again.as_ref().filter(|again| !is_under_way(again) && self.is_wanted(again)).map(|again| again.at)
    }

    /// Whether what failed is still what is to be done.
    pub(super) fn is_wanted(&self, again: &Again) -> bool {
        match &again.goal {
            Goal::File => matches!(self.file, File::Known(_)),
            Goal::Restore { instead_of: Some((withdrawn, _)), .. } => self.is_live(withdrawn),
            Goal::Restore { digest, instead_of: None } => {
                self.live.is_none() && self.remembered.as_ref().is_some_and(|last| last.live == *digest)
            }
        }
    }

    pub(super) fn due(&self, now: Duration) -> Option<Goal> {
        self.again_at().filter(|at| *at <= now && self.job.is_none())?;
        self.again.as_ref().map(|again| again.goal.clone())
    }

    /// One of two ways is tried again: if the file loads, no way back is needed.
    pub(super) fn failed_for_now(&mut self, goal: &Goal, now: Duration) {
        let is_rollback = matches!(goal, Goal::Restore { instead_of: Some((_, Held::RolledBack)), .. });
        let is_file = self.again.as_ref().is_some_and(|again| again.goal == Goal::File);
        // Whoever wanted to roll back has been told.
        if !is_rollback && (*goal == Goal::File || !is_file) {
            self.again = Some(Again::after(self.again.as_ref(), goal, now));
        }
    }

    /// It was done, or has failed for good, or makes no sense any longer.
    pub(super) fn forget_again(&mut self, goal: &Goal) {
        self.again.take_if(|again| again.goal == *goal);
    }

    /// Topics that it asks for, as far as is known: most are named after theirs.
    pub(super) fn asked(&self, name: &str) -> Vec<Topic> {
        let is_unread =
            matches!(self.file, File::Moving { .. } | File::Loading(_)) && self.live.is_none() && self.asked.is_empty();
        let named = Topic::from_file_name(name).ok().filter(|_| is_unread);
        self.asked.iter().filter(|_| self.is_there()).cloned().chain(named).collect()
    }

    pub(super) fn is_live(&self, digest: &str) -> bool {
        self.live.as_ref().is_some_and(|live| live.digest == digest)
    }

    pub(super) fn is_going_back(&self) -> bool {
        matches!(self.job.as_ref().map(|job| &job.order.goal), Some(Goal::Restore { .. }))
    }

    pub(super) fn held_because(&self, digest: &str) -> Option<Held> {
        self.held.iter().find(|(held, _)| held == digest).map(|(_, why)| *why)
    }

    pub(super) fn hold(&mut self, digest: String, why: Held) {
        self.held.retain(|(held, _)| *held != digest);
        self.held.push((digest, why));
        let over = self.held.len().saturating_sub(HELD_MAX);
        self.held.drain(..over);
    }

    pub(super) fn claims(&self) -> impl Iterator<Item = &Claim> {
        let candidate = self.job.as_ref().and_then(|job| job.candidate.as_ref());
        self.live.iter().chain(candidate).flat_map(|version| &version.claims)
    }

    /// What has to be known to go on after a restart.
    pub(in crate::plugin) fn record(&self) -> Record {
        let (live, is_proven, previous) = match (&self.live, &self.remembered) {
            (Some(live), _) => (Some(live.digest.clone()), self.is_proven, self.previous.clone()),
            (None, Some(last)) => (Some(last.live.clone()), last.is_proven, last.previous.clone()),
            (None, None) => (None, false, None),
        };
        Record { live, is_proven, previous, held: self.held.clone(), topics: self.had.clone() }
    }
}

impl<S: Clone> Entry<S> {
    /// Has the file read again, at the next scan that finds it unchanged.
    pub(super) fn look_again(&mut self, now: Duration) {
        if let File::Known(stamp) | File::Loading(stamp) = &self.file {
            self.file = File::Moving { stamp: stamp.clone(), since: now };
            self.restless_since.get_or_insert(now);
        }
    }
}
