//! The Redis edge: the only place that knows there is a Redis. What it hands
//! out are entries, what it takes back are settlements; what a message means
//! and what becomes of it is decided elsewhere.
//!
//! Each transition of a message is one Lua script, so it happens whole or not
//! at all, and each may be sent twice. The scripts stand beside this file.

mod adopt;
mod connection;
mod cron;
pub mod dead;
mod discover;
mod find;
mod glance;
mod hit;
pub mod inspect;
mod key_value;
mod keys;
mod leases;
mod look;
mod outbox;
mod publish;
mod purge;
mod reader;
mod reply;
mod scan;
mod scripts;
mod settle;
mod show;
mod source;
mod time;
mod topic_queue;
mod workers;

pub use crate::settings::RedisTarget;
pub use connection::{Connection, Health, check_policy};
pub use cron::Fired;
pub use discover::topics_with_messages;
pub use find::{Cancelled, Found, Topics};
pub use glance::Glance;
pub use hit::Place;
pub use key_value::Store;
pub use leases::{Clock, Patience, Restamp, TakenOver};
pub use outbox::{Outbox, Relayed};
pub use purge::Purged;
pub use reader::{End, Flags, FlowControl, Reader, Take};
pub use settle::{Counted, ERROR_FIELD, Settled, Settlement};
pub use show::{Consumer, Details};
pub use source::{EntryKey, Source};
pub use time::{Promoted, SweptTo};
pub use topic_queue::{Kind, Opened, TopicQueue};
pub use workers::announce;

use crate::message::Fields;

/// A message taken from Redis, and what Redis says about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    pub entry: EntryKey,
    /// How often it has been delivered; 1 is the first time. With the owner,
    /// it tells one hold of a message from another.
    pub deliveries: u32,
    /// How many workers were lost with it in hand.
    pub losses: u32,
    pub fields: Fields,
}

impl Taken {
    pub fn bytes(&self) -> usize {
        self.fields.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// What went wrong, by what can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Redis can't be reached or won't answer now: try again after a while.
    #[error("Redis is away: {0}")]
    Away(String),
    /// Redis answers and refuses us. Only an operator can change that.
    #[error("Redis refuses: {0}")]
    Refused(String),
    /// The consumer group is gone: open the topic again.
    #[error("the consumer group is gone")]
    GroupLost,
    /// A key has a type that it can't be used with.
    #[error("{0}")]
    WrongType(String),
    /// A command failed: a fault of ours, or of what else writes to the keys.
    #[error("Redis: {0}")]
    Failed(String),
}

impl From<redis::RedisError> for QueueError {
    fn from(error: redis::RedisError) -> Self {
        use redis::ErrorKind;
        let text = error.to_string();
        match (error.kind(), error.code()) {
            (_, Some("NOGROUP")) => Self::GroupLost,
            (_, Some("WRONGTYPE")) => Self::WrongType(text),
            (ErrorKind::AuthenticationFailed, _) | (_, Some("NOAUTH" | "WRONGPASS" | "NOPERM")) => Self::Refused(text),
            // The attempt at a cluster wraps what its nodes said.
            (ErrorKind::Io, _) if text.contains("authentication failed") => Self::Refused(text),
            _ if text.contains("cluster support disabled") => {
                Self::Refused(format!("{text}: the URL of a single server begins with redis:// or rediss://"))
            }
            (_, Some("MOVED" | "ASK")) => Self::Away(format!(
                "{text}: the key is on another server; the URL of a cluster begins with redis+cluster:// or rediss+cluster://"
            )),
            (_, Some("OOM")) => Self::Away(format!("its memory is full, see maxmemory: {text}")),
            (_, Some(code)) if PASSING.contains(&code) => Self::Away(text),
            // A script's own error arrives as one text.
            (ErrorKind::Server(_), _) if text.contains("WRONGTYPE") => Self::WrongType(text),
            (ErrorKind::Server(_), _) if text.contains("NOGROUP") => Self::GroupLost,
            (ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType, _) => Self::Failed(text),
            (ErrorKind::Io | ErrorKind::InvalidClientConfig, _) if text.contains("certificate") => {
                Self::Refused(format!("{text}; see redis.tls_ca, redis.tls_cert and redis.tls_key"))
            }
            _ => Self::Away(text),
        }
    }
}

/// What a server says while it can't serve us and will, or another will.
const PASSING: [&str; 9] =
    ["CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "NOSCRIPT", "READONLY", "TRYAGAIN", "UNBLOCKED"];
