//! Reads the names of existing keys: which topic a key belongs to, and what it
//! is used for.

use crate::topic::Topic;

/// What the name of a key under the prefix says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyName<'a> {
    Topic(Topic, Family<'a>),
    /// It would belong to a topic whose name is illegal, so no worker can serve it.
    Unservable,
    /// Not a topic's key: a key of the workers or of plugins, or another program's.
    Other,
}

/// What a topic's key is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family<'a> {
    /// `mq:<topic>`
    Main,
    /// `{mq:<topic>}:<suffix>`
    Suffix(&'a str),
    /// `mq:delay:<topic>` of GinForge.
    LegacyDelayed,
    /// `mq:dead-letter:<topic>` of GinForge.
    LegacyDead,
}

impl<'a> KeyName<'a> {
    pub(crate) fn parse(prefix: &str, key: &'a [u8]) -> Self {
        let Ok(text) = std::str::from_utf8(key) else { return Self::not_utf8(prefix, key) };
        if let Some(braced) = text.strip_prefix('{').and_then(|text| text.strip_prefix(prefix)) {
            return match braced.split_once("}:") {
                // `{mq::kv:<plugin>}:<key>` belongs to a plugin.
                Some((name, suffix)) if !name.starts_with(':') => Self::of(name, Family::Suffix(suffix)),
                _ => Self::Other,
            };
        }
        let Some(name) = text.strip_prefix(prefix) else { return Self::Other };
        if name.starts_with(':') || name.starts_with("wake:") {
            // `mq::workers` and `mq:wake:{mq:<topic>}` belong to workers.
            return Self::Other;
        }
        if let Some(name) = name.strip_prefix("delay:") {
            Self::of(name, Family::LegacyDelayed)
        } else if let Some(name) = name.strip_prefix("dead-letter:") {
            Self::of(name, Family::LegacyDead)
        } else {
            Self::of(name, Family::Main)
        }
    }

    fn of(name: &str, family: Family<'a>) -> Self {
        match Topic::parse(name) {
            Ok(topic) => Self::Topic(topic, family),
            Err(_) => Self::Unservable,
        }
    }

    fn not_utf8(prefix: &str, key: &[u8]) -> Self {
        let unbraced = key.strip_prefix(b"{").unwrap_or(key);
        match unbraced.strip_prefix(prefix.as_bytes()) {
            // A plugin may choose such a name for a value.
            Some(name) if !name.starts_with(b":") => Self::Unservable,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic<'a>(name: &str, family: Family<'a>) -> KeyName<'a> {
        KeyName::Topic(Topic::parse(name).unwrap(), family)
    }

    #[test]
    fn a_key_name_contains_its_topic_and_family() {
        for (key, expected) in [
            ("mq:a.b", topic("a.b", Family::Main)),
            ("{mq:a.b}:dead", topic("a.b", Family::Suffix("dead"))),
            ("{mq:a.b}:delayed:body", topic("a.b", Family::Suffix("delayed:body"))),
            ("{mq:a}:dedup:claims", topic("a", Family::Suffix("dedup:claims"))),
            ("mq:delay:a.b", topic("a.b", Family::LegacyDelayed)),
            ("mq:dead-letter:a.b", topic("a.b", Family::LegacyDead)),
            ("mq:delay", topic("delay", Family::Main)),
            ("mq:a:b", topic("a:b", Family::Main)),
            ("{mq:a:b}:in", topic("a:b", Family::Suffix("in"))),
            ("mq:delay:a:b", topic("a:b", Family::LegacyDelayed)),
            ("mq:a:delay:b", topic("a:delay:b", Family::Main)),
            ("mq:a b/\u{fc}", topic("a b/\u{fc}", Family::Main)),
        ] {
            assert_eq!(KeyName::parse("mq:", key.as_bytes()), expected, "{key}");
        }
    }

    #[test]
    fn keys_of_other_programs_workers_and_plugins_belong_to_no_topic() {
        for key in
            ["mq::workers", "{mq::kv:x}:k", "{mq::kv:x}-sizes", "mq:wake:a", "cache:x", "{other:a}:in", "{mq:a", "m"]
        {
            assert_eq!(KeyName::parse("mq:", key.as_bytes()), KeyName::Other, "{key}");
        }
        assert_eq!(KeyName::parse("mq:", b"cache:\xff"), KeyName::Other);
        assert_eq!(KeyName::parse("mq:", b"{mq::kv:x}:\xff"), KeyName::Other);
    }

    #[test]
    fn names_that_no_worker_can_serve_are_recognised() {
        let long = format!("mq:{}", "x".repeat(129));
        for key in [
            "mq:a{b}",
            "mq:{a}",
            "mq:}",
            "mq:a\nb",
            "mq:*",
            "mq:..",
            "mq:",
            "mq:delay:a{b",
            "mq:delay::a",
            "mq:delay:",
            "{mq:delay:x}:dead",
            &long,
        ] {
            assert_eq!(KeyName::parse("mq:", key.as_bytes()), KeyName::Unservable, "{key}");
        }
        assert_eq!(KeyName::parse("mq:", b"mq:\xff"), KeyName::Unservable);
        assert_eq!(KeyName::parse("mq:", b"{mq:\xff}:dead"), KeyName::Unservable);
    }

    /// The prefix is compared as text, whatever characters it has.
    #[test]
    fn the_prefix_is_no_pattern() {
        assert_eq!(KeyName::parse("m*:", b"m*:a"), topic("a", Family::Main));
        assert_eq!(KeyName::parse("m*:", b"mq:a"), KeyName::Other);
    }
}
