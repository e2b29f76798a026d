//! Finds messages by their id, wherever they are, and cancels what waits.

use super::connection::Connection;
use super::hit::{Hit, Place};
use super::keys::Keys;
use super::leases::GIVEN_BACK;
use super::look::{Part, Wanted};
use super::topic_queue::TopicQueue;
use super::{QueueError, inspect, scripts};
use crate::message::{MESSAGE_FIELD, entry_time, field, rfc3339};
use crate::topic::Topic;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::HashSet;

/// A message that moves while it is looked for is looked for again so often.
const ROUNDS: usize = 5;

/// A copy of a message, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    pub topic: String,
    #[serde(flatten)]
    pub place: Place,
    /// Absent where it can't be read, or has none of its own.
    pub id: Option<String>,
    pub published_at: Option<String>,
    pub attempt: Option<u32>,
    /// The bytes of `message`; text that is not UTF-8 is replaced.
    pub message: Option<String>,
}

/// What a cancelling did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cancelled {
    /// Where copies were, and how many in each place.
    pub removed: Vec<(Place, u64)>,
    /// Copies that can't be cancelled, because they run.
    pub in_flight: Vec<Found>,
    /// Copies that stay, because other groups have still to read them.
    pub wanted: Vec<Found>,
}

/// What became of one copy.
enum Removal {
    Removed(u64),
    /// It was no longer there, or has been taken.
    None,
    /// Other groups have still to read it.
    Wanted,
}

/// The topics that Redis knows of.
pub struct Topics;

impl Topics {
    pub async fn all(connection: &Connection, prefix: &str) -> Result<Vec<Topic>, QueueError> {
        Ok(inspect::names(connection, prefix).await?.into_iter().collect())
    }

    /// Nothing where Redis has a key of this topic or a worker seen lately
    /// handles it; else all other topics, be it the one or the other.
    pub async fn unless_known(
        connection: &Connection,
        prefix: &str,
        topic: &Topic,
    ) -> Result<Option<Vec<Topic>>, QueueError> {
        // To ask for its keys is cheap, and nearly always enough.
        for key in Keys::new(prefix, topic).lasting() {
            if redis::cmd("EXISTS").arg(key).query_async(&mut connection.shared()).await? {
                return Ok(None);
            }
        }
        let mut all = inspect::handled(connection, prefix).await?;
        if !all.contains(topic) {
            all.extend(inspect::names(connection, prefix).await?);
        }
        Ok((!all.contains(topic)).then(|| all.into_iter().collect()))
    }
}

/// Told how many more were looked at.
type Progress<'a> = dyn FnMut(u64) + Send + 'a;

impl TopicQueue {
    /// Every copy of a message that is there.
    pub async fn find(&self, id: &str, progress: &mut Progress<'_>) -> Result<Vec<Found>, QueueError> {
        let mut found = Vec::new();
        for round in 0..ROUNDS {
            let retried = self.retried().await?;
            for part in Part::WAITING.into_iter().chain(Part::TAKEN) {
                for hit in self.copies_in(part, id, progress).await? {
                    found.extend(self.placed(hit).await?);
                }
            }
            // What was run again meanwhile has moved back, behind our look.
            if !found.is_empty() || round + 1 == ROUNDS || self.retried().await? == retried {
                break;
            }
        }
        if self.finished(&[id.to_owned()]).await? == [true] {
            found.push(self.found(&Hit::finished()).named(id));
        }
        Ok(found)
    }

    /// Removes every copy of a message that waits.
    pub async fn cancel(&self, id: &str, progress: &mut Progress<'_>) -> Result<Cancelled, QueueError> {
        let mut cancelled = Cancelled::default();
        for _ in 0..ROUNDS {
            let retried = self.retried().await?;
            cancelled.in_flight.clear();
            cancelled.wanted.clear();
            for part in Part::WAITING {
                for hit in self.copies_in(part, id, progress).await? {
                    match self.remove(part, &hit).await? {
                        Removal::Removed(count) => cancelled.removed.push((hit.place, count)),
                        Removal::None => {}
                        Removal::Wanted => cancelled.wanted.push(self.found(&hit)),
                    }
                }
            }
            for part in Part::TAKEN.into_iter().filter(|part| matches!(part, Part::InFlight(_))) {
                for hit in self.copies_in(part, id, progress).await? {
                    // What was given back, as at a pause, is in nobody's hands.
                    match self.remove(part, &hit).await? {
                        Removal::Removed(count) => cancelled.removed.push((hit.place, count)),
                        _ => cancelled.in_flight.push(self.found(&hit)),
                    }
                }
            }
            if self.retried().await? == retried {
                break;
            }
        }
        Ok(cancelled)
    }

    /// What waits and is delayed, the first of each place, without taking it.
    pub async fn peek(&self, limit: usize) -> Result<Vec<Found>, QueueError> {
        let mut found = Vec::new();
        // What runs next comes first.
        let (delayed, waiting) = Part::WAITING.split_at(2);
        for part in waiting.iter().chain(delayed) {
            let hits = self.look(*part, &Wanted::anything(limit), &mut |_| ()).await?;
            for (position, mut hit) in (0..).zip(hits) {
                hit.place = hit.place.at(position);
                found.push(self.found(&hit));
            }
        }
        Ok(found)
    }

    /// When the entry that waits longest in a stream came there.
    pub(super) async fn oldest_entry(&self) -> Result<Option<Timestamp>, QueueError> {
        let mut oldest = None;
        for part in Part::WAITING {
            if matches!(part, Part::Waiting(_)) {
                let hits = self.look(part, &Wanted::anything(1), &mut |_| ()).await?;
                let came = hits.first().map(|hit| entry_time(&String::from_utf8_lossy(&hit.handle)));
                oldest = oldest.into_iter().chain(came).min();
            }
        }
        Ok(oldest)
    }

    /// The hits in a part which are of this id. One is enough of what has no
    /// place of its own, since it is removed by what it says.
    async fn copies_in(&self, part: Part, id: &str, progress: &mut Progress<'_>) -> Result<Vec<Hit>, QueueError> {
        let mut hits = self.look(part, &Wanted::id(id), progress).await?;
        let mut known = HashSet::new();
        hits.retain(|hit| {
            let is_it = hit.message(self.topic()).is_some_and(|message| message.id == id);
            is_it && (hit.handle.is_empty() || known.insert(hit.handle.clone()))
        });
        Ok(hits)
    }

    /// A hit with its place, or places, in a list, if it is still there.
    async fn placed(&self, hit: Hit) -> Result<Vec<Found>, QueueError> {
        let key = match hit.place {
            Place::List { .. } => &self.keys().stream,
            Place::ListOut { .. } => &self.keys().input,
            _ => return Ok(vec![self.found(&hit)]),
        };
        let mut command = redis::cmd("LPOS");
        command.arg(key).arg(&hit.handle).arg("COUNT").arg(0);
        match command.query_async::<Vec<u64>>(&mut self.shared()).await.map_err(QueueError::from) {
            Ok(positions) => {
                let at = |position| self.found(&Hit { place: hit.place.at(position), ..hit.clone() });
                Ok(positions.into_iter().map(at).collect())
            }
            // It was drained and is a stream by now, which is looked at next.
            Err(QueueError::WrongType(_)) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    async fn remove(&self, part: Part, hit: &Hit) -> Result<Removal, QueueError> {
        let keys = self.keys();
        let shares = part != Part::LegacyLater || self.connection().share_slot(&keys.stream, &keys.legacy_delay);
        let (how, key, by) = match part {
            Part::Later => ("body", keys.later_body.as_str(), hit.hash.as_str()),
            Part::LegacyLater => ("scored", keys.legacy_delay.as_str(), ""),
            Part::List => ("list", keys.stream.as_str(), ""),
            Part::Input => ("list", keys.input.as_str(), ""),
            Part::Waiting(source) => ("waiting", source.key(keys), self.group()),
            Part::InFlight(source) => ("given", source.key(keys), self.group()),
            Part::Outgoing | Part::Dead | Part::LegacyDead => return Ok(Removal::None),
        };
        let mut script = scripts::CANCEL.key(key);
        if shares {
            script.key(&keys.state);
        }
        if part == Part::Later {
            script.key(&keys.later);
        }
        script.arg(how).arg(&hit.handle).arg(by).arg(GIVEN_BACK.as_millis());
        let removed: i64 = script.invoke_async(&mut self.shared()).await?;
        if !shares && removed > 0 {
            self.count_apart("cancelled", removed).await;
        }
        Ok(match u64::try_from(removed) {
            Ok(0) => Removal::None,
            Ok(count) => Removal::Removed(count),
            Err(_) => Removal::Wanted,
        })
    }

    /// How often messages went back from in flight to where they wait.
    async fn retried(&self) -> Result<Option<u64>, QueueError> {
        let mut command = redis::cmd("HGET");
        Ok(command.arg(&self.keys().state).arg("retried").query_async(&mut self.shared()).await?)
    }

    fn found(&self, hit: &Hit) -> Found {
        let message = hit.message(self.topic());
        let body = field(&hit.fields, MESSAGE_FIELD).map(|body| String::from_utf8_lossy(body).into_owned());
        Found {
            topic: self.topic().to_string(),
            place: hit.place.clone(),
            published_at: message.as_ref().filter(|message| message.has_own_id).map(|one| rfc3339(one.published_at)),
            attempt: message.as_ref().map(|message| message.attempt),
            message: body,
            id: message.map(|message| message.id),
        }
    }
}

impl Found {
    fn named(self, id: &str) -> Self {
        Self { id: Some(id.to_owned()), ..self }
    }
}
