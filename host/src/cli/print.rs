//! Words and JSON for a terminal: neither steers it, whosever names are in them.

use super::Failure;
use crate::text::sanitize_json;
use serde::Serialize;

pub(super) fn print_json(value: &(impl Serialize + ?Sized)) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(value).map_err(|error| Failure::Failed(error.to_string()))?;
    println!("{}", sanitize_json(&json));
    Ok(())
}
