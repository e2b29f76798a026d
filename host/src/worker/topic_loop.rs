//! How the worker's loops go over all topics: a loop visits a topic when a hint
//! says so, one visit of a topic at a time. Visits of different topics run side
//! by side, so that a topic whose server does not answer holds up no other.

use super::hints::{Hinted, Hints, INTERVAL};
use super::topic::{LoopHints, Shared, TopicState};
use crate::events;
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

pub(super) trait TopicLoop: Send + Sync + Sized + 'static {
    /// Its name in the log.
    const NAME: &'static str;

    /// What is remembered of a topic from one visit to the next.
    type Memory: Default + Send + 'static;

    fn hints(hints: &LoopHints) -> &Hints<TopicState>;

    /// Does what there is to do for one topic. Returns after how long to look
    /// again; `None` waits for a hint, and the memory is dropped.
    fn visit(
        &self,
        topic: &Arc<TopicState>,
        memory: &mut Self::Memory,
    ) -> impl Future<Output = Option<Duration>> + Send;

    /// Visits topics until stopped. Visits that have begun are finished.
    fn run(self, shared: Arc<Shared>, stop: CancellationToken) -> impl Future<Output = ()> + Send {
        async move {
            let hints = Self::hints(&shared.hints);
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
struct Visits<L: TopicLoop> {
    which: Arc<L>,
    tasks: JoinSet<Ended<L::Memory>>,
    under_way: HashMap<Id, Arc<TopicState>>,
    /// By topic. What a visit has with it meanwhile is `None`.
    memories: HashMap<u64, Option<L::Memory>>,
    /// Topics that were hinted at during their visit.
    hinted: HashSet<u64>,
}

impl<L: TopicLoop> Visits<L> {
    fn new(which: L) -> Self {
        Self {
            which: Arc::new(which),
            tasks: JoinSet::new(),
            under_way: HashMap::new(),
            memories: HashMap::new(),
            hinted: HashSet::new(),
        }
    }

    fn begin(&mut self, topic: Arc<TopicState>) {
        if topic.drained.is_cancelled() {
            self.memories.remove(&topic.id());
            return;
        }
        let memory = match self.memories.insert(topic.id(), None) {
            Some(None) => {
                self.hinted.insert(topic.id());
                return;
            }
            known => known.flatten().unwrap_or_default(),
        };
        let (which, visited) = (self.which.clone(), topic.clone());
        let task = self.tasks.spawn(async move {
            let mut memory = memory;
            let next = which.visit(&visited, &mut memory).await;
            (memory, next)
        });
        self.under_way.insert(task.id(), topic);
    }

    fn end(&mut self, ended: Result<(Id, Ended<L::Memory>), JoinError>, hints: &Hints<TopicState>) {
        let (task, memory, next) = match ended {
            Ok((task, (memory, next))) => (task, memory, next),
            Err(error) => {
                tracing::error!(of = L::NAME, %error, "{}", events::TASK_FAILED);
                (error.id(), L::Memory::default(), Some(INTERVAL))
            }
        };
        let Some(topic) = self.under_way.remove(&task) else { return };
        let was_hinted = self.hinted.remove(&topic.id());
        if topic.drained.is_cancelled() || (next.is_none() && !was_hinted) {
            self.memories.remove(&topic.id());
            return;
        }
        self.memories.insert(topic.id(), Some(memory));
        hints.after(&topic, if was_hinted { Duration::ZERO } else { next.unwrap_or_default() });
    }
}
