//! Fires schedules: each fire time becomes one message over all workers, by
//! comparing and setting the last one in the step that publishes.

use super::topic_queue::TopicQueue;
use super::{QueueError, scripts};
use crate::publication::Publication;
use jiff::Timestamp;

/// What a look at a schedule found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fired {
    /// Redis' clock, which is the one that counts.
    pub now: Timestamp,
    /// The last fire time; where there was none, when it was first looked at.
    pub last: Timestamp,
    pub published: usize,
}

impl TopicQueue {
    /// How far a schedule has come.
    pub async fn look_at_schedule(&self, name: &str) -> Result<Fired, QueueError> {
        self.cron(name, None, &[]).await
    }

    /// Publishes the messages of these fire times, oldest first, if `last` is
    /// still the last one and none lies in the future.
    pub async fn fire(
        &self,
        name: &str,
        last: Timestamp,
        fires: &[(Timestamp, Publication)],
    ) -> Result<Fired, QueueError> {
        self.cron(name, Some(last).filter(|_| !fires.is_empty()), fires).await
    }

    async fn cron(
        &self,
        name: &str,
        last: Option<Timestamp>,
        fires: &[(Timestamp, Publication)],
    ) -> Result<Fired, QueueError> {
        let mut script = scripts::CRON.prepare_invoke();
        script.key(&self.keys().for_publish()[..]).key(&self.keys().cron).arg(name);
        script.arg(last.map_or_else(String::new, |last| last.as_millisecond().to_string()));
        for (at, publication) in fires {
            script.arg(at.as_millisecond()).arg(&publication.body);
        }
        let (now, last, published): (i64, i64, usize) = script.invoke_async(&mut self.shared()).await?;
        let time = |ms| Timestamp::from_millisecond(ms).map_err(|error| QueueError::Failed(error.to_string()));
        Ok(Fired { now: time(now)?, last: time(last)?, published })
    }
}
