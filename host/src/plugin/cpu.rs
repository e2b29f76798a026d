//! CPU time: the limit of a guest, and the scheduling of guests that need much.
//!
//! A guest runs in time slices that end at epoch ticks. A total of one slice is free.
//! After that, each further slice needs a CPU permit. There is one permit fewer than
//! threads, so that a call which needs less than a slice never waits for longer ones.
//! A permit grants a slice of CPU time, so waiting in host calls costs nothing.

use rustix::time::{ClockId, clock_gettime};
use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio_util::sync::PollSemaphore;
use wasmtime::UpdateDeadline;

/// The length of a time slice.
pub(super) const TICK: Duration = Duration::from_millis(5);

/// The CPU permits for this many threads. The semaphore is fair: guests alternate.
pub(super) fn permits(threads: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(threads.saturating_sub(1).max(1)))
}

#[derive(Debug)]
pub(super) struct CpuBudget {
    limit: Duration,
    used: Duration,
    /// The time that the permits so far have granted.
    granted: Duration,
    slice: Option<TimeSlice>,
    /// Whether the first slice is over.
    is_measured: bool,
}

/// The clock at the start of a slice.
#[derive(Debug)]
enum TimeSlice {
    /// Measured in wall-clock time: nearly every call ends within its first slice,
    /// and reading the CPU clock of a thread is a system call.
    First(Instant),
    Later(Duration),
}

/// Ends a guest that has reached its CPU limit.
#[derive(Debug, thiserror::Error)]
#[error("out of CPU time")]
pub(super) struct CpuLimitExceeded;

impl CpuBudget {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, used: Duration::ZERO, granted: TICK, slice: None, is_measured: false }
    }

    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    fn needs_permit(&self) -> bool {
        self.used >= self.granted
    }

    fn begin_slice(&mut self) {
        self.slice =
            Some(if self.is_measured { TimeSlice::Later(thread_time()) } else { TimeSlice::First(Instant::now()) });
    }

    fn end_slice(&mut self) {
        match self.slice.take() {
            Some(TimeSlice::First(start)) => self.end_first(start.elapsed()),
            Some(TimeSlice::Later(start)) => self.used += thread_time().saturating_sub(start),
            None => {}
        }
    }

    /// On a busy machine other threads ran in that time too. So the first slice never
    /// ends a guest, and counts at most half of the limit.
    fn end_first(&mut self, elapsed: Duration) {
        self.used += elapsed.min(TICK).min(self.limit / 2);
        self.is_measured = true;
    }

    /// Called from inside a guest at an epoch tick.
    pub(super) fn tick(&mut self) -> wasmtime::Result<UpdateDeadline> {
        self.end_slice();
        if self.used >= self.limit {
            return Err(CpuLimitExceeded.into());
        }
        // Tokio's yield moves the task to the back of the queue; Wasmtime's would
        // resume at once and starve timers.
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
    }
}

/// Measures the time slices of a call, waits for its permits, and catches panics of
/// the host.
pub(super) struct CpuMetered<'a, F> {
    call: F,
    budget: &'a Mutex<CpuBudget>,
    permits: &'a Arc<Semaphore>,
    /// Its position in the queue for permits, after it has waited once.
    queue: Option<PollSemaphore>,
}

impl<'a, F: Future + Unpin> CpuMetered<'a, F> {
    pub(super) fn new(call: F, budget: &'a Mutex<CpuBudget>, permits: &'a Arc<Semaphore>) -> Self {
        Self { call, budget, permits, queue: None }
    }

    fn lock(&self) -> MutexGuard<'a, CpuBudget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Future + Unpin> Future for CpuMetered<'_, F> {
    type Output = Result<F::Output, Box<dyn Any + Send>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut permit = None;
        if self.lock().needs_permit() {
            let permits = self.permits;
            let queue = self.queue.get_or_insert_with(|| PollSemaphore::new(permits.clone()));
            let Poll::Ready(acquired) = queue.poll_acquire(context) else { return Poll::Pending };
            self.lock().granted += TICK;
            permit = acquired;
        }
        self.lock().begin_slice();
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut self.call).poll(context)));
        self.lock().end_slice();
        // A guest that waits in a host call needs no permit.
        drop(permit);
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    /// A guest that spins for some slices, and counts concurrent ones.
    struct Spinner<'a> {
        budget: &'a Mutex<CpuBudget>,
        slices_left: usize,
        spinning: &'a AtomicUsize,
        max: &'a AtomicUsize,
    }

    impl Future for Spinner<'_> {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            let is_first = !self.budget.lock().unwrap().is_measured;
            if !is_first {
                let spinning = self.spinning.fetch_add(1, Ordering::SeqCst) + 1;
                self.max.fetch_max(spinning, Ordering::SeqCst);
            }
            let started = Instant::now();
            while started.elapsed() < Duration::from_millis(2) {}
            // Counts a full slice, however busy the machine is.
            let mut budget = self.budget.lock().unwrap();
            let _ = budget.tick();
            budget.used = budget.granted;
            if !is_first {
                self.spinning.fetch_sub(1, Ordering::SeqCst);
            }
            drop(budget);
            self.slices_left -= 1;
            if self.slices_left == 0 {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        }
    }

    /// The maximum of concurrently spinning guests on four threads.
    fn max_concurrent(threads: usize) -> usize {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
        let (permits, spinning, max) = (permits(threads), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let spinners: Vec<_> = (0..12)
            .map(|_| {
                let (permits, spinning, max) = (permits.clone(), spinning.clone(), max.clone());
                runtime.spawn(async move {
                    let budget = Mutex::new(CpuBudget::new(Duration::from_secs(3600)));
                    let spinner = Spinner { budget: &budget, slices_left: 8, spinning: &spinning, max: &max };
                    CpuMetered::new(spinner, &budget, &permits).await.unwrap();
                })
            })
            .collect();
        runtime.block_on(async {
            for spinner in spinners {
                spinner.await.unwrap();
            }
        });
        max.load(Ordering::SeqCst)
    }

    #[test]
    fn one_thread_is_reserved_for_calls_shorter_than_a_slice() {
        assert_eq!(max_concurrent(3), 2);
        assert_eq!(max_concurrent(2), 1);
        assert_eq!(max_concurrent(1), 1);
    }

    #[test]
    fn a_permit_grants_a_slice_of_cpu_time_however_divided() {
        let mut budget = CpuBudget::new(Duration::from_secs(1));
        assert!(!budget.needs_permit());
        budget.end_first(TICK);
        assert!(budget.needs_permit());
        budget.granted += TICK;
        for _ in 0..5 {
            assert!(!budget.needs_permit());
            budget.used += TICK / 5;
        }
        assert!(budget.needs_permit());
        // Time beyond the granted slice counts against the next permits.
        budget.used += TICK;
        budget.granted += TICK;
        assert!(budget.needs_permit());
    }

    #[test]
    fn an_early_tick_counts_the_time_that_ran() {
        let mut budget = CpuBudget::new(Duration::from_secs(1));
        budget.end_first(TICK / 5);
        assert_eq!(budget.used, TICK / 5);
        assert!(!budget.needs_permit());
        let mut budget = CpuBudget::new(Duration::from_secs(1));
        budget.end_first(10 * TICK);
        assert_eq!(budget.used, TICK);
    }

    #[test]
    fn the_first_tick_ends_no_guest() {
        for limit in [Duration::from_millis(1), TICK] {
            let mut budget = CpuBudget::new(limit);
            budget.slice = Some(TimeSlice::First(Instant::now().checked_sub(10 * TICK).unwrap()));
            assert!(budget.tick().is_ok());
            budget.used += limit / 2;
            assert!(budget.tick().is_err());
        }
    }

    #[test]
    fn a_guest_ends_at_its_limit_and_not_before() {
        let limit = Duration::from_secs(1);
        let mut budget = CpuBudget::new(limit);
        budget.used = limit - Duration::from_nanos(1);
        assert!(budget.tick().is_ok());
        budget.used = limit;
        assert!(budget.tick().is_err());
    }

    #[test]
    fn a_panic_of_the_host_is_caught() {
        let budget = Mutex::new(CpuBudget::new(Duration::from_secs(1)));
        let permits = permits(1);
        let mut panics =
            CpuMetered::new(std::future::poll_fn(|_| -> Poll<()> { panic!("on purpose") }), &budget, &permits);
        let polled = Pin::new(&mut panics).poll(&mut Context::from_waker(std::task::Waker::noop()));
        let Poll::Ready(Err(panic)) = polled else { panic!("the panic was not caught") };
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
    }

    #[test]
    fn waiting_uses_no_cpu_time() {
        let budget = Mutex::new(CpuBudget::new(Duration::from_secs(1)));
        let permits = permits(1);
        let mut waits = CpuMetered::new(std::future::pending::<()>(), &budget, &permits);
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut waits).poll(&mut context).is_pending());
        let mut budget = budget.lock().unwrap();
        let first = budget.used;
        assert!(budget.is_measured && first > Duration::ZERO);
        budget.begin_slice();
        assert!(budget.tick().is_ok());
        assert!(budget.used - first < TICK);
    }
}
