//! Deliveries that were fetched and have not begun, and how many runners work
//! on them.
//!
//! A runner calls one handler after the other, without the cost of a task for
//! each, as long as they end without waiting. When a call waits, or has used up
//! its slice of CPU, its runner is *blocked*: it stays with that call, and
//! another runner takes over the queue. Short handlers therefore run one per
//! core, slow ones as many at once as the topic's concurrency allows, and no
//! message waits behind a slow one while there is capacity.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(super) struct LocalQueue<T> {
    state: Mutex<State<T>>,
    /// The limit of runners that are not blocked.
    active_max: usize,
}

struct State<T> {
    waiting: VecDeque<T>,
    /// Runners that are not blocked.
    active: usize,
    /// All runners, blocked ones included.
    runners: usize,
    runners_max: usize,
}

impl<T> State<T> {
    /// How many runners to start for what waits. They count from now on.
    fn start(&mut self, active_max: usize) -> usize {
        let free = active_max.saturating_sub(self.active);
        let started = self.waiting.len().min(free).min(self.runners_max.saturating_sub(self.runners));
        self.active += started;
        self.runners += started;
        started
    }
}

impl<T> LocalQueue<T> {
    pub(super) fn new(active_max: usize) -> Self {
        let state = State { waiting: VecDeque::new(), active: 0, runners: 0, runners_max: 0 };
        Self { state: Mutex::new(state), active_max }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds items. Returns how many runners the caller is to start.
    #[must_use]
    pub(super) fn push(&self, items: impl IntoIterator<Item = T>, runners_max: usize) -> usize {
        let mut state = self.lock();
        state.runners_max = runners_max;
        state.waiting.extend(items);
        state.start(self.active_max)
    }

    /// The next item for a runner, and how many wait behind it. `None` ends the
    /// runner.
    pub(super) fn next(&self) -> Option<(T, usize)> {
        let mut state = self.lock();
        let next = state.waiting.pop_front();
        if next.is_none() {
            state.active -= 1;
            state.runners -= 1;
        }
        next.map(|next| (next, state.waiting.len()))
    }

    /// Another item for a runner that has some already, if the first one
    /// satisfies the condition.
    pub(super) fn next_if(&self, condition: impl FnOnce(&T) -> bool) -> Option<T> {
        let mut state = self.lock();
        if state.waiting.front().is_some_and(condition) { state.waiting.pop_front() } else { None }
    }

    /// How many items wait for a runner.
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// A runner's call waits. Returns how many other runners the caller is to
    /// start.
    #[must_use]
    pub(super) fn runner_blocked(&self) -> usize {
        let mut state = self.lock();
        state.active -= 1;
        state.start(self.active_max)
    }

    /// The call of a blocked runner has ended. Returns whether that runner goes
    /// on; if not, it has ended.
    #[must_use]
    pub(super) fn runner_unblocked(&self) -> bool {
        let mut state = self.lock();
        let goes_on = !state.waiting.is_empty() && state.active < self.active_max;
        if goes_on {
            state.active += 1;
        } else {
            state.runners -= 1;
        }
        goes_on
    }

    /// Removes everything that no runner has begun.
    pub(super) fn clear(&self) -> Vec<T> {
        self.lock().waiting.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_messages_are_processed_by_one_runner_per_core() {
        let queue = LocalQueue::new(2);
        assert_eq!(queue.push(1..=10, 64), 2);
        assert_eq!(queue.push(11..=12, 64), 0);
        let processed: Vec<i32> = std::iter::from_fn(|| queue.next()).map(|(next, _)| next).collect();
        assert_eq!(processed, (1..=12).collect::<Vec<_>>());
        assert_eq!(queue.next(), None);
        assert_eq!(queue.push([13], 64), 1);
    }

    #[test]
    fn a_blocked_runner_blocks_no_other_message() {
        let queue = LocalQueue::new(1);
        assert_eq!(queue.push(1..=3, 64), 1);
        assert_eq!(queue.next(), Some((1, 2)));
        assert_eq!(queue.runner_blocked(), 1);
        assert_eq!(queue.next(), Some((2, 1)));
        assert_eq!(queue.runner_blocked(), 1);
        assert_eq!(queue.next(), Some((3, 0)));
        assert_eq!(queue.runner_blocked(), 0);
        assert!(!queue.runner_unblocked());
    }

    #[test]
    fn there_are_never_more_runners_than_the_concurrency() {
        let queue = LocalQueue::new(4);
        assert_eq!(queue.push(1..=100, 3), 3);
        for _ in 0..3 {
            assert!(queue.next().is_some());
            assert_eq!(queue.runner_blocked(), 0);
        }
        assert!(queue.runner_unblocked());
        assert_eq!(queue.clear().len(), 97);
        assert_eq!(queue.next(), None);
        assert!(!queue.runner_unblocked());
        assert!(!queue.runner_unblocked());
        assert_eq!(queue.push(1..=9, 3), 3);
    }
}
