//! How the worker's loops go over all topics: a loop visits a topic when a hint
//! says so, one visit of a topic at a time. Visits of different topics run side
//! by side, so that a topic whose server does not answer delays no other.

use super::hints::{Hinted, Hints, INTERVAL};
use crate::events;
use std::collections::{HashMap, HashSet};
use std::future::Future;
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
            Err(error) => {
                tracing::error!(of = L::NAME, %error, "{}", events::TASK_FAILED);
                (error.id(), L::Memory::default(), Some(INTERVAL))
            }
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
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::time::{Instant, sleep};

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

    /// Notes each visit: its topic, its second, and how many came before it.
    struct Recorder {
        start: Instant,
        lasts: Duration,
        next: Option<Duration>,
        visits: Arc<Mutex<Vec<(u64, u64, u32)>>>,
    }

    impl TopicLoop<Topic> for Recorder {
        const NAME: &'static str = "recorder";

        type Memory = u32;

        async fn visit(&self, topic: &Arc<Topic>, before: &mut u32) -> Option<Duration> {
            self.visits.lock().unwrap().push((topic.id, self.start.elapsed().as_secs(), *before));
            *before += 1;
            // The first topic's server does not answer.
            sleep(if topic.id == 1 { self.lasts } else { Duration::ZERO }).await;
            self.next
        }
    }

    async fn recorded(
        lasts: u64,
        next: Option<u64>,
        hinting: impl AsyncFnOnce(&Hints<Topic>, [&Arc<Topic>; 2]),
    ) -> Vec<(u64, u64, u32)> {
        let visits = Arc::default();
        let (lasts, next) = (Duration::from_secs(lasts), next.map(Duration::from_secs));
        let recorder = Recorder { start: Instant::now(), lasts, next, visits: Arc::clone(&visits) };
        let (hints, stop, one, other) = (Hints::default(), CancellationToken::new(), Topic::new(1), Topic::new(2));
        hints.now(&one);
        hints.now(&other);
        let hinting = async {
            hinting(&hints, [&one, &other]).await;
            stop.cancel();
        };
        tokio::join!(recorder.run(&hints, &stop), hinting);
        let visits = visits.lock().unwrap().clone();
        visits
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_that_does_not_answer_delays_no_other_and_memories_are_each_topics_own() {
        let visits = recorded(10, Some(3), async |_, _| sleep(Duration::from_secs(8)).await).await;
        assert_eq!(visits, [(1, 0, 0), (2, 0, 0), (2, 3, 1), (2, 6, 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hint_during_a_visit_leads_to_another_one_afterwards() {
        let hinting = async |hints: &Hints<Topic>, [one, _]: [&Arc<Topic>; 2]| {
            sleep(Duration::from_secs(1)).await;
            hints.now(one);
            hints.now(one);
            sleep(Duration::from_secs(30)).await;
        };
        // Without a hint there is none, and the memory is dropped.
        assert_eq!(recorded(4, None, hinting).await, [(1, 0, 0), (2, 0, 0), (1, 4, 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_that_is_over_is_visited_no_more() {
        let hinting = async |hints: &Hints<Topic>, [one, other]: [&Arc<Topic>; 2]| {
            sleep(Duration::from_secs(1)).await;
            other.is_over.store(true, Ordering::SeqCst);
            one.is_over.store(true, Ordering::SeqCst);
            hints.now(one);
            sleep(Duration::from_secs(30)).await;
        };
        assert_eq!(recorded(4, Some(3), hinting).await, [(1, 0, 0), (2, 0, 0)]);
    }
}
