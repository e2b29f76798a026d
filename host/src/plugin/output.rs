//! The output of guests. It goes to the log, and the error of a trap includes it,
//! because stderr has the message of a panic. Also the limit of log lines.

use super::bindings::logging;
use super::component::PluginContext;
use super::imports::logging::LineLog;
use super::redact::Redactor;
use crate::run_span::RunSpan;
use std::borrow::Cow;
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
/// their lines are not mixed. A line is logged when it is complete.
#[derive(Clone)]
pub(super) struct Output {
    captured: Arc<Mutex<CapturedOutput>>,
    context: Arc<PluginContext>,
    is_stderr: bool,
}

/// The output so far, and whether more of it was dropped.
#[derive(Default)]
struct CapturedOutput {
    stdout: Captured,
    stderr: Captured,
    was_truncated: bool,
    /// Of the run; a load check has none.
    span: Option<RunSpan>,
}

#[derive(Default)]
struct Captured {
    bytes: Vec<u8>,
    /// How many of them are logged.
    logged: usize,
}

impl Captured {
    /// Takes the complete lines that are not logged, redacted. Lines that may be the
    /// beginning of a secret of several lines have to wait for the next one.
    fn take_lines(&mut self, redactor: &Redactor) -> Option<String> {
        let new = &self.bytes[self.logged..];
        let length = new.iter().rposition(|byte| *byte == b'\n')? + 1;
        let text = String::from_utf8_lossy(&new[..length]);
        let complete = match redactor.begins_value_at(&text) {
            None => length,
            // With replaced characters the positions are not those of the bytes.
            Some(_) if matches!(text, Cow::Owned(_)) => 0,
            Some(at) => text[..at].rfind('\n').map_or(0, |end| end + 1),
        };
        self.logged += complete;
        let kept = if complete == length { &text } else { &text[..complete] };
        (complete > 0).then(|| redactor.redact(kept).into_owned())
    }

    fn redacted(&self, from: usize, was_truncated: bool, redactor: &Redactor) -> String {
        let printed = String::from_utf8_lossy(&self.bytes[from..]);
        if was_truncated { redactor.redact_truncated(&printed) } else { redactor.redact(&printed).into_owned() }
    }
}

impl Output {
    /// Returns stdout and stderr.
    pub(super) fn pair(context: &Arc<PluginContext>, span: Option<RunSpan>) -> (Self, Self) {
        let captured = CapturedOutput { span, ..CapturedOutput::default() };
        let stdout = Self { captured: Arc::new(Mutex::new(captured)), context: context.clone(), is_stderr: false };
        (stdout.clone(), Self { is_stderr: true, ..stdout })
    }

    /// What is printed from now on belongs to this run.
    pub(super) fn begin_run(&self, span: Option<RunSpan>) {
        *self.lock() = CapturedOutput { span, ..CapturedOutput::default() };
    }

    fn lock(&self) -> MutexGuard<'_, CapturedOutput> {
        self.captured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, bytes: &[u8]) {
        let mut captured = self.lock();
        let captured = &mut *captured;
        let available = OUTPUT_BYTES_MAX.saturating_sub(captured.stdout.bytes.len() + captured.stderr.bytes.len());
        let stream = if self.is_stderr { &mut captured.stderr } else { &mut captured.stdout };
        let kept = &bytes[..bytes.len().min(available)];
        stream.bytes.extend_from_slice(kept);
        captured.was_truncated |= bytes.len() > available;
        // Without a new line end nothing is complete, and a guest that prints without
        // an end must not make the host search what it kept again and again.
        if kept.contains(&b'\n')
            && let Some(lines) = stream.take_lines(&self.context.redactor)
        {
            self.log(&lines, captured.span.as_ref());
        }
    }

    /// Empty lines make no record.
    fn log(&self, lines: &str, span: Option<&RunSpan>) {
        let line_log = LineLog { context: &self.context, span };
        for line in lines.lines().filter(|line| !line.trim().is_empty()) {
            line_log.log(logging::Level::Info, line, &[]);
        }
    }

    /// Ends the output of both streams: logs what is left, which may be a line without
    /// an end. Returns the stderr text, else the stdout text, because it may explain a
    /// failure.
    pub(super) fn end(&self) -> String {
        let mut captured = self.lock();
        let CapturedOutput { stdout, stderr, was_truncated, span } = std::mem::take(&mut *captured);
        captured.span = span.clone();
        let redactor = &self.context.redactor;
        for stream in [&stdout, &stderr] {
            self.log(&stream.redacted(stream.logged, was_truncated, redactor), span.as_ref());
        }
        if was_truncated {
            self.context.log.drop_line();
        }
        self.context.warn_of_dropped(self.context.log.take_dropped_if_due());
        let errors = stderr.redacted(0, was_truncated, redactor);
        if errors.trim().is_empty() { stdout.redacted(0, was_truncated, redactor) } else { errors }
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

/// Minimum interval of warnings about dropped lines: they must not take more than the
/// lines would have.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

impl LogBudget {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        let bytes = bytes_per_second.max(LINE_BYTES_MIN) as f64;
        let state = LogState { bytes, at: Instant::now(), dropped: 0, warned_at: None };
        Self { bytes_per_second, state: Mutex::new(state) }
    }

    /// Whether a line of this length may be logged; counts it if not.
    pub(super) fn admit(&self, length: usize) -> bool {
        self.admit_at(length, Instant::now())
    }

    /// Counts a line that was dropped for another reason.
    pub(super) fn drop_line(&self) {
        self.lock().dropped += 1;
    }

    /// The dropped lines to report; 0 within the interval since the last warning.
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

    fn admit_at(&self, length: usize, now: Instant) -> bool {
        let mut state = self.lock();
        let length = (length as u64).max(LINE_BYTES_MIN) as f64;
        let per_second = self.bytes_per_second as f64;
        let earned = now.saturating_duration_since(state.at).as_secs_f64() * per_second;
        state.bytes = (state.bytes + earned).min(per_second.max(LINE_BYTES_MIN as f64));
        state.at = now;
        if state.bytes < length {
            state.dropped += 1;
            return false;
        }
        state.bytes -= length;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::guest::Guest;
    use super::*;
    use crate::capability::Secret;

    #[test]
    fn lines_above_the_limit_are_dropped_and_counted() {
        let budget = LogBudget::new(1000);
        let start = Instant::now();
        assert!(budget.admit_at(600, start) && !budget.admit_at(401, start));
        assert!(budget.admit_at(400, start) && !budget.admit_at(1, start));
        assert!(!budget.admit_at(500, start + Duration::from_millis(499)));
        assert!(budget.admit_at(500, start + Duration::from_millis(500)));
        assert!(!budget.admit_at(1001, start + Duration::from_secs(60)));
        assert_eq!(budget.take_dropped(), 4);
    }

    #[test]
    fn an_empty_line_counts() {
        let budget = LogBudget::new(1000);
        let start = Instant::now();
        let written = (0..1000).filter(|_| budget.admit_at(0, start)).count();
        assert_eq!(written, 1000 / 128);
        // A limit below one line per second still admits a line from time to time.
        let budget = LogBudget::new(64);
        assert_eq!((budget.admit_at(1, start), budget.admit_at(1, start)), (true, false));
        assert!(budget.admit_at(1, start + Duration::from_secs(2)));
    }

    #[test]
    fn dropped_lines_are_reported_at_most_once_per_interval() {
        let budget = LogBudget::new(100);
        let start = Instant::now();
        assert_eq!(budget.take_dropped_if_due_at(start), 0);
        assert!(!budget.admit_at(129, start));
        assert_eq!(budget.take_dropped_if_due_at(start), 1);
        assert!(!budget.admit_at(129, start));
        assert_eq!(budget.take_dropped_if_due_at(start + Duration::from_millis(9_999)), 0);
        assert_eq!(budget.take_dropped_if_due_at(start + Duration::from_secs(10)), 1);
        budget.drop_line();
        assert_eq!((budget.take_dropped(), budget.take_dropped()), (1, 0));
    }

    #[test]
    fn output_is_captured_up_to_its_limit() {
        let (stdout, stderr) = Output::pair(&Guest::for_test("").context, None);
        for _ in 0..100 {
            stdout.append(&[b'x'; 1000]);
            stderr.append(&[b'y'; 100]);
        }
        let out = stdout.lock().stdout.bytes.len();
        let errors = stdout.lock().stderr.bytes.clone();
        assert_eq!(out + errors.len(), OUTPUT_BYTES_MAX);
        assert!(stdout.lock().was_truncated);
        assert!(errors.iter().all(|byte| *byte == b'y'));
        assert_eq!(stderr.end().len(), errors.len());
        assert_eq!(stdout.end(), "");
        stdout.append(&[b'x'; OUTPUT_BYTES_MAX]);
        assert!(!stdout.lock().was_truncated);
    }

    #[test]
    fn complete_lines_are_taken_but_those_that_may_begin_a_secret_wait() {
        let redactor = Redactor::default();
        redactor.add("KEY", &Secret::new("ab\ncd\nef".to_owned()));
        let mut out = Captured::default();
        let mut add = |text: &str| {
            out.bytes.extend(text.as_bytes());
            out.take_lines(&redactor)
        };
        assert_eq!(add("one"), None);
        assert_eq!(add(" line\ntwo\nthr").as_deref(), Some("one line\ntwo\n"));
        assert_eq!(add("ee\nx ab\n").as_deref(), Some("three\n"));
        assert_eq!(add("cd\n"), None);
        assert_eq!(add("ef\n").as_deref(), Some("x [secret:KEY]\n"));
        assert_eq!(add("ab\n"), None);
        assert_eq!(add("no\n").as_deref(), Some("ab\nno\n"));
    }
}
