//! What a guest prints. It ends up in the log, and the last of it in the
//! error of a trap: a panic's message is on stderr.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// As much of a call's output as is kept; what comes after is dropped.
const OUTPUT_BYTES_MAX: usize = 16 << 10;

/// One of a run's two streams. Both are kept together, and each by itself:
/// lines of one must not end up in the midst of lines of the other.
#[derive(Clone)]
pub(super) struct Output {
    printed: Arc<Mutex<CapturedOutput>>,
    is_errors: bool,
}

/// What was printed to stdout and to stderr, and whether there was more.
#[derive(Default)]
pub(super) struct CapturedOutput {
    pub(super) text: Vec<u8>,
    pub(super) errors: Vec<u8>,
    pub(super) was_truncated: bool,
}

impl Output {
    /// Stdout and stderr.
    pub(super) fn pair() -> (Self, Self) {
        let printed = Arc::<Mutex<CapturedOutput>>::default();
        (Self { printed: printed.clone(), is_errors: false }, Self { printed, is_errors: true })
    }

    fn lock(&self) -> MutexGuard<'_, CapturedOutput> {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, bytes: &[u8]) {
        let mut printed = self.lock();
        let room = OUTPUT_BYTES_MAX.saturating_sub(printed.text.len() + printed.errors.len());
        let kept = if self.is_errors { &mut printed.errors } else { &mut printed.text };
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        printed.was_truncated |= bytes.len() > room;
    }

    /// What both have printed so far.
    pub(super) fn take(&self) -> CapturedOutput {
        std::mem::take(&mut *self.lock())
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

impl OutputStream for Output {
    fn write(&mut self, bytes: bytes::Bytes) -> StreamResult<()> {
        self.append(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(OUTPUT_BYTES_MAX)
    }
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.append(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A plugin's allowance of log bytes a second; it can save up one second's.
pub(super) struct LogBudget {
    bytes_per_second: u64,
    state: Mutex<LogState>,
}

struct LogState {
    bytes: f64,
    at: Instant,
    /// Since it was last told, and when that was.
    dropped: u64,
    warned_at: Option<Instant>,
}

/// What a line counts at the least: what stands around it is written too.
const LINE_BYTES_MIN: u64 = 128;

/// How often it is told at the most that lines were dropped, where no line
/// follows that could tell it.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);

impl LogBudget {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        let bytes = bytes_per_second.max(LINE_BYTES_MIN) as f64;
        let state = LogState { bytes, at: Instant::now(), dropped: 0, warned_at: None };
        Self { bytes_per_second, state: Mutex::new(state) }
    }

    /// Whether a line of this length may be written; if so, how many were
    /// dropped since the last one.
    pub(super) fn admit(&self, length: usize) -> Option<u64> {
        self.admit_at(length, Instant::now())
    }

    /// A line was dropped for another reason.
    pub(super) fn drop_line(&self) {
        self.lock().dropped += 1;
    }

    /// How many dropped lines are to be told at the end of a call: none where
    /// that was done just now.
    pub(super) fn take_dropped_if_due(&self) -> u64 {
        self.take_dropped_if_due_at(Instant::now())
    }

    /// All that have not been told.
    pub(super) fn take_dropped(&self) -> u64 {
        std::mem::take(&mut self.lock().dropped)
    }

    fn take_dropped_if_due_at(&self, now: Instant) -> u64 {
        let mut state = self.lock();
        if state.dropped == 0 || state.warned_at.is_some_and(|at| now.saturating_duration_since(at) < WARNING_INTERVAL)
        {
            return 0;
        }
        state.warned_at = Some(now);
        std::mem::take(&mut state.dropped)
    }

    fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit_at(&self, length: usize, now: Instant) -> Option<u64> {
        let mut state = self.lock();
        let length = (length as u64).max(LINE_BYTES_MIN) as f64;
        let per_second = self.bytes_per_second as f64;
        let earned = now.saturating_duration_since(state.at).as_secs_f64() * per_second;
        state.bytes = (state.bytes + earned).min(per_second.max(LINE_BYTES_MIN as f64));
        state.at = now;
        if state.bytes < length {
            state.dropped += 1;
            return None;
        }
        state.bytes -= length;
        if state.dropped > 0 {
            state.warned_at = Some(now);
        }
        Some(std::mem::take(&mut state.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_cut_and_counted() {
        let budget = LogBudget::new(1000);
        let start = Instant::now();
        assert_eq!(budget.admit_at(600, start), Some(0));
        assert_eq!(budget.admit_at(401, start), None);
        assert_eq!(budget.admit_at(400, start), Some(1));
        assert_eq!(budget.admit_at(1, start), None);
        assert_eq!(budget.admit_at(500, start + Duration::from_millis(499)), None);
        assert_eq!(budget.admit_at(500, start + Duration::from_millis(500)), Some(2));
        assert_eq!(budget.admit_at(1001, start + Duration::from_secs(60)), None);
    }

    #[test]
    fn a_line_of_nothing_counts() {
        let budget = LogBudget::new(1000);
        let start = Instant::now();
        let written = (0..1000).filter(|_| budget.admit_at(0, start).is_some()).count();
        assert_eq!(written, 1000 / 128);
        // Who may write less than a line a second writes one now and then.
        let budget = LogBudget::new(64);
        assert_eq!((budget.admit_at(1, start), budget.admit_at(1, start)), (Some(0), None));
        assert_eq!(budget.admit_at(1, start + Duration::from_secs(2)), Some(1));
    }

    #[test]
    fn what_was_dropped_is_told_though_no_line_follows() {
        let budget = LogBudget::new(100);
        let start = Instant::now();
        assert_eq!(budget.take_dropped_if_due_at(start), 0);
        assert_eq!(budget.admit_at(129, start), None);
        assert_eq!(budget.take_dropped_if_due_at(start), 1);
        assert_eq!(budget.admit_at(129, start), None);
        assert_eq!(budget.take_dropped_if_due_at(start + Duration::from_millis(999)), 0);
        assert_eq!(budget.take_dropped_if_due_at(start + Duration::from_millis(1000)), 1);
        budget.drop_line();
        assert_eq!((budget.take_dropped(), budget.take_dropped()), (1, 0));
    }

    #[test]
    fn output_is_kept_up_to_its_bound() {
        let (output, errors) = Output::pair();
        for _ in 0..100 {
            output.append(&[b'x'; 1000]);
            errors.append(&[b'y'; 100]);
        }
        let printed = output.take();
        assert_eq!((printed.text.len() + printed.errors.len(), printed.was_truncated), (OUTPUT_BYTES_MAX, true));
        assert!(printed.text.iter().all(|byte| *byte == b'x') && printed.errors.iter().all(|byte| *byte == b'y'));
        let printed = errors.take();
        assert!(printed.text.is_empty() && printed.errors.is_empty() && !printed.was_truncated);
        output.append(&[b'x'; OUTPUT_BYTES_MAX]);
        assert!(!output.take().was_truncated);
    }
}
