//! Replies, walked by hand: the crate's own type for what a stream holds makes
//! a map of each entry, which loses the order of fields and costs half as much
//! again.

use super::reader::Flags;
use super::source::{EntryKey, Source};
use super::{QueueError, Taken};
use crate::message::Fields;
use redis::Value;

/// The entries of a read of one stream.
pub(super) fn entries(reply: Value) -> Result<Vec<(String, Fields)>, QueueError> {
    let mut found = Vec::new();
    for (_, list) in pairs(reply)? {
        let Value::Array(list) = list else { return Err(unexpected(&list)) };
        for one in list {
            found.push(entry(one)?);
        }
    }
    Ok(found)
}

/// The streams that a read of several brought something of.
pub(super) fn streams(reply: Value) -> Result<Vec<String>, QueueError> {
    pairs(reply)?.into_iter().map(|(key, _)| text(key)).collect()
}

/// The key of each stream of a read, and its entries.
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
pub(super) fn entry(value: Value) -> Result<(String, Fields), QueueError> {
    let [id, fields] = array(value)?;
    Ok((text(id)?, self::fields(fields)?))
}

/// A row `{ id, owner, deliveries, fields }` of `take_over` and `reconcile`.
pub(super) fn row(source: Source, value: Value) -> Result<(Taken, String), QueueError> {
    let [id, owner, deliveries, fields] = array(value)?;
    let deliveries = u32::try_from(number(deliveries)?).unwrap_or(u32::MAX);
    let entry = EntryKey { source, id: text(id)? };
    let losses = deliveries.saturating_sub(1);
    Ok((Taken { entry, deliveries, losses, fields: self::fields(fields)? }, text(owner)?))
}

/// The answer to `HMGET state paused high low`.
pub(super) fn flags(value: Value) -> Result<Flags, QueueError> {
    let [paused, high, low] = array(value)?;
    let is_set = |value| value != Value::Nil;
    Ok(Flags { is_paused: is_set(paused), has_high: is_set(high), has_low: is_set(low) })
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

pub(super) fn number(value: Value) -> Result<i64, QueueError> {
    match value {
        Value::Int(number) => Ok(number),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn bytes(value: Value) -> Result<Vec<u8>, QueueError> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn text(value: Value) -> Result<String, QueueError> {
    match value {
        Value::SimpleString(text) => Ok(text),
        other => String::from_utf8(bytes(other)?).map_err(|error| QueueError::Failed(error.to_string())),
    }
}

pub(super) fn unexpected(value: &Value) -> QueueError {
    QueueError::Failed(format!("an unexpected reply: {value:?}").chars().take(300).collect())
}
