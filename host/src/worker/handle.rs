//! The runners: they work off what was taken, on the handlers' own threads.

use super::Lane;
use crate::queue::Settlement;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// What has ended is not kept from being settled for longer.
const GATHER: Duration = Duration::from_millis(2);

/// A runner gives others on its thread a turn after this many messages.
const TURN: usize = 256;

impl Lane {
    pub(super) fn start_runners(self: &Arc<Self>, count: usize) {
        for _ in 0..count {
            let lane = self.clone();
            self.runners.spawn_on(async move { lane.work_off().await }, &self.handlers);
        }
    }

    async fn work_off(self: Arc<Self>) {
        let mut settlements = Gathered::new(&self);
        let mut worked = 0;
        while let Some(taken) = self.next().await {
            let mut run = pin!(self.run_together(&taken));
            let mut ended = poll_fn(|context| Poll::Ready(poll_caught(run.as_mut(), context))).await;
            let is_suspended = ended.is_pending();
            if is_suspended {
                settlements.send();
                self.start_runners(self.backlog.suspend());
                ended = Poll::Ready(poll_fn(|context| poll_caught(run.as_mut(), context)).await);
            }
            match ended {
                Poll::Ready(Some(settled)) => settlements.push(settled),
                // Ours no longer: the next comparison with Redis finds it again.
                _ => {
                    tracing::error!(topic = %self.topic(), entry = %taken[0].entry, "a message made the worker panic");
                    self.set_aside(&taken);
                }
            }
            if is_suspended {
                settlements.send();
                if !self.backlog.resume() {
                    return;
                }
            }
            worked += taken.len();
            if worked >= TURN {
                worked = 0;
                settlements.send();
                tokio::task::yield_now().await;
            }
        }
    }
}

/// A panic while one message is worked on must not take its runner along, nor
/// leave the message held by nobody: it is `None` then.
fn poll_caught<T>(run: Pin<&mut impl Future<Output = T>>, context: &mut Context<'_>) -> Poll<Option<T>> {
    match catch_unwind(AssertUnwindSafe(|| run.poll(context))) {
        Ok(polled) => polled.map(Some),
        Err(_) => Poll::Ready(None),
    }
}

/// What a runner has to settle, handed over a few at a time: to wake the
/// settler for each would cost more than the handler.
struct Gathered<'a> {
    lane: &'a Lane,
    settlements: Vec<Settlement>,
    since: Instant,
}

impl<'a> Gathered<'a> {
    fn new(lane: &'a Lane) -> Self {
        Self { lane, settlements: Vec::new(), since: Instant::now() }
    }

    fn push(&mut self, settlements: Vec<Settlement>) {
        if self.settlements.is_empty() {
            self.since = Instant::now();
        }
        self.settlements.extend(settlements);
        if self.since.elapsed() >= GATHER {
            self.send();
        }
    }

    fn send(&mut self) {
        if !self.settlements.is_empty() {
            // The settler outlives the runners; without it the leases run out.
            let _ = self.lane.settlements.send(std::mem::take(&mut self.settlements));
        }
    }
}

impl Drop for Gathered<'_> {
    fn drop(&mut self) {
        self.send();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    #[test]
    fn a_panic_ends_its_message_and_no_more() {
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(poll_caught(pin!(async { 1 }), &mut context), Poll::Ready(Some(1)));
        let panics = pin!(async {
            if true {
                panic!("on purpose");
            }
        });
        assert_eq!(poll_caught(panics, &mut context), Poll::Ready(None));
    }
}
