//! From the outcome of a run to its settlement: the verdict is made by the rule
//! [`judge`], and nowhere else.

use super::run_state::{Run, dead_letter_fields};
use super::unsettled::{Ran, Unsettled};
use crate::queue::{Delivery, Settlement, TopicHandle};
use crate::verdict::{Outcome, Verdict, judge};
use std::time::Duration;

/// Judges a run that took this long.
pub(super) fn judged(
    queue: &TopicHandle,
    delivery: &mut Delivery,
    run: Run,
    outcome: Outcome,
    took: Duration,
) -> Unsettled {
    let (name, mut error) = (outcome.name(), outcome.error());
    let verdict = judge(outcome, run.retry_state, &run.plugin.manifest().retry, fastrand::f64());
    let (mut dead_reason, mut retry_in) = (None, None);
    let settlement = match verdict {
        Verdict::Done(publications) if publications.is_empty() => {
            let settlement = delivery.done(run.claim, publications);
            return unsettled(settlement, name, Ran { span: run.span, took, retry_in });
        }
        Verdict::Done(publications) => delivery.done(run.claim.clone(), publications),
        Verdict::RunAgain { after, attempt, postponed } => {
            retry_in = Some(after);
            let fields = run.fields_to_run_again(attempt, postponed);
            delivery.run_again(after, fields).with_claim(run.claim.clone())
        }
        Verdict::DeadLetter { reason, error: cause } => {
            dead_reason = Some(reason);
            error = cause;
            let fields = dead_letter_fields(queue, delivery, reason, &error, Some(&run));
            delivery.dead_letter(fields).with_claim(run.claim.clone())
        }
    };
    let ran = Ran { span: run.span.clone(), took, retry_in };
    // Until Redis has confirmed the settlement, this may be the only copy.
    let fields = std::mem::take(&mut delivery.fields);
    let copy = Some(Box::new((Delivery { fields, ..delivery.clone() }, Some(run))));
    Unsettled { dead_reason, error, copy, ..unsettled(settlement, name, ran) }
}

fn unsettled(settlement: Settlement, outcome: &'static str, ran: Ran) -> Unsettled {
    Unsettled { ran: Some(ran), ..Unsettled::not_run(settlement, outcome) }
}

/// The run has failed after all, because a follow-up was refused: its key holds
/// something that is no queue. That costs an attempt, or the message would run
/// for ever.
pub(super) fn judged_again(queue: &TopicHandle, refused: Unsettled, error: &str) -> Option<Unsettled> {
    let took = refused.ran?.took;
    let (mut delivery, run) = *refused.copy?;
    let outcome = Outcome::Retry { reason: format!("its follow-ups can't be published: {error}"), after: None };
    Some(judged(queue, &mut delivery, run?, outcome, took))
}

/// The message can't be moved, because somebody has deleted its entry while it was
/// in flight. It becomes a dead letter, made from the copy in hand.
pub(super) fn entry_deleted(queue: &TopicHandle, failed: Unsettled) -> Option<Unsettled> {
    const REASON: &str = "entry-deleted";
    let (delivery, run) = *failed.copy?;
    let outcome = failed.outcome;
    let error = match failed.error.as_str() {
        "" => format!("its entry was deleted or trimmed while it was in flight; outcome {outcome}"),
        cause => format!("its entry was deleted or trimmed while it was in flight; outcome {outcome}: {cause}"),
    };
    let fields = dead_letter_fields(queue, &delivery, REASON, &error, run.as_ref());
    let settlement = delivery.entry_deleted(fields).with_claim(failed.settlement.claim.clone());
    let ran = failed.ran.map(|ran| Ran { retry_in: None, ..ran });
    // The fields are in the settlement now.
    Some(Unsettled { settlement, dead_reason: Some(REASON), error, ran, copy: None, ..failed })
}
