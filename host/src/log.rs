//! The log: formatted by whoever logs, written by a thread of its own.
//!
//! What is written about the work must never stop the work. A line is put into a
//! bounded queue and never waited for: when the reader of the log stalls, has gone
//! away, or has no disk left, lines are dropped and counted.

mod shorten;
mod queue;
mod json;
mod writer;

use crate::events;
use crate::metrics::Metrics;
use crate::settings::{LogFormat, LogSettings};
use crate::supervisor::Supervisor;
use crate::text::panic_message;
use json::{FlatJson, JsonLines};
use queue::{LineQueue, Lines};
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::time::Duration;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::JsonFields;
use writer::LogWriter;

const QUIET: &str = "wasmtime=warn,wasmtime_wasi_http=error,cranelift_codegen=warn,regalloc2=warn";

/// How long the end of the process waits for lines that are not written yet.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("log.level (LOG_LEVEL): \"{filter}\": {error}")]
    Filter { filter: String, error: String },
    #[error("the log can't be started: {0}")]
    Failed(String),
}

/// The log of this process. What is in its queue is written before the last handle
/// is dropped, if that takes no longer than a second.
pub struct Log {
    queue: Arc<LineQueue>,
}

impl Log {
    /// Starts the thread that writes to stdout, and logs panics from now on.
    pub fn start(settings: &LogSettings, metrics: &Arc<Metrics>, supervisor: &Supervisor) -> Result<Self, LogError> {
        // Debug logs of the compiler, and warnings that guests could trigger any number
        // of times, are logged only where the filter names their targets.
        let filter = EnvFilter::try_new(format!("{QUIET},{}", settings.filter))
            .map_err(|error| LogError::Filter { filter: settings.filter.clone(), error: error.to_string() })?;
        let failed = |error: &dyn std::fmt::Display| LogError::Failed(error.to_string());
        let queue = Arc::new(LineQueue::new(metrics.clone()));
        let writer = LogWriter::to_stdout(queue.clone(), settings.format).map_err(|error| failed(&error))?;
        writer.start(supervisor).map_err(|error| failed(&error))?;
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(std::io::stdout().is_terminal())
            // They would go to stderr, which may be the same broken pipe.
            .log_internal_errors(false);
        let started = match settings.format {
            LogFormat::Json => {
                let lines = JsonLines::new(queue.clone());
                let log = log.fmt_fields(JsonFields::new()).event_format(FlatJson::new());
                log.with_writer(move || lines.clone()).try_init()
            }
            LogFormat::Pretty => {
                let lines = Lines::new(queue.clone());
                log.with_writer(move || lines.clone()).try_init()
            }
        };
        started.map_err(|error| failed(&error))?;
        std::panic::set_hook(Box::new(log_panic));
        Ok(Self { queue })
    }

    /// Prints between the lines of the log, and likewise never waits.
    pub fn print(&self, text: &str) {
        self.queue.push(format!("{text}\n").as_bytes());
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue.close_and_flush(FLUSH_TIMEOUT);
    }
}

/// The default hook prints to stderr, which may be a broken pipe or one that nobody
/// reads.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let (thread, location) = (thread.name().unwrap_or("?"), panic.location().map(ToString::to_string));
    tracing::error!(thread, location, error = panic_message(panic.payload()), "{}", events::PANICKED);
}
