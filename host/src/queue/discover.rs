//! Finds the topics that have messages, for a worker that serves topics which
//! no plugin names.

use super::error::QueueError;
use super::keyspace::{Family, KeyName, Keys};
use super::registry::registered_since;
use super::server::{Connection, KeyPages};
use crate::topic::Topic;
use redis::RedisResult;
use std::collections::BTreeSet;

/// By how much the clocks of two publishers may differ.
const OVERLAP_MS: i64 = 10_000;

/// The keys besides the main key whose messages are to be run.
const MESSAGE_KEYS: [&str; 6] = ["in", "work", "high", "low", "delayed", "outbox"];

pub struct TopicDiscovery {
    connection: Connection,
    prefix: String,
    /// When the last topic that is known from the registry was registered, in ms.
    registered_ms: i64,
}

impl TopicDiscovery {
    pub fn new(connection: &Connection, prefix: &str) -> Self {
        Self { connection: connection.clone(), prefix: prefix.to_owned(), registered_ms: 0 }
    }

    /// The topics that were registered since the last call. Publishers register a topic
    /// before they make its key, and their clocks may differ a little, so some come more
    /// than once.
    pub async fn newly_registered(&mut self) -> Result<Vec<Topic>, QueueError> {
        let since = self.registered_ms.saturating_sub(OVERLAP_MS);
        let (topics, last) = registered_since(&self.connection, &self.prefix, since).await?;
        self.registered_ms = last;
        let mut found = Vec::new();
        for topic in topics {
            if has_keys(&self.connection, &self.prefix, &topic).await? {
                found.push(topic);
            }
        }
        Ok(found)
    }

    /// Those of the topics that have messages to be run, now or later.
    pub async fn with_work(&self, topics: &BTreeSet<Topic>) -> Result<BTreeSet<Topic>, QueueError> {
        let (mut found, mut connection) = (BTreeSet::new(), self.connection.shared());
        for topic in topics {
            let keys = Keys::new(&self.prefix, topic);
            let mut pipe = redis::pipe();
            for key in [&keys.main, &keys.high, &keys.low, &keys.work] {
                pipe.cmd("XLEN").arg(key);
            }
            pipe.cmd("EXISTS").arg(&keys.input).arg(&keys.delayed).arg(&keys.outbox).ignore_errors();
            let lengths: Vec<RedisResult<u64>> = pipe.query_async(&mut connection).await?;
            if lengths.into_iter().any(|length| length.is_ok_and(|length| length > 0)) || self.is_list(&keys).await? {
                found.insert(topic.clone());
            }
        }
        Ok(found)
    }

    async fn is_list(&self, keys: &Keys) -> Result<bool, QueueError> {
        let kind: String = redis::cmd("TYPE").arg(&keys.main).query_async(&mut self.connection.shared()).await?;
        Ok(kind == "list")
    }

    /// The topics with keys for messages, on all servers.
    pub async fn topics_with_messages(&mut self) -> Result<BTreeSet<Topic>, QueueError> {
        let (mut found, mut pages) = (BTreeSet::new(), KeyPages::new(&self.connection, &self.prefix).await?);
        while let Some((mut server, keys)) = pages.next().await? {
            let mut main_keys = Vec::new();
            for key in &keys {
                match KeyName::parse(&self.prefix, key) {
                    KeyName::Topic(topic, Family::Main) => main_keys.push((key, topic)),
                    KeyName::Topic(topic, family) if has_messages(family) => drop(found.insert(topic)),
                    _ => {}
                }
            }
            if main_keys.is_empty() {
                continue;
            }
            let mut pipe = redis::pipe();
            for (key, _) in &main_keys {
                pipe.cmd("TYPE").arg(key);
            }
            let kinds: Vec<String> = pipe.query_async(&mut server).await?;
            let is_queue = |kind: &String| matches!(kind.as_str(), "stream" | "list");
            found.extend(
                main_keys.into_iter().zip(&kinds).filter(|(_, kind)| is_queue(kind)).map(|((_, topic), _)| topic),
            );
        }
        Ok(found)
    }
}

fn has_messages(family: Family<'_>) -> bool {
    match family {
        Family::Main | Family::LegacyDelayed => true,
        Family::Suffix(suffix) => MESSAGE_KEYS.contains(&suffix),
        Family::LegacyDead => false,
    }
}

/// Whether anything was ever published to the topic and not purged since.
pub async fn has_keys(connection: &Connection, prefix: &str, topic: &Topic) -> Result<bool, QueueError> {
    let keys = Keys::new(prefix, topic);
    let mut command = redis::cmd("EXISTS");
    for key in keys.for_publish().into_iter().filter(|key| *key != keys.state) {
        command.arg(key);
    }
    let found: u64 = command.query_async(&mut connection.shared()).await?;
    Ok(found > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_messages_differ_from_bookkeeping_keys() {
        for (key, expected) in [
            ("{mq:a}:high", true),
            ("{mq:a}:delayed", true),
            ("{mq:a}:in", true),
            ("mq:delay:a", true),
            ("mq:a", true),
            ("{mq:a}:delayed:body", false),
            ("{mq:a}:state", false),
            ("{mq:a}:dead", false),
            ("{mq:a}:cron", false),
            ("{mq:a}:dedup:0123", false),
            ("mq:dead-letter:a", false),
        ] {
            let KeyName::Topic(topic, family) = KeyName::parse("mq:", key.as_bytes()) else { panic!("{key}") };
            assert_eq!((topic.as_str(), has_messages(family)), ("a", expected), "{key}");
        }
    }
}
