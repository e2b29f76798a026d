//! The live plugins. [`deployment`] decides; this module does the work: it scans,
//! reads and loads concurrently, and publishes the routes to the live plugins.
//!
//! [`deployment`]: super::deployment

use super::component::Plugin;
use super::deployment::{Command, Deployment, Entry, QUIET, Target, Transition};
use super::engine::Engine;
use super::load_error::LoadError;
use super::plugin_dir::{Fingerprint, PluginDir, PluginDirError, PluginFiles};
use super::probation::FailedVersion;
use super::routes::{Change, PluginStatus, Routes, VersionRecord};
use super::version::{BlockReason, Claim, Version, VersionError};
use super::version_store::{Record, VersionStore};
use crate::events;
use crate::manifest::Manifest;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

/// At the first scan, a file that was not modified for this long is complete.
const UNTOUCHED: Duration = Duration::from_secs(2);

/// Concurrent loads, so that a slow one does not delay others.
const LOADS_MAX: usize = 4;

/// Versions of a plugin in its status.
const HISTORY_MAX: usize = 16;

enum Candidate {
    Read(PluginFiles, Box<Manifest>),
    Invalid(LoadError),
    /// The files changed between the scan and the end of the read.
    Changed,
}

enum TaskResult {
    /// With the permit to load it, and the commands to read next.
    Read {
        command: Command,
        candidate: Candidate,
        permit: Option<OwnedSemaphorePermit>,
        next: VecDeque<Command>,
    },
    Loaded(Command, Result<Arc<Plugin>, LoadError>, Duration),
}

pub struct Registry {
    engine: Engine,
    directory: Arc<PluginDir>,
    store: Arc<VersionStore>,
    started: Instant,
    deployment: Deployment<Fingerprint>,
    /// The result of the last scan.
    found: BTreeMap<String, Fingerprint>,
    /// Plugins whose files that scan could not read; each is logged once.
    unreadable: BTreeSet<String>,
    /// Live and previous versions, by name and digest.
    loaded: BTreeMap<(String, String), Arc<Plugin>>,
    /// The records in the store.
    stored_records: BTreeMap<String, Record>,
    /// Whether all plugins from the start are loaded or refused. Until then the
    /// topics of the catch-all are unknown.
    is_cold_start_complete: bool,
    tasks: JoinSet<TaskResult>,
    /// The commands of each task, in case it panics.
    commands: HashMap<Id, Vec<Command>>,
    history: BTreeMap<String, Vec<VersionRecord>>,
    /// The running load of each name.
    loading: HashMap<String, AbortHandle>,
    loads: Arc<Semaphore>,
    rollbacks: mpsc::UnboundedSender<FailedVersion>,
    failed_versions: mpsc::UnboundedReceiver<FailedVersion>,
    routes: watch::Sender<Arc<Routes>>,
}

impl Registry {
    pub fn new(engine: Engine, directory: PluginDir, store: VersionStore) -> Self {
        let (rollbacks, failed_versions) = mpsc::unbounded_channel();
        let stored_records = store.records();
        Self {
            engine,
            directory: Arc::new(directory),
            store: Arc::new(store),
            started: Instant::now(),
            deployment: Deployment::new(stored_records.clone()),
            found: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            loaded: BTreeMap::new(),
            stored_records,
            is_cold_start_complete: false,
            tasks: JoinSet::new(),
            commands: HashMap::new(),
            history: BTreeMap::new(),
            loading: HashMap::new(),
            loads: Arc::new(Semaphore::new(LOADS_MAX)),
            rollbacks,
            failed_versions,
            routes: watch::Sender::default(),
        }
    }

    pub fn directory(&self) -> &PluginDir {
        &self.directory
    }

    pub fn routes(&self) -> watch::Receiver<Arc<Routes>> {
        self.routes.subscribe()
    }

    /// Regular maintenance of loaded versions. Called before every scan.
    pub fn maintain(&mut self) {
        let mut has_changed = false;
        for ((name, digest), plugin) in &self.loaded {
            let live = self.deployment.entry(name).and_then(|entry| entry.live.as_ref());
            if live.is_none_or(|live| live.digest != *digest) {
                plugin.deactivate();
                continue;
            }
            plugin.maintain();
            has_changed |= plugin.probation().has_passed() && self.deployment.prove(name, digest);
        }
        if has_changed {
            self.store_records();
        }
    }

    /// Whether another scan is due as soon as the files may have settled.
    pub fn is_unstable(&self) -> bool {
        self.deployment.is_unstable()
    }

    /// Whether no plugin is loading or about to be.
    pub fn is_idle(&self) -> bool {
        self.deployment.is_idle()
    }

    /// Scans because an operator asks for it: refused plugins are read again even
    /// if they are unchanged.
    pub fn rescan(&mut self) -> Result<Vec<Change>, PluginDirError> {
        self.deployment.reread_refused();
        self.scan(QUIET)
    }

    /// Scans the directory. A plugin is read when it is unchanged for `quiet`. An
    /// unreadable directory changes nothing.
    pub fn scan(&mut self, quiet: Duration) -> Result<Vec<Change>, PluginDirError> {
        self.find()?;
        let wall = SystemTime::now();
        // A manifest may still be copied if there is none.
        let quiet = |fingerprint: &Fingerprint| if fingerprint.has_manifest() { quiet } else { QUIET };
        let is_old = |fingerprint: &Fingerprint| fingerprint.is_older_than(UNTOUCHED, wall);
        let scanned = self.deployment.on_scan(&self.found, self.started.elapsed(), quiet, is_old);
        let has_changed = !scanned.commands.is_empty() || scanned.is_any_removed;
        scanned.commands.iter().for_each(|command| self.cancel_load(command));
        self.read(scanned.commands.into());
        for name in &scanned.removed {
            self.history.remove(name);
        }
        if has_changed {
            self.update_routes();
        }
        Ok(scanned.removed.into_iter().map(|name| Change::Removed { name }).collect())
    }

    /// Updates `found`. An unreadable plugin counts as unchanged, not as removed.
    fn find(&mut self) -> Result<(), PluginDirError> {
        let scanned = self.directory.scan()?;
        let mut before = std::mem::take(&mut self.found);
        let mut unreadable = BTreeSet::new();
        for (name, fingerprint) in scanned {
            let fingerprint = fingerprint.map_err(|error| {
                if !self.unreadable.contains(&name) {
                    tracing::warn!(plugin = name, %error, "{}", events::PLUGIN_UNREADABLE);
                }
                unreadable.insert(name.clone());
            });
            if let Some(fingerprint) = fingerprint.ok().or_else(|| before.remove(&name)) {
                self.found.insert(name, fingerprint);
            }
        }
        self.unreadable = unreadable;
        Ok(())
    }

    /// Called when no plugin is loading for the first time: the catch-all may start.
    pub fn complete_cold_start(&mut self) {
        if !std::mem::replace(&mut self.is_cold_start_complete, true) {
            self.update_routes();
        }
    }

    /// Waits until a read, a load or a probation ends. Cancel-safe.
    pub async fn next(&mut self) -> Vec<Change> {
        let changes = tokio::select! {
            Some(ended) = self.tasks.join_next_with_id() => {
                let id = match &ended {
                    Ok((id, _)) => *id,
                    Err(error) => error.id(),
                };
                let commands = self.commands.remove(&id).unwrap_or_default();
                match ended {
                    Ok((_, TaskResult::Read { command, candidate, permit, next })) => {
                        self.read(next);
                        self.on_read(command, candidate, permit).into_iter().collect()
                    }
                    Ok((_, TaskResult::Loaded(command, plugin, took))) => {
                        self.on_loaded(&command, plugin, took).into_iter().collect()
                    }
                    Err(error) => commands.iter().filter_map(|command| self.on_task_failed(command, &error)).collect(),
                }
            }
            Some((name, digest)) = self.failed_versions.recv() => self.quarantine(name, &digest).into_iter().collect(),
            else => std::future::pending().await,
        };
        self.update_routes();
        changes
    }

    fn quarantine(&mut self, name: String, digest: &str) -> Option<Change> {
        // Reports about a version that was replaced meanwhile are ignored.
        if !self.deployment.is_active(&name, digest) {
            return None;
        }
        match self.deployment.withdraw(&name, Some(digest), BlockReason::Quarantined) {
            Ok(command) => self.restore(command),
            Err(error) => Some(Change::NotRestored { name, reason: error.to_string(), retry_in: None }),
        }
    }

    /// Restores the previous version. None if it has to be loaded first: then
    /// [`Registry::next`] returns the change.
    pub fn roll_back(&mut self, name: &str) -> Result<Option<Change>, VersionError> {
        let command = self.deployment.withdraw(name, None, BlockReason::RolledBack)?;
        let change = self.restore(command);
        self.update_routes();
        Ok(change)
    }

    /// Unblocks versions, and gives topics of a removed plugin to the catch-all.
    pub fn unblock(&mut self, name: &str) -> Result<(), VersionError> {
        self.deployment.unblock(name)?;
        self.update_routes();
        Ok(())
    }

    /// Aborts the running load of this name, whose permit the new command may need.
    fn cancel_load(&mut self, command: &Command) {
        if let Some(load) = self.loading.remove(&command.name) {
            load.abort();
        }
    }

    /// Reads in the order of names, because the first of several plugins gets a
    /// claim. Each read needs a load permit, so that few plugins are in memory.
    fn read(&mut self, mut commands: VecDeque<Command>) {
        let Some(first) = commands.pop_front() else { return };
        let (directory, store, loads) = (self.directory.clone(), self.store.clone(), self.loads.clone());
        let (command, next, expected) = (first.clone(), commands.clone(), self.deployment.expected(&first));
        let task = self.tasks.spawn(async move {
            // The semaphore is never closed.
            let permit = loads.acquire_owned().await.ok();
            let reading = command.clone();
            let read = tokio::task::spawn_blocking(move || candidate(&directory, &store, &reading, expected.as_ref()));
            let candidate = read.await.unwrap_or_else(|error| Candidate::Invalid(failed(&error)));
            TaskResult::Read { command, candidate, permit, next }
        });
        commands.push_front(first);
        self.commands.insert(task.id(), commands.into());
    }

    fn on_read(
        &mut self,
        command: Command,
        candidate: Candidate,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Option<Change> {
        let transition = match candidate {
            Candidate::Changed => self.deployment.on_changed(&command),
            Candidate::Invalid(error) => self.deployment.on_read(&command, Err(error)),
            Candidate::Read(files, manifest) => {
                match self.deployment.on_read(&command, Ok(version(&files.digest, &manifest))) {
                    Transition::Load => {
                        let plugin = &command.name;
                        files.warnings.iter().for_each(|warning| tracing::warn!(plugin, "{warning}"));
                        self.load(command, files, *manifest, permit);
                        return None;
                    }
                    transition => transition,
                }
            }
        };
        self.change(&command, transition, Duration::ZERO)
    }

    fn load(&mut self, command: Command, files: PluginFiles, manifest: Manifest, permit: Option<OwnedSemaphorePermit>) {
        let (engine, store) = (self.engine.clone(), self.store.clone());
        let loading = command.clone();
        let task = self.tasks.spawn(async move {
            let _permit = permit;
            let started = Instant::now();
            let PluginFiles { wasm, digest, .. } = &files;
            let plugin = Plugin::load(&engine, &command.name, wasm.clone(), manifest, digest.clone()).await;
            let plugin = plugin.map(Arc::new);
            if plugin.is_ok() {
                let name = command.name.clone();
                let save = move || store.save(&name, &files).map_err(|error| (name, error));
                if let Ok(Err((name, error))) = tokio::task::spawn_blocking(save).await {
                    tracing::warn!(plugin = name, %error, "this version can't be stored: it is not available after a restart");
                }
            }
            TaskResult::Loaded(command, plugin, started.elapsed())
        });
        self.loading.insert(loading.name.clone(), task.clone());
        self.commands.insert(task.id(), vec![loading]);
    }

    /// A panic in a task must not leave a name loading for ever.
    fn on_task_failed(&mut self, command: &Command, error: &JoinError) -> Option<Change> {
        let transition = self.deployment.on_read(command, Err(failed(error)));
        self.change(command, transition, Duration::ZERO)
    }

    fn on_loaded(
        &mut self,
        command: &Command,
        plugin: Result<Arc<Plugin>, LoadError>,
        took: Duration,
    ) -> Option<Change> {
        let live = self.routes.borrow().plugins.get(&command.name).cloned();
        if let Some(live) = live.filter(|live| live.probation().has_passed()) {
            self.deployment.prove(&command.name, live.digest());
        }
        let transition = self.deployment.on_loaded(command, plugin.as_ref().map(drop).map_err(Clone::clone));
        if let (Transition::Live { is_proven, .. }, Ok(plugin)) = (&transition, plugin) {
            let version = (command.name.clone(), plugin.digest().to_owned());
            if *is_proven {
                plugin.probation().end();
            } else {
                plugin.probation().begin(Instant::now(), version.clone(), self.rollbacks.clone());
            }
            let history = self.history.entry(command.name.clone()).or_default();
            history.push(VersionRecord { digest: version.1.clone(), since: Timestamp::now() });
            let over = history.len().saturating_sub(HISTORY_MAX);
            history.drain(..over);
            self.loaded.insert(version, plugin);
        }
        self.change(command, transition, took)
    }

    /// Restores a version: at once if it is still loaded.
    fn restore(&mut self, command: Command) -> Option<Change> {
        let Target::Restore { digest, .. } = &command.target else { return None };
        self.cancel_load(&command);
        let Some(plugin) = self.loaded.get(&(command.name.clone(), digest.clone())).cloned() else {
            self.read(VecDeque::from([command]));
            return None;
        };
        match self.deployment.on_read(&command, Ok(version(digest, plugin.manifest()))) {
            Transition::Load => self.on_loaded(&command, Ok(plugin), Duration::ZERO),
            transition => self.change(&command, transition, Duration::ZERO),
        }
    }

    fn change(&mut self, command: &Command, transition: Transition, took: Duration) -> Option<Change> {
        let entry = self.deployment.entry(&command.name)?;
        let (name, live) = (command.name.clone(), entry.live.as_ref().map(|live| live.digest.clone()));
        let retry_in = entry.retry_at().map(|at| self.until(at));
        match transition {
            Transition::Stale | Transition::Unchanged | Transition::Load => None,
            Transition::Refused { refusal, restore } => {
                self.read(restore.into_iter().collect());
                Some(Change::Refused { name, reason: refusal.reason, active_digest: live, retry_in })
            }
            Transition::NotRestored { reason } => Some(Change::NotRestored { name, reason, retry_in }),
            Transition::Live { replaced, .. } => {
                let digest = live?;
                Some(match &command.target {
                    Target::File => Change::Loaded { name, digest, replaced, took },
                    Target::Restore { instead_of: Some((withdrawn, why)), .. } => {
                        Change::Withdrawn { name, digest: withdrawn.clone(), restored: digest, why: *why }
                    }
                    Target::Restore { instead_of: None, .. } => Change::Restored { name, digest },
                })
            }
        }
    }

    /// Updates the routes, and drops versions that can't be restored. Running calls
    /// have their own reference to their version.
    fn update_routes(&mut self) {
        let entries = self.deployment.entries();
        self.loaded.retain(|(name, digest), _| {
            entries.get(name).is_some_and(|entry| {
                entry.live.as_ref().is_some_and(|live| live.digest == *digest)
                    || entry.previous.as_ref() == Some(digest)
            })
        });
        let live = |(name, entry): (&String, &Entry<Fingerprint>)| {
            let digest = entry.live.as_ref()?.digest.clone();
            Some((name.clone(), self.loaded.get(&(name.clone(), digest))?.clone()))
        };
        let plugins: BTreeMap<String, Arc<Plugin>> = entries.iter().filter_map(live).collect();
        let topics = |plugin: &Arc<Plugin>| {
            plugin.topics().iter().map(|topic| (topic.clone(), plugin.clone())).collect::<Vec<_>>()
        };
        let known = entries.iter().filter(|(_, entry)| entry.is_present());
        self.routes.send_replace(Arc::new(Routes {
            by_topic: plugins.values().flat_map(topics).collect(),
            catch_all: plugins
                .values()
                .find(|plugin| self.is_cold_start_complete && plugin.manifest().is_catch_all())
                .cloned(),
            reserved: self.deployment.reserved_topics(),
            status: known.map(|(name, entry)| (name.clone(), self.status(name, entry))).collect(),
            plugins,
        }));
        self.store_records();
    }

    fn status(&self, name: &str, entry: &Entry<Fingerprint>) -> PluginStatus {
        let at = |at: Duration| Timestamp::now().checked_add(self.until(at)).ok();
        PluginStatus {
            live: entry.live.as_ref().map(|live| live.digest.clone()),
            previous: entry.previous.clone(),
            refusal: entry.refusal.clone(),
            retry_at: entry.retry_at().and_then(at),
            blocked: entry.blocked.clone(),
            is_loading: entry.is_loading(),
            history: self.history.get(name).cloned().unwrap_or_default(),
        }
    }

    /// The time until then, in whole seconds.
    fn until(&self, at: Duration) -> Duration {
        let left = at.saturating_sub(self.started.elapsed());
        Duration::from_secs(left.as_secs() + u64::from(left.subsec_nanos() > 0))
    }

    /// Writes changed records to the store.
    fn store_records(&mut self) {
        for (name, entry) in self.deployment.entries() {
            let record = entry.record();
            if self.stored_records.get(name).unwrap_or(&Record::default()) == &record {
                continue;
            }
            if let Err(error) = self.store.write_record(name, &record, self.stored_records.get(name)) {
                tracing::warn!(plugin = name, %error, "cannot store the state of this plugin for a restart");
            }
            self.stored_records.insert(name.clone(), record);
        }
    }
}

fn candidate(
    directory: &PluginDir,
    store: &VersionStore,
    command: &Command,
    expected: Option<&Fingerprint>,
) -> Candidate {
    let files = match &command.target {
        Target::File => directory.read(&command.name),
        Target::Restore { digest, .. } => store.read(&command.name, digest),
    };
    if command.target == Target::File && directory.fingerprint(&command.name).ok().as_ref() != expected {
        return Candidate::Changed;
    }
    let read = files.and_then(|files| {
        let manifest = files.manifest(&command.name).map_err(|faults| LoadError::permanent(&faults.join("; ")))?;
        Ok((files, manifest))
    });
    match read {
        Ok((files, manifest)) => Candidate::Read(files, Box::new(manifest)),
        Err(error) => Candidate::Invalid(error),
    }
}

fn failed(error: &JoinError) -> LoadError {
    LoadError::permanent(&format!("the worker failed to load it: {error}"))
}

fn version(digest: &str, manifest: &Manifest) -> Version {
    let topics = manifest.topics.iter().cloned().map(Claim::Topic);
    let catch_all = manifest.is_catch_all().then_some(Claim::CatchAll);
    Version { digest: digest.to_owned(), claims: topics.chain(catch_all).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::Capabilities;
    use crate::plugin::compile::{CompileLimits, Compiler};
    use crate::settings::FilePermissionPolicy;

    /// Has no compiler: these tests don't use valid plugins.
    fn registry(directory: &std::path::Path) -> Registry {
        let compiler = Compiler::with_program("/nowhere".into(), CompileLimits::default(), None);
        let engine = Engine::new(Capabilities::default(), compiler, 1).unwrap();
        Registry::new(engine, PluginDir::new(directory, FilePermissionPolicy::Ignore), VersionStore::disabled())
    }

    #[tokio::test]
    async fn a_plugin_without_a_manifest_waits_in_case_one_is_copied() {
        let directory = tempfile::tempdir().unwrap();
        let mut registry = registry(directory.path());
        std::fs::write(directory.path().join("a.wasm"), "no plugin").unwrap();
        let began = Instant::now();
        for _ in 0..2 {
            registry.scan(Duration::ZERO).unwrap();
        }
        let is_waiting = registry.is_unstable();
        // On a busy machine the second scan may come after the quiet time.
        assert!(is_waiting || began.elapsed() >= QUIET);
    }

    #[tokio::test]
    async fn a_replaced_load_frees_its_permit_for_the_next_one() {
        let directory = tempfile::tempdir().unwrap();
        let mut registry = registry(directory.path());
        std::fs::write(directory.path().join("a.wasm"), "no plugin").unwrap();
        std::fs::write(directory.path().join("a.toml"), "").unwrap();
        let permit = registry.loads.clone().try_acquire_many_owned(4).unwrap();
        let slow = registry.tasks.spawn(async move {
            let _permit = permit;
            std::future::pending().await
        });
        registry.loading.insert("a".to_owned(), slow);
        for _ in 0..2 {
            registry.scan(Duration::ZERO).unwrap();
        }
        let refused = async { while registry.next().await.is_empty() {} };
        tokio::time::timeout(Duration::from_secs(30), refused).await.expect("no permit was freed");
    }

    #[tokio::test]
    async fn a_file_that_changed_after_the_scan_is_scanned_again() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        let mut registry = registry(directory.path());
        write("a.wasm", "no plugin");
        write("a.toml", "");
        for _ in 0..2 {
            registry.scan(Duration::ZERO).unwrap();
        }
        // The read is about to start.
        assert!(!registry.is_unstable() && !registry.is_idle());
        write("a.wasm", "nor is this");
        assert_eq!(registry.next().await, []);
        assert!(registry.is_unstable());
        registry.scan(Duration::ZERO).unwrap();
        registry.scan(Duration::ZERO).unwrap();
        let refused = std::iter::once(registry.next().await).chain([registry.next().await]).flatten();
        assert!(refused.into_iter().any(|change| matches!(change, Change::Refused { .. })));
    }
}
