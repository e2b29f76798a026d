//! The key-value store: small values in Redis, in a namespace for each plugin
//! name. The manifest grants it: `keyvalue = true` under `[grants]`.
//!
//! A write takes effect immediately, and a failed run does not undo it;
//! follow-ups, in contrast, are sent only when the run returns ok. A message may
//! be run again, so make your writes idempotent, or use [`set_if_absent`] and
//! [`compare_and_swap`].
//!
//! A key has 1 to 512 bytes and a value up to 1 MiB. `limits.keyvalue_keys` and
//! `limits.keyvalue` in the manifest bound the number of keys and their bytes.
//! A time to live is in whole seconds, rounded up; without one a value stays
//! until it is deleted.
//!
//! ```no_run
//! use gateway_plugin_sdk::{Failure, Message, kv};
//! use std::time::Duration;
//!
//! const DAY: Duration = Duration::from_secs(24 * 60 * 60);
//!
//! /// Says hello at most once a day for each message id.
//! fn greet(message: Message) -> Result<(), Failure> {
//!     if kv::set_if_absent(&format!("greeted/{}", message.id), b"1", Some(DAY))? {
//!         gateway_plugin_sdk::info!("hello");
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # Errors
//!
//! Every function: `denied` if the manifest does not grant the store, `invalid`
//! for a key of the wrong length, `unavailable` if Redis is down or full. The
//! functions that write: `too-large` for a value of more than 1 MiB or beyond
//! `limits.keyvalue`, `too-many` beyond `limits.keyvalue_keys`.

use crate::capability_bindings::gateway::worker::key_value;
use crate::{Fault, json};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// The value at `key`, if there is one.
///
/// # Errors
///
/// See [the module](self).
pub fn get(key: &str) -> Result<Option<Vec<u8>>, Fault> {
    key_value::get(key)
}

/// The value at `key`, read as JSON.
///
/// # Errors
///
/// See [the module](self); also `invalid` if it is not JSON of this type.
pub fn get_json<T: DeserializeOwned>(key: &str) -> Result<Option<T>, Fault> {
    let read = |bytes: Vec<u8>| serde_json::from_slice(&bytes);
    get(key)?
        .map(read)
        .transpose()
        .map_err(|error| Fault { code: "invalid".to_owned(), reason: format!("the value of {key}: {error}") })
}

/// Stores a value and replaces an existing one.
///
/// # Errors
///
/// See [the module](self).
pub fn set(key: &str, value: &[u8], ttl: Option<Duration>) -> Result<(), Fault> {
    key_value::set(key, value, seconds(ttl))
}

/// Stores a value as JSON and replaces an existing one.
///
/// # Errors
///
/// See [the module](self).
pub fn set_json(key: &str, value: &impl Serialize, ttl: Option<Duration>) -> Result<(), Fault> {
    set(key, &json(value)?, ttl)
}

/// Stores a value only if the key does not exist, and returns whether it did
/// so. Of all concurrent calls, on any number of workers, one returns true.
///
/// # Errors
///
/// See [the module](self).
pub fn set_if_absent(key: &str, value: &[u8], ttl: Option<Duration>) -> Result<bool, Fault> {
    key_value::set_if_absent(key, value, seconds(ttl))
}

/// Stores `value` only if the stored value is `expected`, and returns whether it
/// did so.
///
/// # Errors
///
/// See [the module](self).
pub fn compare_and_swap(key: &str, expected: &[u8], value: &[u8], ttl: Option<Duration>) -> Result<bool, Fault> {
    key_value::compare_and_swap(key, expected, value, seconds(ttl))
}

/// Deletes the value at `key`, if there is one.
///
/// # Errors
///
/// See [the module](self).
pub fn delete(key: &str) -> Result<(), Fault> {
    key_value::delete(key)
}

/// The host takes 0 for "never expires", so a time to live of zero becomes 1 s.
fn seconds(ttl: Option<Duration>) -> u32 {
    let rounded_up = |ttl: Duration| ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
    ttl.map_or(0, |ttl| u32::try_from(rounded_up(ttl)).unwrap_or(u32::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_is_rounded_up_and_is_never_zero() {
        assert_eq!(seconds(None), 0);
        assert_eq!(seconds(Some(Duration::ZERO)), 1);
        assert_eq!(seconds(Some(Duration::from_millis(1000))), 1);
        assert_eq!(seconds(Some(Duration::from_millis(1001))), 2);
        assert_eq!(seconds(Some(Duration::MAX)), u32::MAX);
    }
}
