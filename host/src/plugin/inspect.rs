//! What can be told about a plugin without a message: what it is, what it
//! reaches for, and whether the host would load it.

use super::component::{Plugin, check_header};
use super::engine::Engine;
use super::folder::{Folder, Source};
use super::host_interfaces::{self, Import};
use super::http::headers;
use super::imports::secrets;
use super::load_error::LoadError;
use super::program::Compiled;
use crate::manifest::{Limits, Manifest};
use serde::Serialize;
use std::collections::BTreeMap;

/// A plugin as it would be loaded now, or why it would not.
#[derive(Debug, Default, Serialize)]
pub struct Inspection {
    pub name: String,
    /// Of the component and its manifest together.
    pub digest: Option<String>,
    pub bytes: usize,
    /// What the host calls it as: none where it is refused.
    pub kind: Option<&'static str>,
    pub topics: Vec<String>,
    pub exports: Vec<String>,
    pub imports: Vec<Import>,
    /// Granted, though nothing that is imported could use it.
    pub unused_grants: Vec<String>,
    pub limits: BTreeMap<&'static str, String>,
    /// Whether it tests itself when it is loaded; it has passed where it is
    /// not refused.
    pub has_self_test: bool,
    pub warnings: Vec<String>,
    /// Every reason to refuse it.
    pub refused: Vec<String>,
}

impl Inspection {
    /// Loads a plugin of a directory as the worker would, and lets go of it.
    pub async fn of(engine: &Engine, folder: &Folder, name: &str) -> Self {
        let mut told = Self { name: name.to_owned(), ..Self::default() };
        match folder.read(name) {
            Ok(source) => told.look_into(engine, source).await,
            Err(error) => told.refused.push(error.told),
        }
        told
    }

    async fn look_into(&mut self, engine: &Engine, source: Source) {
        self.digest = Some(source.digest.clone());
        self.bytes = source.wasm.len();
        self.warnings.clone_from(&source.warnings);
        let manifest = source.manifest(&self.name);
        if let Ok(manifest) = &manifest {
            self.topics = manifest.topics.iter().map(ToString::to_string).collect();
            self.limits = limits(&manifest.limits);
            self.warn_of_secrets(engine, manifest);
        }
        // Both are looked at, so that all that is wrong is told at once.
        let compiled = match check_header(&source.wasm) {
            Ok(()) => engine.compile(&source.wasm).await.map_err(LoadError::from),
            Err(error) => Err(error),
        };
        if let Ok(compiled) = &compiled {
            self.list(engine, compiled, manifest.as_ref().ok());
        }
        match (compiled, manifest) {
            (Ok(compiled), Ok(manifest)) => {
                match Plugin::from_compiled(engine, &self.name, &compiled, manifest, source.digest).await {
                    Ok(plugin) => self.kind = Some(plugin.kind()),
                    Err(error) => self.refused.push(error.told),
                }
            }
            (compiled, manifest) => {
                self.refused.extend(manifest.err().unwrap_or_default());
                self.refused.extend(compiled.err().map(|error| error.told));
            }
        }
    }

    /// What the worker would warn of when it loads it.
    fn warn_of_secrets(&mut self, engine: &Engine, manifest: &Manifest) {
        let Some(secrets) = engine.capabilities().secrets.as_deref() else { return };
        let found = secrets::secret_warnings(manifest, secrets).into_iter();
        self.warnings.extend(found.map(|found| format!("grants.secrets: {}: {}", found.secret, found.message)));
        self.warnings.extend(headers::faults(manifest, Some(secrets)));
    }

    fn list(&mut self, engine: &Engine, compiled: &Compiled, manifest: Option<&Manifest>) {
        let grants = manifest.map(|manifest| manifest.grants.clone()).unwrap_or_default();
        self.exports = compiled.exports(engine);
        self.imports = compiled.imports(engine).iter().map(|name| Import::classify(name, &grants)).collect();
        self.unused_grants = host_interfaces::unused(&self.imports, &grants);
        self.has_self_test = self.exports.iter().any(|name| name.starts_with("gateway:worker/self-test@"));
        for kind in &self.unused_grants {
            self.warnings.push(format!("grants.{kind} is for nothing: it imports nothing that could use it"));
        }
        for import in self.imports.iter().filter(|import| manifest.is_some() && import.is_ungranted()) {
            self.warnings.push(format!("imported but not granted: {}", import.name));
        }
    }
}

/// As they are written in a manifest.
fn limits(limits: &Limits) -> BTreeMap<&'static str, String> {
    let time = |time| humantime::format_duration(time).to_string();
    let size = |bytes| bytesize::ByteSize(bytes).display().iec().to_string().replace(".0 ", "").replace(' ', "");
    BTreeMap::from([
        ("timeout", time(limits.timeout)),
        ("cpu", time(limits.cpu)),
        ("memory", size(limits.memory)),
        ("table_elements", limits.table_elements.to_string()),
        ("handles", limits.handles.to_string()),
        ("host_call", size(limits.host_call)),
        ("log", format!("{}/s", size(limits.log))),
        ("http_body", size(limits.http_body)),
        ("http_requests", limits.http_requests.to_string()),
        ("keyvalue", size(limits.keyvalue)),
        ("keyvalue_keys", limits.keyvalue_keys.to_string()),
    ])
}
