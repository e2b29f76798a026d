//! Where a message is, and the results of `search.lua`.

use crate::message::{self, FIRST_ENTRY_FIELD, Fields, MESSAGE_FIELD, Message, rfc3339};
use crate::queue::error::QueueError;
use crate::queue::keyspace::{EntryId, StreamKind, digest};
use crate::queue::legacy::LegacyDeadLetter;
use crate::queue::topic::reply;
use crate::topic::Topic;
use jiff::Timestamp;
use redis::Value;
use serde::Serialize;

/// Where a message was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "place", rename_all = "kebab-case")]
pub enum MessageLocation {
    /// In a stream, not delivered.
    Waiting {
        #[serde(rename = "source")]
        stream: StreamKind,
        entry: String,
    },
    /// In the list of plain clients, counted from its left end.
    List {
        position: u64,
    },
    /// Moved out of that list, and not yet in a stream.
    ListOut {
        position: u64,
    },
    /// Delayed, or waiting to run again.
    Delayed {
        token: String,
        due: String,
    },
    LegacyDelayed {
        due: String,
    },
    InFlight {
        #[serde(rename = "source")]
        stream: StreamKind,
        entry: String,
        consumer: String,
        idle_ms: u64,
        #[serde(rename = "deliveries")]
        delivery_count: u64,
    },
    /// A dead letter.
    Dead {
        entry: String,
        reason: String,
    },
    LegacyDead {
        entry: String,
        reason: String,
    },
    /// A follow-up in the outbox, for a topic in another slot.
    #[serde(rename = "outgoing")]
    Outbox {
        entry: String,
        to: String,
    },
    /// It has run, and its deduplication key is still stored.
    Finished,
}

/// A part of a topic's keys that can contain messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Delayed,
    LegacyDelayed,
    List,
    /// What was moved out of the list, and is not yet in a stream.
    Input,
    Waiting(StreamKind),
    InFlight(StreamKind),
    Outbox,
    Dead,
    LegacyDead,
}

impl Section {
    /// In the order in which messages pass through them, so that a message that
    /// moves during a search is still found.
    pub(crate) const WAITING: [Self; 8] = [
        Self::Delayed,
        Self::LegacyDelayed,
        Self::List,
        Self::Input,
        Self::Waiting(StreamKind::High),
        Self::Waiting(StreamKind::Normal),
        Self::Waiting(StreamKind::Work),
        Self::Waiting(StreamKind::Low),
    ];
    pub(crate) const DELIVERED: [Self; 7] = [
        Self::InFlight(StreamKind::High),
        Self::InFlight(StreamKind::Normal),
        Self::InFlight(StreamKind::Work),
        Self::InFlight(StreamKind::Low),
        Self::Outbox,
        Self::Dead,
        Self::LegacyDead,
    ];
}

/// A message that a search has found.
#[derive(Debug, Clone)]
pub(crate) struct Match {
    pub(crate) location: MessageLocation,
    pub(crate) fields: Fields,
    /// What identifies it for a removal: an entry's id, an item, a token, a member.
    pub(crate) handle: Vec<u8>,
    /// The hash of a delayed message's body.
    pub(crate) hash: String,
}

impl Match {
    pub(crate) fn parse(section: Section, value: Value) -> Result<Self, QueueError> {
        let of = |location, fields, handle| Self { location, fields, handle, hash: String::new() };
        let count = |value| reply::number(value).map(|number| u64::try_from(number).unwrap_or(0));
        Ok(match section {
            Section::Waiting(stream) => {
                let (entry, fields) = reply::entry(value)?;
                of(MessageLocation::Waiting { stream, entry: entry.clone() }, fields, entry.into_bytes())
            }
            Section::InFlight(stream) => {
                let [entry, fields, consumer, idle, delivery_count] = reply::array(value)?;
                let (entry, consumer) = (reply::text(entry)?, reply::text(consumer)?);
                let (idle_ms, delivery_count) = (count(idle)?, count(delivery_count)?);
                let handle = entry.clone().into_bytes();
                let location = MessageLocation::InFlight { stream, entry, consumer, idle_ms, delivery_count };
                of(location, reply::fields(fields)?, handle)
            }
            Section::Dead | Section::LegacyDead => {
                let (entry, fields) = reply::entry(value)?;
                let location = match section {
                    Section::Dead => MessageLocation::Dead { entry, reason: text(&fields, "gw-reason") },
                    _ => MessageLocation::LegacyDead { entry, reason: "retry".to_owned() },
                };
                of(location, fields, Vec::new())
            }
            Section::Outbox => {
                let (entry, fields) = reply::entry(value)?;
                of(MessageLocation::Outbox { entry, to: text(&fields, "topic") }, fields, Vec::new())
            }
            Section::List | Section::Input => {
                let [item] = reply::array(value)?;
                let item = reply::bytes(item)?;
                let location = match section {
                    Section::List => MessageLocation::List { position: 0 },
                    _ => MessageLocation::ListOut { position: 0 },
                };
                of(location, vec![(MESSAGE_FIELD.into(), item.clone())], item)
            }
            Section::Delayed => {
                let [token, fields, due, hash] = reply::array(value)?;
                let (token, due) = (reply::text(token)?, time(&reply::text(due)?, 1.0));
                let location = MessageLocation::Delayed { token: token.clone(), due };
                let (fields, hash) = (reply::fields(fields)?, reply::text(hash)?);
                Self { location, fields, handle: token.into_bytes(), hash }
            }
            Section::LegacyDelayed => {
                let [member, due] = reply::array(value)?;
                let (member, due) = (reply::bytes(member)?, time(&reply::text(due)?, 1000.0));
                let fields = vec![(MESSAGE_FIELD.into(), member.clone())];
                of(MessageLocation::LegacyDelayed { due }, fields, member)
            }
        })
    }

    /// The message, if it can be read and has an id.
    pub(crate) fn message(&self, topic: &Topic) -> Option<Message> {
        // The entry that gives a message without an id of its own its id.
        let entry = match &self.location {
            MessageLocation::Waiting { entry, .. } | MessageLocation::InFlight { entry, .. } => entry.as_str(),
            MessageLocation::Delayed { token, .. } if token.starts_with("s:") => {
                token.rsplit(':').next().unwrap_or_default()
            }
            MessageLocation::Dead { .. } => message::field(&self.fields, "gw-source")
                .and_then(|source| std::str::from_utf8(source).ok()?.rsplit('/').next())
                .unwrap_or_default(),
            MessageLocation::LegacyDead { .. } => return self.legacy_message(topic),
            _ => "",
        };
        message::read(topic, entry, &self.fields).ok().filter(|message| !message.id.is_empty())
    }

    fn legacy_message(&self, topic: &Topic) -> Option<Message> {
        let dead = LegacyDeadLetter::parse(message::field(&self.fields, MESSAGE_FIELD)?)?;
        let fields = vec![(MESSAGE_FIELD.into(), dead.envelope()?.to_vec())];
        message::read(topic, "", &fields).ok().filter(|message| !message.id.is_empty())
    }

    /// The hash of its deduplication key, and the entry that it had at first, if it may
    /// have the claim of that key: it was delivered before.
    pub(crate) fn claim(&self, topic: &Topic) -> Option<(String, EntryId)> {
        let first = message::field(&self.fields, FIRST_ENTRY_FIELD).and_then(|text| std::str::from_utf8(text).ok());
        let entry = match &self.location {
            MessageLocation::Waiting { stream, entry } | MessageLocation::InFlight { stream, entry, .. } => {
                Some(EntryId { stream: *stream, id: entry.clone() })
            }
            _ => None,
        };
        let first = first.and_then(|text| text.parse().ok()).or(entry)?;
        Some((digest(self.message(topic)?.deduplication_key()?), first))
    }

    /// A message that has run, of which only the deduplication key is stored.
    pub(crate) fn finished() -> Self {
        Self { location: MessageLocation::Finished, fields: Fields::new(), handle: Vec::new(), hash: String::new() }
    }
}

impl MessageLocation {
    /// Whether a worker has yet to begin it.
    pub(crate) fn is_before_run(&self) -> bool {
        match self {
            Self::Waiting { .. } | Self::List { .. } | Self::ListOut { .. } => true,
            Self::Delayed { .. } | Self::LegacyDelayed { .. } => true,
            Self::InFlight { .. } | Self::Dead { .. } | Self::LegacyDead { .. } => false,
            Self::Outbox { .. } | Self::Finished => false,
        }
    }

    /// The same with this position, if it is in a list.
    pub(crate) fn at(&self, position: u64) -> Self {
        match self {
            Self::List { .. } => Self::List { position },
            Self::ListOut { .. } => Self::ListOut { position },
            other => other.clone(),
        }
    }
}

fn text(fields: &Fields, name: &str) -> String {
    message::field(fields, name).map(|text| String::from_utf8_lossy(text).into_owned()).unwrap_or_default()
}

/// A score as a time; `unit` is its unit in milliseconds.
fn time(score: &str, unit: f64) -> String {
    let ms = score.parse::<f64>().unwrap_or(0.0) * unit;
    rfc3339(Timestamp::from_millisecond(ms as i64).unwrap_or(Timestamp::MAX))
}
