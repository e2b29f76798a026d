//! The thread that writes the log. It may wait for its reader for ever, and errors
//! cost only the lines that could not be written.
//!
//! `tracing-appender` has such a thread too, but bounds its queue by lines and not by
//! bytes, does not count what a failed write loses, and prints to stdout when its end
//! times out, which is the very pipe that nobody reads.

use super::queue::{LineQueue, Next};
use crate::events;
use crate::settings::LogFormat;
use crate::supervisor::{Part, Supervisor};
use jiff::Timestamp;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Dropped lines are reported at most this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The pause before a descriptor that another process made non-blocking is tried again.
const BUSY: Duration = Duration::from_millis(10);

pub(super) struct LogWriter<W> {
    queue: Arc<LineQueue>,
    format: LogFormat,
    out: W,
    /// An error ended the last line in the middle.
    is_in_line: bool,
    reported: Option<Instant>,
}

impl LogWriter<File> {
    /// Writes past the lock and the buffer of `std::io::stdout`, which others would
    /// wait for while a write waits.
    pub(super) fn to_stdout(queue: Arc<LineQueue>, format: LogFormat) -> io::Result<Self> {
        let out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok(Self { queue, format, out, is_in_line: false, reported: None })
    }
}

impl<W: Write + Send + 'static> LogWriter<W> {
    /// Nobody joins the thread, because a write may never return: the end of the
    /// process waits for the queue.
    pub(super) fn start(self, supervisor: &Supervisor) -> io::Result<()> {
        let closed = CancellationToken::new();
        let end = End { queue: self.queue.clone(), _part: supervisor.part("log writer", &closed), closed };
        thread::Builder::new().name("log-writer".to_owned()).spawn(move || self.run(end)).map(drop)
    }

    fn run(mut self, end: End) {
        loop {
            match self.queue.next(REPORT_INTERVAL) {
                Next::Write(lines) => {
                    self.report_dropped(false);
                    lines.iter().for_each(|line| self.write_or_drop(line));
                }
                Next::Idle => self.report_dropped(false),
                Next::Closed => {
                    self.report_dropped(true);
                    end.closed.cancel();
                    return;
                }
            }
        }
    }

    fn write_or_drop(&mut self, line: &[u8]) {
        if self.write(line).is_err() {
            self.queue.drop_line();
        }
    }

    /// Reports what was dropped, once there is something that can be written again.
    fn report_dropped(&mut self, is_last: bool) {
        let is_due = is_last || self.reported.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL);
        let dropped = if is_due { self.queue.take_dropped() } else { 0 };
        if dropped == 0 {
            return;
        }
        self.reported = Some(Instant::now());
        if self.write(format_dropped(self.format, dropped).as_bytes()).is_err() {
            self.queue.return_dropped(dropped);
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_in_line {
            self.write_all(b"\n")?;
            self.is_in_line = false;
        }
        self.write_all(line)
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.out.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    bytes = &bytes[count..];
                    self.is_in_line = !bytes.is_empty();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(BUSY),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn format_dropped(format: LogFormat, dropped: u64) -> String {
    let (time, message, target) = (Timestamp::now(), events::LOG_NOT_WRITTEN, module_path!());
    match format {
        LogFormat::Json => format!(
            "{{\"timestamp\":\"{time}\",\"level\":\"WARN\",\"message\":\"{message}\",\"dropped\":{dropped},\"target\":\"{target}\"}}\n"
        ),
        LogFormat::Pretty => format!("{time}  WARN {target}: {message} dropped={dropped}\n"),
    }
}

/// Says how the thread ended, also when it panics.
struct End {
    queue: Arc<LineQueue>,
    closed: CancellationToken,
    _part: Part,
}

impl Drop for End {
    fn drop(&mut self) {
        self.queue.writer_ended();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use std::sync::Mutex;

    /// Fails, panics or writes a part of a line, as its script says.
    struct Scripted {
        script: Vec<&'static str>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let step = if self.script.is_empty() { "all" } else { self.script.remove(0) };
            let count = match step {
                "full" => return Err(ErrorKind::StorageFull.into()),
                "busy" => return Err(ErrorKind::WouldBlock.into()),
                "panic" => panic!("on purpose"),
                "part" => 2,
                _ => bytes.len(),
            };
            self.written.lock().unwrap().extend(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(script: &[&'static str], lines: &[&str]) -> (String, u64, bool) {
        let metrics = Arc::new(Metrics::default());
        let (queue, written) = (Arc::new(LineQueue::new(metrics.clone())), Arc::<Mutex<Vec<u8>>>::default());
        let out = Scripted { script: script.to_vec(), written: written.clone() };
        let format = LogFormat::Pretty;
        let writer = LogWriter { queue: queue.clone(), format, out, is_in_line: false, reported: None };
        lines.iter().for_each(|line| queue.push(line.as_bytes()));
        let supervisor = Supervisor::default();
        writer.start(&supervisor).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        queue.close_and_flush(Duration::from_secs(60));
        // The last report is written after the queue is empty.
        while Arc::strong_count(&queue) > 1 {
            assert!(Instant::now() < until, "the thread ends");
            thread::yield_now();
        }
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        (text, metrics.log_lines_dropped.get(), supervisor.has_failed())
    }

    #[test]
    fn a_failed_write_costs_its_line_which_is_counted_and_reported() {
        let (text, dropped, has_failed) = written(&["part", "full", "full", "busy"], &["one\n", "two\n", "three\n"]);
        assert!(text.starts_with("on\nthree\n"), "{text}");
        assert!(text.ends_with(" dropped=2\n"), "{text}");
        assert_eq!((dropped, has_failed), (2, false));
    }

    #[test]
    fn a_panic_of_the_thread_is_noticed() {
        let (_, _, has_failed) = written(&["panic"], &["one\n"]);
        assert!(has_failed);
    }

    #[test]
    fn the_report_is_a_line_like_others() {
        let line: serde_json::Value = serde_json::from_str(&format_dropped(LogFormat::Json, 7)).unwrap();
        assert_eq!((&line["dropped"], &line["message"]), (&7.into(), &events::LOG_NOT_WRITTEN.into()));
    }
}
