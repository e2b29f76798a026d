//! The JSON log. JSON does not escape every character that could steer a terminal
//! or change the direction of text, and log lines contain texts of publishers and
//! handlers. These characters are escaped, which parsers read as the same text.

use crate::plugin::plain_json;
use std::borrow::Cow;
use std::io::{self, Stdout, Write};

/// A writer to stdout that receives complete lines.
pub(super) struct JsonLog(Stdout);

impl JsonLog {
    pub(super) fn new() -> Self {
        Self(io::stdout())
    }
}

impl Write for JsonLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(bytes).map(plain_json) {
            Ok(Cow::Owned(line)) => self.0.write_all(line.as_bytes())?,
            Ok(Cow::Borrowed(_)) | Err(_) => self.0.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
