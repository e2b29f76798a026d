//! Why a Redis operation failed, classified by what can be done about it.

use redis::ErrorKind;

#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Redis is unreachable or temporarily unable to answer: retry later.
    #[error("Redis is away: {0}")]
    Away(String),
    /// Redis answers and rejects us. Only an operator can change that.
    #[error("Redis refuses: {0}")]
    Refused(String),
    /// The consumer group does not exist any more: open the topic again.
    #[error("the consumer group is gone")]
    GroupLost,
    /// A key has a Redis type that it can't be used with.
    #[error("{0}")]
    WrongType(String),
    /// A command failed: a bug of ours, or of another writer to the keys.
    #[error("Redis: {0}")]
    Failed(String),
}

impl From<redis::RedisError> for QueueError {
    fn from(error: redis::RedisError) -> Self {
        let text = error.to_string();
        match (error.kind(), error.code()) {
            (_, Some("NOGROUP")) => Self::GroupLost,
            (_, Some("WRONGTYPE")) => Self::WrongType(text),
            (ErrorKind::AuthenticationFailed, _) | (_, Some("NOAUTH" | "WRONGPASS" | "NOPERM")) => Self::Refused(text),
            // The cluster client wraps the error texts of its nodes.
            (ErrorKind::Io, _) if text.contains("authentication failed") => Self::Refused(text),
            _ if text.contains("cluster support disabled") => {
                Self::Refused(format!("{text}: the URL of a single server begins with redis:// or rediss://"))
            }
            (_, Some("MOVED" | "ASK")) => Self::Away(format!(
                "{text}: the key is on another server; the URL of a cluster begins with redis+cluster:// or rediss+cluster://"
            )),
            (_, Some("OOM")) => Self::Away(format!("its memory is full, see maxmemory: {text}")),
            (_, Some(code)) if TRANSIENT.contains(&code) => Self::Away(text),
            // The client reports an error that a script raised as plain text without a code.
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

/// Error codes of a server that can't serve now, but it or its successor will.
const TRANSIENT: [&str; 9] =
    ["CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "NOSCRIPT", "READONLY", "TRYAGAIN", "UNBLOCKED"];
