//! One topic's queue, seen by one worker. What is done with it has files of
//! its own: reading, leases, settling, time, publishing.

use super::QueueError;
use super::connection::{Connection, Shared};
use super::keys::{self, Keys};
use super::scripts;
use super::source::Source;
use crate::topic::Topic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the topic's key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Nobody has published yet.
    Absent,
    Stream,
    /// Filled by plain clients; so it is called while it is drained, too.
    List,
    /// Anything else, by Redis' name for it.
    Other(String),
}

/// What a look at the topic's keys found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    pub kind: Kind,
    pub is_paused: bool,
    /// The streams that stand and have the group.
    pub sources: Vec<Source>,
}

#[derive(Clone)]
pub struct TopicQueue {
    connection: Connection,
    topic: Topic,
    keys: Keys,
    prefix: String,
    group: String,
    me: String,
    /// Whether settled entries may be deleted: not where others read them too.
    deletes: Arc<AtomicBool>,
}

impl TopicQueue {
    /// `group` may contain `{topic}`; `me` is this process's consumer name.
    pub fn new(connection: &Connection, prefix: &str, group: &str, me: &str, topic: &Topic) -> Self {
        Self {
            connection: connection.clone(),
            keys: Keys::new(prefix, topic),
            topic: topic.clone(),
            prefix: prefix.to_owned(),
            group: keys::group(group, topic),
            me: me.to_owned(),
            deletes: Arc::new(AtomicBool::new(true)),
        }
    }

    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    pub fn group(&self) -> &str {
        &self.group
    }

    pub(super) fn me(&self) -> &str {
        &self.me
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(super) fn keys_of(&self, topic: &Topic) -> Keys {
        Keys::new(&self.prefix, topic)
    }

    /// The same worker's view of another topic.
    pub(super) fn other(&self, topic: &Topic) -> Self {
        Self { topic: topic.clone(), keys: self.keys_of(topic), ..self.clone() }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn shared(&self) -> Shared {
        self.connection.shared()
    }

    /// Whether a script of this topic may write to that one.
    pub(super) fn reaches(&self, topic: &Topic) -> bool {
        self.connection.share_slot(&self.keys.stream, &self.keys_of(topic).stream)
    }

    pub(super) fn deletes(&self) -> u8 {
        u8::from(self.deletes.load(Ordering::Relaxed))
    }

    /// Others read the stream too, or no longer do. Returns whether that is new.
    pub(super) fn set_deletes(&self, deletes: bool) -> bool {
        self.deletes.swap(deletes, Ordering::Relaxed) != deletes
    }

    /// Looks what the topic's keys are; the group stands afterwards in each
    /// that is a stream.
    pub async fn open(&self) -> Result<Opened, QueueError> {
        let keys = &self.keys;
        let mut script = scripts::OPEN.prepare_invoke();
        script.key(&[&keys.stream, &keys.state, &keys.high, &keys.work, &keys.low][..]).arg(&self.group);
        let (kind, is_paused, readable): (String, bool, Vec<bool>) = script.invoke_async(&mut self.shared()).await?;
        let kind = match kind.as_str() {
            "none" => Kind::Absent,
            "stream" => Kind::Stream,
            "list" => Kind::List,
            _ => Kind::Other(kind),
        };
        let sources = Source::ALL.into_iter().zip(readable).filter(|(_, readable)| *readable);
        Ok(Opened { kind, is_paused, sources: sources.map(|(source, _)| source).collect() })
    }

    /// Ends a reader's blocking read now. It then finds nothing.
    pub async fn unblock(&self, client_id: i64) -> Result<(), QueueError> {
        self.connection.unblock(client_id).await
    }
}
