//! One version of a plugin: checked and compiled once, then called with a
//! message at a time, each in an instance of its own.

use super::engine::{Engine, HOST_CALL_BYTES_MAX};
use super::imports::{Failure, Guest, MessageHandler, MessageHandlerIndices, WitMessage};
use super::limits::{Metered, OutOfCpu};
use super::output::LogBudget;
use crate::manifest::Manifest;
use crate::message::{self, Message, Postponed};
use crate::topic::Topic;
use crate::verdict::Outcome;
use jiff::Timestamp;
use std::any::Any;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use wasmtime::component::InstancePre;
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

pub struct Plugin {
    engine: Engine,
    instance: InstancePre<Guest>,
    indices: MessageHandlerIndices,
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
        let indices = MessageHandlerIndices::new(&instance).map_err(|_| {
            let exports = if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") };
            LoadError(format!(
                "it exports {exports}; a handler exports gateway:worker/handler@1.0.0 (world message-handler)"
            ))
        })?;
        let log = LogBudget::new(manifest.limits.log);
        let facts = Arc::new(Facts { name: name.to_owned(), manifest, log });
        let plugin = Self { engine: engine.clone(), instance, indices, facts, digest };
        match plugin.run(&probe(plugin.topics()), "0-0", async |_, _| Ok(Outcome::Done(Vec::new()))).await {
            Outcome::Done(_) => Ok(plugin),
            outcome => Err(LoadError(format!("it can't be instantiated: {}: {}", outcome.name(), outcome.error()))),
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

    /// Runs the handler once. `entry_id` is what the ids of its follow-ups are
    /// made from.
    pub async fn call(&self, mut message: Message, entry_id: &str, max_attempts: u32) -> Outcome {
        let data = std::mem::take(&mut message.data);
        let headers = std::mem::take(&mut message.headers);
        let wit_message = WitMessage {
            id: message.id.clone(),
            topic: message.topic.to_string(),
            data,
            headers,
            published_at: message::rfc3339(message.published_at),
            attempt: message.attempt,
            max_attempts,
        };
        let handle = async |store: &mut Store<Guest>, handler: MessageHandler| {
            let reply = handler.gateway_worker_handler().call_handle(&mut *store, &wit_message).await?;
            Ok(reply_outcome(reply, store.data_mut()))
        };
        self.run(&message, entry_id, handle).await
    }

    /// Makes an instance, does something with it, and drops it, within limits.
    async fn run<F>(&self, message: &Message, entry_id: &str, work: F) -> Outcome
    where
        F: AsyncFnOnce(&mut Store<Guest>, MessageHandler) -> wasmtime::Result<Outcome>,
    {
        let Some(_slot) = self.engine.slot().await else {
            return Outcome::PluginUnavailable("the engine is shutting down".to_owned());
        };
        let limits = &self.facts.manifest.limits;
        let mut store = Store::new(self.engine.wasmtime(), Guest::new(&self.facts, message, entry_id));
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
                let handler = self.indices.load(&mut store, &instance)?;
                work(&mut store, handler).await
            });
            tokio::time::timeout(limits.timeout, Metered::new(call, &budget)).await
        };
        let printed = store.data().log_output();
        match ended {
            Ok(Ok(Ok(outcome))) => outcome,
            Ok(Ok(Err(error))) => self.failed_outcome(&error, store.data(), &printed),
            Ok(Err(panic)) => Outcome::Trap(format!("the host panicked: {}", panic_text(&*panic))),
            Err(_) => Outcome::Timeout(limits.timeout),
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

fn reply_outcome(reply: Result<(), Failure>, guest: &mut Guest) -> Outcome {
    let after = |ms: Option<u32>| ms.map(|ms| Duration::from_millis(ms.into()));
    match reply {
        Ok(()) => Outcome::Done(std::mem::take(&mut guest.publications)),
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

/// Stands in for a message while a component is checked; no handler sees it.
fn probe(topics: &[Topic]) -> Message {
    Message {
        id: String::new(),
        topic: topics[0].clone(),
        data: Vec::new(),
        headers: Vec::new(),
        published_at: Timestamp::UNIX_EPOCH,
        attempt: 1,
        max_attempts: None,
        expires_at: None,
        dedup_key: None,
        postponed: Postponed::default(),
        has_own_id: false,
    }
}
