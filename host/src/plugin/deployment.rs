//! The state machine of the plugins directory. Its inputs are the results of
//! scans, reads and loads; its outputs are commands for what to read and load
//! next, and which version is live. It has no I/O and no clock, so that tests can
//! try any order of events.
//!
//! A file is *unstable* until two scans, a moment apart, find it unchanged. Then
//! it is *loading*: read, and loaded unless it is refused. Then it is *known*:
//! live or refused. A refused version leaves the live one untouched; transient
//! refusals are retried. A *missing* file is treated as removed only after a grace
//! period, because editors delete and re-create.

mod retry;
mod entry;

use super::load_error::LoadError;
use super::version::{BlockReason, Claim, Refusal, RefusalKind, Version, VersionError};
use super::version_store::Record;
use crate::events;
use crate::manifest::topic_from_stem;
use crate::topic::Topic;
pub(super) use entry::Entry;
use entry::{File, LoadRequest, Remembered};
use std::collections::BTreeMap;
use std::time::Duration;

/// A version is loaded when neither of its files has changed for this long.
pub const QUIET: Duration = Duration::from_millis(150);

/// The same for files that their writers have closed.
pub const SHORT_QUIET: Duration = Duration::from_millis(25);

/// A file that keeps changing for longer does not delay readiness.
const UNSTABLE_WAIT_MAX: Duration = Duration::from_secs(5);

/// Which version a command is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// The version in the directory.
    File,
    /// An earlier version. If it replaces a withdrawn one, that one is blocked as
    /// soon as the restore succeeds.
    Restore { digest: String, instead_of: Option<(String, BlockReason)> },
}

/// Read this version, and load it unless it is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) name: String,
    pub(super) target: Target,
    /// Distinguishes results of this command from those of an earlier one.
    ticket: u64,
}

/// The effect of a read or a load.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Transition {
    /// A newer command has replaced this one.
    Stale,
    /// This version is live already.
    Unchanged,
    /// The version is acceptable: load it.
    Load,
    Live {
        replaced: Option<String>,
        /// Otherwise its probation starts.
        is_proven: bool,
    },
    Refused {
        refusal: Refusal,
        /// If no version is live: restore the one from before the last start.
        restore: Option<Command>,
    },
    NotRestored {
        reason: String,
    },
}

/// The effects of a scan.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ScanResult {
    pub(super) commands: Vec<Command>,
    /// Plugins that were live.
    pub(super) removed: Vec<String>,
    /// Whether any file was removed, live or not.
    pub(super) is_any_removed: bool,
}

/// `S` is the fingerprint of a plugin's files: it differs if they have changed.
#[derive(Debug)]
pub(super) struct Deployment<S> {
    entries: BTreeMap<String, Entry<S>>,
    is_first_scan: bool,
    tickets: u64,
    /// The time of the last scan.
    now: Duration,
}

impl<S: Clone + PartialEq> Deployment<S> {
    /// Starts from the records of the previous run.
    pub(super) fn new(records: BTreeMap<String, Record>) -> Self {
        let entry = |(name, record): (String, Record)| {
            let remembered = Remembered::from_record(&record);
            (name, Entry { blocked: record.blocked, previous_topics: record.topics, remembered, ..Entry::new() })
        };
        let entries = records.into_iter().map(entry).collect();
        Self { entries, is_first_scan: true, tickets: 0, now: Duration::ZERO }
    }

    pub(super) fn entries(&self) -> &BTreeMap<String, Entry<S>> {
        &self.entries
    }

    pub(super) fn entry(&self, name: &str) -> Option<&Entry<S>> {
        self.entries.get(name)
    }

    /// Whether another scan is due as soon as the files may have settled.
    pub(super) fn is_unstable(&self) -> bool {
        self.entries.values().any(Entry::is_unstable)
    }

    /// Whether no plugin is loading or about to be.
    pub(super) fn is_idle(&self) -> bool {
        let is_awaited = |entry: &Entry<S>| {
            entry.is_unstable()
                && entry.unstable_since.is_none_or(|since| self.now.saturating_sub(since) < UNSTABLE_WAIT_MAX)
        };
        !self.entries.values().any(|entry| entry.is_loading() || is_awaited(entry))
    }

    /// Topics that the catch-all must not get, and the plugin that each is reserved
    /// for.
    pub(super) fn reserved_topics(&self) -> BTreeMap<Topic, String> {
        let reserved = |(name, entry): (&String, &Entry<S>)| {
            let topics = entry.previous_topics.iter().cloned().chain(entry.wanted_topics(name));
            topics.map(|topic| (topic, name.clone())).collect::<Vec<_>>()
        };
        self.entries.iter().flat_map(reserved).collect()
    }

    /// Applies the result of a scan at `now`, on a monotonic clock. `quiet` says for
    /// how long a file must be unchanged; `is_old` says that nobody is writing it.
    pub(super) fn on_scan(
        &mut self,
        found: &BTreeMap<String, S>,
        now: Duration,
        quiet: impl Fn(&S) -> Duration,
        is_old: impl Fn(&S) -> bool,
    ) -> ScanResult {
        let mut result = ScanResult { commands: Vec::new(), removed: Vec::new(), is_any_removed: false };
        self.now = now;
        for (name, entry) in &mut self.entries {
            if found.contains_key(name) {
                continue;
            }
            match entry.file {
                File::Missing { since } if now.saturating_sub(since) >= QUIET => {
                    entry.file = File::Absent;
                    entry.unstable_since = None;
                    entry.request = None;
                    (entry.refusal, entry.conflicting, entry.previous) = (None, None, None);
                    entry.retry = None;
                    result.is_any_removed = true;
                    if entry.live.take().is_some() {
                        result.removed.push(name.clone());
                    }
                }
                File::Absent | File::Missing { .. } => {}
                _ => {
                    entry.file = File::Missing { since: now };
                    entry.unstable_since.get_or_insert(now);
                    // If the file reappears, it is read again. A restore goes on.
                    entry.request.take_if(|request| request.command.target == Target::File);
                }
            }
        }
        if result.is_any_removed {
            self.retry_conflicting();
        }
        for (name, fingerprint) in found {
            let entry = self.entries.entry(name.clone()).or_insert_with(Entry::new);
            let is_same = |known: &S| known == fingerprint;
            let is_quiet = match &entry.file {
                File::Known(known) if is_same(known) => {
                    if let Some(target) = entry.due(now) {
                        if target == Target::File {
                            entry.file = File::Loading(fingerprint.clone());
                        }
                        result.commands.push(start(entry, name, target, &mut self.tickets));
                    }
                    continue;
                }
                File::Loading(known) if is_same(known) => continue,
                File::Unstable { fingerprint, since } if is_same(fingerprint) => {
                    now.saturating_sub(*since) >= quiet(fingerprint)
                }
                _ => {
                    entry.file = File::Unstable { fingerprint: fingerprint.clone(), since: now };
                    entry.unstable_since.get_or_insert(now);
                    entry.request.take_if(|request| request.command.target == Target::File);
                    entry.clear_retry(&Target::File);
                    self.is_first_scan && is_old(fingerprint)
                }
            };
            if is_quiet && entry.request.is_none() {
                entry.file = File::Loading(fingerprint.clone());
                entry.conflicting = None;
                result.commands.push(start(entry, name, Target::File, &mut self.tickets));
            }
        }
        self.is_first_scan = false;
        result
    }

    /// Applies the result of reading a command's files.
    pub(super) fn on_read(&mut self, command: &Command, version: Result<Version, LoadError>) -> Transition {
        if !self.is_current(command) {
            return Transition::Stale;
        }
        if let Some(entry) = self.entries.get_mut(&command.name).filter(|_| command.target == Target::File) {
            match &version {
                Ok(version) => entry.requested_topics = version.topics(),
                // Most plugins are named after their topic.
                Err(_) if entry.requested_topics.is_empty() => {
                    entry.requested_topics.extend(topic_from_stem(&command.name))
                }
                Err(_) => {}
            }
        }
        let version = match version {
            Ok(version) => version,
            Err(error) => return self.fail(command, error.into()),
        };
        let Some(entry) = self.entries.get_mut(&command.name) else { return Transition::Stale };
        if command.target == Target::File {
            if entry.live.as_ref().is_some_and(|live| live.digest == version.digest) {
                // The file was touched, or changed back to the live version.
                entry.refusal = None;
                entry.clear_retry(&Target::File);
                self.finish(&command.name);
                return Transition::Unchanged;
            }
            if let Some(why) = entry.block_reason(&version.digest) {
                return self.fail(command, blocked(why, &version.digest, &command.name));
            }
        }
        if let Some(reason) = self.conflict(&command.name, &version) {
            let transition = self.fail(command, Refusal { reason, kind: RefusalKind::Conflict });
            if let Some(entry) = self.entries.get_mut(&command.name).filter(|_| command.target == Target::File) {
                entry.conflicting = Some(version);
            }
            return transition;
        }
        if let Some(request) = self.entries.get_mut(&command.name).and_then(|entry| entry.request.as_mut()) {
            request.candidate = Some(version);
        }
        Transition::Load
    }

    /// The fingerprint that the command's files must have when they are read.
    pub(super) fn expected(&self, command: &Command) -> Option<S> {
        match &self.entries.get(&command.name)?.file {
            File::Loading(fingerprint) if command.target == Target::File => Some(fingerprint.clone()),
            _ => None,
        }
    }

    /// The files were no longer as the scan had found them.
    pub(super) fn on_changed(&mut self, command: &Command) -> Transition {
        if self.is_current(command) {
            self.finish(&command.name);
            if let Some(entry) = self.entries.get_mut(&command.name) {
                entry.reread(self.now);
            }
        }
        Transition::Stale
    }

    /// Applies the result of loading a version.
    pub(super) fn on_loaded(&mut self, command: &Command, result: Result<(), LoadError>) -> Transition {
        if !self.is_current(command) {
            return Transition::Stale;
        }
        if let Err(error) = result {
            return self.fail(command, error.into());
        }
        let Some(entry) = self.entries.get_mut(&command.name) else { return Transition::Stale };
        let Some(candidate) = entry.request.as_mut().and_then(|request| request.candidate.take()) else {
            return Transition::Stale;
        };
        entry.clear_retry(&command.target);
        let remembered = entry.remembered.take();
        let replaced = entry.live.take().map(|live| live.digest);
        match &command.target {
            Target::File => {
                entry.refusal = None;
                let before = match (&replaced, remembered) {
                    (Some(replaced), _) => {
                        let previous = entry.previous.take();
                        Some(Remembered { live: replaced.clone(), is_proven: entry.is_proven, previous })
                    }
                    (None, remembered) => remembered,
                };
                (entry.is_proven, entry.previous) = succeed(before, &candidate.digest);
            }
            Target::Restore { instead_of, .. } => {
                // A restored version has a previous one only if the record from before
                // the start names it.
                let is_proven = remembered.as_ref().is_none_or(|last| last.is_proven);
                entry.previous = remembered.and_then(|last| last.previous);
                entry.is_proven = is_proven || entry.previous.is_none();
                if let Some((digest, why)) = instead_of {
                    entry.block(digest.clone(), *why);
                    entry.refusal = Some(blocked(*why, digest, &command.name));
                }
            }
        }
        let topics = candidate.topics();
        entry.previous_topics.extend(topics.iter().cloned());
        entry.live = Some(candidate);
        let is_proven = entry.is_proven;
        for (name, other) in &mut self.entries {
            if *name != command.name {
                other.previous_topics.retain(|topic| !topics.contains(topic));
            }
        }
        self.finish(&command.name);
        Transition::Live { replaced, is_proven }
    }

    /// The version has passed its probation. Returns whether it is live and was not
    /// proven before.
    pub(super) fn prove(&mut self, name: &str, digest: &str) -> bool {
        let entry = self.entries.get_mut(name).filter(|entry| entry.is_live(digest));
        entry.is_some_and(|entry| !std::mem::replace(&mut entry.is_proven, true))
    }

    /// Whether the version is live and not being withdrawn.
    pub(super) fn is_active(&self, name: &str, digest: &str) -> bool {
        let entry = self.entries.get(name).filter(|entry| entry.is_live(digest));
        entry.is_some_and(|entry| !entry.is_restoring())
    }

    /// Reads refused versions again at the next scan, because an operator asked and
    /// the cause may have been fixed outside of the file.
    pub(super) fn reread_refused(&mut self) {
        let is_worth_rereading =
            |refusal: &Refusal| matches!(refusal.kind, RefusalKind::Invalid | RefusalKind::Transient);
        for entry in self.entries.values_mut().filter(|entry| !entry.is_loading()) {
            if entry.refusal.as_ref().is_some_and(is_worth_rereading) {
                entry.reread(self.now);
            }
        }
    }

    /// Restores the previous version, because this one crashed or an operator asks
    /// for it.
    pub(super) fn withdraw(
        &mut self,
        name: &str,
        digest: Option<&str>,
        why: BlockReason,
    ) -> Result<Command, VersionError> {
        let now = self.now;
        let entry = self.entries.get_mut(name).filter(|entry| entry.is_present());
        let entry = entry.ok_or_else(|| VersionError::Unknown(name.to_owned()))?;
        let impossible = |reason: String| Err(VersionError::Impossible(reason));
        let Some(live) = entry.live.as_ref().map(|live| live.digest.clone()) else {
            return impossible(format!("no version of {name} is live"));
        };
        if digest.is_some_and(|digest| digest != live) {
            return impossible(format!("another version of {name} is live now"));
        }
        let Some(previous) = entry.previous.clone() else {
            return impossible(format!("{name} has no previous version"));
        };
        if entry.is_restoring() {
            return impossible(format!("an earlier version of {name} is being restored already"));
        }
        if entry.request.is_some() {
            // The file that was being loaded is loaded after the restore.
            entry.reread(now);
        }
        let target = Target::Restore { digest: previous, instead_of: Some((live, why)) };
        Ok(start(entry, name, target, &mut self.tickets))
    }

    /// Allows blocked versions to load again, and gives topics that the plugin no
    /// longer claims to the catch-all.
    pub(super) fn unblock(&mut self, name: &str) -> Result<(), VersionError> {
        let now = self.now;
        let entry = self.entries.get_mut(name).ok_or_else(|| VersionError::Unknown(name.to_owned()))?;
        let claimed = entry.live.as_ref().map(Version::topics).unwrap_or_default();
        if entry.blocked.is_empty() && entry.previous_topics.is_subset(&claimed) {
            return Err(VersionError::Impossible(format!("no version or topic of {name} is blocked")));
        }
        entry.blocked.clear();
        entry.previous_topics = claimed;
        if entry.refusal.as_ref().is_some_and(|refusal| refusal.kind == RefusalKind::Blocked) {
            entry.refusal = None;
            entry.reread(now);
        }
        Ok(())
    }

    fn is_current(&self, command: &Command) -> bool {
        let request = self.entries.get(&command.name).and_then(|entry| entry.request.as_ref());
        request.is_some_and(|request| request.command.ticket == command.ticket)
    }

    fn fail(&mut self, command: &Command, refusal: Refusal) -> Transition {
        self.finish(&command.name);
        let Some(entry) = self.entries.get_mut(&command.name) else { return Transition::Stale };
        match refusal.kind {
            RefusalKind::Transient => entry.schedule_retry(&command.target, self.now),
            _ => entry.clear_retry(&command.target),
        }
        if command.target != Target::File {
            return Transition::NotRestored { reason: refusal.reason };
        }
        entry.refusal = Some(refusal.clone());
        let is_wanted = entry.live.is_none() && refusal.kind != RefusalKind::Conflict;
        let remembered = entry.remembered.take_if(|_| is_wanted);
        let good = remembered.clone().filter(|last| entry.block_reason(&last.live).is_none());
        let restore = good.map(|last| {
            entry.remembered = remembered;
            start(entry, &command.name, Target::Restore { digest: last.live, instead_of: None }, &mut self.tickets)
        });
        Transition::Refused { refusal, restore }
    }

    /// Ends the load request: the topics that it claimed are free again.
    fn finish(&mut self, name: &str) {
        if let Some(entry) = self.entries.get_mut(name) {
            let request = entry.request.take();
            if let (File::Loading(fingerprint), Some(Target::File)) =
                (&entry.file, request.map(|request| request.command.target))
            {
                entry.file = File::Known(fingerprint.clone());
                entry.unstable_since = None;
            }
        }
        self.retry_conflicting();
    }

    /// Reads plugins again that were refused for a claim that is free now.
    fn retry_conflicting(&mut self) {
        let is_free = |(name, entry): &(&String, &Entry<S>)| {
            entry.conflicting.as_ref().is_some_and(|version| self.conflict(name, version).is_none())
        };
        let free: Vec<String> = self.entries.iter().filter(is_free).map(|(name, _)| name.clone()).collect();
        for (_, entry) in self.entries.iter_mut().filter(|(name, _)| free.contains(name)) {
            entry.conflicting = None;
            entry.reread(self.now);
        }
    }

    /// Why a version's claims conflict with another plugin, which keeps them.
    fn conflict(&self, name: &str, version: &Version) -> Option<String> {
        let owner = |claim: &Claim| {
            let others = self.entries.iter().filter(|(other, _)| *other != name);
            others
                .into_iter()
                .find(|(_, entry)| entry.claims().any(|claimed| claimed == claim))
                .map(|(owner, _)| owner.clone())
        };
        version.claims.iter().find_map(|claim| Some((claim, owner(claim)?))).map(|(claim, owner)| match claim {
            Claim::Topic(topic) => events::topic_conflict(Some(topic.as_str()), &owner, name),
            Claim::CatchAll => events::topic_conflict(None, &owner, name),
        })
    }
}

/// Whether a new version is proven without a probation, and its previous version:
/// only a proven one, and never itself.
fn succeed(before: Option<Remembered>, digest: &str) -> (bool, Option<String>) {
    let Some(before) = before else { return (true, None) };
    let was_proven = before.previous.as_deref() == Some(digest) || (before.live == digest && before.is_proven);
    let previous = if before.is_proven && before.live != digest { Some(before.live) } else { before.previous };
    let previous = previous.filter(|previous| previous != digest);
    (was_proven || previous.is_none(), previous)
}

fn start<S>(entry: &mut Entry<S>, name: &str, target: Target, tickets: &mut u64) -> Command {
    *tickets += 1;
    let command = Command { name: name.to_owned(), target, ticket: *tickets };
    entry.request = Some(LoadRequest { command: command.clone(), candidate: None });
    command
}

fn blocked(why: BlockReason, digest: &str, name: &str) -> Refusal {
    let short = digest.get(..12).unwrap_or(digest);
    let reason = format!(
        "version {short} is {why}; it is blocked until its files change or you run `gateway-worker plugins unblock {name}`"
    );
    Refusal { reason, kind: RefusalKind::Blocked }
}

#[cfg(test)]
mod tests;
