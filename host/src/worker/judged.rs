//! From the outcome of a run to its settlement: the verdict is made by the rule
//! [`judge`], and nowhere else.

use super::run_state::{Run, dead_letter_fields};
use super::unsettled::{Ran, Unsettled};
use crate::publication::Publication;
use crate::queue::Delivery;
use crate::topic::Topic;
use crate::verdict::{Outcome, Verdict, judge};
use std::time::Duration;

/// Judges a run that took this long.
pub(super) fn judged(topic: &Topic, delivery: &mut Delivery, run: Run, outcome: Outcome, took: Duration) -> Unsettled {
    let (name, mut error) = (outcome.name(), outcome.error());
    let verdict = judge(outcome, run.retry_state, &run.plugin.manifest().retry, fastrand::f64());
    let (mut dead_reason, mut retry_in) = (None, None);
    let settlement = match verdict {
        Verdict::Done(publications) if publications.is_empty() => delivery.done(run.dedup_key, publications),
        Verdict::Done(publications) => return with_follow_ups(delivery, run, publications, took),
        Verdict::RunAgain { after, attempt, postponed } => {
            retry_in = Some(after);
            delivery.run_again(after, run.fields_to_run_again(attempt, postponed))
        }
        Verdict::DeadLetter { reason, error: cause } => {
            dead_reason = Some(reason);
            error = cause;
            delivery.dead_letter(dead_letter_fields(topic, delivery, reason, &error, Some(&run)))
        }
    };
    let ran = Ran { span: run.span, took, retry_in, follow_ups: None };
    Unsettled { settlement, may_be_settled: false, outcome: Some(name), dead_reason, error, id: None, ran: Some(ran) }
}

/// A run is done only when its follow-ups are published. Until then the delivery
/// is kept, for the other verdict.
fn with_follow_ups(delivery: &mut Delivery, run: Run, publications: Vec<Publication>, took: Duration) -> Unsettled {
    let settlement = delivery.done(run.dedup_key.clone(), publications);
    let fields = std::mem::take(&mut delivery.fields);
    let delivery = Delivery { fields, ..delivery.clone() };
    let ran = Ran { span: run.span.clone(), took, retry_in: None, follow_ups: Some(Box::new((delivery, run))) };
    Unsettled {
        settlement,
        may_be_settled: false,
        outcome: Some("done"),
        dead_reason: None,
        error: String::new(),
        id: None,
        ran: Some(ran),
    }
}

/// The run has failed after all, because a follow-up was refused: its key holds
/// something that is no queue. That costs an attempt, or the message would run
/// for ever.
pub(super) fn judged_again(topic: &Topic, refused: Unsettled, error: &str) -> Option<Unsettled> {
    let ran = refused.ran?;
    let (mut delivery, run) = *ran.follow_ups?;
    let outcome = Outcome::Retry { reason: format!("its follow-ups can't be published: {error}"), after: None };
    Some(judged(topic, &mut delivery, run, outcome, ran.took))
}
