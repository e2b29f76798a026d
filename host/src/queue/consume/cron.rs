//! Fires schedules: each fire time becomes one message over all workers, because
//! the script that publishes also compares and sets the last fire time.

use crate::publication::Publication;
use crate::queue::error::QueueError;
use crate::queue::lua::scripts;
use crate::queue::registry::register;
use crate::queue::topic::TopicHandle;
use jiff::Timestamp;

/// How far a schedule has fired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FireState {
    /// Redis' clock, which decides what is due.
    pub now: Timestamp,
    /// The last fire time; for a new schedule, when it was first seen.
    pub last: Timestamp,
    /// How many messages this call has published.
    pub published: usize,
}

pub struct Schedules {
    handle: TopicHandle,
}

impl Schedules {
    pub fn new(handle: TopicHandle) -> Self {
        Self { handle }
    }

    pub async fn last_fire(&self, name: &str) -> Result<FireState, QueueError> {
        self.call(name, None, &[]).await
    }

    /// Publishes the messages of these fire times, oldest first, if `last` is
    /// still the last one and none of them is in the future.
    pub async fn fire(
        &self,
        name: &str,
        last: Timestamp,
        fires: &[(Timestamp, Publication)],
    ) -> Result<FireState, QueueError> {
        register(&self.handle, self.handle.topic()).await;
        self.call(name, Some(last).filter(|_| !fires.is_empty()), fires).await
    }

    async fn call(
        &self,
        name: &str,
        last: Option<Timestamp>,
        fires: &[(Timestamp, Publication)],
    ) -> Result<FireState, QueueError> {
        let keys = self.handle.keys();
        let mut script = scripts::SCHEDULE.prepare_invoke();
        script.key(&keys.for_publish()[..]).key(&keys.cron).arg(name);
        script.arg(last.map_or_else(String::new, |last| last.as_millisecond().to_string()));
        for (at, publication) in fires {
            script.arg(at.as_millisecond()).arg(&publication.body);
        }
        let (now, last, published): (i64, i64, usize) = script.invoke_async(&mut self.handle.shared()).await?;
        let time = |ms| Timestamp::from_millisecond(ms).map_err(|error| QueueError::Failed(error.to_string()));
        Ok(FireState { now: time(now)?, last: time(last)?, published })
    }
}
