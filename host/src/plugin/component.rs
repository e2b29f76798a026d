//! One version of a plugin: checked and compiled once, then called.

use super::engine::{self, Engine};
use super::folders;
use super::http::{Outbound, headers};
use super::imports;
use super::load_error::{LoadError, LoadErrorKind};
use super::offer::Import;
use super::output::LogBudget;
use super::probation::Probation;
use super::program::{Compiled, Program};
use super::reuse::Kept;
use super::shares::Share;
use super::struck::Struck;
use crate::capability::Capabilities;
use crate::manifest::Manifest;
use crate::topic::Topic;
use crate::verdict::Outcome;
use std::sync::Arc;
use tokio_util::task::AbortOnDropHandle;

/// What stays the same over all calls of a version.
pub(super) struct Facts {
    pub(super) name: String,
    pub(super) manifest: Manifest,
    pub(super) is_command: bool,
    pub(super) log: LogBudget,
    pub(super) http: Outbound,
    pub(super) struck: Struck,
    pub(super) capabilities: Arc<Capabilities>,
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
    pub(super) program: Program,
    /// Instances that wait for another call.
    pub(super) kept: Kept,
    pub(super) facts: Arc<Facts>,
    /// What its name has of what is there for all, and how many slots a call
    /// takes.
    pub(super) share: Arc<Share>,
    pub(super) weight: u32,
    digest: String,
    withheld: Vec<String>,
    probation: Probation,
}

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
        let compiled = engine.compile(&bytes).await?;
        Self::of(engine, name, &compiled, manifest, digest).await
    }

    /// The same for what has been compiled.
    pub(super) async fn of(
        engine: &Engine,
        name: &str,
        compiled: &Compiled,
        manifest: Manifest,
        digest: String,
    ) -> Result<Self, LoadError> {
        folders::check(&manifest.grants, name)?;
        folders::check_apart(&manifest.grants, &engine.capabilities().protected_dirs, name)
            .map_err(|told| LoadError::permanent(&told))?;
        let program = Program::link(engine, compiled, &manifest).map_err(|told| LoadError::permanent(&told))?;
        let imports = compiled.imports(engine);
        let imports = imports.iter().map(|name| Import::of(name, &manifest.grants));
        let withheld = imports.filter(Import::is_withheld).map(|import| import.name).collect();
        let facts = Arc::new(Facts {
            name: name.to_owned(),
            is_command: program.is_command(),
            log: LogBudget::new(manifest.limits.log),
            http: Outbound::new(),
            struck: Struck::default(),
            capabilities: engine.capabilities().clone(),
            manifest,
        });
        let (kept, probation) = (Kept::new(facts.manifest.instances), Probation::default());
        let (engine, share, weight) = (engine.clone(), engine.share(name), engine::weight(compiled));
        let plugin = Self { engine, program, kept, facts, share, weight, digest, withheld, probation };
        // It may burn CPU, and leases are renewed where it is loaded.
        let (plugin, tried) = match plugin.engine.runtime().cloned() {
            Some(runtime) => AbortOnDropHandle::new(runtime.spawn(plugin.tried_out()))
                .await
                .map_err(|error| LoadError::permanent(&format!("it can't be tried out: {error}")))?,
            None => plugin.tried_out().await,
        };
        match tried {
            Ok(Ok(())) => {
                plugin.warn_of_secrets();
                Ok(plugin)
            }
            Ok(Err(told)) => Err(LoadError::permanent(&told)),
            Err(outcome) => {
                let told = format!("it can't be instantiated: {}: {}", outcome.name(), outcome.error());
                Err(LoadError::new(&told, cause(&outcome)))
            }
        }
    }

    /// Tells the operator what calls will be refused for, or show.
    fn warn_of_secrets(&self) {
        let (plugin, manifest) = (self.name(), self.manifest());
        let secrets = self.engine.capabilities().secrets.as_deref();
        for wanting in secrets.into_iter().flat_map(|secrets| imports::secrets::wanting(manifest, secrets)) {
            tracing::warn!(plugin, secret = wanting.secret, "{}", wanting.told);
        }
        for fault in headers::faults(manifest, secrets) {
            tracing::warn!(plugin, "{fault}");
        }
    }

    async fn tried_out(self) -> (Self, Result<Result<(), String>, Outcome>) {
        let tried = self.run(&[], async |life| self.program.try_out(&mut life.store).await).await;
        (self, tried)
    }

    /// What is to be done for it once in a while: tells how many log lines were
    /// dropped, if that was not told yet, and lets go of instances that nobody
    /// needs.
    pub(super) fn maintain(&self) {
        self.facts.tell_dropped(self.facts.log.dropped());
        self.kept.forget_old();
    }

    /// The same while it is not live and only the way back: its manifest grants
    /// nothing now.
    pub(super) fn deactivate(&self) {
        self.maintain();
        self.kept.forget_all();
        self.facts.http.disconnect();
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
        self.program.kind()
    }

    /// Interfaces that it imports and that deny, since its manifest does not
    /// grant them.
    pub fn withheld(&self) -> &[String] {
        &self.withheld
    }

    /// Calls that wait for room to run, those of its other versions too.
    pub fn waiting(&self) -> usize {
        self.share.waiting()
    }

    pub fn manifest(&self) -> &Manifest {
        &self.facts.manifest
    }

    pub fn topics(&self) -> &[Topic] {
        &self.facts.manifest.topics
    }
}

/// What a machine under load can do to a version that is only tried out. Its CPU
/// time is its own.
fn cause(outcome: &Outcome) -> LoadErrorKind {
    match outcome {
        Outcome::Timeout(_) | Outcome::PluginUnavailable(_) => LoadErrorKind::Transient,
        _ => LoadErrorKind::Permanent,
    }
}

/// A component or a module begins with a magic number, a version and its layer.
pub(super) fn check_header(bytes: &[u8]) -> Result<(), LoadError> {
    let told = match bytes {
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
            "of another version of WebAssembly than a component (0d 00 01 00) or a module (01 00 00 00) of today"
        }
        _ => {
            "not WebAssembly: a component begins with the bytes 00 61 73 6d 0d 00 01 00, a module with 00 61 73 6d 01 00 00 00"
        }
    };
    Err(LoadError::permanent(&format!("it is {told}")))
}
