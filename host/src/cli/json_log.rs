//! The log as JSON, also for who reads it on a terminal. JSON lets characters
//! stand as they are that steer one, or turn round what is read, and texts in
//! the log are anybody's: ids of messages, reasons of handlers. They are
//! written as numbers, which mean the same to whoever parses the line.

use crate::plugin::is_dangerous;
use std::borrow::Cow;
use std::fmt::Write as _;
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
        match std::str::from_utf8(bytes).map(escaped) {
            Ok(Cow::Owned(line)) => self.0.write_all(line.as_bytes())?,
            Ok(Cow::Borrowed(_)) | Err(_) => self.0.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The end of the line is the only one that stands in it as it is.
fn escaped(line: &str) -> Cow<'_, str> {
    let is_odd = |char: char| char != '\n' && is_dangerous(char);
    if !line.contains(is_odd) {
        return Cow::Borrowed(line);
    }
    let mut escaped = String::with_capacity(line.len() + 16);
    for char in line.chars() {
        if is_odd(char) {
            // All of them have four digits at most. Writing to a string can't fail.
            let _ = write!(escaped, "\\u{:04x}", u32::from(char));
        } else {
            escaped.push(char);
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_means_the_same_and_steers_nothing() {
        let odd = "a\u{1b}[2J\u{9b}2J\u{7f}\u{61c}\u{202e}\u{2069}\r\nb\tc\u{1f600}\u{e9}";
        let line = format!("{}\n", serde_json::json!({ "id": odd }));
        let written = escaped(&line);
        assert!(!written.trim_end_matches('\n').contains(is_dangerous), "{written}");
        assert!(written.ends_with("}\n") && written.contains("\\u009b2J"), "{written}");
        let read: serde_json::Value = serde_json::from_str(&written).unwrap();
        assert_eq!(read["id"], odd);
        assert!(matches!(escaped("{\"id\":\"\u{e9}\"}\n"), Cow::Borrowed(_)));
    }
}
