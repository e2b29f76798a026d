//! The streams that a topic's messages are taken from.

use super::keys::Keys;
use crate::topic::Topic;
use serde::Serialize;
use std::fmt;

/// One of a topic's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// What asked to be first.
    High,
    /// `mq:<topic>`, where that is a stream.
    Normal,
    /// What came through a list, in the normal order.
    Work,
    Low,
}

impl Source {
    pub const ALL: [Self; 4] = [Self::High, Self::Normal, Self::Work, Self::Low];

    /// How many of ten turns it gets where all have messages that wait.
    pub(super) fn weight(self) -> usize {
        match self {
            Self::High => 6,
            Self::Normal | Self::Work => 3,
            Self::Low => 1,
        }
    }

    /// Its part in tokens and keys; empty for the topic's own key.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "",
            Self::Work => "work",
            Self::Low => "low",
        }
    }

    /// Its name in dead letters: the topic, and the priority where it has one.
    pub fn of(self, topic: &Topic) -> String {
        match self.class() {
            "" => topic.to_string(),
            class => format!("{topic}:{class}"),
        }
    }

    /// An entry of it, in words.
    pub fn at(self, entry: &str) -> String {
        EntryKey { source: self, id: entry.to_owned() }.to_string()
    }

    pub(super) fn key(self, keys: &Keys) -> &str {
        match self {
            Self::High => &keys.high,
            Self::Normal => &keys.stream,
            Self::Work => &keys.work,
            Self::Low => &keys.low,
        }
    }
}

/// Where an entry is; an id alone is unique only within its stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EntryKey {
    pub source: Source,
    /// `<ms>-<sequence>`
    pub id: String,
}

impl fmt::Display for EntryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source.class() {
            "" => f.write_str(&self.id),
            class => write!(f, "{class}:{}", self.id),
        }
    }
}
