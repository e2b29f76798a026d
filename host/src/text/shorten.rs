//! Texts of errors and digests, truncated to what a person reads.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;

const ERROR_BYTES_MAX: usize = 4096;

/// An error with its causes.
pub fn error_text(error: &impl fmt::Display) -> String {
    truncate_error(format!("{error:#}"))
}

/// An error, followed by what the failed program printed.
pub fn with_output(error: &str, output: &str) -> String {
    match output.trim() {
        "" => error.to_owned(),
        output => truncate_error(format!("{error}\n{output}")),
    }
}

pub fn truncate_error(text: String) -> String {
    truncate(&text, ERROR_BYTES_MAX).into_owned()
}

/// Truncates at a character boundary; "..." marks missing text.
pub fn truncate(text: &str, bytes_max: usize) -> Cow<'_, str> {
    if text.len() <= bytes_max {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}...", &text[..text.floor_char_boundary(bytes_max)]))
}

pub fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("?")
}

/// The bytes as text, with what is not UTF-8 written as `\xff`.
pub fn escape_bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Enough of a digest to distinguish versions.
pub fn short_digest(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_truncated_at_a_character_boundary() {
        assert_eq!(truncate("abc", 3), "abc");
        assert_eq!(truncate("abü", 3), "ab...");
        assert_eq!(with_output("failed", " \n"), "failed");
        assert_eq!(with_output("failed", "why\n"), "failed\nwhy");
        assert_eq!(escape_bytes(b"a\xff\xfeb"), "a\\xff\\xfeb");
        assert_eq!(short_digest("0123456789abcdef"), "0123456789ab");
    }
}
