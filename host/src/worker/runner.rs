//! The runners: they process what was fetched, on the threads of the handlers.

use super::batcher;
use super::run::run_together;
use super::topic::TopicState;
use super::unsettled::Unsettled;
use super::work_item::WorkItem;
use crate::events;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// How long settlements are collected before they are handed over.
const COLLECT: Duration = Duration::from_millis(2);

/// A runner yields its thread after this many messages.
const YIELD_AFTER: usize = 256;

/// Starts runners of a topic.
pub(super) fn start(topic: &Arc<TopicState>, count: usize) {
    for _ in 0..count {
        let runner = Runner { topic: topic.clone() };
        let supervisor = topic.shared.supervisor.clone();
        let running = async move { supervisor.run_to_end("runner", runner.run()).await };
        topic.dispatch.runners.spawn_on(running, &topic.shared.handlers);
    }
}

struct Runner {
    topic: Arc<TopicState>,
}

impl Runner {
    async fn run(self) {
        let topic = &self.topic;
        let mut settlements = Collected::new(topic);
        let mut processed = 0;
        while let Some(mut items) = batcher::next(topic).await {
            processed += items.len();
            let mut is_blocked = false;
            let ended = {
                let mut run = pin!(run_together(topic, &mut items));
                match poll_fn(|context| Poll::Ready(poll_catching_panics(run.as_mut(), context))).await {
                    Poll::Ready(ended) => ended,
                    Poll::Pending => {
                        is_blocked = true;
                        settlements.hand_over();
                        start(topic, topic.dispatch.local_queue.runner_blocked());
                        poll_fn(|context| poll_catching_panics(run.as_mut(), context)).await
                    }
                }
            };
            match ended {
                Some(unsettled) => settlements.add(unsettled),
                None => {
                    // They go back to Redis: the next comparison finds them.
                    let entry = items[0].entry();
                    tracing::error!(topic = %topic.topic(), %entry, "{}", events::RUN_PANICKED);
                    topic.in_flight.unclaim(items.iter().map(WorkItem::entry));
                }
            }
            if is_blocked {
                settlements.hand_over();
                if !topic.dispatch.local_queue.runner_unblocked() {
                    return;
                }
            }
            if processed >= YIELD_AFTER {
                processed = 0;
                settlements.hand_over();
                tokio::task::yield_now().await;
            }
        }
    }
}

/// A panic while one message is run ends neither its runner nor leaves the
/// message in flight for ever: the result is `None` then.
fn poll_catching_panics<T>(run: Pin<&mut impl Future<Output = T>>, context: &mut Context<'_>) -> Poll<Option<T>> {
    match catch_unwind(AssertUnwindSafe(|| run.poll(context))) {
        Ok(polled) => polled.map(Some),
        Err(_) => Poll::Ready(None),
    }
}

/// What a runner has to settle, handed over several at a time: to wake the
/// settling loop for each message would cost more than its handler.
struct Collected<'a> {
    topic: &'a Arc<TopicState>,
    unsettled: Vec<Unsettled>,
    since: Instant,
}

impl<'a> Collected<'a> {
    fn new(topic: &'a Arc<TopicState>) -> Self {
        Self { topic, unsettled: Vec::new(), since: Instant::now() }
    }

    fn add(&mut self, unsettled: Vec<Unsettled>) {
        if self.unsettled.is_empty() {
            self.since = Instant::now();
        }
        self.unsettled.extend(unsettled);
        if self.since.elapsed() >= COLLECT {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        self.topic.settle(std::mem::take(&mut self.unsettled));
    }
}

impl Drop for Collected<'_> {
    fn drop(&mut self) {
        self.hand_over();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    #[test]
    fn a_panic_ends_its_message_and_nothing_else() {
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(poll_catching_panics(pin!(async { 1 }), &mut context), Poll::Ready(Some(1)));
        let panics = pin!(async {
            if true {
                panic!("on purpose");
            }
        });
        assert_eq!(poll_catching_panics(panics, &mut context), Poll::Ready(None));
    }
}
