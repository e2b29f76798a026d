//! Reads a manifest key by key, so that all faults are found at once, each with its
//! line and column.

use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// A fault and its position. Lines and columns count from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ManifestFault {
    pub line: usize,
    pub column: usize,
    pub message: String,
}

impl fmt::Display for ManifestFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

/// The faults found so far in a text.
pub(super) struct Faults<'t> {
    text: &'t str,
    found: Vec<ManifestFault>,
}

impl<'t> Faults<'t> {
    /// Parses the text. Invalid TOML is among the faults already.
    pub(super) fn parse(text: &'t str) -> (Self, Section<'t>) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut faults = Self { text, found: Vec::new() };
        for error in errors {
            faults.add(error.span().unwrap_or(0..0), error.message());
        }
        let span = table.span();
        (faults, Section::new("the manifest".to_owned(), span, table.into_inner()))
    }

    pub(super) fn add(&mut self, span: Range<usize>, message: impl fmt::Display) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        self.found.push(ManifestFault { line, column, message: truncate(message.to_string().trim_end()) });
    }

    /// The faults in the order of the text.
    pub(super) fn into_found(mut self) -> Vec<ManifestFault> {
        self.found.sort();
        self.found.dedup();
        self.found
    }
}

const MESSAGE_CHARS_MAX: usize = 1000;

/// A message may quote long texts, or control characters that would affect a
/// terminal.
fn truncate(message: &str) -> String {
    let mut truncated = String::new();
    for char in message.chars().take(MESSAGE_CHARS_MAX) {
        if char.is_control() { truncated.extend(char.escape_default()) } else { truncated.push(char) }
    }
    if message.chars().nth(MESSAGE_CHARS_MAX).is_some() {
        truncated.push_str("...");
    }
    truncated
}

/// A value with its position in the text.
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

/// A table from which keys are taken one by one. Those that remain are unknown.
pub(super) struct Section<'t> {
    /// Its name in faults, such as `[limits]`.
    name: String,
    span: Range<usize>,
    entries: BTreeMap<String, (Range<usize>, Spanned<DeValue<'t>>)>,
    known_keys: Vec<&'static str>,
}

impl<'t> Section<'t> {
    fn new(name: String, span: Range<usize>, table: DeTable<'t>) -> Self {
        let entries = table.into_iter().map(|(key, value)| (key.get_ref().to_string(), (key.span(), value))).collect();
        Self { name, span, entries, known_keys: Vec::new() }
    }

    pub(super) fn is_table(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|(_, value)| value.get_ref().is_table())
    }

    pub(super) fn take<T: DeserializeOwned>(&mut self, key: &'static str, faults: &mut Faults<'t>) -> Option<T> {
        self.take_located(key, faults).map(|located| located.value)
    }

    pub(super) fn take_located<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        faults: &mut Faults<'t>,
    ) -> Option<Located<T>> {
        self.known_keys.push(key);
        let (_, value) = self.entries.remove(key)?;
        read(value, faults)
    }

    /// Like `take`, with a fault if the key is missing.
    pub(super) fn require<T: DeserializeOwned>(&mut self, key: &'static str, faults: &mut Faults<'t>) -> Option<T> {
        self.require_located(key, faults).map(|located| located.value)
    }

    pub(super) fn require_located<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        faults: &mut Faults<'t>,
    ) -> Option<Located<T>> {
        if !self.entries.contains_key(key) {
            faults.add(self.span.clone(), format!("{} requires `{key}`", self.name));
        }
        self.take_located(key, faults)
    }

    /// A list whose items are parsed one by one.
    pub(super) fn list<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        faults: &mut Faults<'t>,
    ) -> Option<Located<Vec<Located<T>>>> {
        self.known_keys.push(key);
        let (_, value) = self.entries.remove(key)?;
        let span = value.span();
        match value.into_inner() {
            DeValue::Array(items) => {
                let value = items.into_iter().filter_map(|item| read(item, faults)).collect();
                Some(Located { value, span })
            }
            other => {
                faults.add(span, format!("`{key}` is a list, not {}", other.type_str()));
                None
            }
        }
    }

    /// A nested table.
    pub(super) fn section(&mut self, key: &'static str, faults: &mut Faults<'t>) -> Option<Self> {
        self.known_keys.push(key);
        let (at, value) = self.entries.remove(key)?;
        table(key, at, value, faults)
    }

    /// A table with arbitrary keys.
    pub(super) fn pairs<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        faults: &mut Faults<'t>,
    ) -> Vec<(Located<String>, Located<T>)> {
        let Some(section) = self.section(key, faults) else { return Vec::new() };
        section.into_pairs(faults)
    }

    /// A table of tables with arbitrary keys.
    pub(super) fn sections(&mut self, key: &'static str, faults: &mut Faults<'t>) -> Vec<(Located<String>, Self)> {
        let Some(section) = self.section(key, faults) else { return Vec::new() };
        // Without its own key, which may contain a secret.
        let name = format!("{key}.\"...\"");
        let inner = |(key, (span, value)): (String, (Range<usize>, Spanned<DeValue<'t>>))| {
            let inner = table(&name, span.clone(), value, faults)?;
            Some((Located { value: key, span }, inner))
        };
        section.entries.into_iter().filter_map(inner).collect()
    }

    /// The entries of a table with arbitrary keys.
    pub(super) fn into_pairs<T: DeserializeOwned>(self, faults: &mut Faults<'t>) -> Vec<(Located<String>, Located<T>)> {
        let pair = |(key, (span, value))| Some((Located { value: key, span }, read(value, faults)?));
        self.entries.into_iter().filter_map(pair).collect()
    }

    /// The same for strings that may contain secrets: no fault quotes a value.
    pub(super) fn into_texts(self, faults: &mut Faults<'t>) -> Vec<(Located<String>, Located<String>)> {
        let mut texts = Vec::new();
        for (key, (at, value)) in self.entries {
            let span = value.span();
            match value.into_inner() {
                DeValue::String(text) => {
                    texts.push((Located { value: key, span: at }, Located { value: text.into_owned(), span }));
                }
                other => faults.add(span, format!("`{key}` is a string, not {}", other.type_str())),
            }
        }
        texts
    }

    pub(super) fn finish(self, faults: &mut Faults<'t>) {
        let known = self.known_keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
        for (key, (span, _)) in self.entries {
            faults.add(span, format!("unknown key `{key}` in {}; known keys are {known}", self.name));
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

fn read<T: DeserializeOwned>(value: Spanned<DeValue<'_>>, faults: &mut Faults<'_>) -> Option<Located<T>> {
    let span = value.span();
    match T::deserialize(ValueDeserializer::from(value)) {
        Ok(value) => Some(Located { value, span }),
        Err(error) => {
            faults.add(error.span().unwrap_or(span), error.message());
            None
        }
    }
}
