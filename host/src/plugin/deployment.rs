//! What is to be done about the plugins directory. Fed with what scans found
//! and what became of loads, it says what to read and load next, and what is
//! live. No I/O and no clock in here, so that every order of events can be
//! tried.
//!
//! A file is *moving* until two looks, a moment apart, found it the same; then
//! it is *read*, and loaded if nothing speaks against it; then it is *known*,
//! live or refused. Refused, it leaves what runs alone; for a cause that may
//! pass, it is tried again. One that is *missing* for a moment may be a delete
//! before a create; after that it is gone.

mod again;
mod entry;

use super::archive::Record;
use super::load_error::LoadError;
use super::version::{Claim, Denied, Held, Refusal, RefusalKind, Version};
use crate::topic::Topic;
pub(super) use entry::Entry;
use entry::{File, Job, Remembered};
use std::collections::BTreeMap;
use std::time::Duration;

/// A version is loaded when nothing of it has changed for this long.
pub const QUIET: Duration = Duration::from_millis(150);

/// Or for this long, where its writers have said that they are done.
pub const SHORT_QUIET: Duration = Duration::from_millis(25);

/// Nobody waits any longer for a file that never rests.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a job is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Goal {
    /// The version in the directory.
    File,
    /// A version from before. If it was because of one that is withdrawn, that
    /// one is kept out when it succeeds.
    Restore { digest: String, instead_of: Option<(String, Held)> },
}

/// Something to be read, and then perhaps loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) name: String,
    pub(super) goal: Goal,
    /// Tells answers to this order from those to an earlier one.
    ticket: u64,
}

/// What became of a file's reading or loading.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Somebody has overtaken it.
    Stale,
    /// These bytes run already.
    Unchanged,
    /// Nothing speaks against it: load it.
    Load,
    Live {
        replaced: Option<String>,
        /// Without, it has a probation to stand.
        is_proven: bool,
    },
    /// With nothing live of it, what ran before the last start is to be had.
    Refused {
        refusal: Refusal,
        restore: Option<Order>,
    },
    NotRestored {
        reason: String,
    },
}

/// What a scan asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    pub(super) orders: Vec<Order>,
    /// What was live and is gone.
    pub(super) gone: Vec<String>,
    /// Whether a file is gone, live or not.
    pub(super) has_left: bool,
}

/// `S` is what tells, without reading it, that a file has changed.
#[derive(Debug)]
pub(super) struct Deployment<S> {
    entries: BTreeMap<String, Entry<S>>,
    is_first_scan: bool,
    tickets: u64,
    /// The moment of the last scan.
    now: Duration,
}

impl<S: Clone + PartialEq> Deployment<S> {
    /// Begins with what was known before the start.
    pub(super) fn new(records: BTreeMap<String, Record>) -> Self {
        let entry = |(name, record): (String, Record)| {
            let remembered = Remembered::of(&record);
            (name, Entry { held: record.held, had: record.topics, remembered, ..Entry::new() })
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

    /// Whether something has to be looked at again after a moment of quiet.
    pub(super) fn is_moving(&self) -> bool {
        self.entries.values().any(Entry::is_moving)
    }

    /// Whether nothing is under way that is worth waiting for.
    pub(super) fn is_at_rest(&self) -> bool {
        let is_awaited = |entry: &Entry<S>| {
            entry.is_moving() && entry.restless_since.is_none_or(|since| self.now.saturating_sub(since) < PATIENCE)
        };
        !self.entries.values().any(|entry| entry.is_loading() || is_awaited(entry))
    }

    /// Topics that do not belong to the rest, though nobody may have them now,
    /// and whose they are.
    pub(super) fn kept(&self) -> BTreeMap<Topic, String> {
        let of = |(name, entry): (&String, &Entry<S>)| {
            let topics = entry.had.iter().cloned().chain(entry.asked(name));
            topics.map(|topic| (topic, name.clone())).collect::<Vec<_>>()
        };
        self.entries.iter().flat_map(of).collect()
    }

    /// A scan's answer, at a moment of a clock that only goes forward. `quiet`
    /// says for how long a file must be the same; `is_old`, that it surely is
    /// not being written.
    pub(super) fn scanned(
        &mut self,
        found: &BTreeMap<String, S>,
        now: Duration,
        quiet: impl Fn(&S) -> Duration,
        is_old: impl Fn(&S) -> bool,
    ) -> Scanned {
        let mut scanned = Scanned { orders: Vec::new(), gone: Vec::new(), has_left: false };
        self.now = now;
        for (name, entry) in &mut self.entries {
            if found.contains_key(name) {
                continue;
            }
            match entry.file {
                File::Missing { since } if now.saturating_sub(since) >= QUIET => {
                    entry.file = File::Absent;
                    entry.restless_since = None;
                    entry.job = None;
                    (entry.refusal, entry.conflicting, entry.previous) = (None, None, None);
                    entry.again = None;
                    scanned.has_left = true;
                    if entry.live.take().is_some() {
                        scanned.gone.push(name.clone());
                    }
                }
                File::Absent | File::Missing { .. } => {}
                _ => {
                    entry.file = File::Missing { since: now };
                    entry.restless_since.get_or_insert(now);
                    // What comes back is read anew; a way back that was asked for goes on.
                    entry.job.take_if(|job| job.order.goal == Goal::File);
                }
            }
        }
        if scanned.has_left {
            self.wake_conflicted();
        }
        for (name, stamp) in found {
            let entry = self.entries.entry(name.clone()).or_insert_with(Entry::new);
            let is_same = |known: &S| known == stamp;
            let is_quiet = match &entry.file {
                File::Known(known) if is_same(known) => {
                    if let Some(goal) = entry.due(now) {
                        if goal == Goal::File {
                            entry.file = File::Loading(stamp.clone());
                        }
                        scanned.orders.push(start(entry, name, goal, &mut self.tickets));
                    }
                    continue;
                }
                File::Loading(known) if is_same(known) => continue,
                File::Moving { stamp, since } if is_same(stamp) => now.saturating_sub(*since) >= quiet(stamp),
                _ => {
                    entry.file = File::Moving { stamp: stamp.clone(), since: now };
                    entry.restless_since.get_or_insert(now);
                    entry.job.take_if(|job| job.order.goal == Goal::File);
                    entry.forget_again(&Goal::File);
                    self.is_first_scan && is_old(stamp)
                }
            };
            if is_quiet && entry.job.is_none() {
                entry.file = File::Loading(stamp.clone());
                entry.conflicting = None;
                scanned.orders.push(start(entry, name, Goal::File, &mut self.tickets));
            }
        }
        self.is_first_scan = false;
        scanned
    }

    /// What an order's bytes are, or why they are nothing.
    pub(super) fn read(&mut self, order: &Order, version: Result<Version, LoadError>) -> Step {
        if !self.is_current(order) {
            return Step::Stale;
        }
        if let Some(entry) = self.entries.get_mut(&order.name).filter(|_| order.goal == Goal::File) {
            match &version {
                Ok(version) => entry.asked = version.topics(),
                // Most are named after their topic.
                Err(_) if entry.asked.is_empty() => entry.asked.extend(Topic::from_file_name(&order.name)),
                Err(_) => {}
            }
        }
        let version = match version {
            Ok(version) => version,
            Err(error) => return self.fail(order, error.into()),
        };
        let Some(entry) = self.entries.get_mut(&order.name) else { return Step::Stale };
        if order.goal == Goal::File {
            if entry.live.as_ref().is_some_and(|live| live.digest == version.digest) {
                // Touched, or back to what runs: nothing is refused any more.
                entry.refusal = None;
                entry.forget_again(&Goal::File);
                self.finish(&order.name);
                return Step::Unchanged;
            }
            if let Some(why) = entry.held_because(&version.digest) {
                return self.fail(order, held(why, &version.digest, &order.name));
            }
        }
        if let Some(reason) = self.conflict(&order.name, &version) {
            let step = self.fail(order, Refusal { reason, kind: RefusalKind::Conflict });
            if let Some(entry) = self.entries.get_mut(&order.name).filter(|_| order.goal == Goal::File) {
                entry.conflicting = Some(version);
            }
            return step;
        }
        if let Some(job) = self.entries.get_mut(&order.name).and_then(|entry| entry.job.as_mut()) {
            job.candidate = Some(version);
        }
        Step::Load
    }

    /// What an order's file has to be when it is read.
    pub(super) fn expected(&self, order: &Order) -> Option<S> {
        match &self.entries.get(&order.name)?.file {
            File::Loading(stamp) if order.goal == Goal::File => Some(stamp.clone()),
            _ => None,
        }
    }

    /// The file was no longer what the scan had found.
    pub(super) fn moved(&mut self, order: &Order) -> Step {
        if self.is_current(order) {
            self.finish(&order.name);
            if let Some(entry) = self.entries.get_mut(&order.name) {
                entry.look_again(self.now);
            }
        }
        Step::Stale
    }

    /// Whether what was read could be loaded.
    pub(super) fn loaded(&mut self, order: &Order, result: Result<(), LoadError>) -> Step {
        if !self.is_current(order) {
            return Step::Stale;
        }
        if let Err(error) = result {
            return self.fail(order, error.into());
        }
        let Some(entry) = self.entries.get_mut(&order.name) else { return Step::Stale };
        let Some(candidate) = entry.job.as_mut().and_then(|job| job.candidate.take()) else { return Step::Stale };
        entry.forget_again(&order.goal);
        let remembered = entry.remembered.take();
        let replaced = entry.live.take().map(|live| live.digest);
        match &order.goal {
            Goal::File => {
                entry.refusal = None;
                let before = match (&replaced, remembered) {
                    (Some(replaced), _) => {
                        let previous = entry.previous.take();
                        Some(Remembered { live: replaced.clone(), is_proven: entry.is_proven, previous })
                    }
                    (None, remembered) => remembered,
                };
                (entry.is_proven, entry.previous) = succeeded(before, &candidate.digest);
            }
            Goal::Restore { instead_of, .. } => {
                // What it could go back to was not asked for.
                let is_proven = remembered.as_ref().is_none_or(|last| last.is_proven);
                entry.previous = remembered.and_then(|last| last.previous);
                entry.is_proven = is_proven || entry.previous.is_none();
                if let Some((digest, why)) = instead_of {
                    entry.hold(digest.clone(), *why);
                    entry.refusal = Some(held(*why, digest, &order.name));
                }
            }
        }
        let topics = candidate.topics();
        entry.had.extend(topics.iter().cloned());
        entry.live = Some(candidate);
        let is_proven = entry.is_proven;
        for (name, other) in &mut self.entries {
            if *name != order.name {
                other.had.retain(|topic| !topics.contains(topic));
            }
        }
        self.finish(&order.name);
        Step::Live { replaced, is_proven }
    }

    /// This version has stood its probation, if it is the one that is live.
    /// Says whether that is news.
    pub(super) fn prove(&mut self, name: &str, digest: &str) -> bool {
        let entry = self.entries.get_mut(name).filter(|entry| entry.is_live(digest));
        entry.is_some_and(|entry| !std::mem::replace(&mut entry.is_proven, true))
    }

    /// Whether it is live, and no way back from it is being gone already.
    pub(super) fn stays(&self, name: &str, digest: &str) -> bool {
        let entry = self.entries.get(name).filter(|entry| entry.is_live(digest));
        entry.is_some_and(|entry| !entry.is_going_back())
    }

    /// Somebody asks for it: what was refused as faulty is read again at the
    /// next scan, since the fault may be mended somewhere else.
    pub(super) fn reconsider(&mut self) {
        let is_faulty = |refusal: &Refusal| matches!(refusal.kind, RefusalKind::Faulty | RefusalKind::Passing);
        for entry in self.entries.values_mut().filter(|entry| !entry.is_loading()) {
            if entry.refusal.as_ref().is_some_and(is_faulty) {
                entry.look_again(self.now);
            }
        }
    }

    /// The way back from this version, because it crashed or because somebody
    /// wants it.
    pub(super) fn withdraw(&mut self, name: &str, digest: Option<&str>, why: Held) -> Result<Order, Denied> {
        let now = self.now;
        let entry = self.entries.get_mut(name).filter(|entry| entry.is_there());
        let entry = entry.ok_or_else(|| Denied::Unknown(name.to_owned()))?;
        let impossible = |told: String| Err(Denied::Impossible(told));
        let Some(live) = entry.live.as_ref().map(|live| live.digest.clone()) else {
            return impossible(format!("nothing of {name} is live"));
        };
        if digest.is_some_and(|digest| digest != live) {
            return impossible(format!("another version of {name} is live by now"));
        }
        let Some(previous) = entry.previous.clone() else {
            return impossible(format!("no version of {name} before this one is known"));
        };
        if entry.is_going_back() {
            return impossible(format!("an earlier version of {name} is being restored already"));
        }
        if entry.job.is_some() {
            // What was being loaded has its turn afterwards.
            entry.look_again(now);
        }
        let goal = Goal::Restore { digest: previous, instead_of: Some((live, why)) };
        Ok(start(entry, name, goal, &mut self.tickets))
    }

    /// Lets go of what is held against a name: versions that are kept out may
    /// load again, and topics that it once had belong to the rest.
    pub(super) fn release(&mut self, name: &str) -> Result<(), Denied> {
        let now = self.now;
        let entry = self.entries.get_mut(name).ok_or_else(|| Denied::Unknown(name.to_owned()))?;
        let claimed = entry.live.as_ref().map(Version::topics).unwrap_or_default();
        if entry.held.is_empty() && entry.had.is_subset(&claimed) {
            return Err(Denied::Impossible(format!("nothing is held against {name}")));
        }
        entry.held.clear();
        entry.had = claimed;
        if entry.refusal.as_ref().is_some_and(|refusal| refusal.kind == RefusalKind::Held) {
            entry.refusal = None;
            entry.look_again(now);
        }
        Ok(())
    }

    fn is_current(&self, order: &Order) -> bool {
        let job = self.entries.get(&order.name).and_then(|entry| entry.job.as_ref());
        job.is_some_and(|job| job.order.ticket == order.ticket)
    }

    fn fail(&mut self, order: &Order, refusal: Refusal) -> Step {
        self.finish(&order.name);
        let Some(entry) = self.entries.get_mut(&order.name) else { return Step::Stale };
        match refusal.kind {
            RefusalKind::Passing => entry.failed_for_now(&order.goal, self.now),
            _ => entry.forget_again(&order.goal),
        }
        if order.goal != Goal::File {
            return Step::NotRestored { reason: refusal.reason };
        }
        entry.refusal = Some(refusal.clone());
        let is_wanted = entry.live.is_none() && refusal.kind != RefusalKind::Conflict;
        let remembered = entry.remembered.take_if(|_| is_wanted);
        let good = remembered.clone().filter(|last| entry.held_because(&last.live).is_none());
        let restore = good.map(|last| {
            entry.remembered = remembered;
            start(entry, &order.name, Goal::Restore { digest: last.live, instead_of: None }, &mut self.tickets)
        });
        Step::Refused { refusal, restore }
    }

    /// A job has ended, one way or the other: what it reserved is free.
    fn finish(&mut self, name: &str) {
        if let Some(entry) = self.entries.get_mut(name) {
            let job = entry.job.take();
            if let (File::Loading(stamp), Some(Goal::File)) = (&entry.file, job.map(|job| job.order.goal)) {
                entry.file = File::Known(stamp.clone());
                entry.restless_since = None;
            }
        }
        self.wake_conflicted();
    }

    /// Who was refused for what somebody else had, and has no longer, gets
    /// another chance.
    fn wake_conflicted(&mut self) {
        let is_free = |(name, entry): &(&String, &Entry<S>)| {
            entry.conflicting.as_ref().is_some_and(|version| self.conflict(name, version).is_none())
        };
        let free: Vec<String> = self.entries.iter().filter(is_free).map(|(name, _)| name.clone()).collect();
        for (_, entry) in self.entries.iter_mut().filter(|(name, _)| free.contains(name)) {
            entry.conflicting = None;
            entry.look_again(self.now);
        }
    }

    /// Whoever has a claim keeps it.
    fn conflict(&self, name: &str, version: &Version) -> Option<String> {
        let owner = |claim: &Claim| {
            let others = self.entries.iter().filter(|(other, _)| *other != name);
            others.into_iter().find(|(_, entry)| entry.claims().any(|had| had == claim)).map(|(owner, _)| owner.clone())
        };
        version.claims.iter().find_map(|claim| Some((claim, owner(claim)?))).map(|(claim, owner)| match claim {
            Claim::Topic(topic) => format!("topic {topic} is handled by {owner}.wasm: remove it there, or from {name}"),
            Claim::Rest => {
                format!("all topics that no other plugin claims (\"*\") are handled by {owner}.wasm: name topics there, or in {name}.toml")
            }
        })
    }
}

/// Whether what follows on something needs no probation, and its way back:
/// only to what is proven, and never to itself.
fn succeeded(before: Option<Remembered>, digest: &str) -> (bool, Option<String>) {
    let Some(before) = before else { return (true, None) };
    let was_proven = before.previous.as_deref() == Some(digest) || (before.live == digest && before.is_proven);
    let way_back = if before.is_proven && before.live != digest { Some(before.live) } else { before.previous };
    let way_back = way_back.filter(|previous| previous != digest);
    (was_proven || way_back.is_none(), way_back)
}

fn start<S>(entry: &mut Entry<S>, name: &str, goal: Goal, tickets: &mut u64) -> Order {
    *tickets += 1;
    let order = Order { name: name.to_owned(), goal, ticket: *tickets };
    entry.job = Some(Job { order: order.clone(), candidate: None });
    order
}

fn held(why: Held, digest: &str, name: &str) -> Refusal {
    let short = digest.get(..12).unwrap_or(digest);
    let reason = format!(
        "version {short} is {why}; it stays out until its bytes change, or `gateway-worker plugins release {name}`"
    );
    Refusal { reason, kind: RefusalKind::Held }
}

#[cfg(test)]
mod tests;
