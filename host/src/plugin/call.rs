//! One run of a plugin with a message or a batch, in one instance and within its
//! limits. However the run ends, the result is an [`Outcome`].

use super::bindings::{Failure, WitMessage};
use super::budgets::MemoryExhausted;
use super::call_permits::WAIT_MAX;
use super::command;
use super::component::Plugin;
use super::cpu::{CpuLimitExceeded, CpuMetered};
use super::guest::Guest;
use super::instance_pool::PooledInstance;
use super::program::Reply;
use crate::message::{self, Message};
use crate::run_span::RunSpan;
use crate::text::{error_text, panic_message, truncate_error, with_output};
use crate::verdict::Outcome;
use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::PoisonError;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use wasmtime::{Store, Trap, WasmBacktrace};

/// Upper bound for a load check, its waits included: other versions wait to be
/// loaded.
const LOAD_CHECK_MAX: Duration = Duration::from_secs(10);

/// A message to handle.
pub struct Job {
    pub message: Message,
    /// The stream entry. Ids of publications are derived from it.
    pub entry: String,
    pub max_attempts: u32,
    /// All jobs of a batch share one span.
    pub span: RunSpan,
}

/// How a call ended.
pub struct Called {
    /// One for each job, in order.
    pub outcomes: Vec<Outcome>,
    /// How long the call waited for a permit before the run began.
    pub admission_wait: Duration,
}

impl Plugin {
    /// Runs the handler once, with one job or, for a batch handler, several.
    pub async fn call(&self, jobs: &mut [Job]) -> Called {
        // A command gets its message when its store is made.
        let messages: Vec<WitMessage> =
            if self.context.is_command { Vec::new() } else { jobs.iter_mut().map(wit_message).collect() };
        let count = jobs.len();
        let (result, admission_wait) = self
            .run(jobs, async |instance| {
                let running = match instance.running.take() {
                    Some(running) => running,
                    None => self.program.start(&mut instance.store).await?,
                };
                let replies = running.call(&mut instance.store, &messages).await?;
                let outcomes = outcomes(replies, count, instance.store.data_mut());
                // An instance that gave a bad reply is not reused.
                if !outcomes.iter().any(|outcome| matches!(outcome, Outcome::BadReply(_))) {
                    instance.running = Some(running);
                }
                Ok(outcomes)
            })
            .await;
        Called { outcomes: result.unwrap_or_else(|outcome| vec![outcome; count]), admission_wait }
    }

    /// Uses an instance within its limits, and returns how long it waited for
    /// permission. Without jobs it is a load check.
    pub(super) async fn run<T, F>(&self, jobs: &[Job], work: F) -> (Result<T, Outcome>, Duration)
    where
        F: AsyncFnOnce(&mut PooledInstance) -> wasmtime::Result<T>,
    {
        let quota = (!jobs.is_empty()).then_some(&*self.quota);
        let Some(permit) = self.engine.acquire_call_permit(quota, self.weight).await else {
            let reason = "too many calls at once: a plugin may use half of a worker's call permits";
            return (Err(Outcome::PluginUnavailable(reason.to_owned())), WAIT_MAX);
        };
        (self.run_admitted(jobs, work).await, permit.waited)
    }

    async fn run_admitted<T, F>(&self, jobs: &[Job], work: F) -> Result<T, Outcome>
    where
        F: AsyncFnOnce(&mut PooledInstance) -> wasmtime::Result<T>,
    {
        let is_load_check = jobs.is_empty();
        let limits = &self.context.manifest.limits;
        let time = if is_load_check { limits.timeout.min(LOAD_CHECK_MAX) } else { limits.timeout };
        let mut instance = match self.instances.checkout() {
            Some(mut pooled) => {
                pooled.store.data_mut().begin_run(jobs);
                pooled
            }
            None => self.new_instance(jobs).map_err(Outcome::PluginUnavailable)?,
        };
        instance.store.set_epoch_deadline(1);
        let budget = instance.store.data().run.cpu.clone();
        let ended = {
            let call = pin!(work(&mut instance));
            within(time, pin!(CpuMetered::new(call, &budget, self.engine.cpu_permits(is_load_check)))).await
        };
        let printed = instance.store.data().output.end();
        match ended {
            Some(Ok(Ok(value))) => {
                if instance.running.is_some() && self.instances.is_enabled() && !self.quota.memory.is_under_pressure() {
                    self.instances.checkin(instance, self.engine.idle_instance_permits(), self.weight);
                }
                Ok(value)
            }
            Some(Ok(Err(error))) => Err(self.failed_outcome(&error, instance.store.data(), &printed)),
            Some(Err(panic)) => Err(Outcome::Trap(format!("the host panicked: {}", panic_message(&*panic)))),
            None => Err(Outcome::Timeout(time)),
        }
    }

    fn new_instance(&self, jobs: &[Job]) -> Result<PooledInstance, String> {
        let limits = &self.context.manifest.limits;
        let quota = if jobs.is_empty() { &self.quota.for_load_check() } else { &self.quota };
        let guest = Guest::new(&self.context, quota, jobs)?;
        let mut store = Store::new(self.engine.wasmtime(), guest);
        store.limiter(|guest| &mut guest.limit);
        store.set_hostcall_fuel(limits.host_call_bytes as usize);
        store.set_max_component_handles(limits.resources as usize);
        store.epoch_deadline_callback(|context| {
            let cpu = &context.data().run.cpu;
            cpu.lock().unwrap_or_else(PoisonError::into_inner).tick()
        });
        Ok(PooledInstance::new(store))
    }

    fn failed_outcome(&self, error: &wasmtime::Error, guest: &Guest, printed: &str) -> Outcome {
        let limits = &self.context.manifest.limits;
        if error.downcast_ref::<CpuLimitExceeded>().is_some() {
            Outcome::CpuLimit(guest.run.cpu.lock().unwrap_or_else(PoisonError::into_inner).limit())
        } else if let Some(exhausted) = error.downcast_ref::<MemoryExhausted>() {
            Outcome::PluginUnavailable(exhausted.to_string())
        } else if let Some(outcome) = guest.limit.outcome(error, limits) {
            outcome
        } else if error.downcast_ref::<wasmtime::PoolConcurrencyLimitError>().is_some() {
            Outcome::PluginUnavailable(format!("too many instances at once: {error}"))
        } else if is_trap(error) {
            Outcome::Trap(with_output(&error_text(error), printed))
        } else {
            Outcome::BadReply(with_output(&error_text(error), printed))
        }
    }
}

/// A timeout that creates its timer only when the call waits for the first time,
/// because all threads share the timer wheel and most calls never wait.
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

/// Whether it failed while the guest ran, in its own code or in a host call. Other
/// errors concern the reply.
fn is_trap(error: &wasmtime::Error) -> bool {
    error.is::<Trap>() || error.is::<WasmBacktrace>() || error.is::<wasmtime_wasi::I32Exit>()
}

fn wit_message(job: &mut Job) -> WitMessage {
    let message = &mut job.message;
    WitMessage {
        id: message.id.clone(),
        topic: message.topic.to_string(),
        data: std::mem::take(&mut message.data),
        headers: std::mem::take(&mut message.headers),
        published_at: message::rfc3339(message.published_at),
        attempt: message.attempt,
        max_attempts: job.max_attempts,
    }
}

/// The outcome of each message, in order.
fn outcomes(replies: Vec<Reply>, count: usize, guest: &mut Guest) -> Vec<Outcome> {
    if replies.len() != count {
        return vec![Outcome::BadReply(format!("{} replies to a batch of {count}", replies.len())); count];
    }
    replies.into_iter().enumerate().map(|(index, reply)| reply_outcome(reply, guest, index)).collect()
}

fn reply_outcome(reply: Reply, guest: &mut Guest, index: usize) -> Outcome {
    let reply = match reply {
        Reply::Returned(reply) => reply,
        // The last output is the reason.
        Reply::Exited(code) => return command::outcome(code, &guest.output.end(), guest.publications_of(index)),
    };
    let after = |ms: Option<u32>| ms.map(|ms| Duration::from_millis(ms.into()));
    let redacted = |guest: &Guest, reason: &str| truncate_error(guest.context.redactor.redact(reason).into_owned());
    match reply {
        Ok(()) => Outcome::Done(guest.publications_of(index)),
        Err(Failure::Retry(options)) => {
            Outcome::Retry { reason: redacted(guest, &options.reason), after: after(options.after_ms) }
        }
        Err(Failure::Postpone(options)) => {
            Outcome::Postpone { reason: redacted(guest, &options.reason), after: after(options.after_ms) }
        }
        Err(Failure::Reject(fault)) if is_code(&fault.code) => {
            // With a redaction marker it would not be a valid code.
            let is_secret = matches!(guest.context.redactor.redact(&fault.code), Cow::Owned(_));
            let code = if is_secret { "secret".to_owned() } else { fault.code };
            Outcome::Reject { code, reason: redacted(guest, &fault.reason) }
        }
        Err(Failure::Reject(fault)) => {
            let shown: String = guest.context.redactor.redact(&fault.code).escape_debug().take(80).collect();
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
    fn a_code_that_contains_a_secret_is_replaced() {
        let mut guest = Guest::for_test("");
        guest.context.redactor.add("KEY", &Secret::new("sesame-open".to_owned()));
        let mut outcome = |code: &str| {
            let fault = Fault { code: code.to_owned(), reason: String::new() };
            reply_outcome(Reply::Returned(Err(Failure::Reject(fault))), &mut guest, 0)
        };
        for (code, shown) in [("bad-data", "bad-data"), ("sesame-open", "secret"), ("x-sesame-open", "secret")] {
            assert_eq!(outcome(code), Outcome::Reject { code: shown.to_owned(), reason: String::new() }, "{code}");
        }
        // An invalid code.
        let Outcome::BadReply(reason) = outcome("sesame-open!") else { panic!("the code is valid") };
        assert!(reason.starts_with("reject with code \"[secret:KEY]!\""), "{reason}");
    }
}
