//! A settlement that Redis has not confirmed yet, with what is counted and
//! logged once it has. A worker that dies in between has claimed nothing.

use super::run_state::Run;
use crate::events;
use crate::metrics::TopicMetrics;
use crate::queue::{Delivery, Settlement};
use crate::run_span::RunSpan;
use crate::topic::Topic;
use std::time::Duration;

pub(super) struct Unsettled {
    pub(super) settlement: Settlement,
    /// Sent before with an unknown result. If the entry is gone then, it was
    /// probably this settlement.
    pub(super) may_be_settled: bool,
    /// `None` for an entry that was deleted while it was in flight: nothing of
    /// it is known.
    pub(super) outcome: Option<&'static str>,
    pub(super) dead_reason: Option<&'static str>,
    pub(super) error: String,
    /// The message's id, where it is known and no span has it.
    pub(super) id: Option<String>,
    /// `None` for a message that was not run.
    pub(super) ran: Option<Ran>,
}

/// What is logged of a run, in addition to the fields of its span.
pub(super) struct Ran {
    pub(super) span: RunSpan,
    pub(super) took: Duration,
    pub(super) retry_in: Option<Duration>,
    /// What another verdict is made of, if the follow-ups can't be published.
    pub(super) follow_ups: Option<Box<(Delivery, Run)>>,
}

impl Unsettled {
    /// The settlement of a message that is not run.
    pub(super) fn not_run(settlement: Settlement, outcome: &'static str) -> Self {
        Self {
            settlement,
            may_be_settled: false,
            outcome: Some(outcome),
            dead_reason: None,
            error: String::new(),
            id: None,
            ran: None,
        }
    }

    /// The same for one that becomes a dead letter for this reason, which is its
    /// outcome too.
    pub(super) fn unrunnable(settlement: Settlement, reason: &'static str, error: String) -> Self {
        Self {
            settlement,
            may_be_settled: false,
            outcome: Some(reason),
            dead_reason: Some(reason),
            error,
            id: None,
            ran: None,
        }
    }

    /// Counts the outcome. To be called when Redis has confirmed the settlement.
    pub(super) fn count(&self, metrics: &TopicMetrics) {
        let Some(outcome) = self.outcome else { return };
        metrics.outcome(outcome).inc();
        if let Some(reason) = self.dead_reason {
            metrics.dead_letter(reason);
        }
    }

    /// Logs the outcome, likewise.
    pub(super) fn log(&self, topic: &Topic) {
        match (self.outcome, &self.ran) {
            (None, _) => {}
            (Some(outcome), Some(ran)) if outcome == "done" => {
                if tracing::enabled!(tracing::Level::DEBUG) {
                    let took = ran.took;
                    ran.span.in_scope(|| tracing::debug!(outcome, ?took, "{}", events::SETTLED));
                }
            }
            (Some(outcome), Some(ran)) => ran.span.in_scope(|| self.log_failed_run(outcome, ran)),
            (Some(outcome), None) => self.log_not_run(topic, outcome),
        }
    }

    fn log_failed_run(&self, outcome: &str, ran: &Ran) {
        let (took, retry_in, dead, error) = (ran.took, ran.retry_in, self.dead_reason, self.error.as_str());
        tracing::warn!(outcome, ?took, ?retry_in, dead, error, "{}", events::SETTLED);
    }

    fn log_not_run(&self, topic: &Topic, outcome: &str) {
        let (entry, id) = (&self.settlement.entry, self.id.as_deref());
        let (dead, error) = (self.dead_reason, self.error.as_str());
        match outcome {
            "duplicate" => tracing::debug!(%topic, id, %entry, outcome, "{}", events::SETTLED),
            "poison-message" => tracing::error!(%topic, id, %entry, outcome, dead, error, "{}", events::SETTLED),
            _ => tracing::warn!(%topic, id, %entry, outcome, dead, error, "{}", events::SETTLED),
        }
    }
}
