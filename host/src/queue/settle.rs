//! Puts verdicts into effect, many at a time: what is simply done shares one
//! acknowledgement, what moves shares one script.

use super::keys::Keys;
use super::scripts;
use super::topic_queue::TopicQueue;
use super::{QueueError, Taken};
use crate::message::Fields;
use crate::publication::Publication;
use redis::ScriptInvocation;
use std::time::Duration;

/// What is to happen to one taken message. `set` are fields that the entry
/// gains, or has anew, where it goes.
#[derive(Debug, Clone, PartialEq)]
pub enum Settlement {
    /// `or_later` is what [`Settlement::Later`] would set.
    Done {
        entry_id: String,
        deliveries: u32,
        publications: Vec<Publication>,
        or_later: Fields,
    },
    Later {
        entry_id: String,
        deliveries: u32,
        after: Duration,
        set: Fields,
    },
    Dead {
        entry_id: String,
        deliveries: u32,
        set: Fields,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    Ok,
    /// It was settled before, or is no longer ours: nothing was changed.
    Gone,
    /// Nothing was changed; another time it may work.
    Failed(String),
}

impl Settlement {
    pub fn entry_id(&self) -> &str {
        match self {
            Self::Done { entry_id, .. } | Self::Later { entry_id, .. } | Self::Dead { entry_id, .. } => entry_id,
        }
    }

    /// What to try next after this error. A run whose follow-ups find a key of
    /// another type is to be run again: its message waits meanwhile where
    /// people can see it, and not in this process.
    pub fn or_later(self, error: &str, after: Duration) -> Self {
        match self {
            Self::Done { entry_id, deliveries, or_later, .. } if error.contains("WRONGTYPE") => {
                Self::Later { entry_id, deliveries, after, set: or_later }
            }
            other => other,
        }
    }

    fn is_plain(&self) -> bool {
        matches!(self, Self::Done { publications, .. } if publications.is_empty())
    }
}

impl TopicQueue {
    /// Settles a batch; the results are in its order. On an error some may have
    /// been settled and some not: send the same batch again.
    pub async fn settle(&self, batch: &[Settlement]) -> Result<Vec<Settled>, QueueError> {
        let plain: Vec<&str> = batch.iter().filter(|one| one.is_plain()).map(Settlement::entry_id).collect();
        let moving: Vec<&Settlement> = batch.iter().filter(|one| !one.is_plain()).collect();
        if !plain.is_empty() {
            let mut script = scripts::DONE.key(&self.keys().stream);
            script.key(&self.keys().state).arg(self.group()).arg(self.deletes()).arg(&plain);
            script.invoke_async::<()>(&mut self.shared()).await?;
        }
        let moved = if moving.is_empty() { Vec::new() } else { self.settle_moving(&moving).await? };
        let mut moved = moved.into_iter();
        let settled = |one: &Settlement| if one.is_plain() { Some(Settled::Ok) } else { moved.next() };
        batch
            .iter()
            .map(settled)
            .collect::<Option<_>>()
            .ok_or_else(|| QueueError::Failed("settle answered for fewer messages than it was given".to_owned()))
    }

    async fn settle_moving(&self, moving: &[&Settlement]) -> Result<Vec<Settled>, QueueError> {
        let mut targets = Targets::default();
        let words: Vec<Word<'_>> = moving.iter().flat_map(|one| words(one, self, &mut targets)).collect();
        let keys = self.keys();
        let mut script = scripts::SETTLE.prepare_invoke();
        for key in [&keys.stream, &keys.state, &keys.later, &keys.later_body, &keys.dead] {
            script.key(key);
        }
        for (_, keys) in &targets.0 {
            script.key(&keys.for_publish()[..]);
        }
        script.arg(self.group()).arg(self.me()).arg(self.deletes());
        words.iter().for_each(|word| word.add_to(&mut script));
        let results: Vec<String> = script.invoke_async(&mut self.shared()).await?;
        Ok(results.into_iter().map(read_result).collect())
    }
}

fn read_result(result: String) -> Settled {
    match result.as_str() {
        "ok" => Settled::Ok,
        "gone" => Settled::Gone,
        _ => Settled::Failed(result),
    }
}

/// The topics that follow-ups of a batch go to, each once.
#[derive(Default)]
struct Targets(Vec<(String, Keys)>);

impl Targets {
    fn number_of(&mut self, queue: &TopicQueue, publication: &Publication) -> usize {
        let topic = publication.topic.as_str();
        self.0.iter().position(|(known, _)| known == topic).unwrap_or_else(|| {
            self.0.push((topic.to_owned(), queue.keys_of(&publication.topic)));
            self.0.len() - 1
        })
    }
}

enum Word<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
    Number(u128),
}

impl Word<'_> {
    fn add_to(&self, script: &mut ScriptInvocation<'_>) {
        match self {
            Self::Text(text) => script.arg(text),
            Self::Bytes(bytes) => script.arg(bytes),
            Self::Number(number) => script.arg(number.to_string()),
        };
    }
}

/// One settlement in the words that `settle.lua` reads.
fn words<'a>(settlement: &'a Settlement, queue: &TopicQueue, targets: &mut Targets) -> Vec<Word<'a>> {
    let mut words = Vec::new();
    match settlement {
        Settlement::Done { entry_id, publications, .. } => {
            words.extend([Word::Text("done"), Word::Text(entry_id), count(publications)]);
            for publication in publications {
                let target = targets.number_of(queue, publication);
                words.extend([Word::Number(target as u128), Word::Number(publication.delay.as_millis())]);
                words.extend([
                    Word::Number(2),
                    Word::Text(crate::message::MESSAGE_FIELD),
                    Word::Bytes(&publication.body),
                ]);
            }
        }
        Settlement::Later { entry_id, deliveries, after, set } => {
            words.extend([Word::Text("later"), Word::Text(entry_id)]);
            words.extend([Word::Number(u128::from(*deliveries)), Word::Number(after.as_millis())]);
            push_fields(&mut words, set);
        }
        Settlement::Dead { entry_id, deliveries, set } => {
            words.extend([Word::Text("dead"), Word::Text(entry_id), Word::Number(u128::from(*deliveries))]);
            push_fields(&mut words, set);
        }
    }
    words
}

fn count<T>(list: &[T]) -> Word<'static> {
    Word::Number(list.len() as u128)
}

fn push_fields<'a>(words: &mut Vec<Word<'a>>, fields: &'a Fields) {
    words.push(Word::Number(2 * fields.len() as u128));
    for (name, value) in fields {
        words.extend([Word::Bytes(name), Word::Bytes(value)]);
    }
}

impl Taken {
    pub fn done(&self, publications: Vec<Publication>, or_later: Fields) -> Settlement {
        Settlement::Done { entry_id: self.entry_id.clone(), deliveries: self.deliveries, publications, or_later }
    }

    pub fn later(&self, after: Duration, set: Fields) -> Settlement {
        Settlement::Later { entry_id: self.entry_id.clone(), deliveries: self.deliveries, after, set }
    }

    pub fn dead(&self, set: Fields) -> Settlement {
        Settlement::Dead { entry_id: self.entry_id.clone(), deliveries: self.deliveries, set }
    }
}
