//! Reads, edits and deletes single dead letters.

use super::letter::{DeadLetterEntry, DeadLetterId, Origin};
use crate::queue::error::QueueError;
use crate::queue::lua::scripts::{self, BATCH_BYTES};
use crate::queue::topic::{TopicHandle, reply};
use redis::Value;

/// The most that one script reads, since nothing else runs on the server meanwhile.
const BATCH: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    OldestFirst,
    NewestFirst,
}

/// The dead letters of one origin that existed when this was created.
pub struct DeadLetterPages {
    handle: TopicHandle,
    origin: Origin,
    order: Order,
    /// The range that is still to be read; `None` at the end.
    range: Option<(String, String)>,
}

impl DeadLetterPages {
    /// The next page; an empty one is the end.
    pub async fn next(&mut self) -> Result<Vec<DeadLetterEntry>, QueueError> {
        let Some((from, to)) = &self.range else { return Ok(Vec::new()) };
        let command = match self.order {
            Order::OldestFirst => "XRANGE",
            Order::NewestFirst => "XREVRANGE",
        };
        let mut script = scripts::READ_STREAM.key(self.origin.key(self.handle.keys()));
        script.arg(command).arg(from).arg(to).arg(BATCH).arg(BATCH_BYTES);
        let list: Vec<Value> = script.invoke_async(&mut self.handle.shared()).await?;
        let origin = self.origin;
        let letter = |one| reply::entry(one).map(|(entry, fields)| DeadLetterEntry { origin, entry, fields });
        let letters: Vec<_> = list.into_iter().map(letter).collect::<Result<_, _>>()?;
        self.range = letters.last().map(|last| (format!("({}", last.entry), to.clone()));
        Ok(letters)
    }
}

pub struct DeadLetters {
    handle: TopicHandle,
}

impl DeadLetters {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    pub async fn list(&self, origin: Origin, order: Order) -> Result<DeadLetterPages, QueueError> {
        let newest = newest(&self.handle, origin).await?;
        let range = newest.map(|newest| match order {
            Order::OldestFirst => ("-".to_owned(), newest),
            Order::NewestFirst => (newest, "-".to_owned()),
        });
        Ok(DeadLetterPages { handle: self.handle.clone(), origin, order, range })
    }

    pub async fn get(&self, id: &DeadLetterId) -> Result<Option<DeadLetterEntry>, QueueError> {
        for origin in Origin::ALL {
            let range = Some((id.to_string(), id.to_string()));
            let mut pages = DeadLetterPages { handle: self.handle.clone(), origin, order: Order::OldestFirst, range };
            if let Some(letter) = pages.next().await?.pop() {
                return Ok(Some(letter));
            }
        }
        Ok(None)
    }

    /// How many exist, of both origins.
    pub async fn count(&self) -> Result<u64, QueueError> {
        let mut count = 0;
        for origin in Origin::ALL {
            let mut command = redis::cmd("XLEN");
            command.arg(origin.key(self.handle.keys()));
            count += command.query_async::<u64>(&mut self.handle.shared()).await?;
        }
        Ok(count)
    }

    /// Replaces the body of one of our dead letters. Returns the new letter's id,
    /// or `None` where the old one does not exist any more.
    pub async fn edit(&self, id: &DeadLetterId, body: &[u8]) -> Result<Option<String>, QueueError> {
        let mut script = scripts::DEAD_EDIT.key(&self.handle.keys().dead);
        Ok(script.arg(id.to_string()).arg(body).invoke_async(&mut self.handle.shared()).await?)
    }

    /// Returns whether it existed.
    pub async fn delete(&self, id: &DeadLetterId) -> Result<bool, QueueError> {
        for origin in Origin::ALL {
            let mut command = redis::cmd("XDEL");
            command.arg(origin.key(self.handle.keys())).arg(id.to_string());
            if command.query_async(&mut self.handle.shared()).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The id of the newest dead letter.
pub(crate) async fn newest(handle: &TopicHandle, origin: Origin) -> Result<Option<String>, QueueError> {
    let mut command = redis::cmd("XREVRANGE");
    command.arg(origin.key(handle.keys())).arg("+").arg("-").arg("COUNT").arg(1);
    let list: Vec<Value> = command.query_async(&mut handle.shared()).await?;
    list.into_iter().next().map(|one| Ok(reply::entry(one)?.0)).transpose()
}
