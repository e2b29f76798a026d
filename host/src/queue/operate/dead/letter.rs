//! A dead letter as Redis stores it, and as it is shown to people.

use crate::message::{self, Fields, MESSAGE_FIELD};
use crate::queue::keyspace::Keys;
use crate::queue::legacy::LegacyDeadLetter;
use crate::queue::settlement::ERROR_FIELD;
use crate::topic::Topic;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// The format of a dead letter, and the key that stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// This worker.
    Ours,
    /// A legacy worker.
    Legacy,
}

impl Origin {
    pub const ALL: [Self; 2] = [Self::Ours, Self::Legacy];

    pub(crate) fn key(self, keys: &Keys) -> &str {
        match self {
            Self::Ours => &keys.dead,
            Self::Legacy => &keys.legacy_dead,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetterEntry {
    pub origin: Origin,
    pub(crate) entry: String,
    pub fields: Fields,
}

/// The entry id of a dead letter: `<ms>-<sequence>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterId(String);

/// A dead letter for display.
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
    /// Written by a legacy worker, which stores no reasons.
    pub legacy: bool,
}

impl FromStr for DeadLetterId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_number = |part: &str| part.parse::<u64>().is_ok() && !part.starts_with('+');
        match text.split_once('-') {
            Some((ms, sequence)) if is_number(ms) && is_number(sequence) => Ok(Self(text.to_owned())),
            _ => Err("the id of a dead letter is written like 1795419923585-0; `dead ls` shows it".to_owned()),
        }
    }
}

impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl DeadLetterEntry {
    pub fn id(&self) -> DeadLetterId {
        DeadLetterId(self.entry.clone())
    }

    /// The bytes of the message that died, if it has a body.
    pub fn body(&self) -> Option<&[u8]> {
        let body = message::field(&self.fields, MESSAGE_FIELD)?;
        match self.origin {
            Origin::Ours => Some(body),
            Origin::Legacy => LegacyDeadLetter::parse(body)?.envelope(),
        }
    }

    /// The id of the message's entry when it died.
    pub(crate) fn source_entry(&self) -> &str {
        let source = message::field(&self.fields, "gw-source").and_then(|source| std::str::from_utf8(source).ok());
        source.and_then(|source| source.rsplit('/').next()).unwrap_or(&self.entry)
    }

    /// What copies of its message are recognised by.
    pub(crate) fn deduplication_key(&self, topic: &Topic) -> Option<String> {
        let message = match self.origin {
            Origin::Ours => message::read(topic, self.source_entry(), &self.fields),
            Origin::Legacy => message::read(topic, "", &vec![(MESSAGE_FIELD.into(), self.body()?.to_vec())]),
        };
        message.ok()?.deduplication_key().cloned()
    }

    /// Whether any of its fields contains this text.
    pub fn contains(&self, text: &str) -> bool {
        let has = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(text);
        self.fields.iter().any(|(name, value)| has(name) || has(value))
    }

    pub fn summary(&self, topic: &Topic) -> DeadLetter {
        match self.origin {
            Origin::Ours => self.own_summary(topic),
            Origin::Legacy => self.legacy_summary(),
        }
    }

    fn own_summary(&self, topic: &Topic) -> DeadLetter {
        let text = |name| message::field(&self.fields, name).map(|value| String::from_utf8_lossy(value).into_owned());
        DeadLetter {
            entry: self.entry.clone(),
            id: message::read(topic, self.source_entry(), &self.fields).ok().map(|message| message.id),
            reason: text("gw-reason").unwrap_or_default(),
            error: text(ERROR_FIELD).unwrap_or_default(),
            attempts: text("gw-attempts").and_then(|text| text.parse().ok()),
            died_at: text("gw-died-at"),
            message: text(MESSAGE_FIELD),
            legacy: false,
        }
    }

    fn legacy_summary(&self) -> DeadLetter {
        let body = message::field(&self.fields, MESSAGE_FIELD).unwrap_or_default();
        let dead = LegacyDeadLetter::parse(body);
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let envelope = dead.as_ref().and_then(LegacyDeadLetter::envelope);
        let json: serde_json::Value =
            envelope.and_then(|envelope| serde_json::from_slice(envelope).ok()).unwrap_or_default();
        DeadLetter {
            entry: self.entry.clone(),
            id: text(&json["id"]),
            reason: "retry".to_owned(),
            error: dead.as_ref().and_then(|dead| text(&dead.error)).unwrap_or_default(),
            attempts: json["retry"].as_u64().and_then(|retry| u32::try_from(retry).ok()),
            died_at: dead.as_ref().and_then(|dead| text(&dead.failed_at)),
            message: Some(String::from_utf8_lossy(envelope.unwrap_or(body)).into_owned()),
            legacy: true,
        }
    }
}
