//! Reads new messages: by a blocking read on a connection of its own, or without
//! waiting by a connection that all topics share.

use super::ingest::ListEnd;
use crate::queue::delivery::Delivery;
use crate::queue::error::QueueError;
use crate::queue::keyspace::{EntryId, StreamKind};
use crate::queue::lua::scripts;
use crate::queue::server::BlockingSlot;
use crate::queue::topic::reply::{self, fields, text, unexpected};
use crate::queue::topic::{TopicFlags, TopicHandle, TopicKeys};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{RedisResult, Value};
use std::time::Duration;

/// A read that has not returned this long after its end has lost its connection.
const OVERDUE: Duration = Duration::from_secs(3);

/// Waits for messages of one topic, on a connection of its own.
pub struct BlockingReader {
    handle: TopicHandle,
    connection: MultiplexedConnection,
    slot: BlockingSlot,
}

/// Limits over all workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowControl {
    /// How many messages may be in flight.
    pub total: Option<usize>,
    /// How many messages may start within a time span.
    pub rate: Option<(u32, Duration)>,
    /// Where the weighted round of the streams continues.
    pub turn: usize,
}

impl FlowControl {
    pub fn is_none(&self) -> bool {
        self.total.is_none() && self.rate.is_none()
    }
}

/// The result of a take under flow control.
#[derive(Debug, PartialEq)]
pub enum Take {
    Taken(Vec<Delivery>),
    Paused,
    /// The limit of messages in flight is reached.
    Full,
    /// The rate limit is reached for this long.
    TooSoon(Duration),
    /// No message waits. For each stream the id of its last delivered entry.
    Empty(Vec<String>),
}

impl BlockingReader {
    pub async fn connect(handle: &TopicHandle) -> Result<Self, QueueError> {
        let (connection, slot) = handle.connection().blocking(&handle.keys().main).await?;
        Ok(Self { handle: handle.clone(), connection, slot })
    }

    /// The id for [`unblock`]; never 0.
    pub fn client_id(&self) -> i64 {
        self.slot.id()
    }

    /// Waits up to `block` for at most `count` new messages. Its future must not
    /// be dropped: Redis may already have delivered messages to it, which then
    /// nobody receives.
    pub async fn read(
        &mut self,
        stream: StreamKind,
        count: usize,
        block: Duration,
    ) -> Result<(Vec<Delivery>, TopicFlags), QueueError> {
        within(block, read(&self.handle, &mut self.connection, stream, count, Some(block))).await
    }

    /// Takes at most `count` new messages from these streams in weighted turns,
    /// without waiting.
    pub async fn take(
        &mut self,
        streams: &[StreamKind],
        control: FlowControl,
        count: usize,
    ) -> Result<Take, QueueError> {
        within(Duration::ZERO, take(&self.handle, &mut self.connection, streams, control, count)).await
    }

    /// Waits up to `block` for an entry behind the ids `behind`, one for each
    /// stream, or for the creation of an absent stream, because no key exists
    /// until it is written to. Returns whether an absent key was created.
    pub async fn wait_for_more(
        &mut self,
        keys: &TopicKeys,
        behind: &[String],
        block: Duration,
    ) -> Result<bool, QueueError> {
        within(block, look_behind(&self.handle, &mut self.connection, keys, behind, Some(block))).await.map(is_created)
    }

    /// Waits up to `block` for a message in the list of plain clients. It moves
    /// one message to the intake list, from where
    /// [`ListIntake::move_batch`](super::ListIntake::move_batch) takes it.
    pub async fn wait_for_list(&mut self, end: ListEnd, block: Duration) -> Result<bool, QueueError> {
        let keys = self.handle.keys();
        let mut command = redis::cmd("BLMOVE");
        command.arg(&keys.main).arg(&keys.input).arg(end.name()).arg("RIGHT");
        command.arg(block.as_secs_f64().max(0.001));
        let connection = &mut self.connection;
        let moved: Value = within(block, async { Ok(command.query_async(connection).await?) }).await?;
        Ok(moved != Value::Nil)
    }
}

/// Takes without waiting, by a connection that all topics share.
pub struct PollingReader {
    handle: TopicHandle,
}

/// What a look without waiting found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    Nothing,
    /// There are entries to take.
    Entries,
    /// An absent key was created.
    Created,
}

impl PollingReader {
    pub fn new(handle: &TopicHandle) -> Self {
        Self { handle: handle.clone() }
    }

    pub async fn read(&mut self, stream: StreamKind, count: usize) -> Result<(Vec<Delivery>, TopicFlags), QueueError> {
        read(&self.handle, &mut self.handle.connection().takes(), stream, count, None).await
    }

    pub async fn take(
        &mut self,
        streams: &[StreamKind],
        control: FlowControl,
        count: usize,
    ) -> Result<Take, QueueError> {
        take(&self.handle, &mut self.handle.connection().takes(), streams, control, count).await
    }

    /// Looks for entries behind these ids, and for absent keys that exist now.
    pub async fn look(&mut self, keys: &TopicKeys, behind: &[String]) -> Result<Look, QueueError> {
        look_behind(&self.handle, &mut self.handle.connection().takes(), keys, behind, None).await
    }
}

/// Without `block` it does not wait.
async fn read(
    handle: &TopicHandle,
    connection: &mut impl ConnectionLike,
    stream: StreamKind,
    count: usize,
    block: Option<Duration>,
) -> Result<(Vec<Delivery>, TopicFlags), QueueError> {
    let mut read = redis::cmd("XREADGROUP");
    read.arg("GROUP").arg(handle.group()).arg(handle.consumer()).arg("COUNT").arg(count);
    if let Some(block) = block {
        read.arg("BLOCK").arg(millis(block));
    }
    read.arg("STREAMS").arg(handle.key(stream)).arg(">");
    // The flags follow the read, so that a pause during its wait is seen.
    let mut pipe = redis::pipe();
    pipe.add_command(read).add_command(handle.flags_command()).ignore_errors();
    let (entries, flags): (RedisResult<Value>, RedisResult<Value>) = pipe.query_async(connection).await?;
    let (entries, flags) = (reply::entries(entries?)?, flags?);
    let delivery = |(id, fields)| Delivery::new(EntryId { stream, id }, fields);
    Ok((entries.into_iter().map(delivery).collect(), reply::flags(flags)?))
}

async fn take(
    handle: &TopicHandle,
    connection: &mut (impl ConnectionLike + Clone + Send + Sync),
    streams: &[StreamKind],
    control: FlowControl,
    count: usize,
) -> Result<Take, QueueError> {
    let mut script = scripts::TAKE_NEW.key(&handle.keys().state);
    for stream in streams {
        script.key(handle.key(*stream));
    }
    let (limit, span) = control.rate.unwrap_or_default();
    script.arg(handle.group()).arg(handle.consumer()).arg(count).arg(control.total.unwrap_or(0));
    script.arg(limit).arg(span.as_millis()).arg(control.turn);
    for stream in streams {
        script.arg(stream.weight());
    }
    parse_take(script.invoke_async(connection).await?, streams)
}

async fn look_behind(
    handle: &TopicHandle,
    connection: &mut impl ConnectionLike,
    keys: &TopicKeys,
    behind: &[String],
    block: Option<Duration>,
) -> Result<Look, QueueError> {
    let key = |stream: &StreamKind| handle.key(*stream).to_owned();
    let existing: Vec<_> = keys.streams.iter().map(key).collect();
    let absent: Vec<_> = keys.absent.iter().map(key).collect();
    let mut command = redis::cmd("XREAD");
    command.arg("COUNT").arg(1);
    if let Some(block) = block {
        command.arg("BLOCK").arg(millis(block));
    }
    command.arg("STREAMS").arg(&existing).arg(&absent).arg(behind).arg(vec!["0"; absent.len()]);
    match command.query_async::<Value>(connection).await.map_err(QueueError::from) {
        Ok(found) => {
            let found = reply::streams(found)?;
            Ok(match found.iter().any(|stream| absent.contains(stream)) {
                true => Look::Created,
                false if found.is_empty() => Look::Nothing,
                false => Look::Entries,
            })
        }
        // The absent key was created as a list.
        Err(QueueError::WrongType(_)) if !absent.is_empty() => Ok(Look::Created),
        Err(error) => Err(error),
    }
}

fn is_created(look: Look) -> bool {
    look == Look::Created
}

/// Ends a reader's blocking read now; the read then returns no message.
pub async fn unblock(handle: &TopicHandle, client_id: i64) -> Result<(), QueueError> {
    handle.connection().unblock(client_id).await
}

async fn within<T>(block: Duration, query: impl Future<Output = Result<T, QueueError>>) -> Result<T, QueueError> {
    match tokio::time::timeout(block + OVERDUE, query).await {
        Ok(reply) => reply,
        Err(_) => Err(QueueError::Away(format!("Redis is away: no answer to a read within {:?}", block + OVERDUE))),
    }
}

fn parse_take(reply: Vec<Value>, streams: &[StreamKind]) -> Result<Take, QueueError> {
    let mut items = reply.into_iter();
    let kind = text(items.next().unwrap_or(Value::Nil))?;
    Ok(match kind.as_str() {
        "paused" => Take::Paused,
        "full" => Take::Full,
        "rate" => {
            let wait = reply::number(items.next().unwrap_or(Value::Nil))?;
            Take::TooSoon(Duration::from_millis(u64::try_from(wait).unwrap_or(0)))
        }
        "empty" => Take::Empty(items.map(text).collect::<Result<_, _>>()?),
        _ => {
            let delivery = |value| {
                let [at, id, list] = reply::array(value)?;
                let at = usize::try_from(reply::number(at)?).unwrap_or(usize::MAX);
                let stream = *streams.get(at).ok_or_else(|| unexpected(&id))?;
                Ok::<_, QueueError>(Delivery::new(EntryId { stream, id: text(id)? }, fields(list)?))
            };
            Take::Taken(items.map(delivery).collect::<Result<_, _>>()?)
        }
    })
}

/// Redis takes 0 as no limit.
fn millis(block: Duration) -> u128 {
    block.as_millis().max(1)
}
