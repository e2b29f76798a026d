//! New messages, by a blocking read on a connection of its own.

use super::topic_queue::TopicQueue;
use super::{QueueError, Taken};
use crate::message::Fields;
use redis::Value;
use redis::aio::MultiplexedConnection;
use std::time::Duration;

/// A read that has not come back this long after its time is up has no
/// connection any more.
const OVERDUE: Duration = Duration::from_secs(3);

pub struct Reader {
    connection: MultiplexedConnection,
    client_id: i64,
}

impl Reader {
    pub async fn connect(queue: &TopicQueue) -> Result<Self, QueueError> {
        let mut connection = queue.connection().blocking(&queue.keys().stream).await?;
        let client_id = redis::cmd("CLIENT").arg("ID").query_async(&mut connection).await?;
        Ok(Self { connection, client_id })
    }

    /// The id that [`TopicQueue::unblock`] takes to end a read early.
    pub fn client_id(&self) -> i64 {
        self.client_id
    }

    /// Waits up to `block` for at most `count` new messages. Never to be
    /// dropped while it waits: what Redis delivers then reaches nobody.
    pub async fn read(&mut self, queue: &TopicQueue, count: usize, block: Duration) -> Result<Vec<Taken>, QueueError> {
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(queue.group()).arg(queue.me()).arg("COUNT").arg(count);
        command.arg("BLOCK").arg(millis(block)).arg("STREAMS").arg(&queue.keys().stream).arg(">");
        entries(self.query(&command, block).await?)
    }

    /// Waits up to `block` for the topic's key to become a stream, which it
    /// does not do by itself. The wait makes no key.
    pub async fn wait_for_key(&mut self, queue: &TopicQueue, block: Duration) -> Result<(), QueueError> {
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(millis(block)).arg("STREAMS").arg(&queue.keys().stream).arg("0");
        self.query(&command, block).await.map(drop)
    }

    async fn query(&mut self, command: &redis::Cmd, block: Duration) -> Result<Value, QueueError> {
        match tokio::time::timeout(block + OVERDUE, command.query_async(&mut self.connection)).await {
            Ok(reply) => Ok(reply?),
            Err(_) => Err(QueueError::Away(format!("no answer to a read within {:?}", block + OVERDUE))),
        }
    }
}

/// 0 would block for ever.
fn millis(block: Duration) -> u128 {
    block.as_millis().max(1)
}

// The reply is walked by hand: the crate's own reply type makes a map of each
// entry, which loses the order of fields and costs half as much again.
fn entries(reply: Value) -> Result<Vec<Taken>, QueueError> {
    let streams = match reply {
        Value::Nil => return Ok(Vec::new()),
        Value::Array(streams) => streams,
        Value::Map(streams) => streams.into_iter().map(|(key, list)| Value::Array(vec![key, list])).collect(),
        other => return Err(unexpected(&other)),
    };
    let mut taken = Vec::new();
    for stream in streams {
        let [_, list] = array(stream)?;
        let Value::Array(list) = list else { return Err(unexpected(&list)) };
        for entry in list {
            let [id, fields] = array(entry)?;
            taken.push(Taken { entry_id: text(id)?, deliveries: 1, fields: self::fields(fields)? });
        }
    }
    Ok(taken)
}

/// The rows `{ id, owner, deliveries, fields }` of `take_over` and `reconcile`.
pub(super) fn rows(reply: Value) -> Result<Vec<(Taken, String)>, QueueError> {
    let Value::Array(rows) = reply else { return Err(unexpected(&reply)) };
    let row = |row| {
        let [id, owner, deliveries, fields] = array(row)?;
        let Value::Int(deliveries) = deliveries else { return Err(unexpected(&deliveries)) };
        let deliveries = u32::try_from(deliveries).unwrap_or(u32::MAX);
        Ok((Taken { entry_id: text(id)?, deliveries, fields: self::fields(fields)? }, text(owner)?))
    };
    rows.into_iter().map(row).collect()
}

/// A flat list of names and values, or nothing where the entry was deleted
/// while it was pending.
pub(super) fn fields(value: Value) -> Result<Fields, QueueError> {
    let list = match value {
        Value::Nil => return Ok(Fields::new()),
        Value::Array(list) => list,
        other => return Err(unexpected(&other)),
    };
    let mut fields = Fields::with_capacity(list.len() / 2);
    let mut words = list.into_iter();
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        fields.push((bytes(name)?, bytes(value)?));
    }
    Ok(fields)
}

pub(super) fn array<const N: usize>(value: Value) -> Result<[Value; N], QueueError> {
    match value {
        Value::Array(list) => <[Value; N]>::try_from(list).map_err(|list| unexpected(&Value::Array(list))),
        other => Err(unexpected(&other)),
    }
}

fn bytes(value: Value) -> Result<Vec<u8>, QueueError> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn text(value: Value) -> Result<String, QueueError> {
    String::from_utf8(bytes(value)?).map_err(|error| QueueError::Failed(error.to_string()))
}

fn unexpected(value: &Value) -> QueueError {
    QueueError::Failed(format!("an unexpected reply: {value:?}").chars().take(300).collect())
}
