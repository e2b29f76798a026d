//! Publishes messages to a topic, at once or delayed.

use super::error::QueueError;
use super::lua::scripts;
use super::registry::register;
use super::topic::TopicHandle;
use crate::message::MESSAGE_FIELD;
use crate::publication::Publication;
use crate::topic::Topic;
use redis::ScriptInvocation;
use std::time::Duration;

#[derive(Clone)]
pub struct Publisher {
    handle: TopicHandle,
}

impl Publisher {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    pub async fn publish(&self, publication: &Publication) -> Result<(), QueueError> {
        register(&self.handle, self.handle.topic()).await;
        let mut script = scripts::PUBLISH.prepare_invoke();
        script.key(&self.handle.keys().for_publish()[..]);
        script.arg(publication.delay.as_millis()).arg(0).arg(publication.class()).arg(0);
        Ok(script.arg(MESSAGE_FIELD).arg(&publication.body).invoke_async(&mut self.handle.shared()).await?)
    }

    /// Publishes unless a message with this id was published by this method
    /// within the window. Returns whether it published.
    pub async fn publish_once(&self, publication: &Publication, window: Duration) -> Result<bool, QueueError> {
        register(&self.handle, self.handle.topic()).await;
        let keys = self.handle.keys();
        let mut script = scripts::PUBLISH.prepare_invoke();
        script.key(&keys.for_publish()[..]).key(keys.once(&publication.id));
        script.arg(publication.delay.as_millis()).arg(0).arg(publication.class()).arg(window.as_millis());
        Ok(script.arg(MESSAGE_FIELD).arg(&publication.body).invoke_async(&mut self.handle.shared()).await?)
    }

    /// Publishes many in one round trip. On an error some may be published.
    pub async fn publish_all(&self, publications: &[Publication]) -> Result<(), QueueError> {
        register(&self.handle, self.handle.topic()).await;
        let sha = scripts::PUBLISH.load_async(&mut self.handle.shared()).await?;
        let mut pipe = redis::pipe();
        for publication in publications {
            let keys = self.handle.keys().for_publish();
            let command = pipe.cmd("EVALSHA").arg(&sha).arg(keys.len()).arg(&keys[..]);
            command.arg(publication.delay.as_millis()).arg(0).arg(publication.class()).arg(0);
            command.arg(MESSAGE_FIELD).arg(&publication.body).ignore();
        }
        Ok(pipe.query_async(&mut self.handle.shared()).await?)
    }

    /// Publishes an existing envelope unchanged.
    pub(crate) async fn publish_body(&self, body: &[u8]) -> Result<(), QueueError> {
        let mut script = self.script(self.handle.topic(), 0, "");
        Ok(script.arg(MESSAGE_FIELD).arg(body).invoke_async(&mut self.handle.shared()).await?)
    }

    /// The script that publishes to a topic at a due time. The fields of the
    /// message are still to be added as arguments.
    pub(crate) fn script(&self, topic: &Topic, due_ms: i64, class: &str) -> ScriptInvocation<'static> {
        let mut script = scripts::PUBLISH.prepare_invoke();
        script.key(&self.handle.keys_of(topic).for_publish()[..]).arg(0).arg(due_ms).arg(class).arg(0);
        script
    }
}
