//! The runners: call and judge, on the handlers' own threads.

use super::Lane;
use super::alone::Turn;
use crate::message::{self, Fields, Message};
use crate::queue::{Counted, Settlement, Taken};
use crate::verdict::{Outcome, Standing, Verdict, judge};
use jiff::Timestamp;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// An entry of more fields than this is no message.
const FIELDS_MAX: usize = 3000;

/// What has ended is not kept from being settled for longer.
const GATHER: Duration = Duration::from_millis(1);

/// A runner gives others on its thread a turn after this many messages.
const TURN: usize = 128;

impl Lane {
    pub(super) fn start_runners(self: &Arc<Self>, count: usize) {
        for _ in 0..count {
            let lane = self.clone();
            self.runners.spawn_on(async move { lane.work_off().await }, &self.handlers);
        }
    }

    async fn work_off(self: Arc<Self>) {
        let mut settlements = Gathered::new(&self);
        let mut worked = 0;
        while let Some((taken, left)) = self.backlog.next() {
            if left == self.low_water() {
                self.room.notify_one();
            }
            let mut run = pin!(self.run_one(&taken));
            let mut ended = poll_fn(|context| Poll::Ready(poll_caught(run.as_mut(), context))).await;
            let is_suspended = ended.is_pending();
            if is_suspended {
                settlements.send();
                self.start_runners(self.backlog.suspend());
                ended = Poll::Ready(poll_fn(|context| poll_caught(run.as_mut(), context)).await);
            }
            match ended {
                Poll::Ready(Some(settlement)) => settlements.push(settlement),
                // Ours no longer: the next comparison with Redis finds it again.
                _ => {
                    tracing::error!(topic = %self.topic(), entry = %taken.entry, "a message made the worker panic");
                    self.release([&taken.entry]);
                }
            }
            if is_suspended {
                settlements.send();
                if !self.backlog.resume() {
                    return;
                }
            }
            worked += 1;
            if worked % TURN == 0 {
                settlements.send();
                tokio::task::yield_now().await;
            }
        }
    }

    async fn run_one(&self, taken: &Taken) -> Settlement {
        let turn = match self.turn_of(taken).await {
            Ok(turn) => turn,
            Err(settlement) => return settlement,
        };
        let settlement = self.run_in_turn(taken).await;
        if matches!(turn, Turn::Alone(_)) {
            let _ = self.acquit().await;
        }
        settlement
    }

    async fn run_in_turn(&self, taken: &Taken) -> Settlement {
        let now = Timestamp::now();
        let message = match self.runnable(taken, now) {
            Ok(message) => message,
            Err(settlement) => return settlement,
        };
        let plugin = self.plugin.load_full();
        let policy = &plugin.manifest().retry;
        let max_attempts = policy.max_attempts(message.max_attempts);
        let facts = self.facts(&message);
        let standing = Standing {
            attempt: message.attempt,
            max_attempts,
            postponed: message.postponed.times,
            postponed_since: message.postponed.since,
            now,
        };
        let waited = now.duration_since(message::entry_time(&taken.entry.id)).as_secs_f64();
        self.metrics.queue_time.observe(waited.max(0.0));

        let started = Instant::now();
        let outcome = plugin.call(message, &taken.entry.to_string(), max_attempts).await;
        let took = started.elapsed();

        self.metrics.processing.observe(took.as_secs_f64());
        self.metrics.outcome(outcome.name()).inc();
        let name = outcome.name();
        let error = outcome.error();
        let digest = short(plugin.digest());
        let (topic, id, attempt) = (self.topic().as_str(), facts.id.as_str(), standing.attempt);
        if matches!(outcome, Outcome::Done(_)) {
            tracing::debug!(topic, id, attempt, outcome = name, ?took, digest, "settled");
        }
        match judge(outcome, standing, policy, fastrand::f64()) {
            Verdict::Done(publications) if publications.is_empty() => {
                taken.done(facts.mark, publications, Fields::new())
            }
            Verdict::Done(publications) => {
                let or_later = facts.later_fields(standing, standing.attempt, 0);
                taken.done(facts.mark, publications, or_later)
            }
            Verdict::Later { after, attempt: next, postponed } => {
                tracing::warn!(topic, id, attempt, outcome = name, ?took, digest, again_in = ?after, error, "settled");
                taken.later(after, facts.later_fields(standing, next, postponed))
            }
            Verdict::Dead { reason, error } => {
                tracing::warn!(topic, id, attempt, outcome = name, ?took, digest, dead = reason, error, "settled");
                let run = Run { facts: &facts, attempt, digest: plugin.digest() };
                self.dead(taken, reason, &error, Some(run))
            }
        }
    }

    fn facts(&self, message: &Message) -> Facts {
        let mark = self.dedup_window().and_then(|_| message.mark().cloned());
        Facts { id: message.id.clone(), published_at: message.published_at, has_own_id: message.has_own_id, mark }
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

    pub(super) fn dead(&self, taken: &Taken, reason: &'static str, error: &str, ran: Option<Run<'_>>) -> Settlement {
        self.metrics.dead_letter(reason);
        let published_at = ran.map_or_else(|| message::entry_time(&taken.entry.id), |run| run.facts.published_at);
        let attempts = ran.map_or(0, |run| run.attempt);
        let source = taken.entry.source.of(self.topic());
        let source = format!("{source}/{}", taken.entry.id);
        let died_at = message::rfc3339(Timestamp::now());
        taken.dead(fields([
            ("gw-reason", reason),
            ("gw-error", error),
            ("gw-attempts", &attempts.to_string()),
            ("gw-source", &source),
            (message::PUBLISHED_FIELD, &message::rfc3339(published_at)),
            ("gw-died-at", &died_at),
            ("gw-digest", ran.map_or("", |run| run.digest)),
        ]))
    }
}

/// A panic while one message is worked on must not take its runner along, nor
/// leave the message held by nobody: it is `None` then.
fn poll_caught<T>(run: Pin<&mut impl Future<Output = T>>, context: &mut Context<'_>) -> Poll<Option<T>> {
    match catch_unwind(AssertUnwindSafe(|| run.poll(context))) {
        Ok(polled) => polled.map(Some),
        Err(_) => Poll::Ready(None),
    }
}

/// What a runner has to settle, handed over a few at a time: to wake the
/// settler for each would cost more than the handler.
struct Gathered<'a> {
    lane: &'a Lane,
    settlements: Vec<Settlement>,
    since: Instant,
}

impl<'a> Gathered<'a> {
    fn new(lane: &'a Lane) -> Self {
        Self { lane, settlements: Vec::new(), since: Instant::now() }
    }

    fn push(&mut self, settlement: Settlement) {
        if self.settlements.is_empty() {
            self.since = Instant::now();
        }
        self.settlements.push(settlement);
        if self.since.elapsed() >= GATHER {
            self.send();
        }
    }

    fn send(&mut self) {
        if !self.settlements.is_empty() {
            // The settler outlives the runners; without it the leases run out.
            let _ = self.lane.settlements.send(std::mem::take(&mut self.settlements));
        }
    }
}

impl Drop for Gathered<'_> {
    fn drop(&mut self) {
        self.send();
    }
}

/// What a dead letter tells of the run that made it one.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    facts: &'a Facts,
    attempt: u32,
    digest: &'a str,
}

/// What is needed of a message after the handler has got it.
struct Facts {
    id: String,
    published_at: Timestamp,
    has_own_id: bool,
    /// What copies of it are known by, where they are not to run.
    mark: Option<String>,
}

impl Facts {
    /// The fields of an entry that will run again. It gets a new entry id, so
    /// what is only known from the old one is written down.
    fn later_fields(&self, standing: Standing, attempt: u32, postponed: u32) -> Fields {
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
