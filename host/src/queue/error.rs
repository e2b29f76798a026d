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

    /// Whether the user of Redis lacks a right.
    pub fn is_no_permission(&self) -> bool {
        matches!(self, Self::Refused(text) if text.contains(NO_RIGHT))
    }

    /// For whoever may not learn hosts, users and paths: what Redis itself says, else
    /// what kind of failure it is.
    pub fn public_text(&self) -> String {
        let (Self::Away(text) | Self::Refused(text) | Self::InvalidSettings(text)) = self else {
            return self.to_string();
        };
        if let Some(words) = refusal(text) {
            return format!("Redis refuses: {words}");
        }
        if !matches!(self, Self::Away(_)) {
            let is_login = ["uthentication", "WRONGPASS", "login refused"].iter().any(|sign| text.contains(sign));
            let told = if is_login {
                "Redis refuses the login: authentication failed; check the user and the password"
            } else {
                "Redis refuses the connection; see the log"
            };
            return told.to_owned();
        }
        let failure = FAILURES.iter().find(|(sign, _)| text.contains(sign));
        failure.map_or("Redis is away".to_owned(), |(_, told)| format!("{AWAY}{told}"))
    }
}

impl From<redis::RedisError> for QueueError {
    fn from(error: redis::RedisError) -> Self {
        let text = words(&error);
        match (error.kind(), error.code()) {
            (_, Some("NOGROUP")) => Self::GroupLost,
            (_, Some("WRONGTYPE")) => Self::WrongType(text),
            (_, Some("NOPERM")) => Self::Refused(format!("{text}{NO_RIGHT}")),
            (ErrorKind::AuthenticationFailed, _) | (_, Some("NOAUTH" | "WRONGPASS")) => Self::Refused(text),
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
            _ if text.contains("max number of clients") => cannot_serve(&format!("{text}{NO_CONNECTION_LEFT}")),
            _ if text.contains("password_file: ") => Self::Away(format!("no login to Redis: {text}")),
            _ if is_out_of_descriptors(&text) => Self::Away(format!(
                "this process can't open another connection to Redis: {text}; raise its limit of open files (ulimit -n)"
            )),
            // The client reports an error that a script raised as plain text without a code.
            (ErrorKind::Server(_), _) if text.contains("WRONGTYPE") => Self::WrongType(text),
            (ErrorKind::Server(_), _) if text.contains("NOGROUP") => Self::GroupLost,
            (ErrorKind::Server(_), _) if text.contains("The user executing the script") => {
                Self::Refused(format!("{text}{NO_RIGHT}"))
            }
            (ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType, _) => Self::Failed(text),
            (ErrorKind::Io | ErrorKind::InvalidClientConfig, _) if text.contains("certificate") => {
                Self::Refused(format!("{text}; see redis.tls_ca, redis.tls_cert and redis.tls_key"))
            }
            _ if text.contains(tls::TLS_FROM_THE_START) || text.contains(tls::PLAIN_TEXT) => Self::Refused(text),
            _ => Self::Away(format!("{AWAY}{text}")),
        }
    }
}

/// The words of the server, where it has answered: the library writes codes by names of
/// its own.
fn words(error: &redis::RedisError) -> String {
    match (error.kind(), error.code(), error.detail()) {
        (ErrorKind::Server(_) | ErrorKind::Extension, Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
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
    ("CLUSTERDOWN", ": the cluster has lost masters, see CLUSTER NODES"),
    ("LOADING", ": it reads its data after a start, and serves afterwards"),
    ("MASTERDOWN", ": it is a replica without its master; start the master, or connect to the new one"),
    ("MISCONF", ": it can't write its data to disk, see its log and the space on its disk"),
    ("NOREPLICAS", ": see min-replicas-to-write"),
    ("NOSCRIPT", ""),
    ("OOM", ": its memory is full, see maxmemory"),
    ("READONLY", ": it is a replica; connect to the master, or promote it (REPLICAOF NO ONE)"),
    ("TRYAGAIN", ""),
    ("UNBLOCKED", ""),
];

const NO_RIGHT: &str = ": ACL SETUSER gives the user this right";

const NO_CONNECTION_LEFT: &str = ": all of its maxclients connections are in use";

/// How the answers of a server begin that refuses to serve.
const REFUSALS: [&str; 11] = [
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "NOPERM",
    "NOAUTH",
    "The user executing the script",
    "max number of clients",
];

/// Signs of why a server was not reached, and how that is told.
const FAILURES: [(&str, &str); 6] = [
    ("onnection refused", "connection refused"),
    ("timed out", "timed out"),
    ("no answer", "no answer in time"),
    ("no connection in time", "no connection in time"),
    ("roken pipe", "the connection broke"),
    ("can't open another connection", "this process can't open another connection; raise its limit of open files"),
];

/// Where the words of the server begin that refuses. A host may have such a name too.
fn refusal(text: &str) -> Option<&str> {
    let begins_with = |sign: &&str| {
        text.match_indices(*sign).find_map(|(at, _)| {
            let (before, after) = (text.get(..at)?, text.get(at + sign.len()..)?);
            let is_word = before.is_empty() || before.ends_with(' ');
            (is_word && after.starts_with(' ')).then_some(at)
        })
    };
    text.get(REFUSALS.iter().filter_map(begins_with).min()?..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_learn_what_redis_says_and_no_host_user_or_path() {
        for (error, told) in [
            (
                QueueError::Away("Redis can't serve now: 10.0.0.7:6379: NOREPLICAS Not enough good replicas".into()),
                "Redis refuses: NOREPLICAS Not enough good replicas",
            ),
            (
                QueueError::Away("Redis is away: db.internal:6379: Connection refused (os error 111)".into()),
                "Redis is away: connection refused",
            ),
            (QueueError::Away("Redis is away: OOM:6379: Broken pipe".into()), "Redis is away: the connection broke"),
            (QueueError::Away("no login to Redis: password_file: /run/secrets/x: gone".into()), "Redis is away"),
            (
                QueueError::Refused("db.internal:6379: login refused - AuthenticationFailed: WRONGPASS bad".into()),
                "Redis refuses the login: authentication failed; check the user and the password",
            ),
            (QueueError::WrongType("the key holds a set".into()), "the key holds a set"),
        ] {
            assert_eq!(error.public_text(), told);
        }
    }
}
