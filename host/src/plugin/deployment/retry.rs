//! When a load or restore that failed for a transient cause is retried.

use super::Target;
use std::time::Duration;

const RETRY_FIRST: Duration = Duration::from_secs(5);
pub(super) const RETRY_MAX: Duration = Duration::from_secs(300);

/// A scheduled retry, with exponential backoff.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Retry {
    pub(super) target: Target,
    pub(super) at: Duration,
    wait: Duration,
}

impl Retry {
    /// The retry after a failure at `now`, and perhaps an earlier one.
    pub(super) fn after(earlier: Option<&Self>, target: &Target, now: Duration) -> Self {
        let earlier = earlier.filter(|earlier| earlier.target == *target);
        let wait = earlier.map_or(RETRY_FIRST, |earlier| (2 * earlier.wait).min(RETRY_MAX));
        Self { target: target.clone(), at: now + wait, wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_five_minutes() {
        let mut retry = Retry::after(None, &Target::File, Duration::ZERO);
        let mut waits = vec![retry.at.as_secs()];
        for _ in 0..8 {
            let before = retry.at;
            retry = Retry::after(Some(&retry), &Target::File, before);
            waits.push((retry.at - before).as_secs());
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        let other = Target::Restore { digest: "a".to_owned(), instead_of: None };
        assert_eq!(Retry::after(Some(&retry), &other, Duration::ZERO).at, RETRY_FIRST);
    }
}
