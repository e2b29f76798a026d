//! Words and JSON for a terminal: neither steers it, whosever names are in them.

use super::Failure;
use crate::plugin::{plain, plain_json};
use serde::Serialize;

pub(super) fn print_json(value: &(impl Serialize + ?Sized)) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(value).map_err(|error| Failure::Failed(error.to_string()))?;
    println!("{}", plain_json(&json));
    Ok(())
}

/// Line by line, as errors are told.
pub(super) fn plain_lines(text: &str) -> String {
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}
