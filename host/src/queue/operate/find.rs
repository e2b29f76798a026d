//! Finds messages by id in all keys of a topic, and cancels waiting ones.

use super::location::{Match, MessageLocation, Section};
use super::search::{Progress, SearchQuery, search};
use crate::message::{MESSAGE_FIELD, field, rfc3339};
use crate::queue::error::QueueError;
use crate::queue::lua::scripts;
use crate::queue::topic::groups::REQUEUED_IDLE;
use crate::queue::topic::{TopicHandle, markers};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::HashSet;

/// How often a search is repeated because messages have moved during it.
const ROUNDS: usize = 5;

/// A copy of a message, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    pub topic: String,
    #[serde(flatten)]
    pub location: MessageLocation,
    /// Absent where the message can't be read, or has no id of its own.
    pub id: Option<String>,
    pub published_at: Option<String>,
    pub attempt: Option<u32>,
    pub expires_at: Option<String>,
    /// It has not begun and is dropped instead of run, because that time has passed.
    pub is_expired: bool,
    /// The bytes of `message`; text that is not UTF-8 is replaced.
    pub message: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cancelled {
    /// Where copies were removed, and how many.
    pub removed: Vec<(MessageLocation, u64)>,
    /// Copies that can't be cancelled, because they run.
    pub in_flight: Vec<Found>,
    /// Copies that stay, because other groups have not read them yet.
    pub unread: Vec<Found>,
}

enum Removal {
    Removed(u64),
    /// It has moved, or was delivered meanwhile.
    Absent,
    /// Other groups have not read it yet.
    Unread,
}

pub struct MessageSearch {
    handle: TopicHandle,
}

impl MessageSearch {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    /// Every copy of a message.
    pub async fn find(&self, id: &str, progress: &mut Progress<'_>) -> Result<Vec<Found>, QueueError> {
        let (mut found, now) = (Vec::new(), self.now().await?);
        for round in 0..ROUNDS {
            let retried = self.retried().await?;
            for section in Section::WAITING.into_iter().chain(Section::DELIVERED) {
                for one in self.copies_in(section, id, progress).await? {
                    found.extend(self.with_positions(one, now).await?);
                }
            }
            // A retry during the search may have moved the message to a section already searched.
            if !found.is_empty() || round + 1 == ROUNDS || self.retried().await? == retried {
                break;
            }
        }
        if markers::finished(&self.handle, &[id.to_owned()]).await? == [true] {
            found.push(Found { id: Some(id.to_owned()), ..self.found(&Match::finished(), now) });
        }
        Ok(found)
    }

    /// Removes every copy of a message that waits.
    pub async fn cancel(&self, id: &str, progress: &mut Progress<'_>) -> Result<Cancelled, QueueError> {
        let (mut cancelled, now) = (Cancelled::default(), self.now().await?);
        for _ in 0..ROUNDS {
            let retried = self.retried().await?;
            cancelled.in_flight.clear();
            cancelled.unread.clear();
            for section in Section::WAITING {
                for one in self.copies_in(section, id, progress).await? {
                    match self.remove(section, &one).await? {
                        Removal::Removed(count) => cancelled.removed.push((one.location, count)),
                        Removal::Absent => {}
                        Removal::Unread => cancelled.unread.push(self.found(&one, now)),
                    }
                }
            }
            let in_flight = |section: &Section| matches!(section, Section::InFlight(_));
            for section in Section::DELIVERED.into_iter().filter(in_flight) {
                for one in self.copies_in(section, id, progress).await? {
                    // A requeued message, as after a pause, is pending but does not run.
                    match self.remove(section, &one).await? {
                        Removal::Removed(count) => cancelled.removed.push((one.location, count)),
                        _ => cancelled.in_flight.push(self.found(&one, now)),
                    }
                }
            }
            if self.retried().await? == retried {
                break;
            }
        }
        Ok(cancelled)
    }

    /// The first waiting and delayed messages of each section, without taking them.
    pub async fn peek(&self, limit: usize) -> Result<Vec<Found>, QueueError> {
        let (mut found, now) = (Vec::new(), self.now().await?);
        // Messages that run next come first.
        let (delayed, waiting) = Section::WAITING.split_at(2);
        for section in waiting.iter().chain(delayed) {
            let matches = search(&self.handle, *section, &SearchQuery::all(limit), &mut |_| ()).await?;
            for (position, mut one) in (0..).zip(matches) {
                one.location = one.location.at(position);
                found.push(self.found(&one, now));
            }
        }
        Ok(found)
    }

    /// The matches in a section that have this id. Equal items of a list count
    /// once, since they are removed together.
    async fn copies_in(
        &self,
        section: Section,
        id: &str,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<Match>, QueueError> {
        let mut matches = search(&self.handle, section, &SearchQuery::id(id), progress).await?;
        let mut known = HashSet::new();
        matches.retain(|one| {
            let has_id = one.message(self.handle.topic()).is_some_and(|message| message.id == id);
            has_id && (one.handle.is_empty() || known.insert(one.handle.clone()))
        });
        Ok(matches)
    }

    /// A match with its location; in a list with each of its positions, if it is still there.
    async fn with_positions(&self, one: Match, now: Timestamp) -> Result<Vec<Found>, QueueError> {
        let key = match one.location {
            MessageLocation::List { .. } => &self.handle.keys().main,
            MessageLocation::ListOut { .. } => &self.handle.keys().input,
            _ => return Ok(vec![self.found(&one, now)]),
        };
        let mut command = redis::cmd("LPOS");
        command.arg(key).arg(&one.handle).arg("COUNT").arg(0);
        match command.query_async::<Vec<u64>>(&mut self.handle.shared()).await.map_err(QueueError::from) {
            Ok(positions) => {
                let at = |position| self.found(&Match { location: one.location.at(position), ..one.clone() }, now);
                Ok(positions.into_iter().map(at).collect())
            }
            // The list was emptied and is a stream now, which is searched next.
            Err(QueueError::WrongType(_)) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    async fn remove(&self, section: Section, one: &Match) -> Result<Removal, QueueError> {
        let (handle, keys) = (&self.handle, self.handle.keys());
        let is_in_reach =
            section != Section::LegacyDelayed || handle.connection().is_same_slot(&keys.main, &keys.legacy_delayed);
        let (strategy, key, extra) = match section {
            Section::Delayed => ("body", keys.delayed_body.as_str(), one.hash.as_str()),
            Section::LegacyDelayed => ("scored", keys.legacy_delayed.as_str(), ""),
            Section::List => ("list", keys.main.as_str(), ""),
            Section::Input => ("list", keys.input.as_str(), ""),
            Section::Waiting(stream) => ("waiting", handle.key(stream), handle.group()),
            Section::InFlight(stream) => ("requeued", handle.key(stream), handle.group()),
            Section::Outbox | Section::Dead | Section::LegacyDead => return Ok(Removal::Absent),
        };
        let mut script = scripts::CANCEL.key(key);
        if is_in_reach {
            script.key(&keys.state);
        }
        if section == Section::Delayed {
            script.key(&keys.delayed);
        }
        script.arg(strategy).arg(&one.handle).arg(extra).arg(REQUEUED_IDLE.as_millis());
        match one.claim(handle.topic()).filter(|_| is_in_reach) {
            Some((key_hash, first)) => script.key(&keys.claims).arg(key_hash).arg(first.to_string()),
            None => script.arg("").arg(""),
        };
        let removed: i64 = script.invoke_async(&mut handle.shared()).await?;
        if !is_in_reach && removed > 0 {
            handle.add_to_counter("cancelled", removed).await;
        }
        Ok(match u64::try_from(removed) {
            Ok(0) => Removal::Absent,
            Ok(count) => Removal::Removed(count),
            Err(_) => Removal::Unread,
        })
    }

    /// How often messages of the topic went back from in flight to delayed.
    async fn retried(&self) -> Result<[Option<u64>; 2], QueueError> {
        let mut command = redis::cmd("HMGET");
        let state = &self.handle.keys().state;
        Ok(command.arg(state).arg("retried").arg("parked").query_async(&mut self.handle.shared()).await?)
    }

    /// The clock of Redis decides what has expired.
    async fn now(&self) -> Result<Timestamp, QueueError> {
        let (seconds, micros): (i64, i64) = redis::cmd("TIME").query_async(&mut self.handle.shared()).await?;
        Ok(Timestamp::from_millisecond(seconds * 1000 + micros / 1000).unwrap_or(Timestamp::MAX))
    }

    fn found(&self, one: &Match, now: Timestamp) -> Found {
        let message = one.message(self.handle.topic());
        let body = field(&one.fields, MESSAGE_FIELD).map(|body| String::from_utf8_lossy(body).into_owned());
        Found {
            topic: self.handle.topic().to_string(),
            location: one.location.clone(),
            published_at: message.as_ref().filter(|message| message.has_own_id).map(|one| rfc3339(one.published_at)),
            is_expired: one.location.is_before_run()
                && message.as_ref().and_then(|one| one.expires_at).is_some_and(|at| at <= now),
            expires_at: message.as_ref().and_then(|one| one.expires_at).map(rfc3339),
            attempt: message.as_ref().map(|message| message.attempt),
            message: body,
            id: message.map(|message| message.id),
        }
    }
}
