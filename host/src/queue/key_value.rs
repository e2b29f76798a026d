//! The key-value store of plugins: strings in Redis, with a record of their sizes
//! for the quota. All keys of a plugin share a slot, so each change is one script.

use super::error::QueueError;
use super::keyspace::KeyValueKeys;
use super::lua::scripts;
use super::server::Connection;
use crate::capability::{Fault, KeyValue, NewValue, Only, Quota};
use crate::settings::RedisTarget;
use crate::text::size;
use async_trait::async_trait;
use std::time::Duration;

/// A handler waits no longer for Redis, so that it does not use up its time limit.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The results of `key_value.lua` besides 0 and 1.
const TOO_MANY: i64 = -1;
const TOO_LARGE: i64 = -2;
const CALL_AGAIN: i64 = -3;

/// The store of all plugins.
pub struct KeyValueStore {
    connection: Connection,
    prefix: String,
}

impl KeyValueStore {
    /// Opens a separate connection. A connection is served by the threads that
    /// first used it, here those of handlers, and neither they nor large values
    /// may delay the renewal of leases.
    pub fn new(target: &RedisTarget, prefix: &str) -> Result<Self, QueueError> {
        Ok(Self { connection: Connection::to(target)?, prefix: prefix.to_owned() })
    }

    /// One call of the script.
    async fn call(&self, plugin: &str, quota: Quota, how: &str, new: NewValue<'_>) -> Result<i64, Fault> {
        let keys = KeyValueKeys::new(&self.prefix, plugin);
        let expected = if let Only::If(expected) = new.only { expected } else { &[] };
        let mut script = scripts::KEY_VALUE.prepare_invoke();
        script.key(keys.value(new.key)).key(&keys.sizes).key(&keys.expiries);
        script.arg(new.key).arg(how).arg(new.value).arg(new.ttl.unwrap_or_default().as_millis()).arg(expected);
        script.arg(quota.keys).arg(quota.bytes);
        in_time(script.invoke_async(&mut self.connection.shared())).await
    }
}

#[async_trait]
impl KeyValue for KeyValueStore {
    async fn get(&self, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, Fault> {
        let key = KeyValueKeys::new(&self.prefix, plugin).value(key);
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
                match self.call(plugin, quota, how, new).await? {
                    CALL_AGAIN => {}
                    answer => return Ok(answer),
                }
            }
        };
        match tokio::time::timeout(TIMEOUT, all).await.map_err(|_| timed_out())?? {
            TOO_MANY => Err(Fault::new(
                "too-many",
                format!(
                    "limits.keyvalue_keys = {} are in use: delete some, or raise the limit in {plugin}.toml",
                    quota.keys
                ),
            )),
            TOO_LARGE => Err(Fault::new(
                "too-large",
                format!(
                    "limits.keyvalue = {} leaves no room for {} more bytes: delete some, or raise the limit in {plugin}.toml",
                    size(quota.bytes),
                    new.key.len() + new.value.len()
                ),
            )),
            answer => Ok(answer == 1),
        }
    }

    async fn delete(&self, plugin: &str, key: &str) -> Result<(), Fault> {
        let nothing = NewValue { key, value: &[], ttl: None, only: Only::Always };
        self.call(plugin, Quota { keys: 0, bytes: 0 }, "delete", nothing).await.map(drop)
    }
}

async fn in_time<T>(answer: impl Future<Output = redis::RedisResult<T>>) -> Result<T, Fault> {
    let answer = tokio::time::timeout(TIMEOUT, answer).await.map_err(|_| timed_out())?;
    answer.map_err(|error| Fault::unavailable(QueueError::from(error)))
}

fn timed_out() -> Fault {
    Fault::unavailable(format!("Redis has not answered for {TIMEOUT:?}"))
}
