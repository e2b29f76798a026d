//! Inspects a plugin without running a message: its type, imports and grants, and
//! whether the host would load it.

use super::component::{Plugin, check_header};
use super::engine::Engine;
use super::host_interfaces::{self, Import};
use super::http::headers;
use super::imports::secrets;
use super::load_error::LoadError;
use super::plugin_dir::{PluginDir, PluginFiles};
use super::program::Compiled;
use crate::manifest::{Limits, Manifest};
use crate::text::{size, span};
use serde::Serialize;
use std::collections::BTreeMap;

/// The plugin as it would be loaded now, or why it would be refused.
#[derive(Debug, Default, Serialize)]
pub struct Inspection {
    pub name: String,
    /// Covers the component and its manifest.
    pub digest: Option<String>,
    pub bytes: usize,
    /// `handler`, `batch-handler` or `command`; none if it is refused.
    pub kind: Option<&'static str>,
    /// As in the manifest: `*` for a catch-all.
    pub topics: Vec<String>,
    pub exports: Vec<String>,
    pub imports: Vec<Import>,
    /// Grants that no import uses.
    pub unused_grants: Vec<String>,
    pub limits: BTreeMap<&'static str, String>,
    /// Whether it exports a self-test. Unless it is refused, the test has passed.
    pub has_self_test: bool,
    pub warnings: Vec<String>,
    /// Every reason why it is refused.
    pub refused: Vec<String>,
}

impl Inspection {
    /// Loads a plugin as the worker would, and drops it.
    pub async fn load(engine: &Engine, directory: &PluginDir, name: &str) -> Self {
        let mut report = Self { name: name.to_owned(), ..Self::default() };
        match directory.read(name) {
            Ok(files) => report.inspect(engine, files).await,
            Err(error) => report.refused.push(error.message),
        }
        report
    }

    async fn inspect(&mut self, engine: &Engine, files: PluginFiles) {
        self.digest = Some(files.digest.clone());
        self.bytes = files.wasm.len();
        self.warnings.clone_from(&files.warnings);
        let manifest = files.manifest(&self.name);
        if let Ok(manifest) = &manifest {
            self.topics = manifest.topic_patterns().into_iter().map(ToOwned::to_owned).collect();
            self.limits = limits(&manifest.limits);
            self.warn_of_secrets(engine, manifest);
        }
        // Both are checked, so that all errors are reported at once.
        let compiled = match check_header(&files.wasm) {
            Ok(()) => engine.compile(&files.wasm).await.map_err(LoadError::from),
            Err(error) => Err(error),
        };
        if let Ok(compiled) = &compiled {
            self.list(engine, compiled, manifest.as_ref().ok());
        }
        match (compiled, manifest) {
            (Ok(compiled), Ok(manifest)) => {
                match Plugin::from_compiled(engine, &self.name, &compiled, manifest, files.digest).await {
                    Ok(plugin) => self.kind = Some(plugin.kind()),
                    Err(error) => self.refused.push(error.message),
                }
            }
            (compiled, manifest) => {
                self.refused.extend(manifest.err().unwrap_or_default());
                self.refused.extend(compiled.err().map(|error| error.message));
            }
        }
    }

    /// The warnings about secrets that the worker would log.
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
            self.warnings.push(format!("grants.{kind} is unused: the plugin imports nothing that needs it"));
        }
        for import in self.imports.iter().filter(|import| manifest.is_some() && import.is_ungranted()) {
            self.warnings.push(format!("imported but not granted: {}", import.name));
        }
    }
}

/// Formatted as in a manifest.
fn limits(limits: &Limits) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("timeout", span(limits.timeout)),
        ("cpu", span(limits.cpu)),
        ("memory", size(limits.memory)),
        ("table_elements", limits.table_elements.to_string()),
        ("resources", limits.resources.to_string()),
        ("host_call_bytes", size(limits.host_call_bytes)),
        ("log", format!("{}/s", size(limits.log))),
        ("http_body", size(limits.http_body)),
        ("http_requests", limits.http_requests.to_string()),
        ("keyvalue", size(limits.keyvalue)),
        ("keyvalue_keys", limits.keyvalue_keys.to_string()),
    ])
}
