//! The log as JSON, also for who reads it on a terminal. JSON lets characters
//! stand as they are that steer one, or turn round what is read, and texts in
//! the log are anybody's: ids of messages, reasons of handlers. They are
//! written as numbers, which mean the same to whoever parses the line.

use crate::text::sanitize_json;
use std::borrow::Cow;
use std::io::{self, Stdout, Write};

/// Stdout, which gets whole lines.
pub(super) struct JsonLog(Stdout);

impl JsonLog {
    pub(super) fn new() -> Self {
        Self(io::stdout())
    }
}

impl Write for JsonLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(bytes).map(sanitize_json) {
            Ok(Cow::Owned(line)) => self.0.write_all(line.as_bytes())?,
            Ok(Cow::Borrowed(_)) | Err(_) => self.0.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
