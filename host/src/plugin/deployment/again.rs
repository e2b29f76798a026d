//! When something that failed for a cause that may pass is tried again.

use super::Goal;
use std::time::Duration;

const FIRST: Duration = Duration::from_secs(5);
pub(super) const LONGEST: Duration = Duration::from_secs(300);

/// What is to be tried again, each time after twice as long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Again {
    pub(super) goal: Goal,
    pub(super) at: Duration,
    wait: Duration,
}

impl Again {
    /// After it has failed `now`, and perhaps earlier.
    pub(super) fn after(earlier: Option<&Self>, goal: &Goal, now: Duration) -> Self {
        let earlier = earlier.filter(|earlier| earlier.goal == *goal);
        let wait = earlier.map_or(FIRST, |earlier| (2 * earlier.wait).min(LONGEST));
        Self { goal: goal.clone(), at: now + wait, wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_twice_as_long_each_time_and_five_minutes_at_most() {
        let mut again = Again::after(None, &Goal::File, Duration::ZERO);
        let mut waits = vec![again.at.as_secs()];
        for _ in 0..8 {
            let before = again.at;
            again = Again::after(Some(&again), &Goal::File, before);
            waits.push((again.at - before).as_secs());
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        let other = Goal::Restore { digest: "a".to_owned(), instead_of: None };
        assert_eq!(Again::after(Some(&again), &other, Duration::ZERO).at, FIRST);
    }
}
