//! The queue of lines that are not written yet. Whoever logs never waits for it:
//! beyond its limit lines are dropped and counted.

use crate::metrics::Metrics;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that wait: some seconds of a busy log.
const BYTES_MAX: usize = 8 << 20;

/// What a line costs besides its bytes.
const LINE_OVERHEAD: usize = 64;

pub(super) struct LineQueue {
    state: Mutex<State>,
    /// For the writer: a line was added, or the queue was closed.
    added: Condvar,
    /// For the end of the process: everything is written.
    written: Condvar,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// Lines dropped and not reported yet.
    dropped: u64,
    is_writing: bool,
    is_closed: bool,
}

/// What the writer has to do next.
pub(super) enum Next {
    Write(VecDeque<Box<[u8]>>),
    /// Nothing came in time; dropped lines may have to be reported.
    Idle,
    Closed,
}

impl LineQueue {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { state: Mutex::default(), added: Condvar::new(), written: Condvar::new(), metrics }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, line: &[u8]) {
        let line: Box<[u8]> = line.into();
        let mut state = self.lock();
        let bytes = state.bytes + line.len() + LINE_OVERHEAD;
        if bytes > BYTES_MAX {
            state.dropped += 1;
            drop(state);
            self.metrics.log_lines_dropped.inc();
            return;
        }
        state.bytes = bytes;
        state.lines.push_back(line);
        drop(state);
        self.added.notify_one();
    }

    /// Counts a line that could not be written.
    pub(super) fn drop_line(&self) {
        self.lock().dropped += 1;
        self.metrics.log_lines_dropped.inc();
    }

    /// How many lines were dropped since this was asked last.
    pub(super) fn take_dropped(&self) -> u64 {
        std::mem::take(&mut self.lock().dropped)
    }

    /// The lines could not be reported as dropped.
    pub(super) fn return_dropped(&self, dropped: u64) {
        self.lock().dropped += dropped;
    }

    /// Takes all lines, as soon as there are some. To be called when what was taken
    /// before is written.
    pub(super) fn next(&self, patience: Duration) -> Next {
        let mut state = self.lock();
        if state.lines.is_empty() {
            state.is_writing = false;
            self.written.notify_all();
        }
        if state.lines.is_empty() && !state.is_closed {
            // Without dropped lines there is nothing to do until a line comes.
            state = if state.dropped > 0 {
                self.added.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0
            } else {
                self.added.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
        }
        match (state.lines.is_empty(), state.is_closed) {
            (true, true) => Next::Closed,
            (true, false) => Next::Idle,
            (false, _) => {
                state.is_writing = true;
                state.bytes = 0;
                Next::Write(std::mem::take(&mut state.lines))
            }
        }
    }

    /// The writer has ended: nothing is written any more.
    pub(super) fn writer_ended(&self) {
        self.lock().is_writing = false;
        self.written.notify_all();
    }

    /// Waits until everything is written, but no longer than this.
    pub(super) fn close_and_flush(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut state = self.lock();
        state.is_closed = true;
        self.added.notify_one();
        while state.is_writing || !state.lines.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.written.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A writer of whole lines into the queue, which never fails.
#[derive(Clone)]
pub(super) struct Lines(Arc<LineQueue>);

impl Lines {
    pub(super) fn new(queue: Arc<LineQueue>) -> Self {
        Self(queue)
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(&super::shorten::text_line(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_drops_and_counts_and_never_waits() {
        let metrics = Arc::new(Metrics::default());
        let queue = LineQueue::new(metrics.clone());
        let line = vec![b'x'; 1 << 20];
        (0..10).for_each(|_| queue.push(&line));
        assert_eq!((queue.take_dropped(), queue.take_dropped()), (3, 0));
        assert_eq!(metrics.log_lines_dropped.get(), 3);
        let Next::Write(lines) = queue.next(Duration::ZERO) else { panic!("there are lines") };
        assert_eq!(lines.len(), 7);
        queue.push(b"more\n");
        assert!(matches!(queue.next(Duration::ZERO), Next::Write(lines) if lines.len() == 1));
        // A writer that is stuck with a line delays the end for a bounded time.
        queue.close_and_flush(Duration::from_millis(1));
        assert!(matches!(queue.next(Duration::ZERO), Next::Closed));
        queue.close_and_flush(Duration::from_secs(3600));
    }
}
