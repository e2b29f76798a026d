//! Hints: which topic may have something for a loop to do, and when to look.
//!
//! Where hints come from is decided here and by the code that gives them. Today each
//! topic is looked at every second, and a settlement that makes something due
//! earlier says so.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// How often a loop looks at a topic for which nothing says otherwise.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// What can be hinted at.
pub(super) trait Hinted: Send + Sync + 'static {
    /// Tells one life of a topic from the next.
    fn id(&self) -> u64;

    /// Whether it needs no more visits.
    fn is_over(&self) -> bool;
}

pub(super) struct Hints<T> {
    schedule: Mutex<Schedule<T>>,
    /// The first entry of the schedule has changed.
    earlier: Notify,
}

struct Schedule<T> {
    by_time: BTreeMap<(Instant, u64), Arc<T>>,
    times: HashMap<u64, Instant>,
}

impl<T> Default for Hints<T> {
    fn default() -> Self {
        let schedule = Schedule { by_time: BTreeMap::new(), times: HashMap::new() };
        Self { schedule: Mutex::new(schedule), earlier: Notify::new() }
    }
}

impl<T: Hinted> Hints<T> {
    fn lock(&self) -> MutexGuard<'_, Schedule<T>> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The topic may have something now.
    pub(super) fn now(&self, topic: &Arc<T>) {
        self.at(topic, Instant::now());
    }

    pub(super) fn after(&self, topic: &Arc<T>, wait: Duration) {
        self.at(topic, Instant::now() + wait);
    }

    /// Forgets every topic.
    pub(super) fn clear(&self) {
        let mut schedule = self.lock();
        schedule.times.clear();
        schedule.by_time.clear();
    }

    /// Of two hints the earlier one counts.
    fn at(&self, topic: &Arc<T>, when: Instant) {
        let mut schedule = self.lock();
        match schedule.times.get(&topic.id()).copied() {
            Some(known) if known <= when => return,
            Some(known) => drop(schedule.by_time.remove(&(known, topic.id()))),
            None => {}
        }
        schedule.times.insert(topic.id(), when);
        schedule.by_time.insert((when, topic.id()), topic.clone());
        let is_first = schedule.by_time.first_key_value().is_some_and(|((_, id), _)| *id == topic.id());
        drop(schedule);
        if is_first {
            self.earlier.notify_one();
        }
    }

    /// Waits for the topic that is due first, and takes it off the schedule.
    pub(super) async fn next(&self) -> Arc<T> {
        loop {
            match self.pop_due() {
                Ok(topic) => return topic,
                Err(None) => self.earlier.notified().await,
                Err(Some(when)) => tokio::select! {
                    () = sleep_until(when) => {}
                    () = self.earlier.notified() => {}
                },
            }
        }
    }

    /// What is due now; else when the first one is.
    fn pop_due(&self) -> Result<Arc<T>, Option<Instant>> {
        let mut schedule = self.lock();
        let Some((&(when, id), _)) = schedule.by_time.first_key_value() else { return Err(None) };
        if when > Instant::now() {
            return Err(Some(when));
        }
        schedule.times.remove(&id);
        schedule.by_time.pop_first().map(|(_, topic)| topic).ok_or(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Topic(u64);

    impl Hinted for Topic {
        fn id(&self) -> u64 {
            self.0
        }

        fn is_over(&self) -> bool {
            false
        }
    }

    async fn next(hints: &Hints<Topic>) -> u64 {
        tokio::time::timeout(Duration::from_secs(30), hints.next()).await.expect("a hint is due").0
    }

    #[tokio::test]
    async fn the_earlier_of_two_hints_counts_and_each_comes_once() {
        let (hints, one, other) = (Hints::default(), Arc::new(Topic(1)), Arc::new(Topic(2)));
        hints.after(&one, Duration::from_millis(60));
        hints.after(&other, Duration::from_millis(40));
        hints.after(&one, Duration::from_millis(20));
        hints.after(&one, Duration::from_secs(3600));
        assert_eq!(next(&hints).await, 1);
        assert_eq!(next(&hints).await, 2);
        assert!(matches!(hints.pop_due(), Err(None)));
    }

    #[tokio::test]
    async fn a_hint_wakes_who_waits_for_a_later_one() {
        let hints = Arc::new(Hints::default());
        hints.after(&Arc::new(Topic(1)), Duration::from_secs(3600));
        let (waiting, mut tasks) = (hints.clone(), tokio::task::JoinSet::new());
        tasks.spawn(async move { next(&waiting).await });
        tokio::task::yield_now().await;
        hints.now(&Arc::new(Topic(2)));
        assert_eq!(tasks.join_next().await.expect("a task").expect("it did not panic"), 2);
    }
}
