//! One version of a plugin: checked and compiled once, then called.

use super::bindings::SelfTestedIndices;
use super::engine::Engine;
use super::export::Export;
use super::guest::Guest;
use super::output::LogBudget;
use super::words::{cut, shown};
use crate::manifest::Manifest;
use crate::topic::Topic;
use std::sync::Arc;
use wasmtime::Store;
use wasmtime::component::{Instance, InstancePre};

/// What stays the same over all calls of a version.
pub(super) struct Facts {
    pub(super) name: String,
    pub(super) manifest: Manifest,
    pub(super) log: LogBudget,
}

pub struct Plugin {
    pub(super) engine: Engine,
    pub(super) instance: InstancePre<Guest>,
    pub(super) export: Export,
    self_test: Option<SelfTestedIndices>,
    pub(super) facts: Arc<Facts>,
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
        let export = Export::find(&instance, manifest.batch.is_some(), &exports.join(", ")).map_err(LoadError)?;
        let log = LogBudget::new(manifest.limits.log);
        let facts = Arc::new(Facts { name: name.to_owned(), manifest, log });
        let self_test = SelfTestedIndices::new(&instance).ok();
        let plugin = Self { engine: engine.clone(), instance, export, self_test, facts, digest };
        match plugin.run(&[], async |store, instance| plugin.try_out(store, instance).await).await {
            Ok(Ok(())) => Ok(plugin),
            Ok(Err(told)) => Err(LoadError(format!("its self-test failed: {}", cut(told)))),
            Err(outcome) => {
                Err(LoadError(format!("it can't be instantiated: {}: {}", outcome.name(), outcome.error())))
            }
        }
    }

    /// Compares the types of what is exported, and lets it test itself.
    async fn try_out(&self, store: &mut Store<Guest>, instance: &Instance) -> wasmtime::Result<Result<(), String>> {
        self.export.check(store, instance)?;
        match &self.self_test {
            Some(indices) => indices.load(&mut *store, instance)?.gateway_worker_self_test().call_check(store).await,
            None => Ok(Ok(())),
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
