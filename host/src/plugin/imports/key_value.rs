//! `key-value`: small persistent values, in a namespace per plugin.

use super::fault;
use crate::capability::{KeyValue, NewValue, Only, Quota};
use crate::plugin::bindings::{Fault, key_value};
use crate::plugin::guest::Guest;
use std::sync::Arc;
use std::time::Duration;

const KEY_BYTES_MAX: usize = 512;
const VALUE_BYTES_MAX: usize = 1 << 20;

impl Guest {
    fn store(&self, key: &str) -> Result<Arc<dyn KeyValue>, Fault> {
        self.require(self.context.manifest.grants.keyvalue, "the key-value store", "keyvalue = true")?;
        if !(1..=KEY_BYTES_MAX).contains(&key.len()) {
            return Err(fault("invalid", format!("a key has 1 to {KEY_BYTES_MAX} bytes, not {}", key.len())));
        }
        self.context
            .capabilities
            .key_value
            .clone()
            .ok_or_else(|| fault("unavailable", "this host has no key-value store"))
    }

    async fn store_value(&mut self, key: &str, value: &[u8], ttl_seconds: u32, only: Only<'_>) -> Result<bool, Fault> {
        let store = self.store(key)?;
        if value.len() > VALUE_BYTES_MAX {
            let reason = format!("a value has at most {VALUE_BYTES_MAX} bytes, not {}", value.len());
            return Err(fault("too-large", reason));
        }
        if matches!(only, Only::If(expected) if expected.len() > VALUE_BYTES_MAX) {
            // No stored value is that long, so the store need not be asked.
            return Ok(false);
        }
        let limits = &self.context.manifest.limits;
        let quota = Quota { keys: limits.keyvalue_keys, bytes: limits.keyvalue };
        let ttl = (ttl_seconds > 0).then(|| Duration::from_secs(ttl_seconds.into()));
        Ok(store.set(&self.context.name, quota, NewValue { key, value, ttl, only }).await?)
    }
}

impl key_value::Host for Guest {
    async fn get(&mut self, key: String) -> Result<Option<Vec<u8>>, Fault> {
        let store = self.store(&key)?;
        Ok(store.get(&self.context.name, &key).await?)
    }

    async fn set(&mut self, key: String, value: Vec<u8>, ttl_seconds: u32) -> Result<(), Fault> {
        self.store_value(&key, &value, ttl_seconds, Only::Always).await.map(drop)
    }

    async fn set_if_absent(&mut self, key: String, value: Vec<u8>, ttl_seconds: u32) -> Result<bool, Fault> {
        self.store_value(&key, &value, ttl_seconds, Only::IfAbsent).await
    }

    async fn compare_and_swap(
        &mut self,
        key: String,
        expected: Vec<u8>,
        value: Vec<u8>,
        ttl_seconds: u32,
    ) -> Result<bool, Fault> {
        self.store_value(&key, &value, ttl_seconds, Only::If(&expected)).await
    }

    async fn delete(&mut self, key: String) -> Result<(), Fault> {
        let store = self.store(&key)?;
        Ok(store.delete(&self.context.name, &key).await?)
    }
}
