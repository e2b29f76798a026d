//! Reads a manifest's text piece by piece, so that all that is wrong with it
//! is told at once, each with its place.

use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// What is wrong, and where it stands: lines and columns count from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    pub line: usize,
    pub column: usize,
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.what)
    }
}

/// The faults found so far in a text.
pub(super) struct Faults<'t> {
    text: &'t str,
    found: Vec<Fault>,
}

impl<'t> Faults<'t> {
    /// The text's table with what is not even TOML already told.
    pub(super) fn read(text: &'t str) -> (Self, Section<'t>) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut faults = Self { text, found: Vec::new() };
        for error in errors {
            faults.add(error.span().unwrap_or(0..0), error.message());
        }
        let span = table.span();
        (faults, Section::new("the manifest".to_owned(), span, table.into_inner()))
    }

    pub(super) fn add(&mut self, span: Range<usize>, what: impl fmt::Display) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        self.found.push(Fault { line, column, what: short(what.to_string().trim_end()) });
    }

    /// In the order of the text.
    pub(super) fn into_found(mut self) -> Vec<Fault> {
        self.found.sort();
        self.found.dedup();
        self.found
    }
}

/// As much of a fault as is told.
const FAULT_CHARS_MAX: usize = 1000;

/// What a fault quotes could be long, and steer the terminal that shows it.
fn short(what: &str) -> String {
    let mut short = String::new();
    for char in what.chars().take(FAULT_CHARS_MAX) {
        if char.is_control() { short.extend(char.escape_default()) } else { short.push(char) }
    }
    if what.chars().nth(FAULT_CHARS_MAX).is_some() {
        short.push_str("...");
    }
    short
}

/// A value with where it stands.
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

/// A table, from which keys are taken one by one; what is left at its end
/// should not be there.
pub(super) struct Section<'t> {
    /// As it is called in a fault: `[limits]`.
    name: String,
    span: Range<usize>,
    entries: BTreeMap<String, (Range<usize>, Spanned<DeValue<'t>>)>,
    asked: Vec<&'static str>,
}

impl<'t> Section<'t> {
    fn new(name: String, span: Range<usize>, table: DeTable<'t>) -> Self {
        let entries = table.into_iter().map(|(key, value)| (key.get_ref().to_string(), (key.span(), value))).collect();
        Self { name, span, entries, asked: Vec::new() }
    }

    pub(super) fn is_table(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|(_, value)| value.get_ref().is_table())
    }

    pub(super) fn take<T: DeserializeOwned>(&mut self, key: &'static str, faults: &mut Faults<'t>) -> Option<T> {
        self.take_placed(key, faults).map(|placed| placed.value)
    }

    pub(super) fn take_placed<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        faults: &mut Faults<'t>,
    ) -> Option<Placed<T>> {
        self.asked.push(key);
        let (_, value) = self.entries.remove(key)?;
        read(value, faults)
    }

    /// As `take`, and a fault where there is none.
    pub(super) fn need<T: DeserializeOwned>(&mut self, key: &'static str, faults: &mut Faults<'t>) -> Option<T> {
        self.need_placed(key, faults).map(|placed| placed.value)
    }

    pub(super) fn need_placed<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        faults: &mut Faults<'t>,
    ) -> Option<Placed<T>> {
        if !self.entries.contains_key(key) {
            faults.add(self.span.clone(), format!("{} misses `{key}`", self.name));
        }
        self.take_placed(key, faults)
    }

    /// A list whose items are judged one by one.
    pub(super) fn list<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        faults: &mut Faults<'t>,
    ) -> Option<Placed<Vec<Placed<T>>>> {
        self.asked.push(key);
        let (_, value) = self.entries.remove(key)?;
        let span = value.span();
        match value.into_inner() {
            DeValue::Array(items) => {
                let value = items.into_iter().filter_map(|item| read(item, faults)).collect();
                Some(Placed { value, span })
            }
            other => {
                faults.add(span, format!("`{key}` is a list, not {}", other.type_str()));
                None
            }
        }
    }

    /// A table within this one.
    pub(super) fn section(&mut self, key: &'static str, faults: &mut Faults<'t>) -> Option<Self> {
        self.asked.push(key);
        let (at, value) = self.entries.remove(key)?;
        table(key, at, value, faults)
    }

    /// A table whose keys are the author's own.
    pub(super) fn pairs<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        faults: &mut Faults<'t>,
    ) -> Vec<(Placed<String>, Placed<T>)> {
        let Some(section) = self.section(key, faults) else { return Vec::new() };
        section.into_pairs(faults)
    }

    /// A table of tables whose keys are the author's own.
    pub(super) fn sections(&mut self, key: &'static str, faults: &mut Faults<'t>) -> Vec<(Placed<String>, Self)> {
        let Some(section) = self.section(key, faults) else { return Vec::new() };
        // Not by its own key, which may be what a fault must not tell.
        let name = format!("{key}.\"...\"");
        let inner = |(key, (span, value)): (String, (Range<usize>, Spanned<DeValue<'t>>))| {
            let inner = table(&name, span.clone(), value, faults)?;
            Some((Placed { value: key, span }, inner))
        };
        section.entries.into_iter().filter_map(inner).collect()
    }

    /// What stands here under keys of the author's own.
    pub(super) fn into_pairs<T: DeserializeOwned>(self, faults: &mut Faults<'t>) -> Vec<(Placed<String>, Placed<T>)> {
        let pair = |(key, (span, value))| Some((Placed { value: key, span }, read(value, faults)?));
        self.entries.into_iter().filter_map(pair).collect()
    }

    /// The same where what stands here is nobody's business: no fault quotes it.
    pub(super) fn into_texts(self, faults: &mut Faults<'t>) -> Vec<(Placed<String>, Placed<String>)> {
        let mut texts = Vec::new();
        for (key, (at, value)) in self.entries {
            let span = value.span();
            match value.into_inner() {
                DeValue::String(text) => {
                    texts.push((Placed { value: key, span: at }, Placed { value: text.into_owned(), span }));
                }
                other => faults.add(span, format!("`{key}` is a string, not {}", other.type_str())),
            }
        }
        texts
    }

    pub(super) fn end(self, faults: &mut Faults<'t>) {
        let allowed = self.asked.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
        for (key, (span, _)) in self.entries {
            faults.add(span, format!("unknown key `{key}` in {}; allowed are {allowed}", self.name));
        }
    }
}

fn table<'t>(key: &str, at: Range<usize>, value: Spanned<DeValue<'t>>, faults: &mut Faults<'t>) -> Option<Section<'t>> {
    match value.into_inner() {
        DeValue::Table(table) => Some(Section::new(format!("[{key}]"), at, table)),
        other => {
            faults.add(at, format!("`{key}` is a table, not {}", other.type_str()));
            None
        }
    }
}

fn read<T: DeserializeOwned>(value: Spanned<DeValue<'_>>, faults: &mut Faults<'_>) -> Option<Placed<T>> {
    let span = value.span();
    match T::deserialize(ValueDeserializer::from(value)) {
        Ok(value) => Some(Placed { value, span }),
        Err(error) => {
            faults.add(error.span().unwrap_or(span), error.message());
            None
        }
    }
}
