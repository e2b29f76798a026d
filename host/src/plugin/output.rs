//! The output of guests. It goes to the log, and the error of a trap includes it,
//! because stderr has the message of a panic. Also the limit of log lines.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Output of one call; the excess is dropped.
const OUTPUT_BYTES_MAX: usize = 16 << 10;

/// Stdout or stderr of a run. Both share a limit, but have separate buffers, so that
/// their lines are not mixed.
#[derive(Clone)]
pub(super) struct Output {
    captured: Arc<Mutex<CapturedOutput>>,
    is_stderr: bool,
}

/// The output so far, and whether more of it was dropped.
#[derive(Default)]
pub(super) struct CapturedOutput {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) was_truncated: bool,
}

impl Output {
    /// Returns stdout and stderr.
    pub(super) fn pair() -> (Self, Self) {
        let captured = Arc::<Mutex<CapturedOutput>>::default();
        (Self { captured: captured.clone(), is_stderr: false }, Self { captured, is_stderr: true })
    }

    fn lock(&self) -> MutexGuard<'_, CapturedOutput> {
        self.captured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, bytes: &[u8]) {
        let mut captured = self.lock();
        let available = OUTPUT_BYTES_MAX.saturating_sub(captured.stdout.len() + captured.stderr.len());
        let buffer = if self.is_stderr { &mut captured.stderr } else { &mut captured.stdout };
        buffer.extend_from_slice(&bytes[..bytes.len().min(available)]);
        captured.was_truncated |= bytes.len() > available;
    }

    /// Takes the output of both streams.
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

/// A token bucket for a plugin's log: bytes per second, with a burst of one second.
pub(super) struct LogBudget {
    bytes_per_second: u64,
    state: Mutex<LogState>,
}

struct LogState {
    bytes: f64,
    at: Instant,
    /// Lines dropped since the last warning, and when that was.
    dropped: u64,
    warned_at: Option<Instant>,
}

/// A line counts as at least this, because the log adds fields to it.
const LINE_BYTES_MIN: u64 = 128;

/// Minimum interval of warnings about dropped lines at the end of calls.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);

impl LogBudget {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        let bytes = bytes_per_second.max(LINE_BYTES_MIN) as f64;
        let state = LogState { bytes, at: Instant::now(), dropped: 0, warned_at: None };
        Self { bytes_per_second, state: Mutex::new(state) }
    }

    /// Whether a line of this length may be logged; if so, how many were dropped since
    /// the last warning.
    pub(super) fn admit(&self, length: usize) -> Option<u64> {
        self.admit_at(length, Instant::now())
    }

    /// Counts a line that was dropped for another reason.
    pub(super) fn drop_line(&self) {
        self.lock().dropped += 1;
    }

    /// The dropped lines to report at the end of a call; 0 within the interval since
    /// the last warning.
    pub(super) fn take_dropped_if_due(&self) -> u64 {
        self.take_dropped_if_due_at(Instant::now())
    }

    /// All dropped lines that have not been reported.
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
    fn lines_above_the_limit_are_dropped_and_counted() {
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
    fn an_empty_line_counts() {
        let budget = LogBudget::new(1000);
        let start = Instant::now();
        let written = (0..1000).filter(|_| budget.admit_at(0, start).is_some()).count();
        assert_eq!(written, 1000 / 128);
        // A limit below one line per second still admits a line from time to time.
        let budget = LogBudget::new(64);
        assert_eq!((budget.admit_at(1, start), budget.admit_at(1, start)), (Some(0), None));
        assert_eq!(budget.admit_at(1, start + Duration::from_secs(2)), Some(1));
    }

    #[test]
    fn dropped_lines_are_reported_without_a_further_line() {
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
    fn output_is_captured_up_to_its_limit() {
        let (stdout, stderr) = Output::pair();
        for _ in 0..100 {
            stdout.append(&[b'x'; 1000]);
            stderr.append(&[b'y'; 100]);
        }
        let captured = stdout.take();
        assert_eq!((captured.stdout.len() + captured.stderr.len(), captured.was_truncated), (OUTPUT_BYTES_MAX, true));
        assert!(captured.stdout.iter().all(|byte| *byte == b'x') && captured.stderr.iter().all(|byte| *byte == b'y'));
        let captured = stderr.take();
        assert!(captured.stdout.is_empty() && captured.stderr.is_empty() && !captured.was_truncated);
        stdout.append(&[b'x'; OUTPUT_BYTES_MAX]);
        assert!(!stdout.take().was_truncated);
    }
}
