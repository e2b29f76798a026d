//! How the worker's loops go over all topics: a loop visits a topic when a hint
//! says so, one visit of a topic at a time. Visits of different topics run side
//! by side, so that a topic whose server does not answer delays no other.

use super::hints::{Hinted, Hints, INTERVAL};
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

pub(super) trait TopicLoop<T: Hinted>: Send + Sync + Sized + 'static {
    /// Its name in the log.
    const NAME: &'static str;

    /// What is remembered of a topic from one visit to the next.
    type Memory: Default + Send + 'static;

    /// Does what there is to do for one topic. Returns after how long to look
    /// again; `None` waits for a hint, and drops the memory.
    fn visit(&self, topic: &Arc<T>, memory: &mut Self::Memory) -> impl Future<Output = Option<Duration>> + Send;

    /// Visits topics until stopped. Visits that have begun are finished.
    fn run(self, hints: &Hints<T>, stop: &CancellationToken) -> impl Future<Output = ()> + Send {
        async move {
            let mut visits = Visits::new(self);
            loop {
                tokio::select! {
                    topic = hints.next() => visits.begin(topic),
                    Some(ended) = visits.tasks.join_next_with_id() => visits.end(ended, hints),
                    () = stop.cancelled() => break,
                }
            }
            while let Some(ended) = visits.tasks.join_next_with_id().await {
                visits.end(ended, hints);
            }
        }
    }
}

type Ended<M> = (M, Option<Duration>);

/// The visits of one loop.
struct Visits<T: Hinted, L: TopicLoop<T>> {
    which: Arc<L>,
    tasks: JoinSet<Ended<L::Memory>>,
    under_way: HashMap<Id, Arc<T>>,
    /// By topic. `None` while a visit has it.
    memories: HashMap<u64, Option<L::Memory>>,
    /// Topics that were hinted at during their visit.
    hinted: HashSet<u64>,
}

impl<T: Hinted, L: TopicLoop<T>> Visits<T, L> {
    fn new(which: L) -> Self {
        Self {
            which: Arc::new(which),
            tasks: JoinSet::new(),
            under_way: HashMap::new(),
            memories: HashMap::new(),
            hinted: HashSet::new(),
        }
    }

    fn begin(&mut self, topic: Arc<T>) {
        let memory = match self.memories.remove(&topic.id()) {
            Some(None) => {
                self.memories.insert(topic.id(), None);
                self.hinted.insert(topic.id());
                return;
            }
            known => known.flatten().unwrap_or_default(),
        };
        if topic.is_over() {
            return;
        }
        self.memories.insert(topic.id(), None);
        let (which, visited) = (self.which.clone(), topic.clone());
        let task = self.tasks.spawn(async move {
            let mut memory = memory;
            let next = which.visit(&visited, &mut memory).await;
            (memory, next)
        });
        self.under_way.insert(task.id(), topic);
    }

    fn end(&mut self, ended: Result<(Id, Ended<L::Memory>), JoinError>, hints: &Hints<T>) {
        let (task, memory, next) = match ended {
            Ok((task, (memory, next))) => (task, memory, next),
            Err(error) => match error.try_into_panic() {
                // What the visit had in hand is lost, so the loop has failed as a whole.
                Ok(panic) => resume_unwind(panic),
                Err(cancelled) => (cancelled.id(), L::Memory::default(), Some(INTERVAL)),
            },
        };
        let Some(topic) = self.under_way.remove(&task) else { return };
        let was_hinted = self.hinted.remove(&topic.id());
        if topic.is_over() || (next.is_none() && !was_hinted) {
            self.memories.remove(&topic.id());
            return;
        }
        self.memories.insert(topic.id(), Some(memory));
        hints.after(&topic, if was_hinted { Duration::ZERO } else { next.unwrap_or_default() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::Supervisor;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::sync::{Notify, Semaphore};

    struct Topic {
        id: u64,
        is_over: AtomicBool,
    }

    impl Topic {
        fn new(id: u64) -> Arc<Self> {
            Arc::new(Self { id, is_over: AtomicBool::new(false) })
        }
    }

    impl Hinted for Topic {
        fn id(&self) -> u64 {
            self.id
        }

        fn is_over(&self) -> bool {
            self.is_over.load(Ordering::SeqCst)
        }
    }

    /// Notes each visit: its topic, and how many the topic's memory knows of.
    struct Recorder {
        seen: Arc<Seen>,
        next: Option<Duration>,
    }

    struct Seen {
        visits: Mutex<Vec<(u64, u32)>>,
        visited: Notify,
        /// A visit of the first topic lasts until there is a permit.
        gate: Semaphore,
    }

    impl TopicLoop<Topic> for Recorder {
        const NAME: &'static str = "recorder";

        type Memory = u32;

        async fn visit(&self, topic: &Arc<Topic>, before: &mut u32) -> Option<Duration> {
            self.seen.visits.lock().unwrap().push((topic.id, *before));
            *before += 1;
            self.seen.visited.notify_one();
            if topic.id == 1 {
                self.seen.gate.acquire().await.unwrap().forget();
            }
            self.next
        }
    }

    impl Seen {
        fn of(&self, id: u64) -> Vec<u32> {
            self.visits.lock().unwrap().iter().filter(|(topic, _)| *topic == id).map(|(_, before)| *before).collect()
        }

        async fn until(&self, id: u64, count: usize) {
            let waiting = async {
                while self.of(id).len() < count {
                    self.visited.notified().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("the visit comes");
        }
    }

    /// Runs the loop while a test gives the hints.
    async fn run(next: Option<Duration>, hinting: impl AsyncFnOnce(&Hints<Topic>, &Seen)) -> Arc<Seen> {
        let seen = Arc::new(Seen { visits: Mutex::default(), visited: Notify::new(), gate: Semaphore::new(0) });
        let (hints, stop, recorder) =
            (Hints::default(), CancellationToken::new(), Recorder { seen: seen.clone(), next });
        let hinting = async {
            hinting(&hints, &seen).await;
            stop.cancel();
        };
        tokio::join!(recorder.run(&hints, &stop), hinting);
        seen
    }

    #[tokio::test]
    async fn a_topic_that_does_not_answer_delays_no_other_and_each_has_a_memory_of_its_own() {
        let hinting = async |hints: &Hints<Topic>, seen: &Seen| {
            hints.now(&Topic::new(1));
            seen.until(1, 1).await;
            hints.now(&Topic::new(2));
            seen.until(2, 3).await;
            seen.gate.add_permits(9);
        };
        let seen = run(Some(Duration::ZERO), hinting).await;
        assert_eq!(seen.of(1)[0], 0);
        assert_eq!(seen.of(2)[..3], [0, 1, 2]);
    }

    #[tokio::test]
    async fn hints_during_a_visit_lead_to_another_one_afterwards() {
        let hinting = async |hints: &Hints<Topic>, seen: &Seen| {
            let topic = Topic::new(1);
            hints.now(&topic);
            seen.until(1, 1).await;
            hints.now(&topic);
            // The loop has taken the hint when it visits another topic.
            hints.now(&Topic::new(2));
            seen.until(2, 1).await;
            assert_eq!(seen.of(1).len(), 1);
            seen.gate.add_permits(1);
            seen.until(1, 2).await;
            seen.gate.add_permits(1);
        };
        assert_eq!(run(None, hinting).await.of(1), [0, 1]);
    }

    #[tokio::test]
    async fn a_panic_in_a_visit_ends_the_loop() {
        struct Panics;

        impl TopicLoop<Topic> for Panics {
            const NAME: &'static str = "panics";

            type Memory = ();

            async fn visit(&self, _: &Arc<Topic>, (): &mut ()) -> Option<Duration> {
                panic!("on purpose");
            }
        }

        let (supervisor, mut tasks) = (Supervisor::default(), JoinSet::new());
        let supervised = supervisor.clone();
        tasks.spawn(async move {
            let (hints, stop) = (Hints::default(), CancellationToken::new());
            hints.now(&Topic::new(1));
            supervised.run(Panics::NAME, &stop, Panics.run(&hints, &stop)).await;
        });
        let ended = tokio::time::timeout(Duration::from_secs(30), tasks.join_next()).await;
        assert!(ended.expect("the loop ends").unwrap().is_err());
        assert_eq!(supervisor.failed().await, "panics");
    }

    #[tokio::test]
    async fn a_topic_that_is_over_is_visited_no_more() {
        let hinting = async |hints: &Hints<Topic>, seen: &Seen| {
            let topic = Topic::new(1);
            hints.now(&topic);
            seen.until(1, 1).await;
            topic.is_over.store(true, Ordering::SeqCst);
            hints.now(&topic);
            seen.gate.add_permits(9);
            hints.now(&topic);
            hints.now(&Topic::new(2));
            seen.until(2, 1).await;
        };
        assert_eq!(run(Some(Duration::from_secs(3600)), hinting).await.of(1), [0]);
    }
}
