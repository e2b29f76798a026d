//! One version of a plugin: compiled and checked once, then called.

use super::engine::{self, Engine};
use super::host_interfaces::Import;
use super::http::{Outbound, headers};
use super::imports;
use super::instance_pool::InstancePool;
use super::load_error::{LoadError, LoadErrorKind};
use super::output::LogBudget;
use super::preopens;
use super::probation::Probation;
use super::program::{Compiled, LinkedProgram};
use super::quotas::PluginQuota;
use super::redact::Redactor;
use crate::capability::Capabilities;
use crate::events;
use crate::manifest::Manifest;
use crate::run_span::PluginLabel;
use crate::topic::Topic;
use crate::verdict::Outcome;
use std::sync::Arc;
use tokio_util::task::AbortOnDropHandle;

/// The state that all calls of a version share.
pub(super) struct PluginContext {
    pub(super) name: String,
    pub(super) manifest: Manifest,
    pub(super) is_command: bool,
    pub(super) log: LogBudget,
    pub(super) http: Outbound,
    pub(super) redactor: Redactor,
    pub(super) capabilities: Arc<Capabilities>,
}

impl PluginContext {
    /// Whether a line of this length may be logged; counts it if not.
    pub(super) fn may_log(&self, bytes: usize) -> bool {
        let may_log = self.log.admit(bytes);
        if may_log {
            self.warn_of_dropped(self.log.take_dropped_if_due());
        }
        may_log
    }

    pub(super) fn warn_of_dropped(&self, dropped: u64) {
        if dropped > 0 {
            tracing::warn!(plugin = self.name, dropped, "{}", events::LOG_LINES_DROPPED);
        }
    }
}

impl Drop for PluginContext {
    fn drop(&mut self) {
        self.warn_of_dropped(self.log.take_dropped());
    }
}

pub struct Plugin {
    pub(super) engine: Engine,
    pub(super) program: LinkedProgram,
    pub(super) instances: InstancePool,
    pub(super) context: Arc<PluginContext>,
    /// Shared by all versions of the plugin.
    pub(super) quota: Arc<PluginQuota>,
    /// How many permits a call takes.
    pub(super) weight: u32,
    digest: String,
    label: Arc<PluginLabel>,
    withheld: Vec<String>,
    probation: Probation,
}

impl Plugin {
    /// Compiles and checks a component. Wasmtime compares the types of exports only
    /// when an instance is created, so the check creates one and drops it, under
    /// all limits, because its start function runs.
    pub async fn load(
        engine: &Engine,
        name: &str,
        bytes: Arc<[u8]>,
        manifest: Manifest,
        digest: String,
    ) -> Result<Self, LoadError> {
        check_header(&bytes)?;
        let compiled = engine.compile(&bytes).await?;
        Self::from_compiled(engine, name, &compiled, manifest, digest).await
    }

    /// The same for bytes that have already been compiled.
    pub(super) async fn from_compiled(
        engine: &Engine,
        name: &str,
        compiled: &Compiled,
        manifest: Manifest,
        digest: String,
    ) -> Result<Self, LoadError> {
        preopens::check(&manifest.grants, name)?;
        preopens::check_separate(&manifest.grants, &engine.capabilities().protected_dirs, name)
            .map_err(|error| LoadError::permanent(&error))?;
        let program = LinkedProgram::link(engine, compiled, &manifest).map_err(|error| LoadError::permanent(&error))?;
        let imports = compiled.imports(engine);
        let imports = imports.iter().map(|name| Import::classify(name, &manifest.grants));
        let withheld = imports.filter(Import::is_ungranted).map(|import| import.name).collect();
        let context = Arc::new(PluginContext {
            name: name.to_owned(),
            is_command: program.is_command(),
            log: LogBudget::new(manifest.limits.log),
            http: Outbound::new(),
            redactor: Redactor::default(),
            capabilities: engine.capabilities().clone(),
            manifest,
        });
        let (instances, probation) = (InstancePool::new(context.manifest.instances), Probation::default());
        let (engine, quota, weight) = (engine.clone(), engine.quota(name), engine::weight(compiled));
        let label = PluginLabel::new(name, &digest);
        let plugin = Self { engine, program, instances, context, quota, weight, digest, label, withheld, probation };
        // The check may burn CPU, and this runtime also renews leases.
        let (plugin, result) = match plugin.engine.runtime().cloned() {
            Some(runtime) => AbortOnDropHandle::new(runtime.spawn(plugin.load_checked()))
                .await
                .map_err(|error| LoadError::permanent(&format!("the load check can't run: {error}")))?,
            None => plugin.load_checked().await,
        };
        match result {
            Ok(Ok(())) => {
                plugin.warn_of_secrets();
                plugin.warn_of_mail();
                Ok(plugin)
            }
            Ok(Err(error)) => Err(LoadError::permanent(&error)),
            Err(outcome) => {
                let error = format!("it can't be instantiated: {}: {}", outcome.name(), outcome.error());
                Err(LoadError::new(&error, cause(&outcome)))
            }
        }
    }

    /// Warns of secrets that calls will not get, or that the log could show.
    fn warn_of_secrets(&self) {
        let (plugin, manifest) = (self.name(), self.manifest());
        let secrets = self.engine.capabilities().secrets.as_deref();
        for warning in secrets.into_iter().flat_map(|secrets| imports::secrets::secret_warnings(manifest, secrets)) {
            tracing::warn!(plugin, secret = warning.secret, "{}", warning.message);
        }
        for fault in headers::faults(manifest, secrets) {
            tracing::warn!(plugin, "{fault}");
        }
    }

    /// Each mail would fail, which a handler may only find out when there is one to send.
    fn warn_of_mail(&self) {
        if self.manifest().grants.mail && self.engine.capabilities().mailer.is_none() {
            tracing::warn!(plugin = self.name(), "{}", events::MAIL_WITHOUT_RELAY);
        }
    }

    async fn load_checked(self) -> (Self, Result<Result<(), String>, Outcome>) {
        let (result, _) = self.run(&[], async |instance| self.program.check_instance(&mut instance.store).await).await;
        (self, result)
    }

    /// Runs periodically: reports dropped log lines and evicts idle instances.
    pub(super) fn maintain(&self) {
        self.context.warn_of_dropped(self.context.log.take_dropped_if_due());
        self.instances.evict_idle();
    }

    /// Frees instances and connections while it is only the previous version, whose
    /// manifest grants nothing.
    pub(super) fn deactivate(&self) {
        self.maintain();
        self.instances.clear();
        self.context.http.disconnect();
    }

    pub fn name(&self) -> &str {
        &self.context.name
    }

    pub fn digest(&self) -> &str {
        &self.digest
    }

    pub fn label(&self) -> &Arc<PluginLabel> {
        &self.label
    }

    pub fn probation(&self) -> &Probation {
        &self.probation
    }

    /// `handler`, `batch-handler` or `command`.
    pub fn kind(&self) -> &'static str {
        self.program.kind()
    }

    /// Interfaces that it imports although its manifest does not grant them: their
    /// calls are denied.
    pub fn withheld(&self) -> &[String] {
        &self.withheld
    }

    /// Calls of all versions of the plugin that wait for a permit.
    pub fn waiting(&self) -> usize {
        self.quota.waiting()
    }

    pub fn manifest(&self) -> &Manifest {
        &self.context.manifest
    }

    pub fn topics(&self) -> &[Topic] {
        &self.context.manifest.topics
    }
}

/// A loaded machine can cause these outcomes of a load check. It can't exhaust its
/// CPU limit, which counts only its own time.
fn cause(outcome: &Outcome) -> LoadErrorKind {
    match outcome {
        Outcome::Timeout(_) | Outcome::PluginUnavailable(_) => LoadErrorKind::Transient,
        _ => LoadErrorKind::Permanent,
    }
}

/// Components and modules begin with a magic number, a version and a layer.
pub(super) fn check_header(bytes: &[u8]) -> Result<(), LoadError> {
    let found = match bytes {
        [0, b'a', b's', b'm', 0x0d, 0, 1, 0, ..] | [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => return Ok(()),
        [0x7f, b'E', b'L', b'F', ..] => {
            "native code: precompiled components are not taken from the plugins directory; put the .wasm there"
        }
        [b'P', b'K', 3 | 5, 4 | 6, ..] => "a zip archive: unpack it, and put the .wasm there",
        _ if [b"\0asm\x0d\0\x01\0", b"\0asm\x01\0\0\0"]
            .iter()
            .any(|whole| whole.len() > bytes.len() && whole.starts_with(bytes)) =>
        {
            "incomplete: copy it under a name that begins with a dot, then rename it"
        }
        [0, b'a', b's', b'm', ..] => {
            "of an unsupported WebAssembly version: a component has 0d 00 01 00, a module 01 00 00 00"
        }
        _ => {
            "not WebAssembly: a component begins with the bytes 00 61 73 6d 0d 00 01 00, a module with 00 61 73 6d 01 00 00 00"
        }
    };
    Err(LoadError::permanent(&format!("it is {found}")))
}
