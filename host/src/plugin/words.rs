//! Words for people: what an error says, cut to what is read.

use std::any::Any;
use std::borrow::Cow;

/// As much of an error as is told.
const ERROR_BYTES_MAX: usize = 4096;

/// Wasmtime's own words, causes included, cut to what a person reads.
pub(super) fn shown(error: &wasmtime::Error) -> String {
    cut(format!("{error:#}"))
}

pub(super) fn with_output(error: &str, printed: &str) -> String {
    match printed.trim() {
        "" => error.to_owned(),
        printed => cut(format!("{error}\n{printed}")),
    }
}

pub(super) fn cut(text: String) -> String {
    cut_to(&text, ERROR_BYTES_MAX).into_owned()
}

/// At a character, with dots where something is missing.
pub(super) fn cut_to(text: &str, bytes_max: usize) -> Cow<'_, str> {
    if text.len() <= bytes_max {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}...", &text[..text.floor_char_boundary(bytes_max)]))
}

pub(super) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("?")
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
