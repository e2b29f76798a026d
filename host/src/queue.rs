//! The Redis edge: the only place that knows there is a Redis. What it hands
//! out are entries, what it takes back are settlements; what a message means
//! and what becomes of it is decided elsewhere.
//!
//! Each transition of a message is one Lua script, so it happens whole or not
//! at all, and each may be sent twice. The scripts stand beside this file.

mod adopt;
mod connection;
pub mod inspect;
mod keys;
mod leases;
mod outbox;
mod publish;
mod reader;
mod reply;
mod scripts;
mod settle;
mod source;
mod time;
mod topic_queue;
mod workers;

pub use connection::{Connection, Health, RedisTarget, check_policy};
pub use leases::{Clock, Patience, Restamp, TakenOver};
pub use reader::{End, Flags, FlowControl, Reader, Take};
pub use settle::{Counted, Settled, Settlement};
pub use source::{EntryKey, Source};
pub use time::Promoted;
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
        use redis::{ErrorKind, ServerErrorKind};
        match (error.kind(), error.code()) {
            (_, Some("NOGROUP")) => Self::GroupLost,
            (_, Some("WRONGTYPE")) => Self::WrongType(error.to_string()),
            (ErrorKind::AuthenticationFailed, _) | (_, Some("NOAUTH" | "WRONGPASS")) => {
                Self::Refused(error.to_string())
            }
            (ErrorKind::Server(ServerErrorKind::NoPerm), _) => Self::Refused(error.to_string()),
            (ErrorKind::Server(ServerErrorKind::BusyLoading | ServerErrorKind::ReadOnly), _)
            | (_, Some("OOM" | "MISCONF" | "MASTERDOWN" | "UNBLOCKED")) => Self::Away(error.to_string()),
            // A script's own error arrives as one text.
            (ErrorKind::Server(_), _) if error.to_string().contains("WRONGTYPE") => Self::WrongType(error.to_string()),
            (ErrorKind::Server(_), _) if error.to_string().contains("NOGROUP") => Self::GroupLost,
            (ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType, _) => {
                Self::Failed(error.to_string())
            }
            _ => Self::Away(error.to_string()),
        }
    }
}
