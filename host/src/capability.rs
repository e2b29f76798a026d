//! What the host can do for a guest beyond its sandbox, where the manifest
//! grants it. Only the shape stands here: those who do it (Redis, the mail
//! relay, the files of secrets) and those who ask for it (guests) need not
//! know each other.

use async_trait::async_trait;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// An answer of no: a code for machines, a reason for people.
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

/// How much one plugin may keep, over all workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    pub keys: u64,
    /// Of keys and values together.
    pub bytes: u64,
}

/// Values by key, apart for each plugin. Takes effect at once.
#[async_trait]
pub trait KeyValue: Send + Sync {
    async fn get(&self, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, Fault>;

    /// Whether it was set.
    async fn set(&self, plugin: &str, quota: Quota, new: NewValue<'_>) -> Result<bool, Fault>;

    async fn delete(&self, plugin: &str, key: &str) -> Result<(), Fault>;
}

/// A value to be kept. Without a `ttl` it stays until it is deleted.
#[derive(Debug, Clone, Copy)]
pub struct NewValue<'a> {
    pub key: &'a str,
    pub value: &'a [u8],
    pub ttl: Option<Duration>,
    pub only: Only<'a>,
}

/// When a value is set. Where it is not, the answer is false.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Only<'a> {
    Always,
    IfAbsent,
    /// If this is what is stored.
    If(&'a [u8]),
}

/// A mail as a guest wants it sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Email {
    /// What its `Message-ID` is made from: the same where it is sent again.
    pub id: String,
    pub to: Vec<String>,
    pub headers: Vec<(String, String)>,
    pub parts: Vec<EmailPart>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmailPart {
    pub content_type: String,
    /// An attachment has one.
    pub name: Option<String>,
    pub data: Vec<u8>,
}

#[async_trait]
pub trait Mailer: Send + Sync {
    async fn send(&self, plugin: &str, email: Email) -> Result<(), Fault>;
}

/// Never shown, nor written to a log: a handler's or one of the host's own.
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

    /// The same for a plugin's handler, which is counted.
    fn read(&self, plugin: &str, name: &str) -> Result<Secret, Fault>;
}

/// Everything of this kind that a host has; what it lacks answers
/// `unavailable` to those whose manifest grants it.
#[derive(Clone, Default)]
pub struct Capabilities {
    pub key_value: Option<Arc<dyn KeyValue>>,
    pub mailer: Option<Arc<dyn Mailer>>,
    pub secrets: Option<Arc<dyn Secrets>>,
    /// The host's own folders, of plugins, of what is compiled of them, of
    /// secrets: no grant reaches into them.
    pub protected_dirs: Vec<PathBuf>,
}
