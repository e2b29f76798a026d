//! The name of a queue. Checked once, then carried as a proof.

use std::fmt;
use std::sync::Arc;

/// The longest topic name, in bytes.
pub const TOPIC_BYTES_MAX: usize = 128;

/// A topic: `[A-Za-z0-9._-]{1,128}`. The alphabet keeps every topic apart
/// from the other key families (`mq:delay:...`, `{mq:...}:dead`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

#[derive(Debug, thiserror::Error)]
#[error("illegal topic name \"{}\": allowed are 1 to {TOPIC_BYTES_MAX} of A-Z a-z 0-9 . _ -", .0.escape_debug())]
pub struct InvalidTopic(String);

impl Topic {
    pub fn parse(text: &str) -> Result<Self, InvalidTopic> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if (1..=TOPIC_BYTES_MAX).contains(&text.len()) && text.bytes().all(legal) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidTopic(text.to_owned()))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Topic {
    type Err = InvalidTopic;

    fn from_str(text: &str) -> Result<Self, InvalidTopic> {
        Self::parse(text)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_collide_with_other_keys_are_illegal() {
        for legal in ["order.reminder", "A_b-9", &"x".repeat(TOPIC_BYTES_MAX)] {
            assert!(Topic::parse(legal).is_ok(), "{legal}");
        }
        for illegal in ["", "delay:x", "dead-letter:x", "a b", "{a}", "a/b", "ü", &"x".repeat(TOPIC_BYTES_MAX + 1)] {
            assert!(Topic::parse(illegal).is_err(), "{illegal}");
        }
    }
}
