//! One version of a plugin: checked and compiled once, then called with one
//! message or a batch of them, each time in an instance of its own.

use super::bindings::{BatchMessageHandlerIndices, Failure, MessageHandlerIndices, WitMessage};
use super::engine::{Engine, HOST_CALL_BYTES_MAX};
use super::imports::Guest;
use super::limits::{Metered, OutOfCpu};
use super::output::LogBudget;
use crate::manifest::Manifest;
use crate::message::{self, Message};
use crate::topic::Topic;
use crate::verdict::Outcome;
use std::any::Any;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use wasmtime::component::{Instance, InstancePre};
use wasmtime::{Store, Trap};

/// As much of an error as is told.
const ERROR_BYTES_MAX: usize = 4096;

/// The handles that a guest may hold at once.
const HANDLES_MAX: usize = 10_000;

/// What stays the same over all calls of a version.
pub(super) struct Facts {
    pub(super) name: String,
    pub(super) manifest: Manifest,
    pub(super) log: LogBudget,
}

/// A message to be handled.
pub struct Call {
    pub message: Message,
    /// What the ids of its follow-ups are made from.
    pub entry: String,
    pub max_attempts: u32,
}

/// What the component exports.
enum Export {
    Handler(MessageHandlerIndices),
    BatchHandler(BatchMessageHandlerIndices),
}

pub struct Plugin {
    engine: Engine,
    instance: InstancePre<Guest>,
    export: Export,
    facts: Arc<Facts>,
    digest: String,
}

/// Why a file is no plugin, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(pub String);

impl Plugin {
    /// Compiles and checks a component. The types of its exports are only
    /// compared when there is an instance, so one is made and thrown away,
    /// under all limits: a start function runs in it.
    pub async fn load(
        engine: &Engine,
        name: &str,
        bytes: Arc<[u8]>,
        manifest: Manifest,
        digest: String,
    ) -> Result<Self, LoadError> {
        check_header(&bytes)?;
        let compiler = engine.clone();
        let component = tokio::task::spawn_blocking(move || compiler.compile(&bytes))
            .await
            .map_err(|error| LoadError(format!("the compiler failed: {error}")))?
            .map_err(|error| LoadError(format!("not a valid component (is it complete?): {}", shown(&error))))?;
        let exports: Vec<String> =
            component.component_type().exports(engine.wasmtime()).map(|(name, _)| name.to_owned()).collect();
        let instance = engine.link(&component).map_err(|error| {
            LoadError(format!(
                "it needs what this host does not offer: {}; build it against this host's wit/gateway.wit",
                shown(&error)
            ))
        })?;
        let export = export(&instance, manifest.batch.is_some(), &exports.join(", "))?;
        let log = LogBudget::new(manifest.limits.log);
        let facts = Arc::new(Facts { name: name.to_owned(), manifest, log });
        let plugin = Self { engine: engine.clone(), instance, export, facts, digest };
        match plugin.run(&[], async |store, instance| plugin.check(store, instance)).await {
            Ok(()) => Ok(plugin),
            Err(outcome) => {
                Err(LoadError(format!("it can't be instantiated: {}: {}", outcome.name(), outcome.error())))
            }
        }
    }

    /// Compares the types of what is exported.
    fn check(&self, store: &mut Store<Guest>, instance: &Instance) -> wasmtime::Result<()> {
        match &self.export {
            Export::Handler(indices) => indices.load(store, instance).map(drop),
            Export::BatchHandler(indices) => indices.load(store, instance).map(drop),
        }
    }

    pub fn name(&self) -> &str {
        &self.facts.name
    }

    pub fn digest(&self) -> &str {
        &self.digest
    }

    pub fn manifest(&self) -> &Manifest {
        &self.facts.manifest
    }

    pub fn topics(&self) -> &[Topic] {
        &self.facts.manifest.topics
    }

    /// Runs the handler once, with one message or, where it takes several at
    /// once, a batch; the outcomes are in their order.
    pub async fn call(&self, calls: &mut [Call]) -> Vec<Outcome> {
        let messages: Vec<WitMessage> = calls.iter_mut().map(wit_message).collect();
        let handled = self.run(calls, async |store, instance| self.handle(store, instance, &messages).await);
        match handled.await {
            Ok(outcomes) if outcomes.len() == calls.len() => outcomes,
            Ok(outcomes) => {
                let told = format!("{} replies to a batch of {}", outcomes.len(), calls.len());
                vec![Outcome::BadReply(told); calls.len()]
            }
            Err(outcome) => vec![outcome; calls.len()],
        }
    }

    async fn handle(
        &self,
        store: &mut Store<Guest>,
        instance: &Instance,
        messages: &[WitMessage],
    ) -> wasmtime::Result<Vec<Outcome>> {
        let replies = match &self.export {
            Export::Handler(indices) => {
                let handler = indices.load(&mut *store, instance)?;
                let mut replies = Vec::new();
                // One, since only a batch handler is ever given more.
                for message in messages {
                    replies.push(handler.gateway_worker_handler().call_handle(&mut *store, message).await?);
                }
                replies
            }
            Export::BatchHandler(indices) => {
                let handler = indices.load(&mut *store, instance)?;
                handler.gateway_worker_batch_handler().call_handle_batch(&mut *store, messages).await?
            }
        };
        let guest = store.data_mut();
        Ok(replies.into_iter().enumerate().map(|(place, reply)| reply_outcome(reply, guest, place)).collect())
    }

    /// Makes an instance, does something with it, and drops it, within limits.
    async fn run<T, F>(&self, calls: &[Call], work: F) -> Result<T, Outcome>
    where
        F: AsyncFnOnce(&mut Store<Guest>, &Instance) -> wasmtime::Result<T>,
    {
        let Some(_slot) = self.engine.slot().await else {
            return Err(Outcome::PluginUnavailable("the engine is shutting down".to_owned()));
        };
        let limits = &self.facts.manifest.limits;
        let topic = calls.first().map_or(&self.topics()[0], |call| &call.message.topic);
        let mut store = Store::new(self.engine.wasmtime(), Guest::new(&self.facts, topic, calls));
        store.limiter(|guest| &mut guest.memory);
        store.set_hostcall_fuel(HOST_CALL_BYTES_MAX);
        store.set_max_component_handles(HANDLES_MAX);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|context| {
            let cpu = &context.data().cpu;
            cpu.lock().unwrap_or_else(std::sync::PoisonError::into_inner).tick()
        });
        let budget = store.data().cpu.clone();
        let ended = {
            let call = pin!(async {
                let instance = self.instance.instantiate_async(&mut store).await?;
                work(&mut store, &instance).await
            });
            tokio::time::timeout(limits.timeout, Metered::new(call, &budget)).await
        };
        let printed = store.data().log_output();
        match ended {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(error))) => Err(self.failed_outcome(&error, store.data(), &printed)),
            Ok(Err(panic)) => Err(Outcome::Trap(format!("the host panicked: {}", panic_text(&*panic)))),
            Err(_) => Err(Outcome::Timeout(limits.timeout)),
        }
    }

    fn failed_outcome(&self, error: &wasmtime::Error, guest: &Guest, printed: &str) -> Outcome {
        let limits = &self.facts.manifest.limits;
        if error.downcast_ref::<OutOfCpu>().is_some() {
            Outcome::CpuLimit(limits.cpu)
        } else if guest.memory.was_reached {
            Outcome::MemoryLimit(limits.memory)
        } else if error.downcast_ref::<wasmtime::PoolConcurrencyLimitError>().is_some() {
            Outcome::PluginUnavailable(format!("too many instances at once: {error}"))
        } else if error.downcast_ref::<Trap>().is_some() || error.downcast_ref::<wasmtime_wasi::I32Exit>().is_some() {
            Outcome::Trap(with_output(&shown(error), printed))
        } else {
            Outcome::BadReply(with_output(&shown(error), printed))
        }
    }
}

/// The export that the manifest asks for, `[batch]` or not.
fn export(instance: &InstancePre<Guest>, is_batch: bool, exports: &str) -> Result<Export, LoadError> {
    let handler = MessageHandlerIndices::new(instance).ok().map(Export::Handler);
    let batch_handler = BatchMessageHandlerIndices::new(instance).ok().map(Export::BatchHandler);
    let exports = if exports.is_empty() { "nothing" } else { exports };
    match (is_batch, handler, batch_handler) {
        (false, Some(handler), _) => Ok(handler),
        (true, _, Some(batch_handler)) => Ok(batch_handler),
        (true, ..) => Err(LoadError(format!(
            "it exports {exports}; with [batch] in its manifest it must export gateway:worker/batch-handler@1.0.0"
        ))),
        (false, None, Some(_)) => Err(LoadError(
            "it exports gateway:worker/batch-handler@1.0.0: write [batch] with size and wait into its manifest"
                .to_owned(),
        )),
        (false, None, None) => Err(LoadError(format!(
            "it exports {exports}; a handler exports gateway:worker/handler@1.0.0 (world message-handler)"
        ))),
    }
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

fn reply_outcome(reply: Result<(), Failure>, guest: &mut Guest, place: usize) -> Outcome {
    let after = |ms: Option<u32>| ms.map(|ms| Duration::from_millis(ms.into()));
    match reply {
        Ok(()) => Outcome::Done(guest.publications_of(place)),
        Err(Failure::Retry(again)) => Outcome::Retry { reason: cut(again.reason), after: after(again.after_ms) },
        Err(Failure::Postpone(again)) => Outcome::Postpone { reason: cut(again.reason), after: after(again.after_ms) },
        Err(Failure::Reject(fault)) if is_code(&fault.code) => {
            Outcome::Reject { code: fault.code, reason: cut(fault.reason) }
        }
        Err(Failure::Reject(fault)) => {
            let shown: String = fault.code.escape_debug().take(80).collect();
            Outcome::BadReply(format!("reject with code \"{shown}\"; a code matches [a-z0-9-]{{1,64}}"))
        }
    }
}

fn is_code(code: &str) -> bool {
    (1..=64).contains(&code.len()) && code.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

/// A component begins with a magic number, a version and its layer.
fn check_header(bytes: &[u8]) -> Result<(), LoadError> {
    let told = match bytes {
        [0, b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => return Ok(()),
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => {
            "a core module, not a component: build it for wasm32-wasip2, or make a component of it with `wasm-tools component new`"
        }
        [0x7f, b'E', b'L', b'F', ..] => {
            "native code: precompiled components are not taken from the plugins directory; put the .wasm there"
        }
        _ if bytes.len() < 8 && b"\0asm\x0d\0\x01\0".starts_with(bytes) => {
            "incomplete: copy it under a name that begins with a dot, then rename it"
        }
        [0, b'a', b's', b'm', ..] => "of another version of WebAssembly than a component of today (0d 00 01 00)",
        _ => "not WebAssembly: a component begins with the bytes 00 61 73 6d 0d 00 01 00",
    };
    Err(LoadError(format!("it is {told}")))
}

/// Wasmtime's own words, causes included, cut to what a person reads.
fn shown(error: &wasmtime::Error) -> String {
    cut(format!("{error:#}"))
}

fn with_output(error: &str, printed: &str) -> String {
    match printed.trim() {
        "" => error.to_owned(),
        printed => cut(format!("{error}\n{printed}")),
    }
}

fn cut(mut text: String) -> String {
    if text.len() > ERROR_BYTES_MAX {
        text.truncate((0..=ERROR_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
        text.push_str("...");
    }
    text
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("?")
}
