//! Text and JSON for terminals. Names and texts from messages and plugins are
//! sanitised, because control characters in them could steer the terminal.

use super::Failure;
use crate::text::sanitize_json;
use serde::Serialize;

pub(super) fn print_json(value: &(impl Serialize + ?Sized)) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(value).map_err(|error| Failure::Failed(error.to_string()))?;
    println!("{}", sanitize_json(&json));
    Ok(())
}
