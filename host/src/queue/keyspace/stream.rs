//! The streams that a topic's messages are delivered from, and their entries.

use super::keys::Keys;
use crate::topic::Topic;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamKind {
    /// Messages of high priority.
    High,
    /// `mq:<topic>`, where that is a stream.
    Normal,
    /// Messages that came through a list, with normal priority.
    Work,
    Low,
}

impl StreamKind {
    pub const ALL: [Self; 4] = [Self::High, Self::Normal, Self::Work, Self::Low];

    /// Its share of ten turns while all streams have waiting messages.
    pub(crate) fn weight(self) -> usize {
        match self {
            Self::High => 6,
            Self::Normal | Self::Work => 3,
            Self::Low => 1,
        }
    }

    /// Its name within keys and tokens; empty for the main key.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "",
            Self::Work => "work",
            Self::Low => "low",
        }
    }

    /// Its name in dead letters: the topic, and the class where it has one.
    pub fn name_in(self, topic: &Topic) -> String {
        match self.class() {
            "" => topic.to_string(),
            class => format!("{topic}:{class}"),
        }
    }

    /// The text of an entry id in this stream.
    pub fn at(self, entry: &str) -> String {
        EntryId { stream: self, id: entry.to_owned() }.to_string()
    }

    pub(crate) fn key(self, keys: &Keys) -> &str {
        match self {
            Self::High => &keys.high,
            Self::Normal => &keys.main,
            Self::Work => &keys.work,
            Self::Low => &keys.low,
        }
    }
}

/// Identifies an entry of a topic; Redis' id alone is unique only within its stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EntryId {
    pub stream: StreamKind,
    /// `<ms>-<sequence>`
    pub id: String,
}

impl EntryId {
    /// Its place in its stream.
    pub(crate) fn order(&self) -> (u64, u64) {
        position(&self.id)
    }
}

/// The parts of an id as numbers.
pub(crate) fn position(id: &str) -> (u64, u64) {
    let (ms, sequence) = id.split_once('-').unwrap_or((id, ""));
    (ms.parse().unwrap_or(0), sequence.parse().unwrap_or(0))
}

impl FromStr for EntryId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (class, id) = text.rsplit_once(':').unwrap_or(("", text));
        let is_number =
            |part: &str| part.len() <= 20 && !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let is_id = id.split_once('-').is_some_and(|(ms, sequence)| is_number(ms) && is_number(sequence));
        let stream = StreamKind::ALL.into_iter().find(|stream| stream.class() == class).filter(|_| is_id);
        Ok(Self { stream: stream.ok_or(())?, id: id.to_owned() })
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stream.class() {
            "" => f.write_str(&self.id),
            class => write!(f, "{class}:{}", self.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_an_entry_id_names_its_stream() {
        for stream in StreamKind::ALL {
            let entry = EntryId { stream, id: "1795419923585-0".to_owned() };
            assert_eq!(entry.to_string().parse(), Ok(entry));
        }
        for text in
            ["", "1", "1-", "-1", "1-a", "middle:1-1", ":", "1-1 ", "1-123456789012345678901", "+1-1", "a:low:1-1"]
        {
            assert_eq!(text.parse::<EntryId>(), Err(()), "{text}");
        }
    }
}
