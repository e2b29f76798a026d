//! A settlement that Redis has not confirmed yet, with what is counted and
//! logged once it has. A worker that dies in between has claimed nothing.

use super::repeats::{Kind, Repeats};
use super::run_state::{Run, dead_letter_fields};
use super::work_item::WorkItem;
use crate::events;
use crate::metrics::TopicMetrics;
use crate::queue::{Delivery, Settlement, TopicHandle};
use crate::run_span::RunSpan;
use crate::topic::Topic;
use std::time::Duration;

pub(super) struct Unsettled {
    pub(super) settlement: Settlement,
    /// Sent before with an unknown result. If the entry is gone then, it was
    /// probably this settlement.
    pub(super) may_be_settled: bool,
    pub(super) outcome: &'static str,
    pub(super) dead_reason: Option<&'static str>,
    pub(super) error: String,
    /// The message's id, where it is known and no span has it.
    pub(super) id: Option<String>,
    /// `None` for a message that was not run.
    pub(super) ran: Option<Ran>,
    /// What another settlement is made of, if Redis can't do this one: its follow-ups
    /// are refused, or its entry was deleted.
    pub(super) copy: Option<Box<(Delivery, Option<Run>)>>,
}

/// What is logged of a run, in addition to the fields of its span.
pub(super) struct Ran {
    pub(super) span: RunSpan,
    pub(super) took: Duration,
    pub(super) retry_in: Option<Duration>,
}

impl Unsettled {
    /// The settlement of a message that is not run.
    pub(super) fn not_run(settlement: Settlement, outcome: &'static str) -> Self {
        Self {
            settlement,
            may_be_settled: false,
            outcome,
            dead_reason: None,
            error: String::new(),
            id: None,
            ran: None,
            copy: None,
        }
    }

    /// The same for one that becomes a dead letter for this reason, which is its
    /// outcome too.
    pub(super) fn unrunnable(queue: &TopicHandle, item: &WorkItem, reason: &'static str, error: String) -> Self {
        let delivery = item.delivery.clone();
        let fields = dead_letter_fields(queue, &delivery, reason, &error, None);
        Self {
            settlement: delivery.dead_letter(fields).with_claim(item.claim.clone()),
            may_be_settled: false,
            outcome: reason,
            dead_reason: Some(reason),
            error,
            id: None,
            ran: None,
            copy: Some(Box::new((delivery, None))),
        }
    }

    /// Counts the outcome. To be called when Redis has confirmed the settlement.
    pub(super) fn count(&self, metrics: &TopicMetrics) {
        metrics.outcome(self.outcome).inc();
        if let Some(reason) = self.dead_reason {
            metrics.dead_letter(reason);
        }
    }

    /// Logs the outcome, likewise. Of many with the same outcome the first are
    /// written in full, and the others at debug.
    pub(super) fn log(&self, topic: &Topic, repeats: &Repeats) {
        match (self.outcome, &self.ran) {
            (outcome, Some(ran)) if outcome == "done" => {
                if tracing::enabled!(tracing::Level::DEBUG) {
                    let took = ran.took;
                    ran.span.in_scope(|| tracing::debug!(outcome, ?took, "{}", events::SETTLED));
                }
            }
            (outcome, Some(ran)) => {
                let is_in_full = self.is_in_full(repeats, outcome, ran.span.id());
                ran.span.in_scope(|| self.log_failed_run(outcome, ran, is_in_full));
            }
            (outcome, None) => self.log_not_run(topic, repeats, outcome),
        }
    }

    fn is_in_full(&self, repeats: &Repeats, outcome: &'static str, id: &str) -> bool {
        let kind = Kind { event: events::SETTLED, outcome: Some(outcome), dead: self.dead_reason };
        repeats.admit(kind, || format!("{id}: {}", self.error))
    }

    fn log_failed_run(&self, outcome: &str, ran: &Ran, is_in_full: bool) {
        let (took, retry_in, dead, error) = (ran.took, ran.retry_in, self.dead_reason, self.error.as_str());
        if is_in_full {
            tracing::warn!(outcome, ?took, ?retry_in, dead, error, "{}", events::SETTLED);
        } else {
            tracing::debug!(outcome, ?took, ?retry_in, dead, error, "{}", events::SETTLED);
        }
    }

    fn log_not_run(&self, topic: &Topic, repeats: &Repeats, outcome: &'static str) {
        let (entry, id) = (&self.settlement.entry, self.id.as_deref());
        let (dead, error) = (self.dead_reason, self.error.as_str());
        match outcome {
            "duplicate" => tracing::debug!(%topic, id, %entry, outcome, "{}", events::SETTLED),
            "poison-message" => tracing::error!(%topic, id, %entry, outcome, dead, error, "{}", events::SETTLED),
            _ if !self.is_in_full(repeats, outcome, id.unwrap_or_default()) => {
                tracing::debug!(%topic, id, %entry, outcome, dead, error, "{}", events::SETTLED);
            }
            _ => tracing::warn!(%topic, id, %entry, outcome, dead, error, "{}", events::SETTLED),
        }
    }
}
