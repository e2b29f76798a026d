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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Kind {
    /// Nobody has published yet.
    #[default]
    Absent,
    Stream,
    /// Filled by plain clients; so it is called while it is drained, too.
    List,
    /// Anything else, by Redis' name for it.
    Other(String),
}

/// What a look at the topic's keys found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opened {
    pub kind: Kind,
    pub is_paused: bool,
    /// The streams that stand and have the group.
    pub sources: Vec<Source>,
    /// The keys where there is nothing yet, and any may become a stream.
    pub absent: Vec<Source>,
}

impl Opened {
    /// Whether what most publish to is among the sources. Until it is, somebody
    /// may write to it at any time who knows nothing of the others.
    pub fn has_main(&self) -> bool {
        let main = if self.kind == Kind::List { Source::Work } else { Source::Normal };
        self.sources.contains(&main)
    }
}

#[derive(Clone)]
pub struct TopicQueue {
    connection: Connection,
    topic: Topic,
    keys: Keys,
    prefix: String,
    group: String,
    me: String,
    /// Which of its streams other groups read too, by their place in
    /// [`Source::ALL`]: there settled entries are not deleted.
    has_others: Arc<[AtomicBool; Source::ALL.len()]>,
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
            has_others: Arc::default(),
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

    /// Counts what was removed where no script reaches the state. It is gone
    /// by then, so that memory is full or Redis away is no failure of the removal.
    pub(super) async fn count_apart(&self, counter: &str, count: impl redis::ToSingleRedisArg) {
        let mut command = redis::cmd("HINCRBY");
        command.arg(&self.keys.state).arg(counter).arg(count);
        let _ = command.query_async::<()>(&mut self.shared()).await;
    }

    /// Whether settled entries may be deleted, in the words of scripts.
    pub(super) fn deletes(&self, source: Source) -> u8 {
        u8::from(!self.has_others[source as usize].load(Ordering::Relaxed))
    }

    /// So many other groups read this stream now.
    pub(super) fn set_others(&self, source: Source, others: usize) {
        let is_news = self.has_others[source as usize].swap(others > 0, Ordering::Relaxed) != (others > 0);
        if is_news && others > 0 {
            let stream = source.of(&self.topic);
            tracing::warn!(topic = %self.topic, stream, others, "other groups read this stream: entries are acknowledged and not deleted");
        }
    }

    /// Looks what the topic's keys are; the group stands afterwards in each
    /// that is a stream.
    pub async fn open(&self) -> Result<Opened, QueueError> {
        let keys = &self.keys;
        let mut script = scripts::OPEN.prepare_invoke();
        script.key(&[&keys.stream, &keys.state, &keys.high, &keys.work, &keys.low][..]).arg(&self.group);
        type Answers = (String, bool, Vec<i8>, Vec<usize>);
        let (kind, is_paused, looks, others): Answers = script.invoke_async(&mut self.shared()).await?;
        for (source, others) in Source::ALL.into_iter().zip(others) {
            self.set_others(source, others);
        }
        let kind = match kind.as_str() {
            "none" => Kind::Absent,
            "stream" => Kind::Stream,
            "list" => Kind::List,
            _ => Kind::Other(kind),
        };
        let that =
            |look| Source::ALL.into_iter().zip(&looks).filter(move |(_, one)| **one == look).map(|(source, _)| source);
        Ok(Opened { kind, is_paused, sources: that(1).collect(), absent: that(0).collect() })
    }

    /// Ends a reader's blocking read now. It then finds nothing.
    pub async fn unblock(&self, client_id: i64) -> Result<(), QueueError> {
        self.connection.unblock(client_id).await
    }
}
