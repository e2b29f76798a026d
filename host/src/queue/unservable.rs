//! Warns about keys that would belong to a topic with an illegal name. No worker
//! serves them, so whoever published there has to hear of it.

use super::error::QueueError;
use super::keyspace::KeyName;
use super::server::{Connection, KeyPages};
use crate::events;
use crate::text::{escape_bytes, truncate};
use std::collections::BTreeSet;
use std::time::Instant;

/// Keys whose warning is remembered: publishers may create any number of them.
const WARNED_MAX: usize = 1000;
/// Redis allows keys of 512 MiB.
const KEY_BYTES_MAX: usize = 1024;
/// Redis has nine times as long for others as a page takes it.
const PAUSE_FACTOR: u32 = 9;

pub struct UnservableKeys {
    connection: Connection,
    prefix: String,
    /// Shortened texts of the keys that were warned about.
    warned: BTreeSet<String>,
}

impl UnservableKeys {
    pub fn new(connection: &Connection, prefix: &str) -> Self {
        Self { connection: connection.clone(), prefix: prefix.to_owned(), warned: BTreeSet::new() }
    }

    /// Scans all keys of the prefix, and warns once about each that has no legal topic.
    pub async fn warn(&mut self) -> Result<(), QueueError> {
        let mut pages = KeyPages::new(&self.connection, &self.prefix).await?;
        loop {
            let started = Instant::now();
            let Some((_, keys)) = pages.next().await? else { return Ok(()) };
            for key in &keys {
                if KeyName::parse(&self.prefix, key) == KeyName::Unservable {
                    self.warn_once(key);
                }
            }
            tokio::time::sleep(started.elapsed() * PAUSE_FACTOR).await;
        }
    }

    fn warn_once(&mut self, key: &[u8]) {
        let key = truncate(&escape_bytes(key), KEY_BYTES_MAX).into_owned();
        if self.warned.len() < WARNED_MAX && self.warned.insert(key.clone()) {
            tracing::warn!(key, "{}", events::UNSERVABLE_KEY);
        }
    }
}
