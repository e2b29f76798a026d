//! Checks that published messages and their final locations agree.

use super::census::{Census, Locations};
use super::faults::Event;
use super::publishers::{Published, child_of};
use gateway_worker::events;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// How long after a fault a second run may be caused by it. The clocks of the workers,
/// whose logs are compared, differ by up to 6 s.
const AFTER: SignedDuration = SignedDuration::from_secs(16);
/// A worker's clock is at most this far from ours.
const SKEW_MAX: SignedDuration = SignedDuration::from_secs(3);
/// No handler runs for longer than 2 s; the rest is the difference of the clocks.
const RUN_MAX: SignedDuration = SignedDuration::from_secs(8);

/// The stage without faults that could make a message run again.
pub(super) const MILD: &str = "mild";

/// The outcomes that may occur.
const OUTCOMES: [&str; 4] = ["done", "retry", "duplicate", "entry-deleted"];

pub(super) struct Audit {
    published: BTreeMap<String, Published>,
    census: Census,
    /// How often an entry of a message was deleted while it was in flight. It is dead,
    /// unless its worker was lost too.
    deleted: BTreeMap<String, usize>,
    pub(super) violations: Vec<String>,
    runs: usize,
    /// The runs beyond the first of each copy.
    reruns: usize,
}

impl Audit {
    pub(super) fn new(
        published: BTreeMap<String, Published>,
        census: Census,
        deleted: BTreeMap<String, usize>,
    ) -> Self {
        Self { published, census, deleted, violations: Vec::new(), runs: 0, reruns: 0 }
    }

    /// Checks that messages which had finished `before` have not run since.
    pub(super) fn check_finished_messages(&mut self, before: &Census) {
        for (key, locations) in &before.locations {
            let now = self.census.locations.get(key).cloned().unwrap_or_default();
            if locations.seen > 0 && now.seen != locations.seen {
                self.violations.push(format!("{key}: ran again though it had finished: {locations:?}, then {now:?}"));
            }
        }
    }

    pub(super) fn check(&mut self, logs: &[Value], events: &[Event], mild_since: Timestamp) {
        let mut expected = BTreeSet::new();
        let locations = |key: &str| self.census.locations.get(key).cloned().unwrap_or_default();
        let mut violations = Vec::new();
        for (key, published) in &self.published {
            expected.insert(key.clone());
            let at = locations(key);
            violations.extend(
                violation(published, &at, self.deleted.get(key).copied().unwrap_or(0))
                    .map(|violation| format!("{key}: {violation}: {published:?}, {at:?}")),
            );
            if published.has_child {
                let child = child_of(key);
                let its = locations(&child);
                let count = its.seen + its.dead.len();
                if count != at.seen || !its.elsewhere.is_empty() || is_wrongly_dead(&its, 0) {
                    violations.push(format!("{child}: {its:?}, and its parent {at:?}"));
                }
                expected.insert(child);
            }
        }
        let unknown = self.census.locations.iter().filter(|(key, _)| !expected.contains(*key));
        violations.extend(unknown.map(|(key, locations)| format!("{key} was never published: {locations:?}")));
        violations.extend(self.census.without_key.iter().map(|what| format!("without a key: {what}")));
        self.violations.append(&mut violations);
        self.check_runs(logs, events, mild_since);
    }

    /// Checks that each additional run has a fault as its cause.
    fn check_runs(&mut self, logs: &[Value], events: &[Event], mild_since: Timestamp) {
        let mut runs: BTreeMap<(&str, &str, u64), Vec<Timestamp>> = BTreeMap::new();
        let causes = events.iter().filter(|event| event.what.can_cause_reruns());
        let mut excuses: Vec<(Timestamp, Timestamp)> = causes.map(|event| (event.began, event.ended + AFTER)).collect();
        // On a busy machine a lease can expire at any time, which the worker logs.
        let mut lost = Vec::new();
        for line in logs {
            let at: Timestamp = line["timestamp"].as_str().unwrap().parse().unwrap();
            match line["message"].as_str().unwrap_or_default() {
                // A run is logged when it ends, its outcome again when it is settled.
                text @ (events::HANDLED | events::SETTLED) => {
                    let field = |name: &str| line[name].as_str().unwrap_or_default();
                    if let Some(attempt) = line["attempt"].as_u64().filter(|_| text == events::HANDLED) {
                        runs.entry((field("topic"), field("id"), attempt)).or_default().push(at);
                    }
                    if !OUTCOMES.contains(&field("outcome")) && field("outcome") != "poison-message" {
                        self.violations.push(format!("unexpected outcome: {line}"));
                    }
                }
                events::LEASES_LOST | events::RECLAIMED => {
                    lost.push((at, at + AFTER));
                }
                _ => {}
            }
        }
        excuses.extend(&lost);
        lost.retain(|(at, _)| *at + SKEW_MAX >= mild_since);
        for ((topic, id, attempt), mut ends) in runs {
            self.runs += ends.len();
            let published = self.published.get(id).cloned().unwrap_or_default();
            let copies = (published.acknowledged + published.unknown).max(1);
            ends.sort_unstable();
            let excuses = if id.contains(MILD) { &lost } else { &excuses };
            // Of one run more than there are copies, two belong to the same copy.
            for runs in ends.windows(copies + 1) {
                self.reruns += 1;
                let (from, to) = (runs[0] - RUN_MAX, runs[copies]);
                if !excuses.iter().any(|(began, ended)| *began <= to && from <= *ended) {
                    self.violations
                        .push(format!("{topic} {id} attempt {attempt} ran again without a reason: {ends:?}"));
                }
            }
        }
    }

    pub(super) fn summary(&self) -> String {
        let total = |count: fn(&Published) -> usize| self.published.values().map(count).sum::<usize>();
        let locations = self.census.locations.values();
        let done: usize = locations.clone().map(|locations| locations.seen).sum();
        let mut dead: BTreeMap<&str, usize> = BTreeMap::new();
        locations.flat_map(|locations| &locations.dead).for_each(|reason| *dead.entry(reason).or_default() += 1);
        let (acknowledged, unknown) = (total(|one| one.acknowledged), total(|one| one.unknown));
        let refused = self.published.values().filter(|one| one.acknowledged + one.unknown == 0).count();
        let (runs, reruns) = (self.runs, self.reruns);
        format!(
            "{acknowledged} acknowledged, {refused} refused, {unknown} unknown; {done} done, dead {dead:?}; {runs} runs, {reruns} of them reruns"
        )
    }
}

/// What is wrong with the locations of a message.
fn violation(published: &Published, at: &Locations, deleted: usize) -> Option<&'static str> {
    let ended = at.seen + at.dead.len();
    let at_most = published.acknowledged + published.unknown;
    let at_least = if published.is_deduplicated { published.acknowledged.min(1) } else { published.acknowledged };
    let at_least = at_least.saturating_sub(deleted);
    if !at.elsewhere.is_empty() {
        Some("is stuck")
    } else if ended < at_least {
        Some("is lost")
    } else if at_most == 0 && ended > 0 {
        Some("was refused and exists")
    } else if ended > at_most {
        Some("exists too often")
    } else if published.is_doomed && at.seen > 0 {
        Some("is done though every run fails")
    } else if !published.is_doomed && is_wrongly_dead(at, deleted) {
        Some("is dead though it never fails")
    } else {
        None
    }
}

/// A message that never fails may only die after repeated worker crashes.
fn is_wrongly_dead(at: &Locations, deleted: usize) -> bool {
    let of_deleted = at.dead.iter().filter(|reason| *reason == "entry-deleted").count();
    of_deleted > deleted || at.dead.iter().any(|reason| !matches!(reason.as_str(), "poison-message" | "entry-deleted"))
}
