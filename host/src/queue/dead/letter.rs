//! A dead letter as it lies there, and what it says to people.

use super::Origin;
use crate::message::{self, Fields, MESSAGE_FIELD};
use crate::topic::Topic;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::fmt;
use std::str::FromStr;

#[derive(Debug, Clone, PartialEq)]
pub struct Letter {
    pub origin: Origin,
    pub(super) entry: String,
    pub fields: Fields,
}

/// What Redis calls a dead letter: `<ms>-<sequence>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterId(String);

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLetter {
    /// The id of the dead-letter entry.
    pub entry: String,
    /// The message's id, where it could be read.
    pub id: Option<String>,
    pub reason: String,
    pub error: String,
    pub attempts: Option<u32>,
    pub died_at: Option<String>,
    /// The entry's own bytes of `message`; text that is not UTF-8 is replaced.
    pub message: Option<String>,
    /// Written by the original, which has no reasons.
    pub legacy: bool,
}

/// What the original writes into the field `message`.
#[derive(Deserialize)]
struct Legacy<'a> {
    #[serde(borrow)]
    original_message: &'a RawValue,
}

impl FromStr for LetterId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_number = |part: &str| part.parse::<u64>().is_ok() && !part.starts_with('+');
        match text.split_once('-') {
            Some((ms, sequence)) if is_number(ms) && is_number(sequence) => Ok(Self(text.to_owned())),
            _ => Err("the id of a dead letter is written like 1795419923585-0; `dead ls` shows it".to_owned()),
        }
    }
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Letter {
    pub fn id(&self) -> LetterId {
        LetterId(self.entry.clone())
    }

    /// The bytes of the message that died, if it has a body.
    pub fn body(&self) -> Option<&[u8]> {
        let body = message::field(&self.fields, MESSAGE_FIELD)?;
        match self.origin {
            Origin::Ours => Some(body),
            Origin::Legacy => Some(serde_json::from_slice::<Legacy<'_>>(body).ok()?.original_message.get().as_bytes()),
        }
    }

    /// The entry that the message was when it died.
    pub(super) fn source_entry(&self) -> &str {
        let source = message::field(&self.fields, "gw-source").and_then(|source| std::str::from_utf8(source).ok());
        source.and_then(|source| source.rsplit('/').next()).unwrap_or(&self.entry)
    }

    /// Whether any of its fields has this text.
    pub fn contains(&self, text: &str) -> bool {
        let has = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(text);
        self.fields.iter().any(|(name, value)| has(name) || has(value))
    }

    pub fn told(&self, topic: &Topic) -> DeadLetter {
        match self.origin {
            Origin::Ours => self.ours(topic),
            Origin::Legacy => self.legacy(),
        }
    }

    fn ours(&self, topic: &Topic) -> DeadLetter {
        let text = |name| message::field(&self.fields, name).map(|value| String::from_utf8_lossy(value).into_owned());
        DeadLetter {
            entry: self.entry.clone(),
            id: message::read(topic, self.source_entry(), &self.fields).ok().map(|message| message.id),
            reason: text("gw-reason").unwrap_or_default(),
            error: text("gw-error").unwrap_or_default(),
            attempts: text("gw-attempts").and_then(|text| text.parse().ok()),
            died_at: text("gw-died-at"),
            message: text(MESSAGE_FIELD),
            legacy: false,
        }
    }

    /// `{"error","failed_at","original_message"}` in the field `message`.
    fn legacy(&self) -> DeadLetter {
        let body = message::field(&self.fields, MESSAGE_FIELD).unwrap_or_default();
        let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let original = &json["original_message"];
        DeadLetter {
            entry: self.entry.clone(),
            id: text(&original["id"]),
            reason: "retry".to_owned(),
            error: text(&json["error"]).unwrap_or_default(),
            attempts: original["retry"].as_u64().and_then(|retry| u32::try_from(retry).ok()),
            died_at: text(&json["failed_at"]),
            message: Some(String::from_utf8_lossy(self.body().unwrap_or(body)).into_owned()),
            legacy: true,
        }
    }
}
