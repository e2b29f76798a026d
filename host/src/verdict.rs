//! Decides what happens to a message after a run. The function [`judge`] is the
//! whole policy. It uses no clock, no I/O and no state; randomness is an
//! argument.

use crate::publication::Publication;
use crate::text::{size, span};
use jiff::Timestamp;
use std::time::Duration;

/// A message that has been postponed for this long becomes a dead letter.
pub const POSTPONED_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The minimum delay that a handler may postpone a message by, unless the base
/// of the retry policy is shorter. It prevents a busy loop.
const POSTPONE_MIN: Duration = Duration::from_secs(1);

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Done(Vec<Publication>),
    Retry {
        reason: String,
        after: Option<Duration>,
    },
    /// The handler is not ready for the message. Does not count as an attempt.
    Postpone {
        reason: String,
        after: Option<Duration>,
    },
    Reject {
        code: String,
        reason: String,
    },
    Trap(String),
    /// The limit of wall-clock time was exceeded.
    Timeout(Duration),
    CpuLimit(Duration),
    MemoryLimit(u64),
    TableLimit(u32),
    ResourceLimit(u32),
    /// One call to the host, or the reply, had too many bytes.
    HostCallLimit(u64),
    BadReply(String),
    /// The plugin can't run now. Does not count as an attempt, because the
    /// message did not cause it.
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
            Self::ResourceLimit(_) => "resource-limit",
            Self::HostCallLimit(_) => "host-call-limit",
            Self::BadReply(_) => "bad-reply",
            Self::PluginUnavailable(_) => "plugin-unavailable",
        }
    }

    /// The error message for logs and dead letters. Empty for success.
    pub fn error(&self) -> String {
        match self {
            Self::Done(_) => String::new(),
            Self::Reject { code, reason } => format!("{code}: {reason}"),
            Self::Retry { reason, .. }
            | Self::Postpone { reason, .. }
            | Self::Trap(reason)
            | Self::BadReply(reason)
            | Self::PluginUnavailable(reason) => reason.clone(),
            Self::Timeout(limit) => format!("ran longer than limits.timeout = {}", span(*limit)),
            Self::CpuLimit(limit) => format!("used more than limits.cpu = {}", span(*limit)),
            Self::MemoryLimit(limit) => format!("used more than limits.memory = {}", size(*limit)),
            Self::TableLimit(limit) => format!("used more than limits.table_elements = {limit}"),
            Self::ResourceLimit(limit) => format!("used more than limits.resources = {limit}"),
            Self::HostCallLimit(limit) => {
                format!("passed more than limits.host_call_bytes = {} to the host in one call", size(*limit))
            }
        }
    }

    /// Whether the instance ended without a reply. The outcome then applies to
    /// every message of its batch.
    pub fn ended_instance(&self) -> bool {
        match self {
            Self::Trap(_)
            | Self::Timeout(_)
            | Self::CpuLimit(_)
            | Self::MemoryLimit(_)
            | Self::TableLimit(_)
            | Self::ResourceLimit(_)
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

/// The action for the message.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Acknowledge the message and publish its follow-ups in the same step.
    Done(Vec<Publication>),
    /// Run the message again after a delay.
    RunAgain { after: Duration, attempt: u32, postponed: u32 },
    /// Make the message a dead letter. `reason` is one of the `DEAD_REASONS` of the
    /// metrics.
    DeadLetter { reason: &'static str, error: String },
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
    /// The manifest's number of attempts, which overrides the envelope's
    /// `max_retry`.
    pub attempts: Option<u32>,
    pub backoff: Backoff,
    pub base: Duration,
    pub cap: Duration,
}

/// The number of attempts where neither manifest nor envelope set one.
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
    /// The total number of attempts for a message.
    pub fn max_attempts(&self, envelope: Option<u32>) -> u32 {
        self.attempts.or(envelope).unwrap_or(ATTEMPTS).max(1)
    }

    /// The delay after the `nth` failure (from 1). The exponential backoff has
    /// full jitter, so that messages that failed together are not retried
    /// together; `chance` is in 0..1.
    fn delay(&self, nth: u32, chance: f64) -> Duration {
        let nth = nth.max(1);
        let factor = match self.backoff {
            Backoff::Exponential => 2_u32.saturating_pow((nth - 1).min(31)),
            Backoff::Linear => nth,
            Backoff::Fixed => 1,
        };
        let delay = self.base.saturating_mul(factor).min(self.cap);
        if self.backoff == Backoff::Exponential { delay.mul_f64(chance) } else { delay }
    }
}

/// The attempts and postponements of a message when its run has ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryState {
    pub attempt: u32,
    pub max_attempts: u32,
    /// How often the message was postponed before this run.
    pub postponed: u32,
    pub postponed_since: Option<Timestamp>,
    pub now: Timestamp,
}

pub fn judge(outcome: Outcome, state: RetryState, policy: &RetryPolicy, chance: f64) -> Verdict {
    let (reason, error) = (outcome.name(), outcome.error());
    let RetryState { attempt, max_attempts, postponed, .. } = state;
    let after = match outcome {
        Outcome::Done(publications) => return Verdict::Done(publications),
        Outcome::Reject { .. } => return Verdict::DeadLetter { reason, error },
        Outcome::PluginUnavailable(_) => return Verdict::RunAgain { after: policy.base, attempt, postponed },
        Outcome::Postpone { after, .. } => return postpone(after, error, state, policy, chance),
        Outcome::Retry { after, .. } => after,
        Outcome::Trap(_)
        | Outcome::Timeout(_)
        | Outcome::CpuLimit(_)
        | Outcome::MemoryLimit(_)
        | Outcome::TableLimit(_)
        | Outcome::ResourceLimit(_)
        | Outcome::HostCallLimit(_)
        | Outcome::BadReply(_) => None,
    };
    if attempt >= max_attempts {
        return Verdict::DeadLetter { reason, error };
    }
    let after = after.unwrap_or_else(|| policy.delay(attempt, chance));
    Verdict::RunAgain { after, attempt: attempt + 1, postponed }
}

fn postpone(after: Option<Duration>, error: String, state: RetryState, policy: &RetryPolicy, chance: f64) -> Verdict {
    let waited = state
        .postponed_since
        .map_or(Duration::ZERO, |since| Duration::try_from(state.now.duration_since(since)).unwrap_or(Duration::ZERO));
    if waited >= POSTPONED_MAX {
        return Verdict::DeadLetter { reason: "postponed-too-long", error };
    }
    let postponed = state.postponed.saturating_add(1);
    let min = POSTPONE_MIN.min(policy.base);
    let after = after.map_or_else(|| policy.delay(postponed, chance), |after| after.max(min));
    // The last run is due when the time limit ends, not after it.
    let after = after.min(POSTPONED_MAX - waited);
    Verdict::RunAgain { after, attempt: state.attempt, postponed }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_419_923_585;

    fn state(attempt: u32) -> RetryState {
        let now = Timestamp::from_millisecond(NOW).unwrap();
        RetryState { attempt, max_attempts: 3, postponed: 0, postponed_since: None, now }
    }

    fn retry(after: Option<Duration>) -> Outcome {
        Outcome::Retry { reason: "busy".to_owned(), after }
    }

    fn delays(backoff: Backoff, chance: f64) -> Vec<f64> {
        let policy = RetryPolicy { attempts: Some(99), backoff, ..RetryPolicy::default() };
        [1, 2, 3, 10, 11, 90].iter().map(|nth| policy.delay(*nth, chance).as_secs_f64()).collect()
    }

    #[test]
    fn an_outcome_that_counts_as_an_attempt_is_dead_after_the_last_one() {
        let counting = [
            retry(None),
            Outcome::Trap("t".to_owned()),
            Outcome::Timeout(Duration::from_secs(1)),
            Outcome::CpuLimit(Duration::from_secs(1)),
            Outcome::MemoryLimit(1),
            Outcome::TableLimit(1),
            Outcome::ResourceLimit(1),
            Outcome::HostCallLimit(1),
            Outcome::BadReply("b".to_owned()),
        ];
        for outcome in counting {
            for attempt in 1..=2 {
                let verdict = judge(outcome.clone(), state(attempt), &RetryPolicy::default(), 0.5);
                assert!(
                    matches!(verdict, Verdict::RunAgain { attempt: next, .. } if next == attempt + 1),
                    "{verdict:?}"
                );
            }
            for attempt in [3, 4, u32::MAX] {
                let dead = Verdict::DeadLetter { reason: outcome.name(), error: outcome.error() };
                assert_eq!(judge(outcome.clone(), state(attempt), &RetryPolicy::default(), 0.5), dead);
            }
        }
    }

    #[test]
    fn a_rejected_message_is_dead_at_once() {
        let outcome = Outcome::Reject { code: "bad-data".to_owned(), reason: "no id".to_owned() };
        let dead = Verdict::DeadLetter { reason: "reject", error: "bad-data: no id".to_owned() };
        assert_eq!(judge(outcome, state(1), &RetryPolicy::default(), 0.5), dead);
    }

    #[test]
    fn postponing_and_an_unavailable_plugin_do_not_count_as_attempts() {
        let policy = RetryPolicy::default();
        let postpone = Outcome::Postpone { reason: "wait".to_owned(), after: None };
        let later = |after, postponed| Verdict::RunAgain { after: Duration::from_millis(after), attempt: 3, postponed };
        assert_eq!(judge(postpone, state(3), &policy, 0.5), later(500, 1));
        let gone = Outcome::PluginUnavailable("not loaded".to_owned());
        assert_eq!(judge(gone, state(3), &policy, 0.5), later(1000, 0));
        // The delay grows with the postponements, not with the attempts.
        let postpone = Outcome::Postpone { reason: "wait".to_owned(), after: None };
        let often = RetryState { postponed: 4, ..state(3) };
        assert_eq!(judge(postpone, often, &policy, 0.5), later(8000, 5));
    }

    #[test]
    fn postponing_ends_after_seven_days() {
        let outcome = Outcome::Postpone { reason: "wait".to_owned(), after: None };
        let week_ms = 7 * 24 * 60 * 60 * 1000;
        for (waited, is_dead) in [(week_ms - 1, false), (week_ms, true), (-5, false)] {
            let since = Timestamp::from_millisecond(NOW - waited).unwrap();
            let state = RetryState { postponed: 7, postponed_since: Some(since), ..state(1) };
            let verdict = judge(outcome.clone(), state, &RetryPolicy::default(), 0.5);
            let dead = Verdict::DeadLetter { reason: "postponed-too-long", error: "wait".to_owned() };
            assert_eq!(verdict == dead, is_dead, "{waited}: {verdict:?}");
        }
    }

    #[test]
    fn a_handlers_own_delay_for_postponing_has_a_minimum_and_ends_within_seven_days() {
        let ms = Duration::from_millis;
        let week = POSTPONED_MAX.as_millis() as u64;
        let after = |asked: u64, waited: u64, base: Duration| {
            let since = Timestamp::from_millisecond(NOW - waited as i64).unwrap();
            let state = RetryState { postponed_since: Some(since), ..state(1) };
            let outcome = Outcome::Postpone { reason: "wait".to_owned(), after: Some(ms(asked)) };
            match judge(outcome, state, &RetryPolicy { base, ..RetryPolicy::default() }, 0.0) {
                Verdict::RunAgain { after, .. } => after,
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
    fn delays_grow_to_the_cap_and_only_exponential_ones_have_jitter() {
        assert_eq!(delays(Backoff::Exponential, 1.0), [1.0, 2.0, 4.0, 512.0, 600.0, 600.0]);
        assert_eq!(delays(Backoff::Exponential, 0.25), [0.25, 0.5, 1.0, 128.0, 150.0, 150.0]);
        assert_eq!(delays(Backoff::Exponential, 0.0), [0.0; 6]);
        assert_eq!(delays(Backoff::Linear, 0.25), [1.0, 2.0, 3.0, 10.0, 11.0, 90.0]);
        assert_eq!(delays(Backoff::Fixed, 0.25), [1.0; 6]);
    }

    #[test]
    fn a_handlers_own_delay_overrides_the_policy() {
        let after = Duration::from_secs(77);
        let verdict = judge(retry(Some(after)), state(1), &RetryPolicy::default(), 0.5);
        assert_eq!(verdict, Verdict::RunAgain { after, attempt: 2, postponed: 0 });
    }

    #[test]
    fn the_manifest_overrides_the_envelope_and_both_override_the_default() {
        let attempts =
            |manifest, envelope| RetryPolicy { attempts: manifest, ..RetryPolicy::default() }.max_attempts(envelope);
        assert_eq!([attempts(Some(7), Some(2)), attempts(None, Some(2)), attempts(None, None)], [7, 2, 3]);
        assert_eq!(attempts(None, Some(0)), 1);
    }
}
