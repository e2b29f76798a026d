//! Messages that a lane has taken and not begun, and how many runners work
//! them off.
//!
//! A runner calls one handler after the other, without the cost of a task for
//! each, as long as they end without waiting. A call that waits, or that has
//! used up its slice of CPU, is *suspended*: its runner stays with it and
//! another one takes over the rest. So short handlers run a few abreast, one
//! per core, and slow ones as many as the lane's concurrency allows, and no
//! message waits behind a slow one while there is room.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub struct Backlog<T> {
    state: Mutex<State<T>>,
    /// Runners that are not suspended.
    abreast_max: usize,
}

struct State<T> {
    waiting: VecDeque<T>,
    abreast: usize,
    /// All runners, suspended ones included.
    runners: usize,
    runners_max: usize,
}

impl<T> State<T> {
    /// How many runners to start for what waits; they count from now on.
    fn start(&mut self, abreast_max: usize) -> usize {
        let abreast = abreast_max.saturating_sub(self.abreast);
        let started = self.waiting.len().min(abreast).min(self.runners_max.saturating_sub(self.runners));
        self.abreast += started;
        self.runners += started;
        started
    }
}

impl<T> Backlog<T> {
    pub fn new(abreast_max: usize) -> Self {
        let state = State { waiting: VecDeque::new(), abreast: 0, runners: 0, runners_max: 0 };
        Self { state: Mutex::new(state), abreast_max }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds messages. Returns how many runners the caller is to start.
    #[must_use]
    pub fn offer(&self, messages: impl IntoIterator<Item = T>, runners_max: usize) -> usize {
        let mut state = self.lock();
        state.runners_max = runners_max;
        state.waiting.extend(messages);
        state.start(self.abreast_max)
    }

    /// The next message for a runner, and how many wait behind it. With `None`
    /// the runner has ended.
    pub fn next(&self) -> Option<(T, usize)> {
        let mut state = self.lock();
        let next = state.waiting.pop_front();
        if next.is_none() {
            state.abreast -= 1;
            state.runners -= 1;
        }
        next.map(|next| (next, state.waiting.len()))
    }

    /// One more for a runner that has some already, if the first is such a one.
    pub fn next_if(&self, is_such: impl FnOnce(&T) -> bool) -> Option<T> {
        let mut state = self.lock();
        if state.waiting.front().is_some_and(is_such) { state.waiting.pop_front() } else { None }
    }

    /// How many wait for a runner.
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// A runner's call waits. Returns how many others the caller is to start.
    #[must_use]
    pub fn suspend(&self) -> usize {
        let mut state = self.lock();
        state.abreast -= 1;
        state.start(self.abreast_max)
    }

    /// The call is over. Whether its runner goes on; if not, it has ended.
    #[must_use]
    pub fn resume(&self) -> bool {
        let mut state = self.lock();
        let goes_on = !state.waiting.is_empty() && state.abreast < self.abreast_max;
        if goes_on {
            state.abreast += 1;
        } else {
            state.runners -= 1;
        }
        goes_on
    }

    /// Takes out what nobody has begun.
    pub fn clear(&self) -> Vec<T> {
        self.lock().waiting.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_messages_are_worked_off_by_one_runner_per_core() {
        let backlog = Backlog::new(2);
        assert_eq!(backlog.offer(1..=10, 64), 2);
        assert_eq!(backlog.offer(11..=12, 64), 0);
        let worked: Vec<i32> = std::iter::from_fn(|| backlog.next()).map(|(next, _)| next).collect();
        assert_eq!(worked, (1..=12).collect::<Vec<_>>());
        assert_eq!(backlog.next(), None);
        assert_eq!(backlog.offer([13], 64), 1);
    }

    #[test]
    fn a_message_that_waits_holds_up_no_other() {
        let backlog = Backlog::new(1);
        assert_eq!(backlog.offer(1..=3, 64), 1);
        assert_eq!(backlog.next(), Some((1, 2)));
        assert_eq!(backlog.suspend(), 1);
        assert_eq!(backlog.next(), Some((2, 1)));
        assert_eq!(backlog.suspend(), 1);
        assert_eq!(backlog.next(), Some((3, 0)));
        assert_eq!(backlog.suspend(), 0);
        assert!(!backlog.resume());
    }

    #[test]
    fn never_more_runners_than_the_concurrency() {
        let backlog = Backlog::new(4);
        assert_eq!(backlog.offer(1..=100, 3), 3);
        for _ in 0..3 {
            assert!(backlog.next().is_some());
            assert_eq!(backlog.suspend(), 0);
        }
        assert!(backlog.resume());
        assert_eq!(backlog.clear().len(), 97);
        assert_eq!(backlog.next(), None);
        assert!(!backlog.resume());
        assert!(!backlog.resume());
        assert_eq!(backlog.offer(1..=9, 3), 3);
    }
}
