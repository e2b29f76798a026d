//! Reads the settings file so that all that is wrong with it is told at once,
//! each with its line and column.

use super::BadSettings;
use serde::de::DeserializeOwned;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// Reads all of a file, whose name is for errors.
pub(super) fn read<T: DeserializeOwned>(text: &str, name: &str) -> Result<T, BadSettings> {
    let (mut table, errors) = DeTable::parse_recoverable(text);
    let mut faults: Vec<(Range<usize>, String)> =
        errors.into_iter().map(|error| (error.span().unwrap_or(0..0), error.message().to_owned())).collect();
    let read = loop {
        let value = Spanned::new(table.span(), DeValue::Table(table.get_ref().clone()));
        match T::deserialize(ValueDeserializer::from(value)) {
            Ok(read) => break Some(read),
            Err(error) => {
                let at = error.span().unwrap_or(0..0);
                faults.push((at.clone(), error.message().to_owned()));
                // The others are seen without it.
                if !remove(table.get_mut(), &at) {
                    break None;
                }
            }
        }
    };
    faults.sort_by_key(|(at, _)| at.start);
    match read.filter(|_| faults.is_empty()) {
        Some(read) => Ok(read),
        None => Err(BadSettings(faults.into_iter().map(|(at, told)| place(text, name, &at, &told)).collect())),
    }
}

/// Takes out the innermost key that a fault stands at.
fn remove(table: &mut DeTable<'_>, at: &Range<usize>) -> bool {
    let has = |span: Range<usize>| span.start <= at.start && at.start < span.end.max(span.start + 1);
    let mut found = None;
    for (key, value) in table.iter_mut() {
        let (key_at, value_at) = (key.span(), value.span());
        // A table's place is that of its name, and what is in it lies behind.
        if let DeValue::Table(inner) = value.get_mut()
            && remove(inner, at)
        {
            return true;
        }
        if has(key_at) || has(value_at) {
            found = Some(key.clone());
        }
    }
    found.is_some_and(|key| table.remove(&key).is_some())
}

fn place(text: &str, name: &str, at: &Range<usize>, told: &str) -> String {
    let before = text.get(..at.start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("{name}: line {line}, column {column}: {}", told.trim_end())
}
