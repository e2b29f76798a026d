//! Puts messages into a topic: at once or later, and follow-ups that came
//! through the outbox.

use super::topic_queue::TopicQueue;
use super::{QueueError, scripts};
use crate::message::MESSAGE_FIELD;
use crate::publication::Publication;
use redis::ScriptInvocation;
use std::time::Duration;

impl TopicQueue {
    pub async fn publish(&self, publication: &Publication) -> Result<(), QueueError> {
        let mut script = scripts::PUBLISH.prepare_invoke();
        script.key(&self.keys().for_publish()[..]);
        script.arg(publication.delay.as_millis()).arg(0).arg(publication.class()).arg(0);
        Ok(script.arg(MESSAGE_FIELD).arg(&publication.body).invoke_async(&mut self.shared()).await?)
    }

    /// Publishes unless a message of this id was published so within the
    /// window. Returns whether it did.
    pub async fn publish_once(&self, publication: &Publication, window: Duration) -> Result<bool, QueueError> {
        let mut script = scripts::PUBLISH.prepare_invoke();
        script.key(&self.keys().for_publish()[..]).key(self.keys().once(&publication.id));
        script.arg(publication.delay.as_millis()).arg(0).arg(publication.class()).arg(window.as_millis());
        Ok(script.arg(MESSAGE_FIELD).arg(&publication.body).invoke_async(&mut self.shared()).await?)
    }

    /// Publishes many in one round trip. On an error some may be published.
    pub async fn publish_all(&self, publications: &[Publication]) -> Result<(), QueueError> {
        let sha = scripts::PUBLISH.load_async(&mut self.shared()).await?;
        let mut pipe = redis::pipe();
        for publication in publications {
            let keys = self.keys().for_publish();
            let command = pipe.cmd("EVALSHA").arg(&sha).arg(keys.len()).arg(&keys[..]);
            command.arg(publication.delay.as_millis()).arg(0).arg(publication.class()).arg(0);
            command.arg(MESSAGE_FIELD).arg(&publication.body).ignore();
        }
        Ok(pipe.query_async(&mut self.shared()).await?)
    }

    /// Publishes an envelope as it is.
    pub(super) async fn publish_body(&self, body: &[u8]) -> Result<(), QueueError> {
        let mut script = self.publishing(0, "");
        Ok(script.arg(MESSAGE_FIELD).arg(body).invoke_async(&mut self.shared()).await?)
    }

    /// The script that publishes what is due then, waiting for its fields.
    pub(super) fn publishing(&self, due_ms: i64, class: &str) -> ScriptInvocation<'static> {
        let mut script = scripts::PUBLISH.prepare_invoke();
        script.key(&self.keys().for_publish()[..]).arg(0).arg(due_ms).arg(class).arg(0);
        script
    }
}
