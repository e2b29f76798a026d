//! What a look through a topic's keys comes upon: a message, and its place.

use super::look::Part;
use super::source::Source;
use super::{QueueError, reply};
use crate::message::{self, Fields, MESSAGE_FIELD, Message, rfc3339};
use crate::topic::Topic;
use jiff::Timestamp;
use redis::Value;
use serde::Serialize;

/// Where a message was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "place", rename_all = "kebab-case")]
pub enum Place {
    /// In a stream, and nobody has taken it.
    Waiting {
        source: Source,
        entry: String,
    },
    /// In the list of plain clients, from its left end.
    List {
        position: u64,
    },
    /// Moved out of the list, and not yet in a stream.
    ListOut {
        position: u64,
    },
    /// Delayed, or waiting for another run.
    Delayed {
        token: String,
        due: String,
    },
    /// Among the original's delayed messages.
    LegacyDelayed {
        due: String,
    },
    InFlight {
        source: Source,
        entry: String,
        consumer: String,
        idle_ms: u64,
        deliveries: u64,
    },
    /// A dead letter.
    Dead {
        entry: String,
        reason: String,
    },
    /// A dead letter of the original's.
    LegacyDead {
        entry: String,
        reason: String,
    },
    /// A follow-up on its way to a topic in another slot.
    Outgoing {
        entry: String,
        to: String,
    },
    /// It has run, within the time that its topic remembers that.
    Finished,
}

/// What a look came upon.
#[derive(Debug, Clone)]
pub(super) struct Hit {
    pub(super) place: Place,
    pub(super) fields: Fields,
    /// What it is removed by: an entry's id, an item, a token, a member.
    pub(super) handle: Vec<u8>,
    /// The hash of a delayed one's body.
    pub(super) hash: String,
}

pub(super) fn hit(part: Part, value: Value) -> Result<Hit, QueueError> {
    let of = |place, fields, handle| Hit { place, fields, handle, hash: String::new() };
    let whole = |value| reply::number(value).map(|number| u64::try_from(number).unwrap_or(0));
    Ok(match part {
        Part::Waiting(source) => {
            let (entry, fields) = reply::entry(value)?;
            of(Place::Waiting { source, entry: entry.clone() }, fields, entry.into_bytes())
        }
        Part::InFlight(source) => {
            let [entry, fields, consumer, idle, deliveries] = reply::array(value)?;
            let (entry, consumer) = (reply::text(entry)?, reply::text(consumer)?);
            let (idle_ms, deliveries) = (whole(idle)?, whole(deliveries)?);
            let handle = entry.clone().into_bytes();
            let place = Place::InFlight { source, entry, consumer, idle_ms, deliveries };
            of(place, reply::fields(fields)?, handle)
        }
        Part::Dead | Part::LegacyDead => {
            let (entry, fields) = reply::entry(value)?;
            let text = |name| message::field(&fields, name).map(|text| String::from_utf8_lossy(text).into_owned());
            let place = match part {
                Part::Dead => Place::Dead { entry, reason: text("gw-reason").unwrap_or_default() },
                _ => Place::LegacyDead { entry, reason: "retry".to_owned() },
            };
            of(place, fields, Vec::new())
        }
        Part::Outgoing => {
            let (entry, fields) = reply::entry(value)?;
            let to = message::field(&fields, "topic").map(|to| String::from_utf8_lossy(to).into_owned());
            of(Place::Outgoing { entry, to: to.unwrap_or_default() }, fields, Vec::new())
        }
        Part::List | Part::Input => {
            let [item] = reply::array(value)?;
            let item = reply::bytes(item)?;
            let place = if part == Part::List { Place::List { position: 0 } } else { Place::ListOut { position: 0 } };
            of(place, vec![(MESSAGE_FIELD.into(), item.clone())], item)
        }
        Part::Later => {
            let [token, fields, due, hash] = reply::array(value)?;
            let (token, due) = (reply::text(token)?, time(&reply::text(due)?, 1.0));
            let place = Place::Delayed { token: token.clone(), due };
            Hit { place, fields: reply::fields(fields)?, handle: token.into_bytes(), hash: reply::text(hash)? }
        }
        Part::LegacyLater => {
            let [member, due] = reply::array(value)?;
            let (member, due) = (reply::bytes(member)?, time(&reply::text(due)?, 1000.0));
            of(Place::LegacyDelayed { due }, vec![(MESSAGE_FIELD.into(), member.clone())], member)
        }
    })
}

/// A score as a time; `unit` is how many milliseconds it counts in.
fn time(score: &str, unit: f64) -> String {
    let ms = score.parse::<f64>().unwrap_or(0.0) * unit;
    rfc3339(Timestamp::from_millisecond(ms as i64).unwrap_or(Timestamp::MAX))
}

impl Hit {
    /// The message, if it can be read and has an id that it is known by.
    pub(super) fn message(&self, topic: &Topic) -> Option<Message> {
        // What an entry without an id of its own is called by.
        let entry = match &self.place {
            Place::Waiting { entry, .. } | Place::InFlight { entry, .. } => entry.as_str(),
            Place::Delayed { token, .. } if token.starts_with("s:") => token.rsplit(':').next().unwrap_or_default(),
            Place::Dead { .. } => message::field(&self.fields, "gw-source")
                .and_then(|source| std::str::from_utf8(source).ok()?.rsplit('/').next())
                .unwrap_or_default(),
            Place::LegacyDead { .. } => return self.legacy_dead(topic),
            _ => "",
        };
        message::read(topic, entry, &self.fields).ok().filter(|message| !message.id.is_empty())
    }

    fn legacy_dead(&self, topic: &Topic) -> Option<Message> {
        let json: serde_json::Value = serde_json::from_slice(message::field(&self.fields, MESSAGE_FIELD)?).ok()?;
        let original = vec![(MESSAGE_FIELD.into(), json.get("original_message")?.to_string().into_bytes())];
        message::read(topic, "", &original).ok().filter(|message| !message.id.is_empty())
    }

    /// What is known of a message that has run: its mark.
    pub(super) fn finished() -> Self {
        Self { place: Place::Finished, fields: Fields::new(), handle: Vec::new(), hash: String::new() }
    }
}

impl Place {
    /// The same at this place of its list, if it is in one.
    pub(super) fn at(&self, position: u64) -> Self {
        match self {
            Self::List { .. } => Self::List { position },
            Self::ListOut { .. } => Self::ListOut { position },
            other => other.clone(),
        }
    }
}
