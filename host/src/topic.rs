//! The name of a queue, validated once.

use std::fmt;
use std::sync::Arc;

/// The longest topic name, in bytes.
pub const TOPIC_BYTES_MAX: usize = 128;

/// Beginnings of other key families: `mq:delay:...`, `mq:dead-letter:...`,
/// `mq:wake:...` and `mq::...`.
const RESERVED_BEGINNINGS: [&str; 4] = [":", "delay:", "dead-letter:", "wake:"];

/// A topic: 1 to [`TOPIC_BYTES_MAX`] bytes of UTF-8 that no other key family and
/// no path can be confused with. Publishers may have chosen names with spaces,
/// slashes or non-ASCII letters, so these are allowed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid topic name \"{}\": {rule}", .name.escape_debug())]
pub struct InvalidTopic {
    name: String,
    rule: InvalidName,
}

/// The rule that a name breaks.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum InvalidName {
    #[error("it must have 1 to {TOPIC_BYTES_MAX} bytes")]
    Length,
    #[error("control characters are not allowed")]
    Control,
    #[error("{{ and }} are not allowed, because they delimit the hash tag of keys")]
    Brace,
    #[error("*, . and .. are not allowed, because they have a meaning in patterns and paths")]
    Special,
    #[error("it must not begin with \"{0}\", because other keys do")]
    Reserved(&'static str),
    #[error("the name of a file stands for a topic only if it consists of A-Z a-z 0-9 . _ -")]
    FileName,
}

impl Topic {
    pub fn parse(text: &str) -> Result<Self, InvalidTopic> {
        match check(text) {
            Ok(()) => Ok(Self(text.into())),
            Err(rule) => Err(InvalidTopic { name: text.to_owned(), rule }),
        }
    }

    /// The topic that the name of a file stands for. Manifests name the topics
    /// with other characters, because not every file system allows them.
    pub fn from_file_name(name: &str) -> Result<Self, InvalidTopic> {
        let topic = Self::parse(name)?;
        let is_portable = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if name.bytes().all(is_portable) {
            Ok(topic)
        } else {
            Err(InvalidTopic { name: name.to_owned(), rule: InvalidName::FileName })
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check(name: &str) -> Result<(), InvalidName> {
    if !(1..=TOPIC_BYTES_MAX).contains(&name.len()) {
        return Err(InvalidName::Length);
    }
    if name.contains(char::is_control) {
        return Err(InvalidName::Control);
    }
    if name.contains(['{', '}']) {
        return Err(InvalidName::Brace);
    }
    if matches!(name, "*" | "." | "..") {
        return Err(InvalidName::Special);
    }
    match RESERVED_BEGINNINGS.into_iter().find(|beginning| name.starts_with(beginning)) {
        Some(beginning) => Err(InvalidName::Reserved(beginning)),
        None => Ok(()),
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
    fn names_that_publishers_may_have_chosen_are_valid() {
        let longest = "x".repeat(TOPIC_BYTES_MAX);
        for name in [
            "order.reminder",
            "A_b-9",
            "a b",
            " ",
            "a/b",
            "\u{fc}\u{8ba2}\u{5355}",
            "a:b",
            "delayed",
            "delay",
            "a:delay:b",
            "wake",
            "dead-letter",
            "**",
            "...",
            "a*",
            "\u{202e}",
            &longest,
        ] {
            assert_eq!(Topic::parse(name).map(|topic| topic.to_string()), Ok(name.to_owned()));
        }
    }

    #[test]
    fn an_invalid_name_has_an_error_with_the_broken_rule() {
        let too_long = "x".repeat(TOPIC_BYTES_MAX + 1);
        let too_many_bytes = "\u{fc}".repeat(TOPIC_BYTES_MAX / 2 + 1);
        for (name, rule) in [
            ("", "1 to 128 bytes"),
            (&too_long, "1 to 128 bytes"),
            (&too_many_bytes, "1 to 128 bytes"),
            ("a\nb", "control characters"),
            ("\0", "control characters"),
            ("a\u{1b}[2J", "control characters"),
            ("a\u{7f}", "control characters"),
            ("a\u{9b}", "control characters"),
            ("{a}", "{ and }"),
            ("a}", "{ and }"),
            ("*", "patterns and paths"),
            (".", "patterns and paths"),
            ("..", "patterns and paths"),
            (":", "begin with \":\""),
            (":a", "begin with \":\""),
            ("delay:x", "begin with \"delay:\""),
            ("dead-letter:x", "begin with \"dead-letter:\""),
            ("wake:", "begin with \"wake:\""),
        ] {
            let error = Topic::parse(name).unwrap_err().to_string();
            assert!(error.contains(rule) && !error.contains(char::is_control), "{error}");
        }
    }

    #[test]
    fn only_portable_file_names_stand_for_topics() {
        for (name, is_topic) in
            [("order.reminder", true), ("A_b-9", true), ("a b", false), ("\u{fc}", false), ("..", false), ("", false)]
        {
            assert_eq!(Topic::from_file_name(name).is_ok(), is_topic, "{name}");
        }
    }
}
