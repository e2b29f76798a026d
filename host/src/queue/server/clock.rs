//! The clock of Redis as this process knows it. Whatever decides the fate of a
//! message goes by this clock, because every worker and publisher shares it, while
//! the clocks of their hosts differ.

use crate::capability::Clock;
use jiff::Timestamp;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A reading of Redis' clock, which the monotonic clock carries on.
#[derive(Debug, Clone, Copy)]
pub struct RedisClock {
    unix_ms: i64,
    read_at: Instant,
    /// How far the reading may be off: the reply took twice as long.
    error: Duration,
}

/// The monotonic clock gains or loses at most one part in this many.
const DRIFT: u32 = 1000;

impl RedisClock {
    /// A clock that shows this time now.
    pub fn showing(unix_ms: i64) -> Self {
        Self { unix_ms, read_at: Instant::now(), error: Duration::ZERO }
    }

    /// What a server answered to a command that was sent then. It has read its
    /// clock at some time between; the middle is off by half of that at most.
    pub(crate) fn answered(unix_ms: i64, sent: Instant) -> Self {
        let error = sent.elapsed() / 2;
        Self { unix_ms, read_at: sent + error, error }
    }

    pub(crate) fn now_ms(self) -> i64 {
        let elapsed = i64::try_from(self.read_at.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.unix_ms.saturating_add(elapsed)
    }

    fn now(self) -> Option<Timestamp> {
        Timestamp::from_millisecond(self.now_ms()).ok()
    }

    fn error(self) -> Duration {
        self.error + self.read_at.elapsed() / DRIFT
    }

    /// Whether this reading is to replace that one: it is not less exact, or one
    /// of the clocks was set in between.
    fn supersedes(self, other: Self) -> bool {
        let difference = Duration::from_millis(self.now_ms().abs_diff(other.now_ms()));
        self.error() <= other.error() || difference > self.error() + other.error() + Duration::from_millis(1)
    }
}

/// The best reading, shared by the users of a connection.
#[derive(Default)]
pub(super) struct LatestClock(Mutex<Option<Known>>);

#[derive(Clone, Copy)]
struct Known {
    reading: RedisClock,
    /// When Redis was last asked, also if the answer was less exact.
    asked_at: Instant,
}

impl LatestClock {
    pub(super) fn add(&self, new: RedisClock) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = known.map(|known| known.reading).filter(|old| !new.supersedes(*old)).unwrap_or(new);
        *known = Some(Known { reading, asked_at: Instant::now() });
    }

    pub(super) fn was_read_within(&self, age: Duration) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.is_some_and(|known| known.asked_at.elapsed() <= age)
    }

    fn latest(&self) -> Option<RedisClock> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map(|known| known.reading)
    }

    /// By how many seconds the host's clock is ahead of Redis'. What the reading
    /// may be off by does not count, so that a slow reply is no skew.
    pub(super) fn skew_seconds(&self) -> Option<f64> {
        let latest = self.latest()?;
        let ahead = Timestamp::now().as_millisecond().saturating_sub(latest.now_ms()) as f64 / 1000.0;
        Some(ahead.signum() * (ahead.abs() - latest.error().as_secs_f64()).max(0.0))
    }
}

impl Clock for LatestClock {
    /// Redis' time; the host's before Redis has answered.
    fn now(&self) -> Timestamp {
        self.latest().and_then(RedisClock::now).unwrap_or_else(Timestamp::now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(unix_ms: i64, error_ms: u64) -> RedisClock {
        RedisClock { error: Duration::from_millis(error_ms), ..RedisClock::showing(unix_ms) }
    }

    #[test]
    fn a_slow_reply_replaces_no_exact_reading_and_a_step_replaces_any() {
        let exact = reading(1_000_000, 1);
        assert!(!reading(1_000_500, 900).supersedes(exact), "it may be right, and is less exact");
        assert!(reading(1_000_001, 1).supersedes(exact));
        assert!(reading(1_002_000, 900).supersedes(exact), "the clock was set forward");
        assert!(reading(0, 900).supersedes(exact), "the clock was set back");
    }

    #[test]
    fn an_old_reading_becomes_less_exact() {
        let hour = Duration::from_secs(3600);
        let Some(read_at) = Instant::now().checked_sub(hour) else { return };
        let old = RedisClock { read_at, ..reading(0, 1) };
        assert!(reading(3_600_000, 900).supersedes(old));
    }
}
