//! The capabilities that a manifest can grant to a guest beyond its sandbox. These
//! are traits only, so that the implementations (Redis, the mail relay, the secret
//! files) and the callers (guests) are independent of each other.

use async_trait::async_trait;
use jiff::Timestamp;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A failed call: a code for programs, a reason for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {reason}")]
pub struct Fault {
    pub code: &'static str,
    pub reason: String,
}

impl Fault {
    pub fn new(code: &'static str, reason: impl fmt::Display) -> Self {
        Self { code, reason: reason.to_string() }
    }

    pub fn unavailable(reason: impl fmt::Display) -> Self {
        Self::new("unavailable", reason)
    }
}

/// How much one plugin may store, over all workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    pub keys: u64,
    /// Keys and values together.
    pub bytes: u64,
}

/// A key-value store with a namespace for each plugin. Changes are visible at
/// once.
#[async_trait]
pub trait KeyValue: Send + Sync {
    async fn get(&self, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, Fault>;

    /// Returns whether the value was set.
    async fn set(&self, plugin: &str, quota: Quota, new: NewValue<'_>) -> Result<bool, Fault>;

    async fn delete(&self, plugin: &str, key: &str) -> Result<(), Fault>;
}

/// A value to store. Without a `ttl` it is stored until it is deleted.
#[derive(Debug, Clone, Copy)]
pub struct NewValue<'a> {
    pub key: &'a str,
    pub value: &'a [u8],
    pub ttl: Option<Duration>,
    pub only: Only<'a>,
}

/// The condition for setting a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Only<'a> {
    Always,
    IfAbsent,
    /// Only if this value is stored.
    If(&'a [u8]),
}

/// An email as a guest requests it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Email {
    /// The source of its `Message-ID`, equal for every attempt to send it.
    pub id: String,
    pub to: Vec<String>,
    pub headers: Vec<(String, String)>,
    pub parts: Vec<EmailPart>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmailPart {
    pub content_type: String,
    /// The file name of an attachment; none for a body.
    pub name: Option<String>,
    pub data: Vec<u8>,
}

#[async_trait]
pub trait Mailer: Send + Sync {
    async fn send(&self, plugin: &str, email: Email) -> Result<(), Fault>;
}

/// A secret of a handler or of the host. `Debug` does not print its value.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: String) -> Self {
        Self(value)
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

pub trait Secrets: Send + Sync {
    fn get(&self, name: &str) -> Result<Secret, Fault>;

    /// Reads it for a plugin's handler, which a metric counts.
    fn read(&self, plugin: &str, name: &str) -> Result<Secret, Fault>;
}

/// The clock that decides when messages are due and when they expire.
pub trait Clock: Send + Sync {
    fn now(&self) -> Timestamp;
}

/// The capabilities of this host. Calls of a granted one that the host lacks fail
/// with `unavailable`.
#[derive(Clone, Default)]
pub struct Capabilities {
    pub key_value: Option<Arc<dyn KeyValue>>,
    pub mailer: Option<Arc<dyn Mailer>>,
    pub secrets: Option<Arc<dyn Secrets>>,
    /// Without one, for example where a handler is only tried, it is the host's clock.
    pub clock: Option<Arc<dyn Clock>>,
    /// Directories of the host (plugins, cache, secrets) that no grant may include.
    pub protected_dirs: Vec<PathBuf>,
}
