//! What a topic's keys are at some moment.

use crate::queue::keyspace::StreamKind;

/// What the topic's main key is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum TopicKind {
    /// Nothing was published yet.
    #[default]
    Absent,
    Stream,
    /// Plain clients push into it. It stays a list while it is empty.
    List,
    /// Another type, by Redis' name.
    Other(String),
}

/// The result of opening a topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicKeys {
    pub kind: TopicKind,
    pub is_paused: bool,
    /// The existing streams, each with the consumer group.
    pub streams: Vec<StreamKind>,
    /// The missing keys that may become streams.
    pub absent: Vec<StreamKind>,
}

impl TopicKeys {
    /// Whether the stream of messages without a priority exists. Until it does,
    /// a legacy publisher may create it without a notice in the topic's state.
    pub fn has_main(&self) -> bool {
        let main = if self.kind == TopicKind::List { StreamKind::Work } else { StreamKind::Normal };
        self.streams.contains(&main)
    }
}

/// The flags in the topic's state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TopicFlags {
    pub is_paused: bool,
    /// Whether a message of this priority was ever published.
    pub has_high: bool,
    pub has_low: bool,
}
