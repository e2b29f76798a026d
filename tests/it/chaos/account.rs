//! Whether what was published and what became of it agree.

use super::census::{Census, Places};
use super::disturbed::Event;
use super::published::{Published, child_of};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// For so long after it a disturbance may be why something ran again.
const AFTER: SignedDuration = SignedDuration::from_secs(10);
/// No handler runs for longer.
const RUN_MAX: SignedDuration = SignedDuration::from_secs(2);

/// The stage in which nothing happens that could make a message run again.
pub(super) const MILD: &str = "mild";

/// How a run may end here.
const OUTCOMES: [&str; 3] = ["done", "retry", "duplicate"];

pub(super) struct Account {
    published: BTreeMap<String, Published>,
    census: Census,
    pub(super) faults: Vec<String>,
    /// How many runs there were, and how many too many.
    runs: usize,
    again: usize,
}

impl Account {
    pub(super) fn of(published: BTreeMap<String, Published>, census: Census) -> Self {
        Self { published, census, faults: Vec::new(), runs: 0, again: 0 }
    }

    /// What had finished `before` has not run since.
    pub(super) fn again(&mut self, before: &Census) {
        for (key, places) in &before.places {
            let now = self.census.places.get(key).cloned().unwrap_or_default();
            if places.seen > 0 && now.seen != places.seen {
                self.faults.push(format!("{key}: ran again though it had finished: {places:?}, then {now:?}"));
            }
        }
    }

    pub(super) fn check(&mut self, logs: &[Value], events: &[Event], mild_since: Timestamp) {
        let mut expected = BTreeSet::new();
        let places = |key: &str| self.census.places.get(key).cloned().unwrap_or_default();
        let mut faults = Vec::new();
        for (key, published) in &self.published {
            expected.insert(key.clone());
            let at = places(key);
            faults.extend(fault(published, &at).map(|fault| format!("{key}: {fault}: {published:?}, {at:?}")));
            if published.has_child {
                let child = child_of(key);
                let its = places(&child);
                let count = its.seen + its.dead.len();
                if count != at.seen || !its.elsewhere.is_empty() || is_wrongly_dead(&its) {
                    faults.push(format!("{child}: {its:?}, and its parent {at:?}"));
                }
                expected.insert(child);
            }
        }
        let strangers = self.census.places.iter().filter(|(key, _)| !expected.contains(*key));
        faults.extend(strangers.map(|(key, places)| format!("{key} was never published: {places:?}")));
        faults.extend(self.census.nameless.iter().map(|what| format!("without a name: {what}")));
        self.faults.append(&mut faults);
        self.check_runs(logs, events, mild_since);
    }

    /// No run was one too many without a reason.
    fn check_runs(&mut self, logs: &[Value], events: &[Event], mild_since: Timestamp) {
        let mut runs: BTreeMap<(&str, &str, u64), Vec<Timestamp>> = BTreeMap::new();
        let wild = events.iter().filter(|event| event.what.is_excuse());
        let mut excuses: Vec<(Timestamp, Timestamp)> = wild.map(|event| (event.began, event.ended + AFTER)).collect();
        // On a starved machine a lease can run out at any time, and that is told.
        let mut lost = Vec::new();
        for line in logs {
            let at: Timestamp = line["timestamp"].as_str().unwrap().parse().unwrap();
            match line["message"].as_str().unwrap_or_default() {
                "settled" => {
                    let word = |name: &str| line[name].as_str().unwrap_or_default();
                    if let Some(attempt) = line["attempt"].as_u64() {
                        runs.entry((word("topic"), word("id"), attempt)).or_default().push(at);
                    }
                    if !OUTCOMES.contains(&word("outcome")) && word("outcome") != "poison-message" {
                        self.faults.push(format!("no run ends so: {line}"));
                    }
                }
                message if message.starts_with("leases lost") || message.starts_with("taken over") => {
                    lost.push((at, at + AFTER));
                }
                _ => {}
            }
        }
        excuses.extend(&lost);
        lost.retain(|(at, _)| *at >= mild_since);
        for ((topic, id, attempt), mut ends) in runs {
            self.runs += ends.len();
            let published = self.published.get(id).cloned().unwrap_or_default();
            let copies = (published.acknowledged + published.unknown).max(1);
            ends.sort_unstable();
            let excuses = if id.contains(MILD) { &lost } else { &excuses };
            // Of one run more than there are copies, two are of the same one.
            for runs in ends.windows(copies + 1) {
                self.again += 1;
                let (from, to) = (runs[0] - RUN_MAX, runs[copies]);
                if !excuses.iter().any(|(began, ended)| *began <= to && from <= *ended) {
                    self.faults.push(format!("{topic} {id} attempt {attempt} ran again without a reason: {ends:?}"));
                }
            }
        }
    }

    pub(super) fn summary(&self) -> String {
        let total = |count: fn(&Published) -> usize| self.published.values().map(count).sum::<usize>();
        let places = self.census.places.values();
        let done: usize = places.clone().map(|places| places.seen).sum();
        let mut dead: BTreeMap<&str, usize> = BTreeMap::new();
        places.flat_map(|places| &places.dead).for_each(|reason| *dead.entry(reason).or_default() += 1);
        let (acknowledged, unknown) = (total(|one| one.acknowledged), total(|one| one.unknown));
        let refused = self.published.values().filter(|one| one.acknowledged + one.unknown == 0).count();
        let (runs, again) = (self.runs, self.again);
        format!(
            "{acknowledged} acknowledged, {refused} refused, {unknown} unknown; {done} done, dead {dead:?}; {runs} runs, {again} of them again"
        )
    }
}

/// What is wrong with where a message is.
fn fault(published: &Published, at: &Places) -> Option<&'static str> {
    let ended = at.seen + at.dead.len();
    let at_most = published.acknowledged + published.unknown;
    let at_least = if published.is_deduped { published.acknowledged.min(1) } else { published.acknowledged };
    if !at.elsewhere.is_empty() {
        Some("is stuck")
    } else if ended < at_least {
        Some("is lost")
    } else if at_most == 0 && ended > 0 {
        Some("was refused and exists")
    } else if ended > at_most {
        Some("exists too often")
    } else if published.is_doomed && at.seen > 0 {
        Some("is done though it fails always")
    } else if !published.is_doomed && is_wrongly_dead(at) {
        Some("is dead for no reason of its own")
    } else {
        None
    }
}

/// Only workers that were lost with it, again and again, can condemn a message
/// that would end well.
fn is_wrongly_dead(at: &Places) -> bool {
    at.dead.iter().any(|reason| reason != "poison-message")
}
