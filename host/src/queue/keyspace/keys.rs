//! The Redis keys of topics, plugins and workers. They are a published contract.

use crate::topic::Topic;

/// The keys of one topic. A key in braces has the whole name of the main key as
/// its hash tag, so both share a slot and every script is legal in a cluster.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    /// `mq:<topic>`: the main key, which publishers write to.
    pub(crate) main: String,
    pub(crate) state: String,
    /// Messages that were moved out of a list of plain clients, before and after
    /// they became stream entries.
    pub(crate) input: String,
    pub(crate) work: String,
    pub(crate) high: String,
    pub(crate) low: String,
    /// When delayed messages are due, and their fields.
    pub(crate) delayed: String,
    pub(crate) delayed_body: String,
    /// Follow-ups for topics in other slots.
    pub(crate) outbox: String,
    pub(crate) dead: String,
    /// The last fire time of each schedule, and when a worker last asked for it.
    pub(crate) cron: String,
    /// `{mq:<topic>}:dedup:claims`: which of several messages with one deduplication
    /// key may run. The scripts derive the keys of the markers from it.
    pub(crate) claims: String,
    /// How often workers were lost with a message that ran in isolation.
    pub(crate) isolated: String,
    /// Whose deliveries had their entries deleted while they were in flight.
    pub(crate) deleted: String,
    /// GinForge's delayed messages and dead letters.
    pub(crate) legacy_delayed: String,
    pub(crate) legacy_dead: String,
}

impl Keys {
    /// How many keys publishing to a topic takes.
    pub(crate) const PUBLISH: usize = 7;

    pub(crate) fn new(prefix: &str, topic: &Topic) -> Self {
        let tagged = |suffix: &str| format!("{{{prefix}{topic}}}:{suffix}");
        Self {
            main: format!("{prefix}{topic}"),
            state: tagged("state"),
            input: tagged("in"),
            work: tagged("work"),
            high: tagged("high"),
            low: tagged("low"),
            delayed: tagged("delayed"),
            delayed_body: tagged("delayed:body"),
            outbox: tagged("outbox"),
            dead: tagged("dead"),
            cron: tagged("cron"),
            claims: tagged("dedup:claims"),
            isolated: tagged("isolated"),
            deleted: tagged("deleted"),
            legacy_delayed: format!("{prefix}delay:{topic}"),
            legacy_dead: format!("{prefix}dead-letter:{topic}"),
        }
    }

    /// The keys that a script needs to publish to this topic, in the order of
    /// `topic_at` in `common.lua`.
    pub(crate) fn for_publish(&self) -> [&str; Self::PUBLISH] {
        [&self.main, &self.state, &self.work, &self.delayed, &self.delayed_body, &self.high, &self.low]
    }

    /// All keys without a time to live.
    pub(crate) fn permanent(&self) -> [&str; 14] {
        [
            &self.main,
            &self.state,
            &self.input,
            &self.work,
            &self.high,
            &self.low,
            &self.delayed,
            &self.delayed_body,
            &self.outbox,
            &self.dead,
            &self.cron,
            &self.isolated,
            &self.legacy_delayed,
            &self.legacy_dead,
        ]
    }

    /// `{mq:<topic>}:once:<hash>`: a message with this id was published.
    pub(crate) fn once(&self, id: &str) -> String {
        format!("{{{}}}:once:{}", self.main, digest(id))
    }
}

/// The keys of a plugin's key-value store. Plugins never share a key, whatever
/// their names are, and no value has the name of a bookkeeping key.
#[derive(Debug, Clone)]
pub(crate) struct KeyValueKeys {
    tag: String,
    /// The bytes of each value.
    pub(crate) sizes: String,
    /// When values expire.
    pub(crate) expiries: String,
}

impl KeyValueKeys {
    pub(crate) fn new(prefix: &str, plugin: &str) -> Self {
        // A brace in a file name would end the hash tag.
        let plugin = plugin.replace('%', "%25").replace('{', "%7B").replace('}', "%7D");
        let tag = format!("{{{prefix}:kv:{plugin}}}");
        Self { sizes: format!("{tag}-sizes"), expiries: format!("{tag}-ends"), tag }
    }

    /// `{mq::kv:<plugin>}:<key>`
    pub(crate) fn value(&self, key: &str) -> String {
        format!("{}:{key}", self.tag)
    }
}

/// A hash of an id that is short, whatever the length of the id.
pub(crate) fn digest(id: &str) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(id).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The name of a topic's consumer group; the pattern may contain `{topic}`.
pub(crate) fn group(pattern: &str, topic: &Topic) -> String {
    pattern.replace("{topic}", topic.as_str())
}

/// `mq::workers`: recently seen workers, for display only.
pub(crate) fn workers(prefix: &str) -> String {
    format!("{prefix}:workers")
}

/// `mq::topics`: the topics that our publishers have made.
pub(crate) fn topics(prefix: &str) -> String {
    format!("{prefix}:topics")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_published_ones() {
        let keys = Keys::new("mq:", &Topic::parse("order.reminder").unwrap());
        assert_eq!(keys.main, "mq:order.reminder");
        assert_eq!(keys.dead, "{mq:order.reminder}:dead");
        assert_eq!(keys.delayed, "{mq:order.reminder}:delayed");
        assert_eq!(keys.delayed_body, "{mq:order.reminder}:delayed:body");
        assert_eq!(keys.outbox, "{mq:order.reminder}:outbox");
        assert_eq!(keys.claims, "{mq:order.reminder}:dedup:claims");
        assert_eq!(keys.isolated, "{mq:order.reminder}:isolated");
        assert_eq!(keys.legacy_delayed, "mq:delay:order.reminder");
        assert_eq!(keys.legacy_dead, "mq:dead-letter:order.reminder");
        assert_eq!((workers("mq:"), topics("mq:")), ("mq::workers".to_owned(), "mq::topics".to_owned()));
        let topic = Topic::parse("a.b").unwrap();
        assert_eq!(group("consumer-group-{topic}", &topic), "consumer-group-a.b");
    }

    #[test]
    fn plugins_never_share_a_key() {
        let keys = KeyValueKeys::new("mq:", "email.send");
        assert_eq!(keys.value("a:b"), "{mq::kv:email.send}:a:b");
        assert_eq!((&*keys.sizes, &*keys.expiries), ("{mq::kv:email.send}-sizes", "{mq::kv:email.send}-ends"));
        assert_ne!(KeyValueKeys::new("mq:", "a}:b").value("k"), KeyValueKeys::new("mq:", "a").value("b}:k"));
    }
}
