//! Rules for text that people read: which characters may appear in a log line
//! or on a terminal, and how long the text may be;
//! and the units of numbers in it.

mod sanitize;
mod shorten;
mod units;

pub use sanitize::{is_control_or_bidi, sanitize, sanitize_json, sanitize_lines};
pub use shorten::{error_text, escape_bytes, hex, panic_message, short_digest, truncate, truncate_error, with_output};
pub use units::{size, span};
