//! Finds the topics that have messages, for a worker that serves topics which
//! no plugin names.

use super::error::QueueError;
use super::keyspace::{Family, KeyName, Keys};
use super::server::{Connection, KeyPages};
use crate::topic::Topic;
use std::collections::BTreeSet;

/// The keys besides the main key whose messages are to be run.
const MESSAGE_KEYS: [&str; 6] = ["in", "work", "high", "low", "delayed", "outbox"];

pub struct TopicDiscovery {
    connection: Connection,
    prefix: String,
}

impl TopicDiscovery {
    pub fn new(connection: &Connection, prefix: &str) -> Self {
        Self { connection: connection.clone(), prefix: prefix.to_owned() }
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
