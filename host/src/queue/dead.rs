//! Dead letters: ours, and those of the original, which a cluster keeps in
//! another slot. They are read in pieces, and what is done with one is one
//! script, so that whoever is cut off may simply begin again.

mod change;
mod letter;
mod replay;

pub use letter::{DeadLetter, Letter, LetterId};
pub use replay::Replayed;

use super::scripts::PIECE_BYTES;
use super::topic_queue::TopicQueue;
use super::{QueueError, reply, scripts};
use redis::Value;

/// How many one script reads or moves, which nothing else runs beside.
const PIECE: usize = 100;

/// Who wrote it, which is where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Ours,
    /// The original.
    Legacy,
}

impl Origin {
    pub const ALL: [Self; 2] = [Self::Ours, Self::Legacy];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    OldestFirst,
    NewestFirst,
}

/// A way through the letters of one origin that were dead when it began.
pub struct Walk {
    queue: TopicQueue,
    origin: Origin,
    order: Order,
    /// From where to where it is still to go; `None` at the end.
    left: Option<(String, String)>,
}

impl Walk {
    /// The next piece; an empty one is the end.
    pub async fn next(&mut self) -> Result<Vec<Letter>, QueueError> {
        let Some((from, to)) = &self.left else { return Ok(Vec::new()) };
        let command = match self.order {
            Order::OldestFirst => "XRANGE",
            Order::NewestFirst => "XREVRANGE",
        };
        let mut script = scripts::READ.key(self.queue.dead_key(self.origin));
        script.arg(command).arg(from).arg(to).arg(PIECE).arg(PIECE_BYTES);
        let list: Vec<Value> = script.invoke_async(&mut self.queue.shared()).await?;
        let letters: Vec<Letter> = list
            .into_iter()
            .map(|one| reply::entry(one).map(|(entry, fields)| Letter { origin: self.origin, entry, fields }))
            .collect::<Result<_, _>>()?;
        self.left = letters.last().map(|last| (format!("({}", last.entry), to.clone()));
        Ok(letters)
    }
}

impl TopicQueue {
    pub async fn dead_letters(&self, origin: Origin, order: Order) -> Result<Walk, QueueError> {
        let newest = self.newest_dead(origin).await?;
        let left = newest.map(|newest| match order {
            Order::OldestFirst => ("-".to_owned(), newest),
            Order::NewestFirst => (newest, "-".to_owned()),
        });
        Ok(Walk { queue: self.clone(), origin, order, left })
    }

    /// The letter of this id.
    pub async fn dead_letter(&self, id: &LetterId) -> Result<Option<Letter>, QueueError> {
        for origin in Origin::ALL {
            let left = Some((id.to_string(), id.to_string()));
            let mut walk = Walk { queue: self.clone(), origin, order: Order::OldestFirst, left };
            if let Some(letter) = walk.next().await?.pop() {
                return Ok(Some(letter));
            }
        }
        Ok(None)
    }

    /// How many there are, of both origins.
    pub async fn dead_count(&self) -> Result<u64, QueueError> {
        let mut count = 0;
        for origin in Origin::ALL {
            let mut command = redis::cmd("XLEN");
            count += command.arg(self.dead_key(origin)).query_async::<u64>(&mut self.shared()).await?;
        }
        Ok(count)
    }

    /// The id of the newest.
    async fn newest_dead(&self, origin: Origin) -> Result<Option<String>, QueueError> {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(self.dead_key(origin)).arg("+").arg("-").arg("COUNT").arg(1);
        let list: Vec<Value> = command.query_async(&mut self.shared()).await?;
        list.into_iter().next().map(|one| Ok(reply::entry(one)?.0)).transpose()
    }

    fn dead_key(&self, origin: Origin) -> &str {
        match origin {
            Origin::Ours => &self.keys().dead,
            Origin::Legacy => &self.keys().legacy_dead,
        }
    }
}
