//! One topic in numbers, for people.

use super::inspect;
use super::source::Source;
use super::topic_queue::TopicQueue;
use super::{QueueError, reply};
use crate::message::{self, MESSAGE_FIELD};
use jiff::Timestamp;
use redis::Value;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Details {
    pub topic: String,
    /// Redis' name for the type of `mq:<topic>`; `none` where it is absent.
    pub kind: String,
    pub is_paused: bool,
    /// Whether a worker seen lately has a handler for it.
    pub has_handler: bool,
    /// By source: `high`, `normal`, `work`, `low`, `list`.
    pub waiting: BTreeMap<String, u64>,
    /// When the one that waits longest came; of a list its ends are asked.
    #[serde(serialize_with = "as_text")]
    pub oldest_waiting: Option<Timestamp>,
    pub delayed: u64,
    /// Those of the original's delayed set.
    pub legacy_delayed: u64,
    #[serde(serialize_with = "as_text")]
    pub next_due: Option<Timestamp>,
    pub in_flight: Vec<Consumer>,
    pub dead: u64,
    pub legacy_dead: u64,
    /// Follow-ups on their way to other topics.
    pub outbox: u64,
    /// What has become of messages, in all.
    pub counters: BTreeMap<String, u64>,
}

/// What one worker has in hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Consumer {
    pub name: String,
    pub in_flight: u64,
    /// The longest time for which one of them was not renewed.
    pub idle_ms: u64,
}

fn as_text<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(message::rfc3339).serialize(serializer)
}

const COUNTERS: [&str; 8] = ["done", "retried", "dead", "duplicate", "expired", "cancelled", "purged", "dead-dropped"];

impl TopicQueue {
    /// Sets the topic aside, or goes on with it. Returns whether that is new.
    pub async fn set_paused(&self, is_paused: bool) -> Result<bool, QueueError> {
        let mut command = redis::cmd(if is_paused { "HSET" } else { "HDEL" });
        command.arg(&self.keys().state).arg("paused");
        if is_paused {
            command.arg("1");
        }
        Ok(command.query_async::<u64>(&mut self.shared()).await? > 0)
    }

    pub async fn details(&self, has_handler: bool) -> Result<Details, QueueError> {
        let (keys, mut shared) = (self.keys(), self.shared());
        let mut pipe = redis::pipe();
        pipe.cmd("TYPE").arg(&keys.stream).hexists(&keys.state, "paused").zcard(&keys.later);
        pipe.zrange_withscores(&keys.later, 0, 0).cmd("XLEN").arg(&keys.dead).cmd("XLEN").arg(&keys.out);
        pipe.cmd("HMGET").arg(&keys.state).arg(&COUNTERS);
        type Answers = (String, bool, u64, Vec<(String, f64)>, u64, u64, Vec<Option<u64>>);
        let (kind, is_paused, delayed, next, dead, outbox, counted): Answers = pipe.query_async(&mut shared).await?;
        let legacy_delayed: u64 = redis::cmd("ZCARD").arg(&keys.legacy_delay).query_async(&mut shared).await?;
        let legacy_dead: u64 = redis::cmd("XLEN").arg(&keys.legacy_dead).query_async(&mut shared).await?;
        let mut command = redis::cmd("ZRANGE");
        command.arg(&keys.legacy_delay).arg(0).arg(0).arg("WITHSCORES");
        let legacy_next: Vec<(Vec<u8>, f64)> = command.query_async(&mut shared).await?;
        let due = |score: f64, unit: f64| Timestamp::from_millisecond((score * unit) as i64).ok();
        let ours = next.first().and_then(|(_, score)| due(*score, 1.0));
        let theirs = legacy_next.first().and_then(|(_, score)| due(*score, 1000.0));
        let waiting = self.waiting(&kind).await?;
        let counters = COUNTERS.iter().zip(counted);
        Ok(Details {
            topic: self.topic().to_string(),
            is_paused,
            has_handler,
            oldest_waiting: self.oldest_waiting(&kind).await?,
            waiting,
            delayed,
            legacy_delayed,
            next_due: ours.into_iter().chain(theirs).min(),
            in_flight: self.consumers(&kind).await?,
            dead,
            legacy_dead,
            outbox,
            counters: counters.map(|(name, count)| ((*name).to_owned(), count.unwrap_or(0))).collect(),
            kind,
        })
    }

    /// The topic's streams that may be asked as such.
    fn streams<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = Source> + 'a {
        Source::ALL.into_iter().filter(move |source| *source != Source::Normal || kind == "stream")
    }

    async fn waiting(&self, kind: &str) -> Result<BTreeMap<String, u64>, QueueError> {
        let mut waiting = BTreeMap::new();
        for source in self.streams(kind) {
            let (count, _) = inspect::stream_backlog(self.connection(), source.key(self.keys()), self.group()).await?;
            let name = if source == Source::Normal { "normal" } else { source.class() };
            waiting.insert(name.to_owned(), count);
        }
        waiting.insert("list".to_owned(), inspect::listed(self.connection(), self.keys(), kind).await?);
        Ok(waiting)
    }

    async fn oldest_waiting(&self, kind: &str) -> Result<Option<Timestamp>, QueueError> {
        let mut oldest = self.oldest_entry().await?;
        let lists = [(kind == "list").then_some(&self.keys().stream), Some(&self.keys().input)];
        for key in lists.into_iter().flatten() {
            for end in [0, -1] {
                let mut command = redis::cmd("LINDEX");
                let item: Option<Vec<u8>> = command.arg(key).arg(end).query_async(&mut self.shared()).await?;
                let read = |item| message::read(self.topic(), "", &vec![(MESSAGE_FIELD.into(), item)]).ok();
                // Without an id of its own it has no time either.
                let published = item.and_then(read).filter(|one| one.has_own_id).map(|one| one.published_at);
                oldest = oldest.into_iter().chain(published).min();
            }
        }
        Ok(oldest)
    }

    async fn consumers(&self, kind: &str) -> Result<Vec<Consumer>, QueueError> {
        const PAGE: usize = 1000;
        let mut consumers: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for source in self.streams(kind) {
            let mut from = "-".to_owned();
            loop {
                let mut command = redis::cmd("XPENDING");
                command.arg(source.key(self.keys())).arg(self.group()).arg(&from).arg("+").arg(PAGE);
                let rows: Vec<Value> = match command.query_async(&mut self.shared()).await.map_err(QueueError::from) {
                    Ok(rows) => rows,
                    Err(QueueError::GroupLost) => break,
                    Err(error) => return Err(error),
                };
                let is_last = rows.len() < PAGE;
                for row in rows {
                    let [id, name, idle, _] = reply::array(row)?;
                    let idle = u64::try_from(reply::number(idle)?).unwrap_or(0);
                    let known = consumers.entry(reply::text(name)?).or_default();
                    *known = (known.0 + 1, known.1.max(idle));
                    from = format!("({}", reply::text(id)?);
                }
                if is_last {
                    break;
                }
            }
        }
        let consumer = |(name, (in_flight, idle_ms))| Consumer { name, in_flight, idle_ms };
        Ok(consumers.into_iter().map(consumer).collect())
    }
}
