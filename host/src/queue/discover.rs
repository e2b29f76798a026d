//! Which topics have, or may soon have, messages to be taken: for a worker
//! that takes those which nobody named.

use super::QueueError;
use super::connection::Connection;
use super::keys::Keys;
use super::scan::Pages;
use crate::topic::Topic;
use std::collections::BTreeSet;

/// What holds messages that are to be run, beside the topic's own key. The
/// others hold what has been, or what is known of it.
const FAMILIES: [&str; 6] = ["in", "work", "high", "low", "later", "out"];

/// The topics with keys for messages, on whatever server they are.
pub async fn topics_with_messages(connection: &Connection, prefix: &str) -> Result<BTreeSet<Topic>, QueueError> {
    let (mut found, mut pages) = (BTreeSet::new(), Pages::of(connection, prefix).await?);
    while let Some((mut server, keys)) = pages.next().await? {
        found.extend(keys.iter().filter_map(|key| waiting_in(prefix, key)));
        let own: Vec<_> = keys.iter().filter_map(|key| Some((key, own_key_of(prefix, key)?))).collect();
        if own.is_empty() {
            continue;
        }
        let mut pipe = redis::pipe();
        for (key, _) in &own {
            pipe.cmd("TYPE").arg(key);
        }
        let kinds: Vec<String> = pipe.query_async(&mut server).await?;
        let holds = |kind: &String| matches!(kind.as_str(), "stream" | "list");
        found.extend(own.into_iter().zip(&kinds).filter(|(_, kind)| holds(kind)).map(|((_, topic), _)| topic));
    }
    Ok(found)
}

/// The topic whose own key this is, which may be of any type.
fn own_key_of(prefix: &str, key: &str) -> Option<Topic> {
    Topic::parse(key.strip_prefix(prefix)?).ok()
}

/// The topic that has messages in this key beside its own.
fn waiting_in(prefix: &str, key: &str) -> Option<Topic> {
    let is_ours = key.starts_with('{') && key.split_once("}:").is_some_and(|(_, family)| FAMILIES.contains(&family));
    let is_legacy = key.strip_prefix(prefix).is_some_and(|rest| rest.starts_with("delay:"));
    if is_ours || is_legacy { Keys::topic_of(prefix, key) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_with_messages_are_told_from_those_with_what_has_been() {
        for (key, topic) in [
            ("{mq:a}:high", Some("a")),
            ("{mq:a}:later", Some("a")),
            ("{mq:a}:in", Some("a")),
            ("{mq:a}:later:body", None),
            ("{mq:a}:state", None),
            ("{mq:a}:dead", None),
            ("{mq:a}:cron", None),
            ("{mq:a}:done:0123", None),
            ("mq:delay:a", Some("a")),
            ("mq:dead-letter:a", None),
            ("mq::workers", None),
            ("{mq::kv:x}:in", None),
            ("{other:a}:in", None),
        ] {
            assert_eq!(waiting_in("mq:", key).as_ref().map(Topic::as_str), topic, "{key}");
        }
        for (key, topic) in [("mq:a", Some("a")), ("mq:delay:a", None), ("mq::workers", None), ("x:a", None)] {
            assert_eq!(own_key_of("mq:", key).as_ref().map(Topic::as_str), topic, "{key}");
        }
    }
}
