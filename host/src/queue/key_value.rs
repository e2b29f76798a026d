//! The values that plugins keep, as strings in Redis with an account of them
//! beside. All keys of a plugin share a slot, so one script does each step.

use super::connection::Connection;
use super::keys::StoreKeys;
use super::{QueueError, scripts};
use crate::capability::{Fault, KeyValue, NewValue, Only, Quota};
use crate::settings::RedisTarget;
use async_trait::async_trait;
use std::time::Duration;

/// A handler waits no longer for Redis: it has better things to do than use
/// up its own time.
const PATIENCE: Duration = Duration::from_secs(2);

/// The answers of `key_value.lua` that are no yes or no.
const TOO_MANY: i64 = -1;
const TOO_LARGE: i64 = -2;
const NOT_KNOWN_YET: i64 = -3;

/// The store of all plugins.
pub struct Store {
    connection: Connection,
    prefix: String,
}

impl Store {
    /// It has a connection of its own: what serves a connection runs where that
    /// was first used, here on the threads of handlers, and must not hold up
    /// leases; nor must values of a megabyte.
    pub fn new(target: &RedisTarget, prefix: &str) -> Result<Self, QueueError> {
        Ok(Self { connection: Connection::to(target)?, prefix: prefix.to_owned() })
    }

    /// One step of the script.
    async fn step(&self, plugin: &str, quota: Quota, how: &str, new: NewValue<'_>) -> Result<i64, Fault> {
        let keys = StoreKeys::new(&self.prefix, plugin);
        let expected = if let Only::If(expected) = new.only { expected } else { &[] };
        let mut script = scripts::KEY_VALUE.prepare_invoke();
        script.key(keys.value(new.key)).key(&keys.sizes).key(&keys.ends);
        script.arg(new.key).arg(how).arg(new.value).arg(new.ttl.unwrap_or_default().as_millis()).arg(expected);
        script.arg(quota.keys).arg(quota.bytes);
        in_time(script.invoke_async(&mut self.connection.shared())).await
    }
}

#[async_trait]
impl KeyValue for Store {
    async fn get(&self, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, Fault> {
        let key = StoreKeys::new(&self.prefix, plugin).value(key);
        in_time(redis::cmd("GET").arg(key).query_async(&mut self.connection.shared())).await
    }

    async fn set(&self, plugin: &str, quota: Quota, new: NewValue<'_>) -> Result<bool, Fault> {
        let how = match new.only {
            Only::Always => "always",
            Only::IfAbsent => "absent",
            Only::If(_) => "same",
        };
        let all = async {
            loop {
                match self.step(plugin, quota, how, new).await? {
                    NOT_KNOWN_YET => {}
                    answer => return Ok(answer),
                }
            }
        };
        match tokio::time::timeout(PATIENCE, all).await.map_err(|_| late())?? {
            TOO_MANY => Err(Fault::new(
                "too-many",
                format!("limits.keyvalue_keys = {} are in use: delete some, or raise it in {plugin}.toml", quota.keys),
            )),
            TOO_LARGE => Err(Fault::new(
                "too-large",
                format!(
                    "limits.keyvalue = {} bytes leave no room for {} more: delete some, or raise it in {plugin}.toml",
                    quota.bytes,
                    new.key.len() + new.value.len()
                ),
            )),
            answer => Ok(answer == 1),
        }
    }

    async fn delete(&self, plugin: &str, key: &str) -> Result<(), Fault> {
        let nothing = NewValue { key, value: &[], ttl: None, only: Only::Always };
        self.step(plugin, Quota { keys: 0, bytes: 0 }, "delete", nothing).await.map(drop)
    }
}

async fn in_time<T>(answer: impl Future<Output = redis::RedisResult<T>>) -> Result<T, Fault> {
    let answer = tokio::time::timeout(PATIENCE, answer).await.map_err(|_| late())?;
    answer.map_err(|error| Fault::unavailable(QueueError::from(error)))
}

fn late() -> Fault {
    Fault::unavailable(format!("Redis has not answered for {PATIENCE:?}"))
}
