//! Rejects topics that don't exist. An unused name is most likely a misspelling,
//! so commands report it instead of doing nothing.

use super::Failure;
use crate::queue::{Connection, inspect};
use crate::settings::QueueSettings;
use crate::topic::Topic;

const SUGGESTIONS_MAX: usize = 3;

/// Fails with suggestions if Redis has no key of the topic and no active worker
/// handles it.
pub(super) async fn ensure_topic_exists(
    connection: &Connection,
    settings: &QueueSettings,
    topic: &Topic,
) -> Result<(), Failure> {
    let Some(others) = inspect::others_if_unknown(connection, &settings.prefix, topic).await? else { return Ok(()) };
    let hint = match suggestions(topic, &others).as_slice() {
        [] => "`topics ls` lists all topics".to_owned(),
        names => format!("did you mean {}? `topics ls` lists all topics", names.join(" or ")),
    };
    Err(Failure::Failed(format!("unknown topic {topic}: Redis has no key of it and no worker handles it; {hint}")))
}

fn suggestions<'a>(topic: &Topic, others: &'a [Topic]) -> Vec<&'a str> {
    let name = topic.as_str().to_lowercase();
    let distance_max = (name.len() / 3).max(2);
    let mut similar: Vec<_> = others
        .iter()
        .map(|other| (strsim::levenshtein(&name, &other.as_str().to_lowercase()), other.as_str()))
        .filter(|(distance, other)| *distance <= distance_max || other.starts_with(topic.as_str()))
        .collect();
    similar.sort_unstable();
    similar.into_iter().take(SUGGESTIONS_MAX).map(|(_, other)| other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_similar_topics_are_suggested_first() {
        let topic = |name: &str| Topic::parse(name).unwrap();
        let others = ["email.send", "order.remind", "order.reminder", "order", "push"].map(topic);
        assert_eq!(suggestions(&topic("order.remimder"), &others), ["order.reminder", "order.remind"]);
        assert_eq!(suggestions(&topic("email"), &others), ["email.send"]);
        assert_eq!(suggestions(&topic("PUSH"), &others), ["push"]);
        assert_eq!(suggestions(&topic("payment"), &others), [""; 0]);
    }
}
