//! One run of a plugin: with one message or a batch of them, in an instance of
//! its own, within limits. Every ending is an [`Outcome`].

use super::bindings::{Failure, WitMessage};
use super::budgets::NoMemoryLeft;
use super::command;
use super::component::Plugin;
use super::cpu::{Metered, OutOfCpu};
use super::guest::Guest;
use super::program::Reply;
use super::reuse::Life;
use super::words::{cut, panic_text, shown, with_output};
use crate::message::{self, Message};
use crate::verdict::Outcome;
use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::PoisonError;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use wasmtime::{Store, Trap, WasmBacktrace};

/// As long as a trial may take, waiting included: others wait to be loaded.
const TRIAL_MAX: Duration = Duration::from_secs(10);

/// A message to be handled.
pub struct Call {
    pub message: Message,
    /// What the ids of its follow-ups are made from.
    pub entry: String,
    pub max_attempts: u32,
}

impl Plugin {
    /// Runs the handler once, with one message or, where it takes several at
    /// once, a batch; the outcomes are in their order.
    pub async fn call(&self, calls: &mut [Call]) -> Vec<Outcome> {
        // A command is equipped with its message when its store is made.
        let messages: Vec<WitMessage> =
            if self.facts.is_command { Vec::new() } else { calls.iter_mut().map(wit_message).collect() };
        let count = calls.len();
        let handled = self.run(calls, async |life| {
            let live = match life.live.take() {
                Some(live) => live,
                None => self.program.start(&mut life.store).await?,
            };
            let replies = live.call(&mut life.store, &messages).await?;
            let outcomes = outcomes(replies, count, life.store.data_mut());
            // Who answers what is no answer is not asked again.
            if !outcomes.iter().any(|outcome| matches!(outcome, Outcome::BadReply(_))) {
                life.live = Some(live);
            }
            Ok(outcomes)
        });
        handled.await.unwrap_or_else(|outcome| vec![outcome; count])
    }

    /// Does something with an instance, within limits; without calls it is only
    /// tried out. What came back with a reply may be kept for another call.
    pub(super) async fn run<T, F>(&self, calls: &[Call], work: F) -> Result<T, Outcome>
    where
        F: AsyncFnOnce(&mut Life) -> wasmtime::Result<T>,
    {
        let is_trial = calls.is_empty();
        let share = (!is_trial).then_some(&*self.share);
        let Some(_slot) = self.engine.slot(share, self.weight).await else {
            let told = "too many calls at once: one plugin has room for half of all that a worker has";
            return Err(Outcome::PluginUnavailable(told.to_owned()));
        };
        let limits = &self.facts.manifest.limits;
        let time = if is_trial { limits.timeout.min(TRIAL_MAX) } else { limits.timeout };
        let mut life = match self.kept.take() {
            Some(mut kept) => {
                kept.store.data_mut().begin(calls);
                kept
            }
            None => self.new_life(calls).map_err(Outcome::PluginUnavailable)?,
        };
        life.store.set_epoch_deadline(1);
        let budget = life.store.data().run.cpu.clone();
        let ended = {
            let call = pin!(work(&mut life));
            within(time, pin!(Metered::new(call, &budget, self.engine.turns(is_trial)))).await
        };
        let printed = life.store.data().log_output();
        match ended {
            Some(Ok(Ok(value))) => {
                if life.live.is_some() && self.kept.is_wanted() && !self.share.memory.is_scarce() {
                    self.kept.put(life, self.engine.room_to_wait(), self.weight);
                }
                Ok(value)
            }
            Some(Ok(Err(error))) => Err(self.failed_outcome(&error, life.store.data(), &printed)),
            Some(Err(panic)) => Err(Outcome::Trap(format!("the host panicked: {}", panic_text(&*panic)))),
            None => Err(Outcome::Timeout(time)),
        }
    }

    fn new_life(&self, calls: &[Call]) -> Result<Life, String> {
        let limits = &self.facts.manifest.limits;
        let share = if calls.is_empty() { &self.share.for_trial() } else { &self.share };
        let guest = Guest::new(&self.facts, share, calls)?;
        let mut store = Store::new(self.engine.wasmtime(), guest);
        store.limiter(|guest| &mut guest.limit);
        store.set_hostcall_fuel(limits.host_call_bytes as usize);
        store.set_max_component_handles(limits.resources as usize);
        store.epoch_deadline_callback(|context| {
            let cpu = &context.data().run.cpu;
            cpu.lock().unwrap_or_else(PoisonError::into_inner).tick()
        });
        Ok(Life::new(store))
    }

    fn failed_outcome(&self, error: &wasmtime::Error, guest: &Guest, printed: &str) -> Outcome {
        let limits = &self.facts.manifest.limits;
        if error.downcast_ref::<OutOfCpu>().is_some() {
            Outcome::CpuLimit(guest.run.cpu.lock().unwrap_or_else(PoisonError::into_inner).limit())
        } else if let Some(told) = error.downcast_ref::<NoMemoryLeft>() {
            Outcome::PluginUnavailable(told.to_string())
        } else if let Some(outcome) = guest.limit.outcome(error, limits) {
            outcome
        } else if error.downcast_ref::<wasmtime::PoolConcurrencyLimitError>().is_some() {
            Outcome::PluginUnavailable(format!("too many instances at once: {error}"))
        } else if is_trap(error) {
            Outcome::Trap(with_output(&shown(error), printed))
        } else {
            Outcome::BadReply(with_output(&shown(error), printed))
        }
    }
}

/// What it comes to, if it does so in time. Most calls end in their first slice
/// and need no clock, which is one for all threads.
async fn within<F: Future>(time: Duration, mut call: Pin<&mut F>) -> Option<F::Output> {
    let (started, mut clock) = (Instant::now(), None);
    poll_fn(|context| {
        if let Poll::Ready(value) = call.as_mut().poll(context) {
            return Poll::Ready(Some(value));
        }
        let clock = clock.get_or_insert_with(|| Box::pin(sleep(time.saturating_sub(started.elapsed()))));
        clock.as_mut().poll(context).map(|()| None)
    })
    .await
}

/// Whether it failed while the guest ran, in its own code or in a call to the
/// host, and not in what it replied.
fn is_trap(error: &wasmtime::Error) -> bool {
    error.is::<Trap>() || error.is::<WasmBacktrace>() || error.is::<wasmtime_wasi::I32Exit>()
}

fn wit_message(call: &mut Call) -> WitMessage {
    let message = &mut call.message;
    WitMessage {
        id: message.id.clone(),
        topic: message.topic.to_string(),
        data: std::mem::take(&mut message.data),
        headers: std::mem::take(&mut message.headers),
        published_at: message::rfc3339(message.published_at),
        attempt: message.attempt,
        max_attempts: call.max_attempts,
    }
}

/// Of each message, in their order.
fn outcomes(replies: Vec<Reply>, count: usize, guest: &mut Guest) -> Vec<Outcome> {
    if replies.len() != count {
        return vec![Outcome::BadReply(format!("{} replies to a batch of {count}", replies.len())); count];
    }
    replies.into_iter().enumerate().map(|(place, reply)| reply_outcome(reply, guest, place)).collect()
}

fn reply_outcome(reply: Reply, guest: &mut Guest, place: usize) -> Outcome {
    let reply = match reply {
        Reply::Handled(reply) => reply,
        // It is the reason for what it printed last.
        Reply::Exited(code) => return command::outcome(code, &guest.log_output(), guest.publications_of(place)),
    };
    let after = |ms: Option<u32>| ms.map(|ms| Duration::from_millis(ms.into()));
    let told = |guest: &Guest, reason: &str| cut(guest.facts.struck.strike(reason).into_owned());
    match reply {
        Ok(()) => Outcome::Done(guest.publications_of(place)),
        Err(Failure::Retry(again)) => {
            Outcome::Retry { reason: told(guest, &again.reason), after: after(again.after_ms) }
        }
        Err(Failure::Postpone(again)) => {
            Outcome::Postpone { reason: told(guest, &again.reason), after: after(again.after_ms) }
        }
        Err(Failure::Reject(fault)) if is_code(&fault.code) => {
            // Who puts a secret there does not get a code.
            let is_secret = matches!(guest.facts.struck.strike(&fault.code), Cow::Owned(_));
            let code = if is_secret { "secret".to_owned() } else { fault.code };
            Outcome::Reject { code, reason: told(guest, &fault.reason) }
        }
        Err(Failure::Reject(fault)) => {
            let shown: String = guest.facts.struck.strike(&fault.code).escape_debug().take(80).collect();
            Outcome::BadReply(format!("reject with code \"{shown}\"; a code matches [a-z0-9-]{{1,64}}"))
        }
    }
}

fn is_code(code: &str) -> bool {
    (1..=64).contains(&code.len()) && code.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::super::bindings::Fault;
    use super::*;
    use crate::capability::Secret;

    #[test]
    fn a_secret_is_no_code_that_is_told() {
        let mut guest = Guest::under("");
        guest.facts.struck.learn("KEY", &Secret::new("sesame-open".to_owned()));
        let mut told = |code: &str| {
            let fault = Fault { code: code.to_owned(), reason: String::new() };
            reply_outcome(Reply::Handled(Err(Failure::Reject(fault))), &mut guest, 0)
        };
        for (code, told_code) in [("bad-data", "bad-data"), ("sesame-open", "secret"), ("x-sesame-open", "secret")] {
            assert_eq!(told(code), Outcome::Reject { code: told_code.to_owned(), reason: String::new() }, "{code}");
        }
        // One that is no code either.
        let Outcome::BadReply(reason) = told("sesame-open!") else { panic!("it is a code") };
        assert!(reason.starts_with("reject with code \"[secret:KEY]!\""), "{reason}");
    }
}
