//! One consumer's handle of a topic: its names, its keys and the connection.

use crate::events;
use crate::queue::error::QueueError;
use crate::queue::keyspace::{self, Keys, StreamKind};
use crate::queue::server::{Connection, Shared};
use crate::topic::Topic;
use jiff::Timestamp;
use redis::Cmd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Cheap to clone.
#[derive(Clone)]
pub struct TopicHandle(Arc<Inner>);

struct Inner {
    connection: Connection,
    topic: Topic,
    keys: Keys,
    prefix: String,
    group: String,
    consumer: String,
    /// Which streams other groups read too, in the order of [`StreamKind::ALL`]:
    /// there settled entries are not deleted.
    has_other_groups: [AtomicBool; StreamKind::ALL.len()],
}

impl TopicHandle {
    /// `group_pattern` may contain `{topic}`.
    pub fn new(connection: &Connection, prefix: &str, group_pattern: &str, consumer_name: &str, topic: &Topic) -> Self {
        Self(Arc::new(Inner {
            connection: connection.clone(),
            keys: Keys::new(prefix, topic),
            topic: topic.clone(),
            prefix: prefix.to_owned(),
            group: keyspace::group(group_pattern, topic),
            consumer: consumer_name.to_owned(),
            has_other_groups: Default::default(),
        }))
    }

    pub fn topic(&self) -> &Topic {
        &self.0.topic
    }

    /// Whether it is known, and in the log, that Redis does not answer or takes no writes.
    pub fn is_redis_away(&self) -> bool {
        self.0.connection.is_away()
    }

    /// A command has failed: whether Redis serves is to be found out now.
    pub fn suspect_redis(&self) {
        self.0.connection.suspect();
    }

    pub fn group(&self) -> &str {
        &self.0.group
    }

    pub fn consumer(&self) -> &str {
        &self.0.consumer
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.0.keys
    }

    pub(crate) fn keys_of(&self, topic: &Topic) -> Keys {
        Keys::new(&self.0.prefix, topic)
    }

    /// The key of the delayed messages of legacy publishers, for messages.
    pub fn legacy_delayed_key(&self) -> &str {
        &self.0.keys.legacy_delayed
    }

    /// The key of one of this topic's streams.
    pub(crate) fn key(&self, stream: StreamKind) -> &str {
        stream.key(&self.0.keys)
    }

    /// The key of the registry of topics.
    pub(crate) fn registry_key(&self) -> String {
        keyspace::topics(&self.0.prefix)
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.0.connection
    }

    pub(crate) fn shared(&self) -> Shared {
        self.0.connection.shared()
    }

    /// Whether a script of this topic may write to that one.
    pub(crate) fn is_same_slot(&self, topic: &Topic) -> bool {
        self.0.connection.is_same_slot(&self.0.keys.main, &self.keys_of(topic).main)
    }

    /// Redis' time, which decides about messages.
    pub fn now(&self) -> Timestamp {
        self.0.connection.now()
    }

    /// Drops connections to a server that is no longer the master, and connects. To be
    /// called when reading begins.
    pub async fn follow_master(&self) -> Result<(), QueueError> {
        self.0.connection.follow_master().await
    }

    /// To be called when a connection begins, before messages are taken.
    pub async fn refresh_clock(&self) -> Result<(), QueueError> {
        self.0.connection.refresh_clock().await
    }

    /// The command that reads the topic's flags; `reply::flags` parses its reply.
    pub(crate) fn flags_command(&self) -> Cmd {
        let mut command = redis::cmd("HMGET");
        command.arg(&self.0.keys.state).arg("paused").arg("high").arg("low");
        command
    }

    /// Counts what was removed where its script can't reach the state. The
    /// removal has succeeded, so an error of this command is ignored.
    pub(crate) async fn add_to_counter(&self, counter: &str, count: impl redis::ToSingleRedisArg) {
        let mut command = redis::cmd("HINCRBY");
        command.arg(&self.0.keys.state).arg(counter).arg(count);
        let _ = command.query_async::<()>(&mut self.shared()).await;
    }

    /// Whether settled entries are deleted, as an argument of scripts.
    pub(crate) fn deletes_settled(&self, stream: StreamKind) -> u8 {
        u8::from(!self.0.has_other_groups[stream as usize].load(Ordering::Relaxed))
    }

    /// How many other groups read this stream now.
    pub(crate) fn set_other_groups(&self, stream: StreamKind, count: usize) {
        let is_changed = self.0.has_other_groups[stream as usize].swap(count > 0, Ordering::Relaxed) != (count > 0);
        if is_changed && count > 0 {
            let (topic, stream, others) = (self.topic(), stream.name_in(self.topic()), count);
            tracing::warn!(%topic, stream, others, "{}", events::OTHER_GROUPS);
        }
    }
}
