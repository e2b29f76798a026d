//! The tracing span of one run, which names the topic, the message, and the
//! plugin version on every log line of the run.

use crate::text::short_digest;
use crate::topic::Topic;
use std::sync::{Arc, OnceLock};
use tracing::Span;

/// A plugin version as its log lines name it. One is made per version.
#[derive(Debug)]
pub struct PluginLabel {
    name: String,
    digest: String,
}

impl PluginLabel {
    pub fn new(name: &str, digest: &str) -> Arc<Self> {
        Arc::new(Self { name: name.to_owned(), digest: short_digest(digest).to_owned() })
    }
}

/// The span is created on first use: it costs a microsecond, and most runs log
/// nothing. Clones share it.
#[derive(Clone, Debug)]
pub struct RunSpan(Arc<Run>);

#[derive(Debug)]
struct Run {
    topic: Topic,
    plugin: Arc<PluginLabel>,
    input: Input,
    span: OnceLock<Span>,
}

#[derive(Debug)]
enum Input {
    Message { id: String, attempt: u32 },
    Batch { size: usize },
}

impl RunSpan {
    pub fn for_message(topic: Topic, plugin: Arc<PluginLabel>, id: String, attempt: u32) -> Self {
        Self::new(topic, plugin, Input::Message { id, attempt })
    }

    /// A log line of a batch may concern any of its messages, so it has no id.
    pub fn for_batch(topic: Topic, plugin: Arc<PluginLabel>, size: usize) -> Self {
        Self::new(topic, plugin, Input::Batch { size })
    }

    fn new(topic: Topic, plugin: Arc<PluginLabel>, input: Input) -> Self {
        Self(Arc::new(Run { topic, plugin, input, span: OnceLock::new() }))
    }

    pub fn topic(&self) -> &Topic {
        &self.0.topic
    }

    /// The id of the message; empty for a batch.
    pub fn id(&self) -> &str {
        match &self.0.input {
            Input::Message { id, .. } => id,
            Input::Batch { .. } => "",
        }
    }

    pub fn span(&self) -> &Span {
        let Run { topic, plugin, input, span } = &*self.0;
        let (id, attempt, size) = match input {
            Input::Message { id, attempt } => (Some(id.as_str()), Some(*attempt), None),
            Input::Batch { size } => (None, None, Some(*size)),
        };
        // A filter such as `warn` disables spans of lower levels, and with them
        // the fields of the warnings inside.
        span.get_or_init(|| {
            tracing::error_span!(
                parent: None,
                "run",
                topic = topic.as_str(),
                id,
                attempt,
                size,
                plugin = plugin.name,
                digest = plugin.digest,
            )
        })
    }

    pub fn in_scope<T>(&self, work: impl FnOnce() -> T) -> T {
        self.span().in_scope(work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_span_is_created_once_and_shared_by_clones() {
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry());
        let (topic, plugin) = (Topic::parse("t").unwrap(), PluginLabel::new("p", "0123456789abcdef"));
        let run = RunSpan::for_message(topic.clone(), plugin.clone(), "m".to_owned(), 1);
        assert!(run.0.span.get().is_none());
        let clone = run.clone();
        assert_eq!(run.in_scope(|| Span::current().id()), clone.span().id());
        assert!(run.span().id().is_some());
        assert_eq!((run.id(), RunSpan::for_batch(topic, plugin, 2).id()), ("m", ""));
    }
}
