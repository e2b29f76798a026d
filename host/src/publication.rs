//! Messages to be published: the draft of a publisher or handler, and the
//! envelope that is written to Redis. Legacy workers read it too, so it always
//! has their six keys.

use crate::message::{HOPS_HEADER, Message, rfc3339};
use crate::topic::Topic;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::time::Duration;

/// Legacy workers don't retry a message without this.
const MAX_RETRY: u32 = 3;

/// A longer delay is most likely a mistake.
pub const DELAY_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

#[derive(Debug, Clone, PartialEq)]
pub struct Publication {
    pub id: String,
    pub topic: Topic,
    /// Zero publishes without a delay.
    pub delay: Duration,
    pub priority: Priority,
    /// The envelope, ready for the field `message`.
    pub body: Vec<u8>,
}

/// A message before it is encoded.
pub struct Draft<'a> {
    pub id: String,
    pub topic: &'a Topic,
    /// JSON text, which the envelope contains verbatim.
    pub data: &'a str,
    pub headers: &'a [(String, String)],
    pub priority: Priority,
    pub delay: Duration,
    /// The deduplication key, where it is not the id.
    pub dedup_key: Option<&'a str>,
    /// Chain depth: the number of messages, each published without delay by the
    /// previous one's handler, that led to this one.
    pub hops: u32,
    /// The time from which the message is not run any more.
    pub expires_at: Option<Timestamp>,
}

impl<'a> Draft<'a> {
    /// A message with data only and defaults otherwise.
    pub fn new(id: String, topic: &'a Topic, data: &'a str) -> Self {
        let (priority, delay) = (Priority::Normal, Duration::ZERO);
        Self { id, topic, data, headers: &[], priority, delay, dedup_key: None, hops: 0, expires_at: None }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    High,
    #[default]
    Normal,
    Low,
}

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum InvalidDraft {
    #[error("data is not JSON: {0}")]
    Data(String),
    #[error("the id must have 1 to 256 bytes")]
    Id,
    #[error("header \"{0}\": names must be unique and consist of a-z 0-9 . _ -, and only the host sets worker-*")]
    Header(String),
    #[error("the delay must be at most 366 days")]
    Delay,
    #[error("the deduplication key must have 1 to 256 bytes")]
    DedupKey,
}

#[derive(Serialize)]
struct Envelope<'a> {
    id: &'a str,
    topic: &'a str,
    data: &'a RawValue,
    /// Set for data that is not JSON; `data` is null then.
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
    timestamp: String,
    retry: u32,
    max_retry: u32,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<Priority>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dedup_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
}

impl Draft<'_> {
    /// Validates the draft and encodes its envelope.
    pub fn encode(self, now: Timestamp) -> Result<Publication, InvalidDraft> {
        let data: &RawValue = serde_json::from_str(self.data).map_err(|error| InvalidDraft::Data(error.to_string()))?;
        if !(1..=256).contains(&self.id.len()) {
            return Err(InvalidDraft::Id);
        }
        if self.delay > DELAY_MAX {
            return Err(InvalidDraft::Delay);
        }
        if self.dedup_key.is_some_and(|key| !(1..=256).contains(&key.len())) {
            return Err(InvalidDraft::DedupKey);
        }
        let mut headers = BTreeMap::new();
        for (name, value) in self.headers {
            let legal = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
            let is_legal = !name.is_empty() && name.bytes().all(legal) && !name.starts_with("worker-");
            if !is_legal || headers.insert(name.as_str(), value.as_str()).is_some() {
                return Err(InvalidDraft::Header(name.clone()));
            }
        }
        let hops = self.hops.to_string();
        if self.hops > 0 {
            headers.insert(HOPS_HEADER, hops.as_str());
        }
        let due = now.checked_add(self.delay).map_err(|_| InvalidDraft::Delay)?;
        let envelope = Envelope {
            id: &self.id,
            topic: self.topic.as_str(),
            data,
            data_base64: None,
            timestamp: rfc3339(due),
            retry: 0,
            max_retry: MAX_RETRY,
            headers,
            priority: Some(self.priority).filter(|priority| *priority != Priority::Normal),
            dedup_key: self.dedup_key,
            expires_at: self.expires_at.map(rfc3339),
        };
        let body = serde_json::to_vec(&envelope).map_err(|error| InvalidDraft::Data(error.to_string()))?;
        Ok(Publication { topic: self.topic.clone(), delay: self.delay, priority: self.priority, body, id: self.id })
    }
}

/// The envelope of a received message of any format, for commands that read it
/// as text. The data is verbatim, or in base64 where it is not JSON.
pub fn envelope(message: &Message, max_attempts: u32) -> Vec<u8> {
    let json = serde_json::from_slice::<&RawValue>(&message.data).ok();
    let envelope = Envelope {
        id: &message.id,
        topic: message.topic.as_str(),
        data: json.unwrap_or(RawValue::NULL),
        data_base64: json.is_none().then(|| BASE64.encode(&message.data)),
        timestamp: rfc3339(message.published_at),
        retry: message.attempt - 1,
        max_retry: max_attempts,
        headers: message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        priority: None,
        dedup_key: message.dedup_key.as_deref(),
        expires_at: message.expires_at.map(rfc3339),
    };
    // Strings, numbers and valid JSON can always be serialised.
    serde_json::to_vec(&envelope).unwrap_or_default()
}

impl Publication {
    /// The priority as keys and scripts name it; empty for the normal one.
    pub fn class(&self) -> &'static str {
        match self.priority {
            Priority::High => "high",
            Priority::Normal => "",
            Priority::Low => "low",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(data: &str, headers: &[(&str, &str)], delay: Duration) -> Result<String, InvalidDraft> {
        let headers: Vec<_> = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let topic = Topic::parse("email.send").unwrap();
        let draft = Draft { headers: &headers, delay, ..Draft::new("m-1".to_owned(), &topic, data) };
        let now = "2026-11-23T07:45:23.585Z".parse().unwrap();
        draft.encode(now).map(|publication| String::from_utf8(publication.body).unwrap())
    }

    #[test]
    fn the_envelope_has_the_legacy_format() {
        assert_eq!(
            encode(r#"{"n": 9007199254740993}"#, &[], Duration::ZERO).unwrap(),
            r#"{"id":"m-1","topic":"email.send","data":{"n": 9007199254740993},"timestamp":"2026-11-23T07:45:23.585Z","retry":0,"max_retry":3}"#
        );
    }

    #[test]
    fn a_message_of_any_format_becomes_an_envelope() {
        let topic = Topic::parse("email.send").unwrap();
        let read = |body: &str, max_attempts| {
            let fields = vec![(b"message".to_vec(), body.as_bytes().to_vec()), (b"gw-attempt".to_vec(), b"2".to_vec())];
            let message = crate::message::read(&topic, "1795419923585-0", &fields).unwrap();
            String::from_utf8(envelope(&message, max_attempts)).unwrap()
        };
        assert_eq!(
            read(r#"{"id":"m-1","topic":"x","data":{"n": 9007199254740993},"headers":{"A":"b"}}"#, 5),
            r#"{"id":"m-1","topic":"email.send","data":{"n": 9007199254740993},"timestamp":"2026-11-23T07:45:23.585Z","retry":1,"max_retry":5,"headers":{"a":"b"}}"#
        );
        assert_eq!(
            read(" [1,  2]", 3),
            r#"{"id":"1795419923585-0","topic":"email.send","data":[1,  2],"timestamp":"2026-11-23T07:45:23.585Z","retry":1,"max_retry":3}"#
        );
        let binary = read(r#"{"specversion":"1.0","id":"e","source":"s","type":"t","data_base64":"AAH/"}"#, 3);
        assert!(binary.contains(r#""data":null,"data_base64":"AAH/","timestamp""#), "{binary}");
    }

    #[test]
    fn ids_and_deduplication_keys_have_size_limits() {
        let topic = Topic::parse("t").unwrap();
        let encoded = |id: usize, key: usize| {
            let (id, key) = ("x".repeat(id), "x".repeat(key));
            let draft = Draft { dedup_key: Some(&key), ..Draft::new(id, &topic, "1") };
            draft.encode(Timestamp::UNIX_EPOCH).map(drop)
        };
        for (id, key, expected) in [
            (1, 1, Ok(())),
            (256, 256, Ok(())),
            (0, 1, Err(InvalidDraft::Id)),
            (257, 1, Err(InvalidDraft::Id)),
            (1, 0, Err(InvalidDraft::DedupKey)),
            (1, 257, Err(InvalidDraft::DedupKey)),
        ] {
            assert_eq!(encoded(id, key), expected, "{id} {key}");
        }
    }

    #[test]
    fn a_delayed_message_contains_its_due_time() {
        assert!(encode("1", &[], Duration::from_secs(60)).unwrap().contains("2026-11-23T07:46:23.585Z"));
        assert!(encode("1", &[], DELAY_MAX).is_ok());
        assert_eq!(encode("1", &[], DELAY_MAX + Duration::from_millis(1)), Err(InvalidDraft::Delay));
    }

    #[test]
    fn headers_are_optional_and_names_of_the_host_are_rejected() {
        assert!(
            encode("1", &[("traceparent", "00")], Duration::ZERO)
                .unwrap()
                .ends_with(r#""headers":{"traceparent":"00"}}"#)
        );
        for bad in ["worker-attempt", "", "Upper", "a b"] {
            assert_eq!(encode("1", &[(bad, "x")], Duration::ZERO), Err(InvalidDraft::Header(bad.to_owned())));
        }
        assert!(encode("1", &[("a", "1"), ("a", "2")], Duration::ZERO).is_err());
    }

    #[test]
    fn data_that_is_not_json_is_rejected() {
        for bad in ["", "{", "{} {}", "nil"] {
            assert!(matches!(encode(bad, &[], Duration::ZERO), Err(InvalidDraft::Data(_))), "{bad}");
        }
    }
}
