//! Lets dead letters live again: their attempts begin anew, all else is theirs.

use super::{Letter, Origin, PIECE};
use crate::message::{self, FRESH_FIELD, Fields, ID_FIELD, MESSAGE_FIELD, PUBLISHED_FIELD};
use crate::queue::source::Source;
use crate::queue::topic_queue::TopicQueue;
use crate::queue::{QueueError, scripts};

/// What became of a letter that was to live again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replayed {
    Ok,
    /// It was not there any more.
    Gone,
    /// It is still dead, and why.
    Not(String),
}

impl TopicQueue {
    /// Puts each of these where the topic's messages go; the results are in
    /// their order. On an error some may have been: call it again.
    pub async fn replay(&self, letters: &[Letter]) -> Result<Vec<Replayed>, QueueError> {
        let mut results = Vec::with_capacity(letters.len());
        for piece in letters.chunks(PIECE) {
            // In one piece all are of one origin, or they go one by one.
            for same in piece.chunk_by(|one, other| one.origin == other.origin) {
                results.extend(self.replay_piece(same[0].origin, same).await?);
            }
        }
        Ok(results)
    }

    async fn replay_piece(&self, origin: Origin, letters: &[Letter]) -> Result<Vec<Replayed>, QueueError> {
        let (keys, dead) = (self.keys(), self.dead_key(origin));
        let set: Vec<_> = letters.iter().map(|letter| self.new_fields(letter)).collect();
        if !self.connection().share_slot(&keys.stream, dead) {
            return self.replay_across(letters, set).await;
        }
        let mut script = scripts::DEAD_REPLAY.prepare_invoke();
        script.key(&keys.for_publish()[..]).key(dead);
        for (letter, set) in letters.iter().zip(&set) {
            let Ok(set) = set else { continue };
            script.arg(&letter.entry).arg(self.class_of(letter)).arg(2 * set.len());
            for (name, value) in set {
                script.arg(name).arg(value);
            }
        }
        let results: Vec<String> = script.invoke_async(&mut self.shared()).await?;
        let mut results = results.into_iter();
        let result = |set: Result<Fields, String>| match set {
            Err(why) => Ok(Replayed::Not(why)),
            Ok(_) => results.next().map(read_result).ok_or_else(|| QueueError::Failed("replay lost count".to_owned())),
        };
        set.into_iter().map(result).collect()
    }

    /// Publish, then delete: in a cluster no step can do both with a letter of
    /// the original's, so who is lost in between leaves a message twice, and
    /// none is lost.
    async fn replay_across(
        &self,
        letters: &[Letter],
        set: Vec<Result<Fields, String>>,
    ) -> Result<Vec<Replayed>, QueueError> {
        let mut results = Vec::with_capacity(letters.len());
        for (letter, set) in letters.iter().zip(set) {
            results.push(match set {
                Err(why) => Replayed::Not(why),
                Ok(_) if self.dead_letter(&letter.id()).await?.is_none() => Replayed::Gone,
                Ok(set) => {
                    let mut script = self.publishing(0, self.class_of(letter));
                    for (name, value) in &set {
                        script.arg(name).arg(value);
                    }
                    script.invoke_async::<()>(&mut self.shared()).await?;
                    self.delete_dead(&letter.id()).await?;
                    Replayed::Ok
                }
            });
        }
        Ok(results)
    }

    /// The fields that it gains, or has anew; an error says why it can't live.
    fn new_fields(&self, letter: &Letter) -> Result<Fields, String> {
        let field = |name: &str, value: &[u8]| (name.as_bytes().to_vec(), value.to_vec());
        let mut set = vec![field(FRESH_FIELD, b"1")];
        if letter.origin == Origin::Legacy {
            let body = letter.body().ok_or("it holds no original_message")?;
            set.insert(0, field(MESSAGE_FIELD, body));
            return Ok(set);
        }
        if letter.fields.iter().all(|(name, _)| name.starts_with(message::HOST_FIELD_PREFIX.as_bytes())) {
            return Err("it holds no message".to_owned());
        }
        let old_entry = letter.source_entry();
        let message = message::read(self.topic(), old_entry, &letter.fields);
        if message.as_ref().is_ok_and(|message| message.has_own_id) {
            return Ok(set);
        }
        // What is only known from the old entry is written down.
        let kept =
            |name, otherwise: String| field(name, message::field(&letter.fields, name).unwrap_or(otherwise.as_bytes()));
        set.push(kept(ID_FIELD, old_entry.to_owned()));
        set.push(kept(PUBLISHED_FIELD, message::rfc3339(message::entry_time(old_entry))));
        Ok(set)
    }

    /// Its priority; what came through a list goes where such messages go now.
    fn class_of(&self, letter: &Letter) -> &'static str {
        let source = message::field(&letter.fields, "gw-source").unwrap_or_default();
        let is_from = |one: &Source| source.starts_with(format!("{}/", one.of(self.topic())).as_bytes());
        [Source::High, Source::Low].into_iter().find(is_from).map_or("", Source::class)
    }
}

fn read_result(result: String) -> Replayed {
    match result.as_str() {
        "ok" => Replayed::Ok,
        "gone" => Replayed::Gone,
        "fields" => Replayed::Not("it has too many fields".to_owned()),
        _ => Replayed::Not(result),
    }
}
