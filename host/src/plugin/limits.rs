//! What one call may use: memory over all that it has, and CPU time.

use super::engine::TICK;
use rustix::time::{ClockId, clock_gettime};
use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use wasmtime::{ResourceLimiter, UpdateDeadline};

/// Bytes over all memories of a store. A guest that is refused more sees
/// `memory.grow` fail, as the standard has it, and mostly traps then.
#[derive(Debug)]
pub(super) struct MemoryLimit {
    bytes_max: u64,
    bytes: u64,
    pub(super) was_reached: bool,
}

impl MemoryLimit {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, bytes: 0, was_reached: false }
    }
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let bytes = self.bytes + desired.saturating_sub(current) as u64;
        if bytes > self.bytes_max {
            self.was_reached = true;
            return Ok(false);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.bytes = bytes;
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX && maximum.is_none_or(|maximum| desired <= maximum))
    }
}

const TABLE_ELEMENTS_MAX: usize = 100_000;

/// CPU time, spent in slices that end when the clock ticks.
#[derive(Debug)]
pub(super) struct CpuBudget {
    limit: Duration,
    used: Duration,
    /// The thread's own clock at the start of this slice. The first slice has
    /// none: nearly every call ends within it, and reading the clock is a
    /// system call. It counts as one tick.
    slice_start: Option<Duration>,
    has_yielded: bool,
}

/// The typed reason for ending a guest that has used up its budget.
#[derive(Debug, thiserror::Error)]
#[error("out of CPU time")]
pub(super) struct OutOfCpu;

impl CpuBudget {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, used: Duration::ZERO, slice_start: None, has_yielded: false }
    }

    fn begin_slice(&mut self) {
        if self.has_yielded {
            self.slice_start = Some(thread_time());
        }
    }

    fn end_slice(&mut self) {
        if let Some(start) = self.slice_start.take() {
            self.used += thread_time().saturating_sub(start);
        }
    }

    /// Called from inside a guest when the clock has ticked.
    pub(super) fn tick(&mut self) -> wasmtime::Result<UpdateDeadline> {
        if self.has_yielded {
            self.end_slice();
        } else {
            self.used += TICK;
            self.has_yielded = true;
        }
        if self.used >= self.limit {
            return Err(OutOfCpu.into());
        }
        // Tokio's own yield goes to the back of the queue; Wasmtime's would come
        // back at once and keep timers from running.
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
    }
}

/// Marks the slices of a call, and turns a panic of ours into a value.
pub(super) struct Metered<'a, F> {
    call: F,
    budget: &'a Mutex<CpuBudget>,
}

impl<'a, F: Future + Unpin> Metered<'a, F> {
    pub(super) fn new(call: F, budget: &'a Mutex<CpuBudget>) -> Self {
        Self { call, budget }
    }

    fn lock(&self) -> MutexGuard<'a, CpuBudget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Future + Unpin> Future for Metered<'_, F> {
    type Output = Result<F::Output, Box<dyn Any + Send>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.lock().begin_slice();
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut self.call).poll(context)));
        self.lock().end_slice();
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
