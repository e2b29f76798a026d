//! The program of a version, and the export that is called: that of a handler, or the
//! start function of a command.

use super::bindings::{
    BatchMessageHandler, BatchMessageHandlerIndices, Failure, FullHandler, FullHandlerIndices, SelfTestedIndices,
    WitMessage,
};
use super::command::{self, START};
use super::engine::Engine;
use super::guest::Guest;
use super::host_interfaces;
use crate::manifest::Manifest;
use crate::text::error_text;
use std::collections::BTreeSet;
use wasmtime::component::{Component, Instance, InstancePre};
use wasmtime::{InstancePre as ModulePre, Module, Store, TypedFunc};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p2::bindings::{Command, CommandIndices};

/// A compiled file.
pub(super) enum Compiled {
    Component(Component),
    Module(Module),
}

impl Compiled {
    /// The names of the imported interfaces, or modules for a core module.
    pub(super) fn imports(&self, engine: &Engine) -> Vec<String> {
        match self {
            Self::Component(component) => {
                component.component_type().imports(engine.wasmtime()).map(|(name, _)| name.to_owned()).collect()
            }
            Self::Module(module) => {
                let modules: BTreeSet<&str> = module.imports().map(|import| import.module()).collect();
                modules.into_iter().map(str::to_owned).collect()
            }
        }
    }

    pub(super) fn exports(&self, engine: &Engine) -> Vec<String> {
        match self {
            Self::Component(component) => {
                component.component_type().exports(engine.wasmtime()).map(|(name, _)| name.to_owned()).collect()
            }
            Self::Module(module) => module.exports().map(|export| export.name().to_owned()).collect(),
        }
    }
}

/// A program linked to the host, ready to be instantiated.
pub(super) enum LinkedProgram {
    Component { linked: InstancePre<Guest>, entry: EntryPoint, self_test: Option<SelfTestedIndices> },
    Module(ModulePre<Guest>),
}

pub(super) enum EntryPoint {
    Handler(FullHandlerIndices),
    BatchHandler(BatchMessageHandlerIndices),
    /// `wasi:cli/run`.
    Command(CommandIndices),
}

/// An instance that can be called.
pub(super) enum RunningInstance {
    Handler(FullHandler),
    BatchHandler(BatchMessageHandler),
    Command(Command),
    Start(TypedFunc<(), ()>),
}

/// The result of a run.
pub(super) enum Reply {
    Returned(Result<(), Failure>),
    Exited(i32),
}

impl LinkedProgram {
    /// Links the program and finds the export that the manifest asks for. The error
    /// names what is missing, and where.
    pub(super) fn link(engine: &Engine, compiled: &Compiled, manifest: &Manifest) -> Result<Self, String> {
        let program = match compiled {
            Compiled::Component(component) => {
                let linked = engine.link(component).map_err(|error| host_interfaces::link_error(&error))?;
                let entry = EntryPoint::find(&linked, manifest.batch.is_some(), &compiled.exports(engine).join(", "))?;
                let self_test = SelfTestedIndices::new(&linked).ok();
                Self::Component { linked, entry, self_test }
            }
            Compiled::Module(module) => {
                command::check_module(module)?;
                Self::Module(engine.link_module(module).map_err(|error| host_interfaces::link_error(&error))?)
            }
        };
        if program.is_command() {
            command::check(manifest)?;
        } else if !manifest.args.is_empty() {
            return Err(format!("`args` are for commands, and this is a {}: write them into [config]", program.kind()));
        }
        Ok(program)
    }

    pub(super) fn is_command(&self) -> bool {
        matches!(self, Self::Module(_) | Self::Component { entry: EntryPoint::Command(_), .. })
    }

    /// `handler`, `batch-handler` or `command`.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Component { entry: EntryPoint::Handler(_), .. } => "handler",
            Self::Component { entry: EntryPoint::BatchHandler(_), .. } => "batch-handler",
            Self::Component { entry: EntryPoint::Command(_), .. } | Self::Module(_) => "command",
        }
    }

    pub(super) async fn start(&self, store: &mut Store<Guest>) -> wasmtime::Result<RunningInstance> {
        match self {
            Self::Component { linked, entry, .. } => {
                let instance = linked.instantiate_async(&mut *store).await?;
                entry.load(store, &instance)
            }
            Self::Module(linked) => {
                let instance = linked.instantiate_async(&mut *store).await?;
                Ok(RunningInstance::Start(instance.get_typed_func(store, START)?))
            }
        }
    }

    /// Creates an instance to check the types of its exports, which are unknown before,
    /// and runs its self-test.
    pub(super) async fn check_instance(&self, store: &mut Store<Guest>) -> wasmtime::Result<Result<(), String>> {
        let Self::Component { linked, entry, self_test } = self else {
            return Ok(Ok(self.start(store).await.map(drop)?));
        };
        let instance = linked.instantiate_async(&mut *store).await?;
        if let Err(error) = entry.load(&mut *store, &instance) {
            return Ok(Err(type_mismatch(entry.interface(), &error)));
        }
        let Some(indices) = self_test else { return Ok(Ok(())) };
        let tested = match indices.load(&mut *store, &instance) {
            Ok(exports) => exports.gateway_worker_self_test().call_check(store).await?,
            Err(error) => return Ok(Err(type_mismatch("gateway:worker/self-test@1.0.0", &error))),
        };
        Ok(tested.map_err(|reason| format!("its self-test failed: {reason}")))
    }
}

impl RunningInstance {
    /// Calls a handler with its messages; a command has its message on stdin.
    pub(super) async fn call(&self, store: &mut Store<Guest>, messages: &[WitMessage]) -> wasmtime::Result<Vec<Reply>> {
        match self {
            Self::Handler(handler) => {
                let mut replies = Vec::with_capacity(1);
                // A single message: only a batch handler gets more.
                for message in messages {
                    let reply = handler.gateway_worker_handler().call_handle(&mut *store, message).await?;
                    replies.push(Reply::Returned(reply));
                }
                Ok(replies)
            }
            Self::BatchHandler(handler) => {
                let replies = handler.gateway_worker_batch_handler().call_handle_batch(store, messages).await?;
                Ok(replies.into_iter().map(Reply::Returned).collect())
            }
            Self::Command(command) => {
                exit_reply(command.wasi_cli_run().call_run(store).await.map(|ended| i32::from(ended.is_err())))
            }
            Self::Start(start) => exit_reply(start.call_async(store, ()).await.map(|()| 0)),
        }
    }
}

/// A call of `exit` surfaces as an error, which holds the exit code.
fn exit_reply(ended: wasmtime::Result<i32>) -> wasmtime::Result<Vec<Reply>> {
    let code = ended.or_else(|error| error.downcast_ref::<I32Exit>().map(|exit| exit.0).ok_or(error))?;
    Ok(vec![Reply::Exited(code)])
}

impl EntryPoint {
    /// The export that the manifest asks for with `[batch]` or without. A handler takes
    /// precedence over a command, because some languages always export `wasi:cli/run`.
    fn find(linked: &InstancePre<Guest>, is_batch: bool, exports: &str) -> Result<Self, String> {
        let handler = FullHandlerIndices::new(linked).ok().map(Self::Handler);
        let batch_handler = BatchMessageHandlerIndices::new(linked).ok().map(Self::BatchHandler);
        let command = CommandIndices::new(linked).ok().map(Self::Command);
        let exports = if exports.is_empty() { "nothing" } else { exports };
        match (is_batch, handler, batch_handler, command) {
            (false, Some(handler), ..) => Ok(handler),
            (true, _, Some(batch_handler), _) => Ok(batch_handler),
            // `command::check` reports faults of its manifest.
            (_, None, None, Some(command)) => Ok(command),
            (true, ..) => Err(format!(
                "it exports {exports}; with [batch] in its manifest it must export gateway:worker/batch-handler@1.0.0"
            )),
            (false, None, Some(_), _) => {
                Err("it exports gateway:worker/batch-handler@1.0.0: write [batch] with size and wait into its manifest"
                    .to_owned())
            }
            (false, None, None, None) => Err(format!(
                "it exports {exports}; a handler exports gateway:worker/handler@1.0.0 (world message-handler), and a \
                 command wasi:cli/run@0.2"
            )),
        }
    }

    fn interface(&self) -> &'static str {
        match self {
            Self::Handler(_) => "gateway:worker/handler@1.0.0",
            Self::BatchHandler(_) => "gateway:worker/batch-handler@1.0.0",
            Self::Command(_) => "wasi:cli/run@0.2",
        }
    }

    fn load(&self, store: &mut Store<Guest>, instance: &Instance) -> wasmtime::Result<RunningInstance> {
        Ok(match self {
            Self::Handler(indices) => RunningInstance::Handler(indices.load(store, instance)?),
            Self::BatchHandler(indices) => RunningInstance::BatchHandler(indices.load(store, instance)?),
            Self::Command(indices) => RunningInstance::Command(indices.load(store, instance)?),
        })
    }
}

fn type_mismatch(interface: &str, error: &wasmtime::Error) -> String {
    format!(
        "its export {interface} has another type than this host's: {} (expected is what the host has); build it \
         against this host's wit/gateway.wit",
        error_text(error)
    )
}
