//! Reads the settings file and reports every error in it at once, each with its
//! line and column.

use super::InvalidSettings;
use serde::de::DeserializeOwned;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// Parses the text of a file. Errors show `name`.
pub(super) fn read<T: DeserializeOwned>(text: &str, name: &str) -> Result<T, InvalidSettings> {
    let (mut table, errors) = DeTable::parse_recoverable(text);
    let mut errors: Vec<(Range<usize>, String)> =
        errors.into_iter().map(|error| (error.span().unwrap_or(0..0), error.message().to_owned())).collect();
    let read = loop {
        let value = Spanned::new(table.span(), DeValue::Table(table.get_ref().clone()));
        match T::deserialize(ValueDeserializer::from(value)) {
            Ok(read) => break Some(read),
            Err(error) => {
                let at = error.span().unwrap_or(0..0);
                errors.push((at.clone(), error.message().to_owned()));
                // Serde stops at the first error, so the next attempt goes
                // without the key.
                if !remove(table.get_mut(), &at) {
                    break None;
                }
            }
        }
    };
    errors.sort_by_key(|(at, _)| at.start);
    match read.filter(|_| errors.is_empty()) {
        Some(read) => Ok(read),
        None => Err(InvalidSettings(
            errors.into_iter().map(|(at, message)| with_position(text, name, &at, &message)).collect(),
        )),
    }
}

/// Removes the innermost key at the position of an error.
fn remove(table: &mut DeTable<'_>, at: &Range<usize>) -> bool {
    let contains = |span: Range<usize>| span.start <= at.start && at.start < span.end.max(span.start + 1);
    let mut found = None;
    for (key, value) in table.iter_mut() {
        let (key_at, value_at) = (key.span(), value.span());
        // The span of a table covers its header only, not its keys.
        if let DeValue::Table(inner) = value.get_mut()
            && remove(inner, at)
        {
            return true;
        }
        if contains(key_at) || contains(value_at) {
            found = Some(key.clone());
        }
    }
    found.is_some_and(|key| table.remove(&key).is_some())
}

fn with_position(text: &str, name: &str, at: &Range<usize>, message: &str) -> String {
    let before = text.get(..at.start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("{name}: line {line}, column {column}: {}", message.trim_end())
}
