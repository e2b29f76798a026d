//! Watches the parts of the worker that must not end before the worker does. A worker
//! with a part missing would go on to hold messages that nobody handles or settles.

use crate::events;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tokio_util::sync::CancellationToken;

/// Clones share what they know. When a part fails, leases are no longer renewed from
/// that moment on, and then the process ends.
#[derive(Clone, Default)]
pub struct Supervisor(Arc<State>);

#[derive(Default)]
struct State {
    failed: CancellationToken,
    /// The first part that failed.
    part: OnceLock<&'static str>,
    /// Whether the worker ends without waiting for its parts.
    is_over: AtomicBool,
}

impl Supervisor {
    /// Runs a part until its end, which comes too early before the stop.
    pub async fn run<T>(&self, name: &'static str, stop: &CancellationToken, work: impl Future<Output = T>) -> T {
        let _part = self.part(name, stop);
        work.await
    }

    /// Runs a part that may end at any time, but must not panic.
    pub async fn run_to_end<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        let _part = Part { supervisor: self.clone(), name, stop: None };
        work.await
    }

    /// To be dropped when the part ends.
    pub fn part(&self, name: &'static str, stop: &CancellationToken) -> Part {
        Part { supervisor: self.clone(), name, stop: Some(stop.clone()) }
    }

    /// From now on parts are given up where they are, which is no failure of theirs.
    pub fn give_up(&self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }

    pub fn has_failed(&self) -> bool {
        self.0.failed.is_cancelled()
    }

    /// Waits until a part has failed, and returns its name.
    pub async fn failed(&self) -> &'static str {
        self.0.failed.cancelled().await;
        self.0.part.get().copied().unwrap_or("?")
    }

    fn fail(&self, part: &'static str) {
        if self.0.part.set(part).is_ok() {
            // This stops the renewal of leases, so it comes before everything else.
            self.0.failed.cancel();
            tracing::error!(part, "{}", events::PART_FAILED);
        }
    }
}

/// A part that runs.
pub struct Part {
    supervisor: Supervisor,
    name: &'static str,
    /// Before this the part must not end. `None`: it may end at any time.
    stop: Option<CancellationToken>,
}

impl Drop for Part {
    fn drop(&mut self) {
        let is_over = self.supervisor.0.is_over.load(Ordering::Relaxed);
        let is_early = !is_over && self.stop.as_ref().is_some_and(|stop| !stop.is_cancelled());
        if is_early || std::thread::panicking() {
            self.supervisor.fail(self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::JoinSet;

    /// Whether the supervisor has seen a failure when the work has ended.
    async fn fails<F>(work: impl FnOnce(Supervisor, CancellationToken) -> F) -> bool
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (supervisor, mut tasks) = (Supervisor::default(), JoinSet::new());
        tasks.spawn(work(supervisor.clone(), CancellationToken::new()));
        let _ = tasks.join_next().await;
        supervisor.has_failed()
    }

    fn panics() {
        assert!(std::hint::black_box(false), "on purpose");
    }

    #[tokio::test]
    async fn a_part_that_panics_or_ends_before_its_stop_fails() {
        assert!(fails(|all, stop| async move { all.run("a", &stop, async {}).await }).await);
        assert!(fails(|all, stop| async move { all.run("a", &stop, async { panics() }).await }).await);
        assert!(fails(|all, _| async move { all.run_to_end("a", async { panics() }).await }).await);
        // During the stop a panic is one too.
        let stopping = |all: Supervisor, stop: CancellationToken| async move {
            stop.cancel();
            all.run("a", &stop, async { panics() }).await;
        };
        assert!(fails(stopping).await);
    }

    #[tokio::test]
    async fn a_part_that_ends_when_it_is_asked_to_does_not_fail() {
        assert!(!fails(|all, _| async move { all.run_to_end("a", async {}).await }).await);
        assert!(!fails(|all, stop| async move { all.run("a", &stop, async { stop.cancel() }).await }).await);
    }

    #[tokio::test]
    async fn a_part_that_is_given_up_does_not_fail() {
        let supervisor = Supervisor::default();
        let part = supervisor.part("a", &CancellationToken::new());
        supervisor.give_up();
        drop(part);
        assert!(!supervisor.has_failed());
    }

    #[tokio::test]
    async fn the_first_failure_is_named() {
        let supervisor = Supervisor::default();
        drop(supervisor.part("first", &CancellationToken::new()));
        drop(supervisor.part("second", &CancellationToken::new()));
        assert_eq!(supervisor.failed().await, "first");
    }
}
