//! Checked access to a message's data. Errors name the key, the value that came
//! and the values that are allowed.

use crate::{Failure, Message, bad_data};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// How many bytes of a wrong value a reason quotes.
const EXCERPT_BYTES_MAX: usize = 80;

/// The data of a message, which must be a JSON object. Values are returned as
/// they were published, so numbers of any size can be copied without loss.
///
/// Every method fails with [`Failure::Reject`] and code `bad-data`.
pub struct Object<'a>(BTreeMap<Cow<'a, str>, &'a RawValue>);

impl Message {
    /// The data, if it is a JSON object.
    ///
    /// # Errors
    ///
    /// [`Failure::Reject`] with code `bad-data` if it is anything else.
    pub fn object(&self) -> Result<Object<'_>, Failure> {
        serde_json::from_slice(&self.data).map(Object).map_err(|_| {
            bad_data(format!("data: got {}, allowed: a JSON object", excerpt(&String::from_utf8_lossy(&self.data))))
        })
    }
}

impl<'a> Object<'a> {
    /// The string at `key`, which must exist and not be empty.
    pub fn text(&self, key: &str) -> Result<Cow<'a, str>, Failure> {
        self.optional_text(key)?.ok_or_else(|| wrong(key, "nothing", "a non-empty string"))
    }

    /// The string at `key`, or `None` if the key is absent or `null`.
    pub fn optional_text(&self, key: &str) -> Result<Option<Cow<'a, str>>, Failure> {
        let Some(raw) = self.present(key) else { return Ok(None) };
        match serde_json::from_str::<Text<'a>>(raw.get()) {
            Ok(Text(text)) if !text.is_empty() => Ok(Some(text)),
            _ => Err(wrong(key, raw.get(), "a non-empty string")),
        }
    }

    /// The string at `key`, which must be one of `allowed`.
    pub fn one_of(&self, key: &str, allowed: &[&str]) -> Result<Cow<'a, str>, Failure> {
        let list = || allowed.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ");
        let Some(raw) = self.present(key) else { return Err(wrong(key, "nothing", &list())) };
        match serde_json::from_str::<Text<'a>>(raw.get()) {
            Ok(Text(text)) if allowed.contains(&text.as_ref()) => Ok(text),
            _ => Err(wrong(key, raw.get(), &list())),
        }
    }

    /// The number at `key`, as it was written and as the nearest `f64`.
    pub fn number(&self, key: &str) -> Result<(&'a RawValue, f64), Failure> {
        let raw = self.required(key, "a number")?;
        match serde_json::from_str::<f64>(raw.get()) {
            Ok(value) => Ok((raw, value)),
            Err(_) => Err(wrong(key, raw.get(), "a number")),
        }
    }

    /// The whole number at `key`, from 0 to 4294967295.
    pub fn count(&self, key: &str) -> Result<u32, Failure> {
        let allowed = "a whole number from 0 to 4294967295";
        let raw = self.required(key, allowed)?;
        serde_json::from_str(raw.get()).map_err(|_| wrong(key, raw.get(), allowed))
    }

    /// The object at `key`, as it was written.
    pub fn nested(&self, key: &str) -> Result<&'a RawValue, Failure> {
        let raw = self.required(key, "an object")?;
        if raw.get().starts_with('{') { Ok(raw) } else { Err(wrong(key, raw.get(), "an object")) }
    }

    fn required(&self, key: &str, allowed: &str) -> Result<&'a RawValue, Failure> {
        self.present(key).ok_or_else(|| wrong(key, "nothing", allowed))
    }

    fn present(&self, key: &str) -> Option<&'a RawValue> {
        self.0.get(key).copied().filter(|raw| raw.get() != "null")
    }
}

// serde borrows into a `Cow` only for a field marked `borrow`.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

fn wrong(key: &str, got: &str, allowed: &str) -> Failure {
    bad_data(format!("data.{key}: got {}, allowed: {allowed}", excerpt(got)))
}

/// The start of a text, truncated at a character boundary.
fn excerpt(text: &str) -> Cow<'_, str> {
    match text.char_indices().find(|(at, char)| at + char.len_utf8() > EXCERPT_BYTES_MAX) {
        Some((at, _)) => Cow::Owned(format!("{}...", &text[..at])),
        None => Cow::Borrowed(text),
    }
}
