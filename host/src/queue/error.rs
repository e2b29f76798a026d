//! Why a Redis operation failed, classified by what can be done about it.

use crate::tls;
use redis::ErrorKind;

#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Redis is unreachable or temporarily unable to answer: retry later. The text
    /// says which, because an operator looks at different things.
    #[error("{0}")]
    Away(String),
    /// Redis answers and rejects us. Only an operator can change that.
    #[error("Redis refuses: {0}")]
    Refused(String),
    /// The library can't use what the settings say.
    #[error("{0}")]
    InvalidSettings(String),
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

/// How the texts begin of what a ping finds out too.
const AWAY: &str = "Redis is away: ";

impl QueueError {
    /// Whether a ping finds out too that Redis does not answer.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Away(text) if text.starts_with(AWAY))
    }
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
            (_, Some("MOVED" | "ASK")) => cannot_serve(&format!(
                "{text}: the key is on another server; the URL of a cluster begins with redis+cluster:// or rediss+cluster://"
            )),
            (_, Some(code)) if TRANSIENT.iter().any(|(known, _)| *known == code) => {
                let advice = TRANSIENT.iter().find(|(known, _)| *known == code).map_or("", |(_, advice)| advice);
                cannot_serve(&format!("{text}{advice}"))
            }
            _ if text.contains("max number of clients") => {
                cannot_serve(&format!("{text}: all of its maxclients connections are in use"))
            }
            _ if text.contains("password_file: ") => Self::Away(format!("no login to Redis: {text}")),
            _ if is_out_of_descriptors(&text) => Self::Away(format!(
                "this process can't open another connection to Redis: {text}; raise its limit of open files (ulimit -n)"
            )),
            // The client reports an error that a script raised as plain text without a code.
            (ErrorKind::Server(_), _) if text.contains("WRONGTYPE") => Self::WrongType(text),
            (ErrorKind::Server(_), _) if text.contains("NOGROUP") => Self::GroupLost,
            (ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType, _) => Self::Failed(text),
            (ErrorKind::Io | ErrorKind::InvalidClientConfig, _) if text.contains("certificate") => {
                Self::Refused(format!("{text}; see redis.tls_ca, redis.tls_cert and redis.tls_key"))
            }
            _ if text.contains(tls::TLS_FROM_THE_START) || text.contains(tls::PLAIN_TEXT) => Self::Refused(text),
            _ => Self::Away(format!("{AWAY}{text}")),
        }
    }
}

/// Redis answers, so it is not away.
fn cannot_serve(text: &str) -> QueueError {
    QueueError::Away(format!("Redis can't serve now: {text}"))
}

fn is_out_of_descriptors(text: &str) -> bool {
    ["(os error 24)", "(os error 23)"].iter().any(|sign| text.contains(sign))
}

/// Error codes of a server that can't serve now, but it or its successor will, and
/// what to look at.
const TRANSIENT: [(&str, &str); 10] = [
    ("CLUSTERDOWN", ""),
    ("LOADING", ""),
    ("MASTERDOWN", ""),
    ("MISCONF", ""),
    ("NOREPLICAS", ": see min-replicas-to-write"),
    ("NOSCRIPT", ""),
    ("OOM", ": its memory is full, see maxmemory"),
    ("READONLY", ""),
    ("TRYAGAIN", ""),
    ("UNBLOCKED", ""),
];
