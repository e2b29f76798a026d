//! Words for people: what an error says, cut to what is read.

use std::any::Any;

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

pub(super) fn cut(mut text: String) -> String {
    if text.len() > ERROR_BYTES_MAX {
        text.truncate((0..=ERROR_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
        text.push_str("...");
    }
    text
}

pub(super) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("?")
}
