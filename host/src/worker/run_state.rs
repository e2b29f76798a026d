//! What is needed of a message after its handler has got it: to judge the run,
//! and to write down what the next one, or a dead letter, must know.

use crate::message::{self, Fields, Message};
use crate::plugin::Plugin;
use crate::queue::{Claim, Delivery, ERROR_FIELD, TopicHandle};
use crate::run_span::RunSpan;
use crate::verdict::RetryState;
use jiff::Timestamp;
use std::sync::Arc;

pub(super) struct Run {
    pub(super) published_at: Timestamp,
    pub(super) has_own_id: bool,
    /// Where the topic deduplicates.
    pub(super) claim: Option<Claim>,
    pub(super) retry_state: RetryState,
    pub(super) plugin: Arc<Plugin>,
    pub(super) span: RunSpan,
}

impl Run {
    pub(super) fn new(
        message: &Message,
        claim: Option<Claim>,
        plugin: &Arc<Plugin>,
        span: RunSpan,
        now: Timestamp,
    ) -> Self {
        let manifest = plugin.manifest();
        Self {
            published_at: message.published_at,
            has_own_id: message.has_own_id,
            claim,
            retry_state: RetryState {
                attempt: message.attempt,
                max_attempts: manifest.retry.max_attempts(message.max_attempts),
                postponed: message.postponed.times,
                postponed_since: message.postponed.since,
                now,
            },
            plugin: plugin.clone(),
            span,
        }
    }

    /// The fields that the entry gains when it is to run again. It gets a new
    /// entry id, so what is known only from the old one is written down.
    pub(super) fn fields_to_run_again(&self, attempt: u32, postponed: u32) -> Fields {
        let state = self.retry_state;
        let mut set = fields([(message::ATTEMPT_FIELD, &*attempt.to_string())]);
        if !self.has_own_id {
            set.extend(fields([
                (message::ID_FIELD, self.span.id()),
                (message::PUBLISHED_FIELD, &*message::rfc3339(self.published_at)),
            ]));
        }
        if let Some(claim) = &self.claim {
            set.extend(fields([
                (message::FIRST_ENTRY_FIELD, &*claim.first_entry().to_string()),
                (message::DEDUP_FIELD, claim.key_hash()),
            ]));
        }
        if postponed > state.postponed {
            let since = state.postponed_since.unwrap_or(state.now).as_millisecond();
            set.extend(fields([
                (message::POSTPONED_FIELD, &*postponed.to_string()),
                (message::POSTPONED_SINCE_FIELD, &*since.to_string()),
            ]));
        }
        set
    }
}

/// The fields that a dead letter gains. `run` is `None` for a message that was
/// not run.
pub(super) fn dead_letter_fields(
    queue: &TopicHandle,
    delivery: &Delivery,
    reason: &str,
    error: &str,
    run: Option<&Run>,
) -> Fields {
    let entry = &delivery.entry;
    let published_at = run.map_or_else(|| message::entry_time(&entry.id), |run| run.published_at);
    let attempts = run.map_or(0, |run| run.retry_state.attempt);
    let source = format!("{}/{}", entry.stream.name_in(queue.topic()), entry.id);
    fields([
        ("gw-reason", reason),
        (ERROR_FIELD, error),
        ("gw-attempts", &attempts.to_string()),
        ("gw-source", &source),
        (message::PUBLISHED_FIELD, &message::rfc3339(published_at)),
        ("gw-died-at", &message::rfc3339(queue.now())),
        ("gw-digest", run.map_or("", |run| run.plugin.digest())),
    ])
}

fn fields<const N: usize>(pairs: [(&str, &str); N]) -> Fields {
    pairs.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).to_vec()
}
