//! Whether a topic that was typed is one. A name that nobody has used yet is
//! rather a slip than a topic, so commands say so instead of doing nothing.

use super::Failure;
use crate::queue::{Connection, inspect};
use crate::settings::QueueSettings;
use crate::topic::Topic;

/// At most so many names are proposed.
const PROPOSED: usize = 3;

/// Fails where Redis has no key of the topic and no worker seen lately handles
/// it, and names those that are most like it.
pub(super) async fn known(connection: &Connection, settings: &QueueSettings, topic: &Topic) -> Result<(), Failure> {
    let Some(others) = inspect::others_if_unknown(connection, &settings.prefix, topic).await? else { return Ok(()) };
    let like = most_like(topic, &others);
    let which = match like.as_slice() {
        [] => "`topics ls` lists those that there are".to_owned(),
        some => format!("did you mean {}? `topics ls` lists all", some.join(" or ")),
    };
    Err(Failure::Failed(format!("no topic {topic}: Redis has no key of it and no worker handles it; {which}")))
}

fn most_like<'a>(topic: &Topic, others: &'a [Topic]) -> Vec<&'a str> {
    let typed = topic.as_str().to_lowercase();
    let far = (typed.len() / 3).max(2);
    let mut near: Vec<_> = others
        .iter()
        .map(|other| (strsim::levenshtein(&typed, &other.as_str().to_lowercase()), other.as_str()))
        .filter(|(distance, other)| *distance <= far || other.starts_with(topic.as_str()))
        .collect();
    near.sort_unstable();
    near.into_iter().take(PROPOSED).map(|(_, other)| other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_are_proposed_nearest_first() {
        let topic = |name: &str| Topic::parse(name).unwrap();
        let others = ["email.send", "order.remind", "order.reminder", "order", "push"].map(topic);
        assert_eq!(most_like(&topic("order.remimder"), &others), ["order.reminder", "order.remind"]);
        assert_eq!(most_like(&topic("email"), &others), ["email.send"]);
        assert_eq!(most_like(&topic("PUSH"), &others), ["push"]);
        assert_eq!(most_like(&topic("payment"), &others), [""; 0]);
    }
}
