//! Parses stream entries. An entry has an envelope in the format of the legacy
//! publishers, a CloudEvent, a bare JSON value, or plain fields. No I/O, no
//! clock.

mod edit;

pub use edit::with_data;

use crate::topic::Topic;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// The fields of a stream entry, in their order.
pub type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// The field that holds the envelope.
pub const MESSAGE_FIELD: &str = "message";
/// Fields with this prefix belong to the host and are never part of the data.
pub const HOST_FIELD_PREFIX: &str = "gw-";
/// The attempt of this entry, where it is not the first.
pub const ATTEMPT_FIELD: &str = "gw-attempt";
/// Set where a dead letter was replayed: the retries that the envelope counts
/// were made before the replay.
pub const FRESH_FIELD: &str = "gw-fresh";
/// The message's id over all its retries, where no envelope contains it.
pub const ID_FIELD: &str = "gw-id";
/// The time of publication over all retries, where no envelope contains it;
/// RFC 3339.
pub const PUBLISHED_FIELD: &str = "gw-published-at";
/// How often the message has been postponed.
pub const POSTPONED_FIELD: &str = "gw-postponed";
/// When it was first postponed, in Unix milliseconds.
pub const POSTPONED_SINCE_FIELD: &str = "gw-postponed-since";
/// The message's first entry, where a retry has given it another one and its topic
/// deduplicates.
pub const FIRST_ENTRY_FIELD: &str = "gw-first";
/// The hash of its deduplication key, likewise.
pub const DEDUP_FIELD: &str = "gw-dedup";
/// How many workers were lost with the message before it was parked.
pub const CRASHES_FIELD: &str = "gw-crashes";

/// Chain depth: the number of messages, each published without delay by the
/// previous one's handler, that led to this one. Only the host sets it.
pub const HOPS_HEADER: &str = "worker-hops";

#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub id: String,
    pub topic: Topic,
    pub data: Vec<u8>,
    pub headers: Vec<(String, String)>,
    pub published_at: Timestamp,
    pub attempt: u32,
    /// The envelope's `max_retry`.
    pub max_attempts: Option<u32>,
    pub expires_at: Option<Timestamp>,
    /// The deduplication key, where it is not the id.
    pub dedup_key: Option<String>,
    pub postponed: Postponed,
    /// The value of [`HOPS_HEADER`].
    pub hops: u32,
    /// Whether the entry contains an id. Otherwise `id` is the entry's id.
    pub has_own_id: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Postponed {
    pub times: u32,
    pub since: Option<Timestamp>,
}

/// The reason why an entry can't be parsed.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("{0}")]
pub struct Undecodable(String);

impl Message {
    /// The key that copies of this message share: its `dedup_key`, or else its
    /// id. None where the entry has neither, because such entries have no copies.
    pub fn deduplication_key(&self) -> Option<&String> {
        self.dedup_key.as_ref().or(self.has_own_id.then_some(&self.id))
    }
}

/// Parses the entry `entry_id` (`<ms>-<sequence>`) of the topic's stream. The
/// topic comes from the key, never from the JSON.
pub fn read(topic: &Topic, entry_id: &str, fields: &Fields) -> Result<Message, Undecodable> {
    let mut message = match field(fields, MESSAGE_FIELD) {
        Some(body) => read_body(topic, entry_id, body)?,
        None => bare(topic, entry_id, fields_as_object(fields)?),
    };
    if field(fields, FRESH_FIELD) == Some(b"1") {
        message.attempt = 1;
        message.hops = 0;
    }
    if message.hops > 0 {
        message.headers.push((HOPS_HEADER.to_owned(), message.hops.to_string()));
    }
    for (name, value) in fields.iter().filter(|(name, _)| name.starts_with(HOST_FIELD_PREFIX.as_bytes())) {
        let (Ok(name), Ok(value)) = (std::str::from_utf8(name), std::str::from_utf8(value)) else { continue };
        match name {
            ATTEMPT_FIELD => message.attempt = message.attempt.max(value.parse().unwrap_or(1)),
            ID_FIELD if !message.has_own_id => value.clone_into(&mut message.id),
            PUBLISHED_FIELD if !message.has_own_id => {
                message.published_at = value.parse().unwrap_or(message.published_at);
            }
            POSTPONED_FIELD => message.postponed.times = value.parse().unwrap_or(0),
            POSTPONED_SINCE_FIELD => {
                message.postponed.since = value.parse().ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
            }
            _ => {}
        }
    }
    Ok(message)
}

/// The first field with this name.
pub fn field<'a>(fields: &'a Fields, name: &str) -> Option<&'a [u8]> {
    fields.iter().find(|(key, _)| key == name.as_bytes()).map(|(_, value)| value.as_slice())
}

/// The time in the id of a stream entry.
pub fn entry_time(entry_id: &str) -> Timestamp {
    let ms = entry_id.split('-').next().and_then(|ms| ms.parse().ok()).unwrap_or(0);
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The format of times for handlers, logs and APIs.
pub fn rfc3339(at: Timestamp) -> String {
    format!("{at:.3}")
}

fn read_body(topic: &Topic, entry_id: &str, body: &[u8]) -> Result<Message, Undecodable> {
    let text = std::str::from_utf8(body).map_err(|error| Undecodable(format!("not UTF-8: {error}")))?;
    if !text.trim_start().starts_with('{') {
        let value: &RawValue = parse(text)?;
        return Ok(bare(topic, entry_id, value.get().as_bytes().to_vec()));
    }
    let keys: Keys<'_> = parse(text)?;
    if keys.spec_version.is_some() {
        cloud_event(topic, entry_id, text)
    } else if keys.is_envelope() {
        envelope(topic, entry_id, &keys)
    } else {
        Ok(bare(topic, entry_id, text.trim().as_bytes().to_vec()))
    }
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Undecodable> {
    serde_json::from_str(text).map_err(|error| Undecodable(format!("bad JSON: {error}")))
}

/// A message that consists only of data.
fn bare(topic: &Topic, entry_id: &str, data: Vec<u8>) -> Message {
    Message {
        id: entry_id.to_owned(),
        topic: topic.clone(),
        data,
        headers: Vec::new(),
        published_at: entry_time(entry_id),
        attempt: 1,
        max_attempts: None,
        expires_at: None,
        dedup_key: None,
        postponed: Postponed::default(),
        hops: 0,
        has_own_id: false,
    }
}

fn fields_as_object(fields: &Fields) -> Result<Vec<u8>, Undecodable> {
    let text =
        |bytes| std::str::from_utf8(bytes).map_err(|error| Undecodable(format!("a field is not UTF-8: {error}")));
    let mut object = BTreeMap::new();
    for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with(HOST_FIELD_PREFIX.as_bytes())) {
        object.insert(text(name)?, text(value)?);
    }
    serde_json::to_vec(&object).map_err(|error| Undecodable(error.to_string()))
}

fn envelope(topic: &Topic, entry_id: &str, keys: &Keys<'_>) -> Result<Message, Undecodable> {
    text("topic", keys.topic)?; // legacy workers reject other types, so publishers use none
    let id = text_or_number("id", keys.id)?.filter(|id| !id.is_empty());
    // An invalid time does not make the data invalid, so the time of the entry
    // replaces it.
    let published_at = keys.timestamp.and_then(time);
    let expires_at = match keys.expires_at {
        Some(raw) => Some(time(raw).ok_or_else(|| wrong("expires_at", raw, "an RFC 3339 time, or Unix seconds"))?),
        None => None,
    };
    let retry = whole("retry", keys.retry)?.unwrap_or(0).clamp(0, i64::from(u32::MAX) - 1);
    let max_retry = whole("max_retry", keys.max_retry)?.map(|max| max.clamp(1, i64::from(u32::MAX)));
    let data = keys.data.map_or("null", RawValue::get);
    let (headers, hops) = headers(keys.headers)?;
    Ok(Message {
        data: data.as_bytes().to_vec(),
        headers,
        hops,
        published_at: published_at.unwrap_or_else(|| entry_time(entry_id)),
        attempt: as_u32(retry) + 1,
        max_attempts: max_retry.map(as_u32),
        expires_at,
        dedup_key: text_or_number("dedup_key", keys.dedup_key)?.filter(|key| !key.is_empty()).map(Cow::into_owned),
        has_own_id: id.is_some(),
        ..bare(topic, &id.unwrap_or(Cow::Borrowed(entry_id)), Vec::new())
    })
}

fn text<'a>(key: &str, raw: Option<&'a RawValue>) -> Result<Option<Cow<'a, str>>, Undecodable> {
    raw.map(|raw| Text::read(raw).ok_or_else(|| wrong(key, raw, "a string"))).transpose()
}

/// Publishers in languages without types write identifiers as numbers too. The
/// digits stay as they were written.
fn text_or_number<'a>(key: &str, raw: Option<&'a RawValue>) -> Result<Option<Cow<'a, str>>, Undecodable> {
    let read = |raw: &'a RawValue| Text::read(raw).or_else(|| is_number(raw).then_some(Cow::Borrowed(raw.get())));
    raw.map(|raw| read(raw).ok_or_else(|| wrong(key, raw, "a string or a number"))).transpose()
}

fn is_number(raw: &RawValue) -> bool {
    raw.get().starts_with(|first: char| first == '-' || first.is_ascii_digit())
}

/// A whole number, also one that was written as a string or with a fraction of zero.
fn whole(key: &str, raw: Option<&RawValue>) -> Result<Option<i64>, Undecodable> {
    let read = |raw: &RawValue| match Text::read(raw) {
        Some(text) => whole_number(text.trim()),
        None => whole_number(raw.get()),
    };
    raw.map(|raw| read(raw).ok_or_else(|| wrong(key, raw, "a whole number"))).transpose()
}

fn whole_number(text: &str) -> Option<i64> {
    text.parse().ok().or_else(|| {
        // `inf` and `NaN` are numbers for Rust, and not in JSON.
        let number = serde_json::from_str::<f64>(text).ok()?;
        // Larger ones are clamped by the caller.
        (number.fract() == 0.0).then_some(number as i64)
    })
}

fn as_u32(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A time of RFC 3339, or a number of seconds or milliseconds since 1970: as
/// seconds, the larger numbers are later than the year 5000.
fn time(raw: &RawValue) -> Option<Timestamp> {
    const MILLISECONDS_FROM: f64 = 1e11;
    if !is_number(raw) {
        return Text::read(raw)?.parse().ok();
    }
    let number: f64 = serde_json::from_str(raw.get()).ok()?;
    let ms = if number.abs() < MILLISECONDS_FROM { number * 1000.0 } else { number };
    Timestamp::from_millisecond(ms.round() as i64).ok()
}

/// The headers with lower-case, unique names. Headers that only the host sets are
/// removed, so that no publisher can forge them.
fn headers(raw: Option<&RawValue>) -> Result<(Vec<(String, String)>, u32), Undecodable> {
    let Some(raw) = raw else { return Ok((Vec::new(), 0)) };
    let headers: BTreeMap<String, String> =
        serde_json::from_str(raw.get()).map_err(|_| wrong("headers", raw, "an object of strings"))?;
    let lower: BTreeMap<String, String> =
        headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    let hops = lower.get(HOPS_HEADER).and_then(|hops| hops.parse().ok()).unwrap_or(0);
    Ok((lower.into_iter().filter(|(name, _)| !name.starts_with("worker-")).collect(), hops))
}

/// A structured CloudEvent: `id`, `time` and `data` become fields of the message,
/// and every other attribute becomes a `ce-` header.
fn cloud_event(topic: &Topic, entry_id: &str, text: &str) -> Result<Message, Undecodable> {
    let attributes: BTreeMap<Cow<'_, str>, &RawValue> = parse(text)?;
    let mut message = bare(topic, entry_id, b"null".to_vec());
    for (name, raw) in attributes {
        match name.as_ref() {
            "data" => message.data = raw.get().as_bytes().to_vec(),
            "data_base64" => message.data = base64(raw)?,
            _ => {
                let value = Text::read(raw).unwrap_or(Cow::Borrowed(raw.get()));
                match name.as_ref() {
                    "id" if !value.is_empty() => {
                        message.has_own_id = true;
                        message.id = value.clone().into_owned();
                    }
                    "time" => message.published_at = value.parse().unwrap_or(message.published_at),
                    "datacontenttype" => {
                        message.headers.push(("content-type".to_owned(), value.into_owned()));
                        continue;
                    }
                    _ => {}
                }
                message.headers.push((format!("ce-{}", name.to_ascii_lowercase()), value.into_owned()));
            }
        }
    }
    Ok(message)
}

fn base64(raw: &RawValue) -> Result<Vec<u8>, Undecodable> {
    use base64::Engine as _;
    let decode = |text: Cow<'_, str>| base64::engine::general_purpose::STANDARD.decode(text.as_bytes()).ok();
    Text::read(raw).and_then(decode).ok_or_else(|| wrong("data_base64", raw, "base64"))
}

fn wrong(key: &str, raw: &RawValue, allowed: &str) -> Undecodable {
    Undecodable(format!("{key}: got {}, allowed: {allowed}", raw.get().chars().take(80).collect::<String>()))
}

/// A JSON string, borrowed where it contains no escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Text<'a> {
    fn read(raw: &'a RawValue) -> Option<Cow<'a, str>> {
        serde_json::from_str::<Self>(raw.get()).ok().map(|text| text.0)
    }
}

/// The top level of a JSON object with unparsed values. Names of keys are
/// case-insensitive, as for legacy workers; `null` counts as absent.
#[derive(Default)]
struct Keys<'a> {
    id: Option<&'a RawValue>,
    topic: Option<&'a RawValue>,
    data: Option<&'a RawValue>,
    /// The raw value of `data`, also where it is null.
    data_at: Option<&'a RawValue>,
    timestamp: Option<&'a RawValue>,
    data_base64: Option<&'a RawValue>,
    retry: Option<&'a RawValue>,
    max_retry: Option<&'a RawValue>,
    headers: Option<&'a RawValue>,
    expires_at: Option<&'a RawValue>,
    dedup_key: Option<&'a RawValue>,
    spec_version: Option<&'a RawValue>,
}

impl Keys<'_> {
    /// Whether the object is an envelope: it has at least two of `id`, `topic`
    /// and `data`.
    fn is_envelope(&self) -> bool {
        let keys = [self.id.is_some(), self.topic.is_some(), self.data_at.is_some()];
        keys.into_iter().filter(|present| *present).count() >= 2
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Keys<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(KeysVisitor)
    }
}

struct KeysVisitor;

impl<'de> Visitor<'de> for KeysVisitor {
    type Value = Keys<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys<'de>, A::Error> {
        let mut keys = Keys::default();
        while let Some(Text(mut name)) = map.next_key::<Text<'de>>()? {
            if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
                name = Cow::Owned(name.to_ascii_lowercase());
            }
            let is_data = name == "data";
            let target = match name.as_ref() {
                "id" => &mut keys.id,
                "topic" => &mut keys.topic,
                "data" => &mut keys.data,
                "data_base64" => &mut keys.data_base64,
                "timestamp" => &mut keys.timestamp,
                "retry" => &mut keys.retry,
                "max_retry" => &mut keys.max_retry,
                "headers" => &mut keys.headers,
                "expires_at" => &mut keys.expires_at,
                "dedup_key" => &mut keys.dedup_key,
                "specversion" => &mut keys.spec_version,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            let raw: &'de RawValue = map.next_value()?;
            *target = Some(raw).filter(|raw| raw.get() != "null");
            if is_data {
                keys.data_at = Some(raw);
            }
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests;
