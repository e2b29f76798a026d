//! Parses replies about streams. The client's own stream types make a map of
//! each entry, which loses the order of fields and takes half as long again.

use super::state::TopicFlags;
use crate::message::Fields;
use crate::queue::delivery::Delivery;
use crate::queue::error::QueueError;
use crate::queue::keyspace::{EntryId, StreamKind};
use redis::Value;

/// The entries in the reply to a read of one stream.
pub(crate) fn entries(reply: Value) -> Result<Vec<(String, Fields)>, QueueError> {
    let mut found = Vec::new();
    for (_, list) in pairs(reply)? {
        let Value::Array(list) = list else { return Err(unexpected(&list)) };
        for one in list {
            found.push(entry(one)?);
        }
    }
    Ok(found)
}

/// The keys of the streams in the reply to a read.
pub(crate) fn streams(reply: Value) -> Result<Vec<String>, QueueError> {
    pairs(reply)?.into_iter().map(|(key, _)| text(key)).collect()
}

/// The key of each stream in the reply to a read, and its entries.
fn pairs(reply: Value) -> Result<Vec<(Value, Value)>, QueueError> {
    match reply {
        Value::Nil => Ok(Vec::new()),
        Value::Array(streams) => {
            streams.into_iter().map(|stream| array(stream).map(|[key, list]| (key, list))).collect()
        }
        Value::Map(streams) => Ok(streams),
        other => Err(unexpected(&other)),
    }
}

/// An entry: its id and fields.
pub(crate) fn entry(value: Value) -> Result<(String, Fields), QueueError> {
    let [id, fields] = array(value)?;
    Ok((text(id)?, self::fields(fields)?))
}

/// A row `{ id, owner, delivery count, fields }` of `reclaim.lua` and `reconcile.lua`.
pub(crate) fn row(stream: StreamKind, value: Value) -> Result<(Delivery, String), QueueError> {
    let [id, owner, delivery_count, fields] = array(value)?;
    let delivery_count = u32::try_from(number(delivery_count)?).unwrap_or(u32::MAX);
    let entry = EntryId { stream, id: text(id)? };
    Ok((Delivery::counted(entry, delivery_count, self::fields(fields)?), text(owner)?))
}

/// The reply to `HMGET state paused high low`.
pub(crate) fn flags(value: Value) -> Result<TopicFlags, QueueError> {
    let [paused, high, low] = array(value)?;
    let is_set = |value| value != Value::Nil;
    Ok(TopicFlags { is_paused: is_set(paused), has_high: is_set(high), has_low: is_set(low) })
}

/// A flat list of names and values; no fields where the entry was deleted while
/// it was pending.
pub(crate) fn fields(value: Value) -> Result<Fields, QueueError> {
    let list = match value {
        Value::Nil => return Ok(Fields::new()),
        Value::Array(list) => list,
        other => return Err(unexpected(&other)),
    };
    let mut fields = Fields::with_capacity(list.len() / 2);
    let mut items = list.into_iter();
    while let (Some(name), Some(value)) = (items.next(), items.next()) {
        fields.push((bytes(name)?, bytes(value)?));
    }
    Ok(fields)
}

pub(crate) fn array<const N: usize>(value: Value) -> Result<[Value; N], QueueError> {
    match value {
        Value::Array(list) => <[Value; N]>::try_from(list).map_err(|list| unexpected(&Value::Array(list))),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn number(value: Value) -> Result<i64, QueueError> {
    match value {
        Value::Int(number) => Ok(number),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn bytes(value: Value) -> Result<Vec<u8>, QueueError> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn text(value: Value) -> Result<String, QueueError> {
    match value {
        Value::SimpleString(text) => Ok(text),
        other => String::from_utf8(bytes(other)?).map_err(|error| QueueError::Failed(error.to_string())),
    }
}

pub(crate) fn unexpected(value: &Value) -> QueueError {
    QueueError::Failed(format!("an unexpected reply: {value:?}").chars().take(300).collect())
}
