//! One version of a plugin: checked and compiled once, then called.

use super::bindings::SelfTestedIndices;
use super::engine::Engine;
use super::export::Export;
use super::folders;
use super::guest::Guest;
use super::http::Outbound;
use super::imports;
use super::inspect;
use super::offer::{self, Import};
use super::output::LogBudget;
use super::probation::Probation;
use super::struck::Struck;
use super::words::{cut, shown};
use crate::manifest::Manifest;
use crate::topic::Topic;
use std::sync::Arc;
use wasmtime::Store;
use wasmtime::component::{Component, Instance, InstancePre};

/// What stays the same over all calls of a version.
pub(super) struct Facts {
    pub(super) name: String,
    pub(super) manifest: Manifest,
    pub(super) log: LogBudget,
    pub(super) http: Outbound,
    pub(super) struck: Struck,
}

impl Facts {
    /// Whether a line of so many bytes may go into the log.
    pub(super) fn may_log(&self, bytes: usize) -> bool {
        let Some(dropped) = self.log.admit(bytes) else { return false };
        self.tell_dropped(dropped);
        true
    }

    pub(super) fn tell_dropped(&self, dropped: u64) {
        if dropped > 0 {
            tracing::warn!(plugin = self.name, dropped, "log lines dropped: more than limits.log");
        }
    }
}

impl Drop for Facts {
    fn drop(&mut self) {
        self.tell_dropped(self.log.dropped());
    }
}

pub struct Plugin {
    pub(super) engine: Engine,
    pub(super) instance: InstancePre<Guest>,
    pub(super) export: Export,
    self_test: Option<SelfTestedIndices>,
    pub(super) facts: Arc<Facts>,
    digest: String,
    withheld: Vec<String>,
    probation: Probation,
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
        let component = engine.compile(&bytes).await.map_err(|error| LoadError(cut(error.to_string())))?;
        Self::of(engine, name, &component, manifest, digest).await
    }

    /// The same for what has been compiled.
    pub(super) async fn of(
        engine: &Engine,
        name: &str,
        component: &Component,
        manifest: Manifest,
        digest: String,
    ) -> Result<Self, LoadError> {
        folders::check(&manifest.grants, name).map_err(LoadError)?;
        let instance = engine.link(component).map_err(|error| LoadError(offer::lacking(&error)))?;
        let exports = inspect::exports(engine, component).join(", ");
        let export = Export::find(&instance, manifest.batch.is_some(), &exports).map_err(LoadError)?;
        let imports = inspect::imports(engine, component);
        let imports = imports.iter().map(|name| Import::of(name, &manifest.grants));
        let withheld = imports.filter(Import::is_withheld).map(|import| import.name).collect();
        let log = LogBudget::new(manifest.limits.log);
        let (http, struck) = (Outbound::new(), Struck::default());
        let facts = Arc::new(Facts { name: name.to_owned(), manifest, log, http, struck });
        let self_test = SelfTestedIndices::new(&instance).ok();
        let probation = Probation::default();
        let plugin = Self { engine: engine.clone(), instance, export, self_test, facts, digest, withheld, probation };
        match plugin.run(&[], async |store, instance| plugin.try_out(store, instance).await).await {
            Ok(Ok(())) => {
                imports::secrets::warn_of_missing(&plugin.facts, engine.capabilities());
                Ok(plugin)
            }
            Ok(Err(told)) => Err(LoadError(cut(told))),
            Err(outcome) => {
                Err(LoadError(format!("it can't be instantiated: {}: {}", outcome.name(), outcome.error())))
            }
        }
    }

    /// Compares the types of what is exported, and lets it test itself.
    async fn try_out(&self, store: &mut Store<Guest>, instance: &Instance) -> wasmtime::Result<Result<(), String>> {
        if let Err(error) = self.export.check(store, instance) {
            return Ok(Err(mistyped(self.export.interface(), &error)));
        }
        let Some(indices) = &self.self_test else { return Ok(Ok(())) };
        let tested = match indices.load(&mut *store, instance) {
            Ok(exports) => exports.gateway_worker_self_test().call_check(store).await?,
            Err(error) => return Ok(Err(mistyped("gateway:worker/self-test@1.0.0", &error))),
        };
        Ok(tested.map_err(|told| format!("its self-test failed: {told}")))
    }

    /// Tells how many log lines were dropped, if that was not told yet.
    pub(super) fn tell_dropped_lines(&self) {
        self.facts.tell_dropped(self.facts.log.dropped());
    }

    pub fn name(&self) -> &str {
        &self.facts.name
    }

    pub fn digest(&self) -> &str {
        &self.digest
    }

    pub fn probation(&self) -> &Probation {
        &self.probation
    }

    /// What the host calls it as.
    pub fn kind(&self) -> &'static str {
        self.export.kind()
    }

    /// Interfaces that it imports and that deny, since its manifest does not
    /// grant them.
    pub fn withheld(&self) -> &[String] {
        &self.withheld
    }

    pub fn manifest(&self) -> &Manifest {
        &self.facts.manifest
    }

    pub fn topics(&self) -> &[Topic] {
        &self.facts.manifest.topics
    }
}

fn mistyped(interface: &str, error: &wasmtime::Error) -> String {
    format!(
        "its export {interface} has another type than this host's: {} (expected is what the host has); build it \
         against this host's wit/gateway.wit",
        shown(error)
    )
}

/// A component begins with a magic number, a version and its layer.
pub(super) fn check_header(bytes: &[u8]) -> Result<(), LoadError> {
    let told = match bytes {
        [0, b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => return Ok(()),
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => {
            "a core module, not a component: build it for wasm32-wasip2, or make a component of it with `wasm-tools component new`"
        }
        [0x7f, b'E', b'L', b'F', ..] => {
            "native code: precompiled components are not taken from the plugins directory; put the .wasm there"
        }
        [b'P', b'K', 3, 4, ..] => "a zip archive: unpack it, and put the .wasm there",
        _ if bytes.len() < 8 && b"\0asm\x0d\0\x01\0".starts_with(bytes) => {
            "incomplete: copy it under a name that begins with a dot, then rename it"
        }
        [0, b'a', b's', b'm', ..] => "of another version of WebAssembly than a component of today (0d 00 01 00)",
        _ => "not WebAssembly: a component begins with the bytes 00 61 73 6d 0d 00 01 00",
    };
    Err(LoadError(format!("it is {told}")))
}
