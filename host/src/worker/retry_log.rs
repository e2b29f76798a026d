//! What is logged of work that failed and is tried again.
//!
//! One line says that Redis is away, and one that it answers again: what that means
//! for each topic is logged at debug.

use super::repeats::Kind;
use super::topic::TopicState;
use crate::queue::QueueError;
use std::time::{Duration, Instant};

/// A topic that can't reach its server for this long, while Redis answers others, has
/// a problem of its own.
const OWN_PROBLEM: Duration = Duration::from_secs(15);

/// Logs that `event` failed, where it has failed since then.
pub(super) fn log_retry(
    topic: &TopicState,
    event: &'static str,
    error: &QueueError,
    since: Instant,
    retry_in: Duration,
) {
    if matches!(error, QueueError::Away(_) | QueueError::Refused(_)) {
        topic.queue.suspect_redis();
    }
    let is_away = matches!(error, QueueError::Away(_)) && topic.queue.is_redis_away();
    // The next ping will find it out.
    let is_outage = is_away || (error.is_outage() && since.elapsed() < OWN_PROBLEM);
    let kind = Kind { event, outcome: None, dead: None };
    let topic_name = topic.topic();
    if !is_outage && topic.repeats.admit(kind, || error.to_string()) {
        tracing::warn!(topic = %topic_name, %error, ?retry_in, "{event}");
    } else {
        tracing::debug!(topic = %topic_name, %error, ?retry_in, "{event}");
    }
}
