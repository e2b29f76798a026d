//! Replays dead letters: their messages are published again with their attempts
//! reset, and all else unchanged.

use super::letter::{DeadLetterEntry, Origin};
use super::letters::DeadLetters;
use crate::message::{self, FRESH_FIELD, Fields, ID_FIELD, MESSAGE_FIELD, PUBLISHED_FIELD};
use crate::queue::error::QueueError;
use crate::queue::keyspace::StreamKind;
use crate::queue::lua::scripts;
use crate::queue::publish::Publisher;
use crate::queue::topic::{TopicHandle, markers};

/// The most that one script replays, since nothing else runs on the server meanwhile.
const BATCH: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replayed {
    Ok,
    /// It was replayed too, but a message with its deduplication key has finished
    /// within the window, so it is not run while its topic deduplicates.
    AsDuplicate,
    /// It does not exist any more.
    Gone,
    /// It stays a dead letter, for this reason.
    Not(String),
}

pub struct Replay {
    handle: TopicHandle,
}

impl Replay {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    /// Publishes the messages of these dead letters and deletes the letters; the
    /// results are in their order. On an error some may be replayed: call it again.
    pub async fn replay(&self, letters: &[DeadLetterEntry]) -> Result<Vec<Replayed>, QueueError> {
        let mut results = Vec::with_capacity(letters.len());
        for batch in letters.chunks(BATCH) {
            for same_origin in batch.chunk_by(|one, other| one.origin == other.origin) {
                let is_duplicate = self.are_duplicates(same_origin).await?;
                let replayed = self.replay_batch(same_origin[0].origin, same_origin).await?;
                results.extend(replayed.into_iter().zip(is_duplicate).map(|(result, is_duplicate)| match result {
                    Replayed::Ok if is_duplicate => Replayed::AsDuplicate,
                    result => result,
                }));
            }
        }
        Ok(results)
    }

    /// For each letter, whether a message with its deduplication key has finished.
    async fn are_duplicates(&self, letters: &[DeadLetterEntry]) -> Result<Vec<bool>, QueueError> {
        let topic = self.handle.topic();
        let keys: Vec<_> = letters.iter().map(|letter| letter.deduplication_key(topic)).collect();
        let known: Vec<String> = keys.iter().flatten().cloned().collect();
        let mut finished = markers::finished(&self.handle, &known).await?.into_iter();
        Ok(keys.iter().map(|key| key.is_some() && finished.next().unwrap_or(false)).collect())
    }

    async fn replay_batch(&self, origin: Origin, letters: &[DeadLetterEntry]) -> Result<Vec<Replayed>, QueueError> {
        let (handle, keys) = (&self.handle, self.handle.keys());
        let dead = origin.key(keys);
        let fields: Vec<_> = letters.iter().map(|letter| self.new_fields(letter)).collect();
        if !handle.connection().is_same_slot(&keys.main, dead) {
            return self.replay_across_slots(letters, fields).await;
        }
        let mut script = scripts::DEAD_REPLAY.prepare_invoke();
        script.key(&keys.for_publish()[..]).key(dead);
        for (letter, fields) in letters.iter().zip(&fields) {
            let Ok(fields) = fields else { continue };
            script.arg(&letter.entry).arg(self.class_of(letter)).arg(2 * fields.len());
            for (name, value) in fields {
                script.arg(name).arg(value);
            }
        }
        let results: Vec<String> = script.invoke_async(&mut handle.shared()).await?;
        let mut results = results.into_iter();
        let missing = || QueueError::Failed("dead_replay.lua returned too few results".to_owned());
        let result = |fields: Result<Fields, String>| match fields {
            Err(reason) => Ok(Replayed::Not(reason)),
            Ok(_) => results.next().map(parse_result).ok_or_else(missing),
        };
        fields.into_iter().map(result).collect()
    }

    /// Publishes, then deletes: in a cluster no script can do both with a legacy
    /// letter, so a process that is lost in between leaves a message twice, and
    /// none is lost.
    async fn replay_across_slots(
        &self,
        letters: &[DeadLetterEntry],
        fields: Vec<Result<Fields, String>>,
    ) -> Result<Vec<Replayed>, QueueError> {
        let publisher = Publisher::new(self.handle.clone());
        let dead_letters = DeadLetters::new(self.handle.clone());
        let mut results = Vec::with_capacity(letters.len());
        for (letter, fields) in letters.iter().zip(fields) {
            results.push(match fields {
                Err(reason) => Replayed::Not(reason),
                Ok(_) if dead_letters.get(&letter.id()).await?.is_none() => Replayed::Gone,
                Ok(fields) => {
                    let mut script = publisher.script(self.handle.topic(), 0, self.class_of(letter));
                    for (name, value) in &fields {
                        script.arg(name).arg(value);
                    }
                    script.invoke_async::<()>(&mut self.handle.shared()).await?;
                    dead_letters.delete(&letter.id()).await?;
                    Replayed::Ok
                }
            });
        }
        Ok(results)
    }

    /// The fields that are added or replaced; an error says why the letter can't
    /// be replayed.
    fn new_fields(&self, letter: &DeadLetterEntry) -> Result<Fields, String> {
        let field = |name: &str, value: &[u8]| (name.as_bytes().to_vec(), value.to_vec());
        let mut set = vec![field(FRESH_FIELD, b"1")];
        if letter.origin == Origin::Legacy {
            let body = letter.body().ok_or("it has no original_message")?;
            set.insert(0, field(MESSAGE_FIELD, body));
            return Ok(set);
        }
        if letter.fields.iter().all(|(name, _)| name.starts_with(message::HOST_FIELD_PREFIX.as_bytes())) {
            return Err("it has no message".to_owned());
        }
        let old_entry = letter.source_entry();
        let message = message::read(self.handle.topic(), old_entry, &letter.fields);
        if message.as_ref().is_ok_and(|message| message.has_own_id) {
            return Ok(set);
        }
        // The message gets a new entry id, so values derived from the old one are stored.
        let stored =
            |name, default: String| field(name, message::field(&letter.fields, name).unwrap_or(default.as_bytes()));
        set.push(stored(ID_FIELD, old_entry.to_owned()));
        set.push(stored(PUBLISHED_FIELD, message::rfc3339(message::entry_time(old_entry))));
        Ok(set)
    }

    /// Its priority. A message that came through a list goes to the stream that
    /// such messages go to now.
    fn class_of(&self, letter: &DeadLetterEntry) -> &'static str {
        let source = message::field(&letter.fields, "gw-source").unwrap_or_default();
        let topic = self.handle.topic();
        let is_from = |stream: &StreamKind| source.starts_with(format!("{}/", stream.name_in(topic)).as_bytes());
        [StreamKind::High, StreamKind::Low].into_iter().find(is_from).map_or("", StreamKind::class)
    }
}

fn parse_result(result: String) -> Replayed {
    match result.as_str() {
        "ok" => Replayed::Ok,
        "gone" => Replayed::Gone,
        "fields" => Replayed::Not("it has too many fields".to_owned()),
        _ => Replayed::Not(result),
    }
}
