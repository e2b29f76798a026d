//! What a guest prints. It ends up in the log, and the last of it in the
//! error of a trap: a panic's message is on stderr.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// As much of a call's output as is kept; what comes after is dropped.
const KEPT_BYTES_MAX: usize = 16 << 10;

/// Shared by stdout and stderr of one call.
#[derive(Clone, Default)]
pub(super) struct Output(Arc<Mutex<Vec<u8>>>);

impl Output {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, bytes: &[u8]) {
        let mut kept = self.lock();
        let room = KEPT_BYTES_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    pub(super) fn take(&self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut *self.lock())).into_owned()
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
        Ok(KEPT_BYTES_MAX)
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
    dropped: u64,
}

impl LogBudget {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        let state = LogState { bytes: bytes_per_second as f64, at: Instant::now(), dropped: 0 };
        Self { bytes_per_second, state: Mutex::new(state) }
    }

    /// Whether a line of this length may be written; if so, how many were
    /// dropped since the last one.
    pub(super) fn admit(&self, length: usize) -> Option<u64> {
        self.admit_at(length, Instant::now())
    }

    fn admit_at(&self, length: usize, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let per_second = self.bytes_per_second as f64;
        let earned = now.saturating_duration_since(state.at).as_secs_f64() * per_second;
        state.bytes = (state.bytes + earned).min(per_second);
        state.at = now;
        if state.bytes < length as f64 {
            state.dropped += 1;
            return None;
        }
        state.bytes -= length as f64;
        Some(std::mem::take(&mut state.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_of_lines_is_cut_and_counted() {
        let budget = LogBudget::new(100);
        let start = Instant::now();
        assert_eq!(budget.admit_at(60, start), Some(0));
        assert_eq!(budget.admit_at(41, start), None);
        assert_eq!(budget.admit_at(40, start), Some(1));
        assert_eq!(budget.admit_at(1, start), None);
        assert_eq!(budget.admit_at(50, start + Duration::from_millis(499)), None);
        assert_eq!(budget.admit_at(50, start + Duration::from_millis(500)), Some(2));
        assert_eq!(budget.admit_at(101, start + Duration::from_secs(60)), None);
    }

    #[test]
    fn output_is_kept_up_to_its_bound() {
        let output = Output::default();
        for _ in 0..100 {
            output.append(&[b'x'; 1000]);
        }
        assert_eq!(output.take().len(), KEPT_BYTES_MAX);
        assert_eq!(output.take(), "");
    }
}
