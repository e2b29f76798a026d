//! Values that stay: in Redis, kept apart for each plugin by its name. The
//! manifest grants them: `keyvalue = true` under `[grants]`.
//!
//! What is written here takes effect at once and stays, whatever becomes of
//! the message; follow-ups, in contrast, leave only when the run returns ok. A
//! message may be run again, so write what may be written twice, or use
//! [`add`] and [`swap`].
//!
//! A key has 1 to 512 bytes and a value up to 1 MiB. How much there may be in
//! all is up to `limits.keyvalue_keys` and `limits.keyvalue` of the manifest.
//! A lifetime counts in whole seconds, rounded up; without one a value stays
//! until it is deleted.
//!
//! ```no_run
//! use gateway_plugin_sdk::{Failure, Message, kv};
//! use std::time::Duration;
//!
//! const DAY: Duration = Duration::from_secs(24 * 60 * 60);
//!
//! /// Greets nobody twice a day.
//! fn greet(message: Message) -> Result<(), Failure> {
//!     if kv::add(&format!("greeted/{}", message.id), b"1", Some(DAY))? {
//!         gateway_plugin_sdk::info!("hello");
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # Errors
//!
//! Every function: `denied` where the manifest does not grant it, `invalid`
//! for a key that can't be one, `unavailable` where Redis is away or full. The
//! ones that write: `too-large` for a value of more than 1 MiB or where
//! `limits.keyvalue` leaves no room, `too-many` beyond `limits.keyvalue_keys`.

use crate::bindings_more::gateway::worker::key_value;
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
/// See [the module](self); also `invalid` where it is other JSON, or none.
pub fn get_json<T: DeserializeOwned>(key: &str) -> Result<Option<T>, Fault> {
    let read = |bytes: Vec<u8>| serde_json::from_slice(&bytes);
    get(key)?
        .map(read)
        .transpose()
        .map_err(|error| Fault { code: "invalid".to_owned(), reason: format!("the value of {key}: {error}") })
}

/// Stores a value, whatever stood there.
///
/// # Errors
///
/// See [the module](self).
pub fn set(key: &str, value: &[u8], ttl: Option<Duration>) -> Result<(), Fault> {
    key_value::set(key, value, seconds(ttl))
}

/// Stores a value as JSON, whatever stood there.
///
/// # Errors
///
/// See [the module](self).
pub fn set_json(key: &str, value: &impl Serialize, ttl: Option<Duration>) -> Result<(), Fault> {
    set(key, &json(value)?, ttl)
}

/// Stores a value where there is none. Returns whether there was none: of all
/// that try at the same time, on however many workers, one is told so.
///
/// # Errors
///
/// See [the module](self).
pub fn add(key: &str, value: &[u8], ttl: Option<Duration>) -> Result<bool, Fault> {
    key_value::add(key, value, seconds(ttl))
}

/// Stores `value` if what is stored is `expected`. Returns whether it was.
///
/// # Errors
///
/// See [the module](self).
pub fn swap(key: &str, expected: &[u8], value: &[u8], ttl: Option<Duration>) -> Result<bool, Fault> {
    key_value::swap(key, expected, value, seconds(ttl))
}

/// Deletes the value at `key`, if there is one.
///
/// # Errors
///
/// See [the module](self).
pub fn delete(key: &str) -> Result<(), Fault> {
    key_value::delete(key)
}

/// To the host 0 is for ever, which nobody means who asks for no time at all.
fn seconds(ttl: Option<Duration>) -> u32 {
    let rounded_up = |ttl: Duration| ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
    ttl.map_or(0, |ttl| u32::try_from(rounded_up(ttl)).unwrap_or(u32::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_rounded_up_and_never_becomes_for_ever() {
        assert_eq!(seconds(None), 0);
        assert_eq!(seconds(Some(Duration::ZERO)), 1);
        assert_eq!(seconds(Some(Duration::from_millis(1000))), 1);
        assert_eq!(seconds(Some(Duration::from_millis(1001))), 2);
        assert_eq!(seconds(Some(Duration::MAX)), u32::MAX);
    }
}
