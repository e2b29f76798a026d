//! What becomes of a message after a run. The whole policy is the one function
//! [`judge`]: no clock, no I/O, no state; chance comes in as an argument.

use crate::publication::Publication;
use jiff::Timestamp;
use std::time::Duration;

/// A message that has been postponed for this long is dead.
pub const POSTPONED_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A handler's own pause is at least as long, unless the policy begins with less:
/// who is never ready must not be asked all the time.
const POSTPONED_LEAST: Duration = Duration::from_secs(1);

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Done(Vec<Publication>),
    Retry {
        reason: String,
        after: Option<Duration>,
    },
    /// Not ready: costs no attempt.
    Postpone {
        reason: String,
        after: Option<Duration>,
    },
    Reject {
        code: String,
        reason: String,
    },
    Trap(String),
    /// The wall clock ran out.
    Timeout(Duration),
    CpuLimit(Duration),
    MemoryLimit(u64),
    TableLimit(u32),
    HandleLimit(u32),
    /// Too many bytes in one call to the host, or in the reply.
    HostCallLimit(u64),
    BadReply(String),
    /// Nothing is wrong with the message: costs no attempt.
    PluginUnavailable(String),
}

impl Outcome {
    /// The name in metrics, logs and dead letters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Done(_) => "done",
            Self::Retry { .. } => "retry",
            Self::Postpone { .. } => "postpone",
            Self::Reject { .. } => "reject",
            Self::Trap(_) => "trap",
            Self::Timeout(_) => "timeout",
            Self::CpuLimit(_) => "cpu-limit",
            Self::MemoryLimit(_) => "memory-limit",
            Self::TableLimit(_) => "table-limit",
            Self::HandleLimit(_) => "handle-limit",
            Self::HostCallLimit(_) => "host-call-limit",
            Self::BadReply(_) => "bad-reply",
            Self::PluginUnavailable(_) => "plugin-unavailable",
        }
    }

    /// What is told about it, in words.
    pub fn error(&self) -> String {
        match self {
            Self::Done(_) => String::new(),
            Self::Reject { code, reason } => format!("{code}: {reason}"),
            Self::Retry { reason, .. }
            | Self::Postpone { reason, .. }
            | Self::Trap(reason)
            | Self::BadReply(reason)
            | Self::PluginUnavailable(reason) => reason.clone(),
            Self::Timeout(limit) => format!("ran longer than limits.timeout = {limit:?}"),
            Self::CpuLimit(limit) => format!("used more than limits.cpu = {limit:?}"),
            Self::MemoryLimit(limit) => format!("asked for more than limits.memory = {limit} bytes"),
            Self::TableLimit(limit) => format!("asked for more than limits.table_elements = {limit}"),
            Self::HandleLimit(limit) => format!("held more than limits.resources = {limit}"),
            Self::HostCallLimit(limit) => {
                format!("passed more than limits.host_call_bytes = {limit} bytes to the host in one call")
            }
        }
    }

    /// Whether the instance did not come back with a reply: what it was given
    /// shares that ending.
    pub fn ended_instance(&self) -> bool {
        match self {
            Self::Trap(_)
            | Self::Timeout(_)
            | Self::CpuLimit(_)
            | Self::MemoryLimit(_)
            | Self::TableLimit(_)
            | Self::HandleLimit(_)
            | Self::HostCallLimit(_) => true,
            Self::Done(_)
            | Self::Retry { .. }
            | Self::Postpone { .. }
            | Self::Reject { .. }
            | Self::BadReply(_)
            | Self::PluginUnavailable(_) => false,
        }
    }
}

/// What is done with the message.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Finished; its follow-ups leave in the same step.
    Done(Vec<Publication>),
    /// Run again after a while.
    Later { after: Duration, attempt: u32, postponed: u32 },
    /// Dead letter. `reason` is one of the names in the design, part 4.
    Dead { reason: &'static str, error: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backoff {
    Exponential,
    Linear,
    Fixed,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Wins over the envelope's `max_retry` where the manifest names it.
    pub attempts: Option<u32>,
    pub backoff: Backoff,
    pub base: Duration,
    pub cap: Duration,
}

/// Where neither manifest nor envelope say how often.
pub const ATTEMPTS: u32 = 3;

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: None,
            backoff: Backoff::Exponential,
            base: Duration::from_secs(1),
            cap: Duration::from_secs(600),
        }
    }
}

impl RetryPolicy {
    /// How often a message is run in all.
    pub fn max_attempts(&self, envelope: Option<u32>) -> u32 {
        self.attempts.or(envelope).unwrap_or(ATTEMPTS).max(1)
    }

    /// The pause after the `nth` failure (from 1). The exponential one has full
    /// jitter, so that what failed together does not come back together;
    /// `chance` is in 0..1.
    fn pause(&self, nth: u32, chance: f64) -> Duration {
        let nth = nth.max(1);
        let factor = match self.backoff {
            Backoff::Exponential => 2_u32.saturating_pow((nth - 1).min(31)),
            Backoff::Linear => nth,
            Backoff::Fixed => 1,
        };
        let whole = self.base.saturating_mul(factor).min(self.cap);
        if self.backoff == Backoff::Exponential { whole.mul_f64(chance) } else { whole }
    }
}

/// Where a message stands when its run has ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    pub attempt: u32,
    pub max_attempts: u32,
    /// How often it was postponed before.
    pub postponed: u32,
    pub postponed_since: Option<Timestamp>,
    pub now: Timestamp,
}

pub fn judge(outcome: Outcome, standing: Standing, policy: &RetryPolicy, chance: f64) -> Verdict {
    let (reason, error) = (outcome.name(), outcome.error());
    let Standing { attempt, max_attempts, postponed, .. } = standing;
    let after = match outcome {
        Outcome::Done(publications) => return Verdict::Done(publications),
        Outcome::Reject { .. } => return Verdict::Dead { reason, error },
        Outcome::PluginUnavailable(_) => return Verdict::Later { after: policy.base, attempt, postponed },
        Outcome::Postpone { after, .. } => return postpone(after, error, standing, policy, chance),
        Outcome::Retry { after, .. } => after,
        Outcome::Trap(_)
        | Outcome::Timeout(_)
        | Outcome::CpuLimit(_)
        | Outcome::MemoryLimit(_)
        | Outcome::TableLimit(_)
        | Outcome::HandleLimit(_)
        | Outcome::HostCallLimit(_)
        | Outcome::BadReply(_) => None,
    };
    if attempt >= max_attempts {
        return Verdict::Dead { reason, error };
    }
    let after = after.unwrap_or_else(|| policy.pause(attempt, chance));
    Verdict::Later { after, attempt: attempt + 1, postponed }
}

fn postpone(after: Option<Duration>, error: String, standing: Standing, policy: &RetryPolicy, chance: f64) -> Verdict {
    let waited = standing.postponed_since.map_or(Duration::ZERO, |since| {
        Duration::try_from(standing.now.duration_since(since)).unwrap_or(Duration::ZERO)
    });
    if waited >= POSTPONED_MAX {
        return Verdict::Dead { reason: "postponed-too-long", error };
    }
    let postponed = standing.postponed.saturating_add(1);
    let least = POSTPONED_LEAST.min(policy.base);
    let after = after.map_or_else(|| policy.pause(postponed, chance), |after| after.max(least));
    // So that it is told in time that it was too long.
    let after = after.min(POSTPONED_MAX - waited);
    Verdict::Later { after, attempt: standing.attempt, postponed }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_419_923_585;

    fn standing(attempt: u32) -> Standing {
        let now = Timestamp::from_millisecond(NOW).unwrap();
        Standing { attempt, max_attempts: 3, postponed: 0, postponed_since: None, now }
    }

    fn again(after: Option<Duration>) -> Outcome {
        Outcome::Retry { reason: "busy".to_owned(), after }
    }

    fn pauses(backoff: Backoff, chance: f64) -> Vec<f64> {
        let policy = RetryPolicy { attempts: Some(99), backoff, ..RetryPolicy::default() };
        [1, 2, 3, 10, 11, 90].iter().map(|nth| policy.pause(*nth, chance).as_secs_f64()).collect()
    }

    #[test]
    fn whatever_costs_an_attempt_is_dead_after_the_last() {
        let costly = [
            again(None),
            Outcome::Trap("t".to_owned()),
            Outcome::Timeout(Duration::from_secs(1)),
            Outcome::CpuLimit(Duration::from_secs(1)),
            Outcome::MemoryLimit(1),
            Outcome::TableLimit(1),
            Outcome::HandleLimit(1),
            Outcome::HostCallLimit(1),
            Outcome::BadReply("b".to_owned()),
        ];
        for outcome in costly {
            for attempt in 1..=2 {
                let verdict = judge(outcome.clone(), standing(attempt), &RetryPolicy::default(), 0.5);
                assert!(matches!(verdict, Verdict::Later { attempt: next, .. } if next == attempt + 1), "{verdict:?}");
            }
            for attempt in [3, 4, u32::MAX] {
                let dead = Verdict::Dead { reason: outcome.name(), error: outcome.error() };
                assert_eq!(judge(outcome.clone(), standing(attempt), &RetryPolicy::default(), 0.5), dead);
            }
        }
    }

    #[test]
    fn a_rejected_message_is_dead_at_once() {
        let outcome = Outcome::Reject { code: "bad-data".to_owned(), reason: "no id".to_owned() };
        let dead = Verdict::Dead { reason: "reject", error: "bad-data: no id".to_owned() };
        assert_eq!(judge(outcome, standing(1), &RetryPolicy::default(), 0.5), dead);
    }

    #[test]
    fn not_ready_and_no_plugin_never_burn_attempts() {
        let policy = RetryPolicy::default();
        let postpone = Outcome::Postpone { reason: "wait".to_owned(), after: None };
        let later = |after, postponed| Verdict::Later { after: Duration::from_millis(after), attempt: 3, postponed };
        assert_eq!(judge(postpone, standing(3), &policy, 0.5), later(500, 1));
        let gone = Outcome::PluginUnavailable("not loaded".to_owned());
        assert_eq!(judge(gone, standing(3), &policy, 0.5), later(1000, 0));
        // The more often, the longer, whatever attempt it is.
        let postpone = Outcome::Postpone { reason: "wait".to_owned(), after: None };
        let often = Standing { postponed: 4, ..standing(3) };
        assert_eq!(judge(postpone, often, &policy, 0.5), later(8000, 5));
    }

    #[test]
    fn postponing_ends_after_seven_days() {
        let outcome = Outcome::Postpone { reason: "wait".to_owned(), after: None };
        let week_ms = 7 * 24 * 60 * 60 * 1000;
        for (waited, is_dead) in [(week_ms - 1, false), (week_ms, true), (-5, false)] {
            let since = Timestamp::from_millisecond(NOW - waited).unwrap();
            let standing = Standing { postponed: 7, postponed_since: Some(since), ..standing(1) };
            let verdict = judge(outcome.clone(), standing, &RetryPolicy::default(), 0.5);
            let dead = Verdict::Dead { reason: "postponed-too-long", error: "wait".to_owned() };
            assert_eq!(verdict == dead, is_dead, "{waited}: {verdict:?}");
        }
    }

    #[test]
    fn a_handlers_own_postponement_neither_spins_nor_outlasts_the_seven_days() {
        let ms = Duration::from_millis;
        let week = POSTPONED_MAX.as_millis() as u64;
        let after = |asked: u64, waited: u64, base: Duration| {
            let since = Timestamp::from_millisecond(NOW - waited as i64).unwrap();
            let standing = Standing { postponed_since: Some(since), ..standing(1) };
            let outcome = Outcome::Postpone { reason: "wait".to_owned(), after: Some(ms(asked)) };
            match judge(outcome, standing, &RetryPolicy { base, ..RetryPolicy::default() }, 0.0) {
                Verdict::Later { after, .. } => after,
                verdict => panic!("{verdict:?}"),
            }
        };
        let second = ms(1000);
        for (asked, waited, base, expected) in [
            (0, 0, second, second),
            (999, 0, ms(5000), second),
            (0, 0, ms(20), ms(20)),
            (77_000, 0, second, ms(77_000)),
            (u32::MAX.into(), 0, second, POSTPONED_MAX),
            (week, week - 5000, second, ms(5000)),
            (0, week - 1, second, ms(1)),
        ] {
            assert_eq!(after(asked, waited, base), expected, "{asked} after {waited}, base {base:?}");
        }
    }

    #[test]
    fn pauses_grow_to_the_cap_and_only_exponential_ones_have_jitter() {
        assert_eq!(pauses(Backoff::Exponential, 1.0), [1.0, 2.0, 4.0, 512.0, 600.0, 600.0]);
        assert_eq!(pauses(Backoff::Exponential, 0.25), [0.25, 0.5, 1.0, 128.0, 150.0, 150.0]);
        assert_eq!(pauses(Backoff::Exponential, 0.0), [0.0; 6]);
        assert_eq!(pauses(Backoff::Linear, 0.25), [1.0, 2.0, 3.0, 10.0, 11.0, 90.0]);
        assert_eq!(pauses(Backoff::Fixed, 0.25), [1.0; 6]);
    }

    #[test]
    fn a_handlers_own_pause_wins() {
        let after = Duration::from_secs(77);
        let verdict = judge(again(Some(after)), standing(1), &RetryPolicy::default(), 0.5);
        assert_eq!(verdict, Verdict::Later { after, attempt: 2, postponed: 0 });
    }

    #[test]
    fn the_manifest_wins_over_the_envelope_and_both_over_the_default() {
        let attempts =
            |manifest, envelope| RetryPolicy { attempts: manifest, ..RetryPolicy::default() }.max_attempts(envelope);
        assert_eq!([attempts(Some(7), Some(2)), attempts(None, Some(2)), attempts(None, None)], [7, 2, 3]);
        assert_eq!(attempts(None, Some(0)), 1);
    }
}
