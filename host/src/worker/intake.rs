//! The intake loop: fetches messages of each topic while there is capacity, and
//! finds again what was lost on the way. A visit of a topic lasts as long as
//! the topic is consumed, and ends when what was in flight is drained.

mod drain;
mod fetch;
mod session;

use super::topic::TopicState;
use super::topic_loop::TopicLoop;
use crate::events;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct Intake;

impl TopicLoop<TopicState> for Intake {
    const NAME: &'static str = "intake";

    type Memory = ();

    async fn visit(&self, topic: &Arc<TopicState>, (): &mut ()) -> Option<Duration> {
        let consumed = async {
            tokio::join!(session::consume_until_stopped(topic), drain::interrupt_when_stopped(topic));
            drain::drain(topic).await;
        };
        let too_late = async {
            topic.shared.stop.cancelled().await;
            tokio::time::sleep(topic.shared.drain_timeout).await;
        };
        tokio::select! {
            () = consumed => {}
            () = too_late => {
                let drain_timeout = topic.shared.drain_timeout;
                tracing::warn!(topic = %topic.topic(), ?drain_timeout, "{}", events::SHUTDOWN_TIMED_OUT);
            }
        }
        topic.end();
        drain::leave(topic).await;
        None
    }
}
