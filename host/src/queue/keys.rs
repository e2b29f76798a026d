//! Every Redis key, in one place. They are a published contract.

use crate::topic::Topic;

/// A key in braces has the whole legacy key as its hash tag, so it shares that
/// key's slot and every script is legal in a cluster.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    /// `mq:<topic>`: what publishers write to.
    pub(crate) stream: String,
    pub(crate) state: String,
    /// What was moved out of a list of plain clients: on its way, and ready.
    pub(crate) input: String,
    pub(crate) work: String,
    pub(crate) high: String,
    pub(crate) low: String,
    pub(crate) later: String,
    pub(crate) later_body: String,
    /// Follow-ups on their way to topics in other slots.
    pub(crate) out: String,
    pub(crate) dead: String,
    /// The last fire time of each schedule, and when it was last looked at.
    pub(crate) cron: String,
    /// How often a message was lost while it ran alone.
    pub(crate) suspects: String,
    /// The original's delayed messages and dead letters.
    pub(crate) legacy_delay: String,
    pub(crate) legacy_dead: String,
}

impl Keys {
    /// How many keys publishing to a topic takes.
    pub(crate) const PUBLISH: usize = 7;

    pub(crate) fn new(prefix: &str, topic: &Topic) -> Self {
        let ours = |suffix: &str| format!("{{{prefix}{topic}}}:{suffix}");
        Self {
            stream: format!("{prefix}{topic}"),
            state: ours("state"),
            input: ours("in"),
            work: ours("work"),
            high: ours("high"),
            low: ours("low"),
            later: ours("later"),
            later_body: ours("later:body"),
            out: ours("out"),
            dead: ours("dead"),
            cron: ours("cron"),
            suspects: ours("suspects"),
            legacy_delay: format!("{prefix}delay:{topic}"),
            legacy_dead: format!("{prefix}dead-letter:{topic}"),
        }
    }

    /// What a script needs to publish to this topic, in the order of
    /// `topic_at` in `common.lua`.
    pub(crate) fn for_publish(&self) -> [&str; Self::PUBLISH] {
        [&self.stream, &self.state, &self.work, &self.later, &self.later_body, &self.high, &self.low]
    }

    /// All but the markers, which have a time to live.
    pub(crate) fn lasting(&self) -> [&str; 14] {
        [
            &self.stream,
            &self.state,
            &self.input,
            &self.work,
            &self.high,
            &self.low,
            &self.later,
            &self.later_body,
            &self.out,
            &self.dead,
            &self.cron,
            &self.suspects,
            &self.legacy_delay,
            &self.legacy_dead,
        ]
    }

    /// `{mq:<topic>}:done:<hash>`: this message has finished.
    pub(crate) fn done(&self, key: &str) -> String {
        format!("{{{}}}:done:{}", self.stream, digest(key))
    }

    /// `{mq:<topic>}:once:<hash>`: this message was published.
    pub(crate) fn once(&self, id: &str) -> String {
        format!("{{{}}}:once:{}", self.stream, digest(id))
    }

    /// The topic that a key belongs to, if it is a topic's.
    pub(crate) fn topic_of(prefix: &str, key: &str) -> Option<Topic> {
        let braced = key.strip_prefix('{').and_then(|rest| rest.split_once('}')).map(|(tag, _)| tag);
        let name = braced.unwrap_or(key).strip_prefix(prefix)?;
        let legacy = name.strip_prefix("delay:").or_else(|| name.strip_prefix("dead-letter:"));
        Topic::parse(legacy.unwrap_or(name)).ok()
    }
}

/// The keys of a plugin's key-value store. Whatever the plugin is called, no
/// key of it is another's, and none of its values is its account.
#[derive(Debug, Clone)]
pub(crate) struct StoreKeys {
    tag: String,
    /// The bytes of each value.
    pub(crate) sizes: String,
    /// When values expire.
    pub(crate) ends: String,
}

impl StoreKeys {
    pub(crate) fn new(prefix: &str, plugin: &str) -> Self {
        // A brace in a file's name would end the hash tag.
        let plugin = plugin.replace('%', "%25").replace('{', "%7B").replace('}', "%7D");
        let tag = format!("{{{prefix}:kv:{plugin}}}");
        Self { sizes: format!("{tag}-sizes"), ends: format!("{tag}-ends"), tag }
    }

    /// `{mq::kv:<plugin>}:<key>`
    pub(crate) fn value(&self, key: &str) -> String {
        format!("{}:{key}", self.tag)
    }
}

/// An id in a length that a key may have.
fn digest(id: &str) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(id).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The name of a topic's consumer group; the pattern may contain `{topic}`.
pub(crate) fn group(pattern: &str, topic: &Topic) -> String {
    pattern.replace("{topic}", topic.as_str())
}

/// `mq::workers`: the workers seen lately, for display only.
pub(crate) fn workers(prefix: &str) -> String {
    format!("{prefix}:workers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_published_ones() {
        let keys = Keys::new("mq:", &Topic::parse("order.reminder").unwrap());
        assert_eq!(keys.stream, "mq:order.reminder");
        assert_eq!(keys.dead, "{mq:order.reminder}:dead");
        assert_eq!(keys.later, "{mq:order.reminder}:later");
        assert_eq!(keys.later_body, "{mq:order.reminder}:later:body");
        assert_eq!(keys.legacy_delay, "mq:delay:order.reminder");
        assert_eq!(keys.legacy_dead, "mq:dead-letter:order.reminder");
        assert_eq!(workers("mq:"), "mq::workers");
        let topic = Topic::parse("a.b").unwrap();
        assert_eq!(group("consumer-group-{topic}", &topic), "consumer-group-a.b");
    }

    #[test]
    fn a_plugin_has_keys_of_its_own() {
        let keys = StoreKeys::new("mq:", "email.send");
        assert_eq!(keys.value("a:b"), "{mq::kv:email.send}:a:b");
        assert_eq!((&*keys.sizes, &*keys.ends), ("{mq::kv:email.send}-sizes", "{mq::kv:email.send}-ends"));
        assert_ne!(StoreKeys::new("mq:", "a}:b").value("k"), StoreKeys::new("mq:", "a").value("b}:k"));
    }

    #[test]
    fn a_key_tells_its_topic() {
        for (key, topic) in [
            ("mq:a.b", Some("a.b")),
            ("{mq:a.b}:dead", Some("a.b")),
            ("mq:delay:a.b", Some("a.b")),
            ("mq:dead-letter:a.b", Some("a.b")),
            ("mq:delay", Some("delay")),
            ("mq::workers", None),
            ("{mq::kv:x}:k", None),
            ("{mq::kv:x}-sizes", None),
            ("cache:x", None),
        ] {
            let found = Keys::topic_of("mq:", key);
            assert_eq!(found.as_ref().map(Topic::as_str), topic, "{key}");
        }
    }
}
