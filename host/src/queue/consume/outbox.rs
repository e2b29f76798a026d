//! The outbox: follow-ups for topics in other slots of a cluster, which no script
//! of this topic can write to. They are committed together with the settlement
//! of their message and relayed from the outbox: at least once, with the same ids.
//!
//! Each target topic has its own task, so a topic that refuses does not delay the
//! others. Leases are idle times in the group's pending list, as for messages.

use super::leases::DELETED_TTL;
use crate::events;
use crate::message::{self, Fields};
use crate::queue::error::QueueError;
use crate::queue::keyspace::position;
use crate::queue::lua::scripts::{self, BATCH_BYTES};
use crate::queue::publish::Publisher;
use crate::queue::registry::register;
use crate::queue::topic::{TopicHandle, reply};
use crate::topic::Topic;
use redis::Value;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const GROUP: &str = "relay";
const BATCH: usize = 100;
/// The cursor at the start of the pending list, and at its end.
const START: &str = "0-0";
/// How often the same problem is logged.
const WARN_EVERY: Duration = Duration::from_secs(60);

pub struct OutboxRelay {
    handle: TopicHandle,
    /// The position in the pending list, and when its scan began.
    cursor: Option<String>,
    scan_began: Option<Instant>,
    /// Entries that have arrived and are not yet deleted.
    arrived: Vec<String>,
    refusing: HashMap<Topic, Refusing>,
    /// When an unreadable entry was logged.
    warned_unreadable: Option<Instant>,
}

/// A topic that has refused a follow-up.
struct Refusing {
    retry_at: Instant,
    warned_at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relayed {
    pub arrived: usize,
    /// Whether there may be more to relay now.
    pub has_more: bool,
}

struct FollowUp {
    entry: String,
    due_ms: i64,
    fields: Fields,
}

struct Batch {
    /// Where the scan of the pending list continues, unless it has ended.
    cursor: Option<String>,
    entries: Vec<(String, Fields)>,
}

/// How the delivery to one topic ended.
struct Sent {
    to: Topic,
    arrived: Vec<String>,
    result: Result<(), QueueError>,
}

impl OutboxRelay {
    pub fn new(handle: TopicHandle) -> Self {
        Self {
            handle,
            cursor: None,
            scan_began: None,
            arrived: Vec::new(),
            refusing: HashMap::new(),
            warned_unreadable: None,
        }
    }

    /// How many follow-ups are in the outbox.
    pub async fn len(&self) -> Result<usize, QueueError> {
        Ok(redis::cmd("XLEN").arg(&self.handle.keys().outbox).query_async(&mut self.handle.shared()).await?)
    }

    pub async fn is_empty(&self) -> Result<bool, QueueError> {
        Ok(self.len().await? == 0)
    }

    /// Relays one batch of the outbox. Follow-ups that another worker took and
    /// did not deliver within `lease` are relayed again.
    pub async fn relay(&mut self, lease: Duration) -> Result<Relayed, QueueError> {
        self.delete_arrived().await?;
        let Some(Batch { cursor, entries }) = self.next_batch(lease).await? else {
            return Ok(Relayed { arrived: 0, has_more: false });
        };
        let has_more = cursor.is_some() || !entries.is_empty();
        self.cursor = cursor;
        let mut unsent: Vec<String> = entries.iter().map(|(id, _)| id.clone()).collect();
        let mut sending = JoinSet::new();
        for (to, follow_ups) in self.by_topic(entries) {
            if self.refusing.get(&to).is_none_or(|refusing| refusing.retry_at <= Instant::now()) {
                sending.spawn(send_all(self.handle.clone(), to, follow_ups));
            }
        }
        let mut arrived = 0;
        let mut renewal = tokio::time::interval(lease / 3);
        renewal.reset();
        loop {
            tokio::select! {
                sent = sending.join_next() => match sent {
                    None => return Ok(Relayed { arrived, has_more }),
                    // After a panic it is not known what has arrived: it is sent again.
                    Some(Err(_)) => {}
                    Some(Ok(Sent { to, arrived: ids, result })) => {
                        self.record(to, result, lease);
                        arrived += ids.len();
                        unsent.retain(|id| !ids.contains(id));
                        self.arrived.extend(ids);
                        self.delete_arrived().await?;
                    }
                },
                // Without a renewal other workers would send them too.
                _ = renewal.tick(), if !unsent.is_empty() => {
                    let mut script = scripts::RENEW.key(&self.handle.keys().outbox);
                    script.key(&self.handle.keys().deleted).arg(GROUP).arg(self.handle.consumer());
                    unsent.sort_unstable_by_key(|id| position(id));
                    script.arg("outbox").arg(DELETED_TTL.as_millis()).arg(&unsent);
                    let _ = script.invoke_async::<Value>(&mut self.handle.shared()).await;
                }
            }
        }
    }

    /// Deletes the entries that have arrived. On an error the next call tries again.
    async fn delete_arrived(&mut self) -> Result<(), QueueError> {
        if !self.arrived.is_empty() {
            let mut script = scripts::OUTBOX_DELETE.key(&self.handle.keys().outbox);
            script.arg(GROUP).arg(&self.arrived).invoke_async::<()>(&mut self.handle.shared()).await?;
            self.arrived.clear();
        }
        Ok(())
    }

    /// `None` if there is no outbox.
    async fn next_batch(&mut self, lease: Duration) -> Result<Option<Batch>, QueueError> {
        // The pending list is long where topics refuse, so a scan starts at most three times a lease.
        let is_too_soon = self.cursor.is_none() && self.scan_began.is_some_and(|began| began.elapsed() < lease / 3);
        let cursor = if is_too_soon { "" } else { self.cursor.as_deref().unwrap_or(START) };
        if cursor == START {
            self.scan_began = Some(Instant::now());
        }
        let mut script = scripts::OUTBOX_TAKE.key(&self.handle.keys().outbox);
        script.arg(GROUP).arg(self.handle.consumer()).arg(lease.as_millis()).arg(cursor);
        script.arg(BATCH).arg(BATCH_BYTES);
        let taken: Vec<Value> = match script.invoke_async(&mut self.handle.shared()).await.map_err(QueueError::from) {
            Err(QueueError::GroupLost) => {
                // The group is created only for an existing outbox: creating a key is refused at maxmemory.
                if self.is_empty().await? {
                    return Ok(None);
                }
                self.create_group().await?;
                script.invoke_async(&mut self.handle.shared()).await?
            }
            taken => taken?,
        };
        let mut items = taken.into_iter();
        let cursor = reply::text(items.next().unwrap_or(Value::Nil))?;
        let entries = items.map(reply::entry).collect::<Result<_, _>>()?;
        Ok(Some(Batch { cursor: (cursor != START).then_some(cursor), entries }))
    }

    /// The follow-ups of each topic, in their order.
    fn by_topic(&mut self, entries: Vec<(String, Fields)>) -> HashMap<Topic, Vec<FollowUp>> {
        let mut topics: HashMap<Topic, Vec<FollowUp>> = HashMap::new();
        for (entry, fields) in entries {
            let text = |name| message::field(&fields, name).and_then(|value| std::str::from_utf8(value).ok());
            let to = text("topic").and_then(|name| Topic::parse(name).ok());
            let due_ms = text("due").and_then(|due| due.parse().ok());
            match to.zip(due_ms) {
                Some((to, due_ms)) => topics.entry(to).or_default().push(FollowUp { entry, due_ms, fields }),
                None if self.warned_unreadable.is_some_and(|at| at.elapsed() < WARN_EVERY) => {}
                None => {
                    self.warned_unreadable = Some(Instant::now());
                    tracing::warn!(topic = %self.handle.topic(), entry, "unreadable outbox entry: it is not relayed");
                }
            }
        }
        topics
    }

    /// Remembers which topics refuse, and logs it at intervals.
    fn record(&mut self, to: Topic, result: Result<(), QueueError>, lease: Duration) {
        let warned_at = self.refusing.get(&to).map(|refusing| refusing.warned_at);
        let topic = self.handle.topic();
        let Err(error) = result else {
            if self.refusing.remove(&to).is_some() {
                tracing::info!(%topic, %to, "{}", events::FOLLOW_UPS_ACCEPTED);
            }
            return;
        };
        let now = Instant::now();
        let warned_at = warned_at.filter(|at| at.elapsed() < WARN_EVERY).unwrap_or_else(|| {
            tracing::warn!(%topic, %to, %error, "{}", events::FOLLOW_UP_REFUSED);
            now
        });
        // Other workers may relay the unsent entries after a lease.
        self.refusing.insert(to, Refusing { retry_at: now + lease / 2, warned_at });
    }

    async fn create_group(&self) -> Result<(), QueueError> {
        let mut command = redis::cmd("XGROUP");
        command.arg("CREATE").arg(&self.handle.keys().outbox).arg(GROUP).arg("0");
        match command.query_async::<()>(&mut self.handle.shared()).await {
            Err(error) if error.code() == Some("BUSYGROUP") => Ok(()),
            created => Ok(created?),
        }
    }
}

/// Sends follow-ups to one topic until it refuses one.
async fn send_all(handle: TopicHandle, to: Topic, follow_ups: Vec<FollowUp>) -> Sent {
    let (publisher, mut arrived) = (Publisher::new(handle.clone()), Vec::new());
    register(&handle, &to).await;
    for FollowUp { entry, due_ms, fields } in follow_ups {
        let class = message::field(&fields, "priority").unwrap_or_default();
        let mut script = publisher.script(&to, due_ms, &String::from_utf8_lossy(class));
        // The first three fields are the topic, the due time and the priority.
        for (name, value) in fields.iter().skip(3) {
            script.arg(name).arg(value);
        }
        if let Err(error) = script.invoke_async::<()>(&mut handle.shared()).await {
            return Sent { to, arrived, result: Err(error.into()) };
        }
        arrived.push(entry);
    }
    Sent { to, arrived, result: Ok(()) }
}
