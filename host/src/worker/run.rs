//! One run: what can be run is called, judged, and leaves as settlements.

use super::Lane;
use super::alone::Turn;
use crate::message::{self, Fields, Message};
use crate::plugin::{Call, Plugin};
use crate::queue::{Counted, ERROR_FIELD, Settlement, Taken};
use crate::verdict::{Outcome, Standing, Verdict, judge};
use jiff::Timestamp;
use std::slice;
use std::time::{Duration, Instant};

/// An entry of more fields than this is no message.
const FIELDS_MAX: usize = 3000;

impl Lane {
    /// Runs messages together: one, or a batch without suspects.
    pub(super) async fn run_together(&self, taken: &[Taken]) -> Vec<Settlement> {
        let Some(first) = taken.first() else { return Vec::new() };
        let turn = match self.turn_of(first).await {
            Ok(turn) => turn,
            Err(Some(settlement)) => return vec![settlement],
            Err(None) => {
                self.set_aside(taken);
                return Vec::new();
            }
        };
        let settlements = self.run_in_pieces(taken).await;
        if matches!(turn, Turn::Alone(_)) {
            let _ = self.acquit().await;
        }
        settlements
    }

    /// What was gathered for one version may be more than the one that is live
    /// by now takes at once: most often it is a single piece.
    async fn run_in_pieces(&self, taken: &[Taken]) -> Vec<Settlement> {
        let (mut settlements, mut left) = (Vec::new(), taken);
        while !left.is_empty() {
            if !settlements.is_empty() {
                // Who has ended does not wait for all that follow.
                let _ = self.settlements.send(std::mem::take(&mut settlements));
                if self.is_paused() || self.stop.is_cancelled() {
                    self.set_aside(left);
                    break;
                }
            }
            let plugin = self.plugin.load_full();
            let size = plugin.manifest().batch.map_or(1, |batch| batch.size);
            let (piece, rest) = left.split_at(size.clamp(1, left.len()));
            settlements = self.run_piece(&plugin, piece).await;
            left = rest;
        }
        settlements
    }

    async fn run_piece(&self, plugin: &Plugin, taken: &[Taken]) -> Vec<Settlement> {
        match self.call(plugin, taken).await {
            Ok(settlements) => settlements,
            // Whose fault it was is seen when each runs by itself.
            Err(mut settlements) => {
                let is_settled = |one: &&Taken| settlements.iter().any(|settled| settled.entry == one.entry);
                let left: Vec<_> = taken.iter().filter(|one| !is_settled(one)).collect();
                for one in left {
                    let (Ok(alone) | Err(alone)) = self.call(plugin, slice::from_ref(one)).await;
                    settlements.extend(alone);
                }
                settlements
            }
        }
    }

    /// Calls the handler once and judges each message. An error means that a
    /// batch ended as a whole; it has what could not be run anyhow.
    async fn call(&self, plugin: &Plugin, taken: &[Taken]) -> Result<Vec<Settlement>, Vec<Settlement>> {
        let now = Timestamp::now();
        let (mut settlements, mut runs, mut calls) = (Vec::with_capacity(taken.len()), Vec::new(), Vec::new());
        for one in taken {
            match self.runnable(one, now) {
                Ok(message) => {
                    let max_attempts = plugin.manifest().retry.max_attempts(message.max_attempts);
                    runs.push(self.prepared(one, &message, max_attempts, now));
                    calls.push(Call { message, entry: one.entry.to_string(), max_attempts });
                }
                Err(settlement) => settlements.push(settlement),
            }
        }
        if calls.is_empty() {
            return Ok(settlements);
        }
        let started = Instant::now();
        let outcomes = plugin.call(&mut calls).await;
        let took = started.elapsed();
        if calls.len() > 1 && outcomes.iter().all(Outcome::ended_instance) {
            tracing::warn!(topic = %self.topic(), size = calls.len(), outcome = outcomes[0].name(), "a batch is run one by one");
            return Err(settlements);
        }
        plugin.probation().record(runs.iter().map(|run| run.id.as_str()).zip(&outcomes));
        let settled = runs.into_iter().zip(outcomes).map(|(run, outcome)| self.judged(run, outcome, plugin, took));
        settlements.extend(settled);
        Ok(settlements)
    }

    fn prepared<'a>(&self, taken: &'a Taken, message: &Message, max_attempts: u32, now: Timestamp) -> Run<'a> {
        let waited = now.duration_since(message::entry_time(&taken.entry.id)).as_secs_f64();
        self.metrics.queue_time.observe(waited.max(0.0));
        let standing = Standing {
            attempt: message.attempt,
            max_attempts,
            postponed: message.postponed.times,
            postponed_since: message.postponed.since,
            now,
        };
        Run {
            taken,
            id: message.id.clone(),
            published_at: message.published_at,
            has_own_id: message.has_own_id,
            mark: self.dedup_window().and_then(|_| message.mark().cloned()),
            standing,
        }
    }

    fn judged(&self, run: Run<'_>, outcome: Outcome, plugin: &Plugin, took: Duration) -> Settlement {
        let (name, error, digest) = (outcome.name(), outcome.error(), short(plugin.digest()));
        self.metrics.processing.observe(took.as_secs_f64());
        self.metrics.outcome(name).inc();
        let (topic, id, attempt) = (self.topic().as_str(), run.id.as_str(), run.standing.attempt);
        if matches!(outcome, Outcome::Done(_)) {
            tracing::debug!(topic, id, attempt, outcome = name, ?took, digest, "settled");
        }
        match judge(outcome, run.standing, &plugin.manifest().retry, fastrand::f64()) {
            Verdict::Done(publications) => {
                let unsent = if publications.is_empty() { None } else { self.unsent(&run, plugin) };
                run.taken.done(run.mark, publications, unsent)
            }
            Verdict::Later { after, attempt: next, postponed } => {
                tracing::warn!(topic, id, attempt, outcome = name, ?took, digest, again_in = ?after, error, "settled");
                run.taken.later(after, run.later_fields(next, postponed))
            }
            Verdict::Dead { reason, error } => {
                tracing::warn!(topic, id, attempt, outcome = name, ?took, digest, dead = reason, error, "settled");
                self.dead(run.taken, reason, &error, Some((&run, plugin.digest())))
            }
        }
    }

    /// What becomes of a run whose follow-ups can't be sent: what becomes of a
    /// retry. Why, the settler is told.
    fn unsent(&self, run: &Run<'_>, plugin: &Plugin) -> Option<Settlement> {
        let failed = Outcome::Retry { reason: String::new(), after: None };
        match judge(failed, run.standing, &plugin.manifest().retry, fastrand::f64()) {
            Verdict::Later { after, attempt, postponed } => {
                Some(run.taken.later(after, run.later_fields(attempt, postponed)))
            }
            Verdict::Dead { reason, error } => {
                Some(run.taken.dead(self.letter(run.taken, reason, &error, Some((run, plugin.digest())))))
            }
            Verdict::Done(_) => None,
        }
    }

    /// The message, or what becomes of an entry that can't be run.
    fn runnable(&self, taken: &Taken, now: Timestamp) -> Result<Message, Settlement> {
        if taken.fields.is_empty() {
            // Deleted by somebody while it was pending.
            return Err(taken.dropped(Counted::Done));
        }
        let unrunnable = |reason: &'static str, error: &str| {
            self.metrics.outcome(reason).inc();
            let (topic, entry) = (self.topic().as_str(), &taken.entry);
            tracing::warn!(topic, %entry, outcome = reason, dead = reason, error, "settled");
            Err(self.dead(taken, reason, error, None))
        };
        let (bytes, bytes_max) = (taken.bytes(), self.settings.message_bytes_max);
        if bytes > bytes_max {
            return unrunnable("too-large", &format!("{bytes} bytes; queue.max_message is {bytes_max}"));
        }
        if taken.fields.len() > FIELDS_MAX {
            return unrunnable("too-large", &format!("{} fields; at most {FIELDS_MAX}", taken.fields.len()));
        }
        match message::read(self.topic(), &taken.entry.id, &taken.fields) {
            Ok(message) if message.expires_at.is_some_and(|at| at <= now) => {
                self.metrics.outcome("expired").inc();
                tracing::warn!(topic = %self.topic(), id = message.id, outcome = "expired", "settled");
                Err(taken.dropped(Counted::Expired))
            }
            Ok(message) => Ok(message),
            Err(error) => unrunnable("decode", &error.to_string()),
        }
    }

    pub(super) fn dead(
        &self,
        taken: &Taken,
        reason: &'static str,
        error: &str,
        ran: Option<(&Run<'_>, &str)>,
    ) -> Settlement {
        self.metrics.dead_letter(reason);
        taken.dead(self.letter(taken, reason, error, ran))
    }

    /// The fields that a dead letter gains.
    fn letter(&self, taken: &Taken, reason: &str, error: &str, ran: Option<(&Run<'_>, &str)>) -> Fields {
        let published_at = ran.map_or_else(|| message::entry_time(&taken.entry.id), |(run, _)| run.published_at);
        let attempts = ran.map_or(0, |(run, _)| run.standing.attempt);
        let source = format!("{}/{}", taken.entry.source.of(self.topic()), taken.entry.id);
        let died_at = message::rfc3339(Timestamp::now());
        fields([
            ("gw-reason", reason),
            (ERROR_FIELD, error),
            ("gw-attempts", &attempts.to_string()),
            ("gw-source", &source),
            (message::PUBLISHED_FIELD, &message::rfc3339(published_at)),
            ("gw-died-at", &died_at),
            ("gw-digest", ran.map_or("", |(_, digest)| digest)),
        ])
    }
}

/// What is needed of a message after the handler has got it.
pub(super) struct Run<'a> {
    taken: &'a Taken,
    id: String,
    published_at: Timestamp,
    has_own_id: bool,
    /// What copies of it are known by, where they are not to run.
    mark: Option<String>,
    standing: Standing,
}

impl Run<'_> {
    /// The fields of an entry that will run again. It gets a new entry id, so
    /// what is only known from the old one is written down.
    fn later_fields(&self, attempt: u32, postponed: u32) -> Fields {
        let standing = self.standing;
        let mut set = fields([(message::ATTEMPT_FIELD, &*attempt.to_string())]);
        if !self.has_own_id {
            set.extend(fields([
                (message::ID_FIELD, &*self.id),
                (message::PUBLISHED_FIELD, &*message::rfc3339(self.published_at)),
            ]));
        }
        if postponed > standing.postponed {
            let since = standing.postponed_since.unwrap_or(standing.now).as_millisecond();
            set.extend(fields([
                (message::POSTPONED_FIELD, &*postponed.to_string()),
                (message::POSTPONED_SINCE_FIELD, &*since.to_string()),
            ]));
        }
        set
    }
}

fn fields<const N: usize>(pairs: [(&str, &str); N]) -> Fields {
    pairs.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).to_vec()
}

/// Enough of a digest to tell versions apart.
pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}
