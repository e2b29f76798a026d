//! The plugins that are live. What is to be done is decided in [`deployment`];
//! here it is done: scans, reads, loads beside each other, and the routes that
//! follow from what is live.
//!
//! [`deployment`]: super::deployment

use super::archive::{Archive, Record};
use super::component::Plugin;
use super::deployment::{Deployment, Entry, Goal, Order, QUIET, Step};
use super::engine::Engine;
use super::folder::{Folder, FolderError, Source, Stamp};
use super::load_error::LoadError;
use super::probation::Condemned;
use super::routes::{Change, Past, Routes, Status};
use super::version::{Claim, Denied, Held, Version};
use crate::manifest::Manifest;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

/// At the first scan, a file that has not been written for this long is not
/// being written.
const SETTLED: Duration = Duration::from_secs(2);

/// Loads beside each other: a slow one holds up no other.
const LOADS_MAX: usize = 4;

/// So many versions of a plugin are told of.
const HISTORY_MAX: usize = 16;

enum Candidate {
    Read(Source, Box<Manifest>),
    Faulty(LoadError),
    /// It changed between the scan and the end of the read.
    Moved,
}

/// What a task has brought.
enum Done {
    /// With the room to load it, and what is to be read after it.
    Read {
        order: Order,
        candidate: Candidate,
        room: Option<OwnedSemaphorePermit>,
        rest: VecDeque<Order>,
    },
    Loaded(Order, Result<Arc<Plugin>, LoadError>, Duration),
}

pub struct Registry {
    engine: Engine,
    folder: Arc<Folder>,
    archive: Arc<Archive>,
    started: Instant,
    deployment: Deployment<Stamp>,
    /// What the last scan found.
    found: BTreeMap<String, Stamp>,
    /// What it could not look at: that is told once.
    unseen: BTreeSet<String>,
    /// What is live or can be gone back to at once, by name and digest.
    loaded: BTreeMap<(String, String), Arc<Plugin>>,
    /// What the archive says.
    noted: BTreeMap<String, Record>,
    /// Whether all that was there at the start is loaded or refused: until
    /// then nobody knows which topics are the rest.
    is_settled: bool,
    tasks: JoinSet<Done>,
    /// What each task is for, should it fail.
    orders: HashMap<Id, Vec<Order>>,
    history: BTreeMap<String, Vec<Past>>,
    /// The load under way of each name.
    loading: HashMap<String, AbortHandle>,
    loads: Arc<Semaphore>,
    court: mpsc::UnboundedSender<Condemned>,
    condemned: mpsc::UnboundedReceiver<Condemned>,
    routes: watch::Sender<Arc<Routes>>,
}

impl Registry {
    pub fn new(engine: Engine, folder: Folder, archive: Archive) -> Self {
        let (court, condemned) = mpsc::unbounded_channel();
        let noted = archive.records();
        Self {
            engine,
            folder: Arc::new(folder),
            archive: Arc::new(archive),
            started: Instant::now(),
            deployment: Deployment::new(noted.clone()),
            found: BTreeMap::new(),
            unseen: BTreeSet::new(),
            loaded: BTreeMap::new(),
            noted,
            is_settled: false,
            tasks: JoinSet::new(),
            orders: HashMap::new(),
            history: BTreeMap::new(),
            loading: HashMap::new(),
            loads: Arc::new(Semaphore::new(LOADS_MAX)),
            court,
            condemned,
            routes: watch::Sender::default(),
        }
    }

    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    pub fn routes(&self) -> watch::Receiver<Arc<Routes>> {
        self.routes.subscribe()
    }

    /// To be called once in a while, for what is live or can be gone back to.
    pub fn tend(&mut self) {
        let mut is_news = false;
        for ((name, digest), plugin) in &self.loaded {
            let live = self.deployment.entry(name).and_then(|entry| entry.live.as_ref());
            if live.is_none_or(|live| live.digest != *digest) {
                plugin.deactivate();
                continue;
            }
            plugin.maintain();
            is_news |= plugin.probation().is_stood() && self.deployment.prove(name, digest);
        }
        if is_news {
            self.note();
        }
    }

    /// Whether something has to be looked at again after a moment of quiet.
    pub fn is_moving(&self) -> bool {
        self.deployment.is_moving()
    }

    /// Whether nothing is under way that is worth waiting for.
    pub fn is_at_rest(&self) -> bool {
        self.deployment.is_at_rest()
    }

    /// Looks at the directory because somebody asks for it: also at what was
    /// refused and has not changed.
    pub fn scan_again(&mut self) -> Result<Vec<Change>, FolderError> {
        self.deployment.reconsider();
        self.scan(QUIET)
    }

    /// Looks at the directory; a version has to have been the same for so long.
    /// A directory that can't be read changes nothing.
    pub fn scan(&mut self, quiet: Duration) -> Result<Vec<Change>, FolderError> {
        self.look()?;
        let wall = SystemTime::now();
        // Where there is no manifest, one may be on its way.
        let quiet = |stamp: &Stamp| if stamp.has_manifest() { quiet } else { QUIET };
        let is_old = |stamp: &Stamp| stamp.is_older_than(SETTLED, wall);
        let scanned = self.deployment.scanned(&self.found, self.started.elapsed(), quiet, is_old);
        let is_news = !scanned.orders.is_empty() || scanned.has_left;
        scanned.orders.iter().for_each(|order| self.overtake(order));
        self.read(scanned.orders.into());
        for name in &scanned.gone {
            self.history.remove(name);
        }
        if is_news {
            self.publish();
        }
        Ok(scanned.gone.into_iter().map(|name| Change::Removed { name }).collect())
    }

    /// A file that can't be looked at is as it was, and not gone.
    fn look(&mut self) -> Result<(), FolderError> {
        let scanned = self.folder.scan()?;
        let mut before = std::mem::take(&mut self.found);
        let mut unseen = BTreeSet::new();
        for (name, stamp) in scanned {
            let stamp = stamp.map_err(|error| {
                if !self.unseen.contains(&name) {
                    tracing::warn!(plugin = name, %error, "this plugin's files can't be looked at; it stays as it is");
                }
                unseen.insert(name.clone());
            });
            if let Some(stamp) = stamp.ok().or_else(|| before.remove(&name)) {
                self.found.insert(name, stamp);
            }
        }
        self.unseen = unseen;
        Ok(())
    }

    /// To be called when nothing is under way that is worth waiting for.
    pub fn settle(&mut self) {
        if !std::mem::replace(&mut self.is_settled, true) {
            self.publish();
        }
    }

    /// Waits until a read, a load or a probation has ended. May be dropped.
    pub async fn next(&mut self) -> Vec<Change> {
        let changes = tokio::select! {
            Some(ended) = self.tasks.join_next_with_id() => {
                let id = match &ended {
                    Ok((id, _)) => *id,
                    Err(error) => error.id(),
                };
                let orders = self.orders.remove(&id).unwrap_or_default();
                match ended {
                    Ok((_, Done::Read { order, candidate, room, rest })) => {
                        self.read(rest);
                        self.has_read(order, candidate, room).into_iter().collect()
                    }
                    Ok((_, Done::Loaded(order, plugin, took))) => {
                        self.has_loaded(&order, plugin, took).into_iter().collect()
                    }
                    Err(error) => orders.iter().filter_map(|order| self.has_failed(order, &error)).collect(),
                }
            }
            Some((name, digest)) = self.condemned.recv() => self.condemn(name, &digest).into_iter().collect(),
            else => std::future::pending().await,
        };
        self.publish();
        changes
    }

    fn condemn(&mut self, name: String, digest: &str) -> Option<Change> {
        // Otherwise it comes late: nobody waits for its answer.
        if !self.deployment.stays(&name, digest) {
            return None;
        }
        match self.deployment.withdraw(&name, Some(digest), Held::Quarantined) {
            Ok(order) => self.go_back(order),
            Err(denied) => Some(Change::NotRestored { name, reason: denied.to_string(), again_in: None }),
        }
    }

    /// Goes back to the version before. None where that has to be loaded first:
    /// then [`Registry::next`] tells.
    pub fn roll_back(&mut self, name: &str) -> Result<Option<Change>, Denied> {
        let order = self.deployment.withdraw(name, None, Held::RolledBack)?;
        let change = self.go_back(order);
        self.publish();
        Ok(change)
    }

    /// Lets go of what is held against a name.
    pub fn release(&mut self, name: &str) -> Result<(), Denied> {
        self.deployment.release(name)?;
        self.publish();
        Ok(())
    }

    /// What is still loaded of this name takes up no room any longer, which the
    /// order may be waiting for.
    fn overtake(&mut self, order: &Order) {
        if let Some(overtaken) = self.loading.remove(&order.name) {
            overtaken.abort();
        }
    }

    /// Reads in the order of names: the first has what several claim. One after
    /// the other, and each only when there is room to load it, so that no more
    /// sources than that are in memory.
    fn read(&mut self, mut orders: VecDeque<Order>) {
        let Some(first) = orders.pop_front() else { return };
        let (folder, archive, loads) = (self.folder.clone(), self.archive.clone(), self.loads.clone());
        let (order, rest, expected) = (first.clone(), orders.clone(), self.deployment.expected(&first));
        let task = self.tasks.spawn(async move {
            // Never closed.
            let room = loads.acquire_owned().await.ok();
            let reading = order.clone();
            let read = tokio::task::spawn_blocking(move || candidate(&folder, &archive, &reading, expected.as_ref()));
            let candidate = read.await.unwrap_or_else(|error| Candidate::Faulty(failed(&error)));
            Done::Read { order, candidate, room, rest }
        });
        orders.push_front(first);
        self.orders.insert(task.id(), orders.into());
    }

    fn has_read(&mut self, order: Order, candidate: Candidate, room: Option<OwnedSemaphorePermit>) -> Option<Change> {
        let step = match candidate {
            Candidate::Moved => self.deployment.moved(&order),
            Candidate::Faulty(error) => self.deployment.read(&order, Err(error)),
            Candidate::Read(source, manifest) => {
                match self.deployment.read(&order, Ok(version(&source.digest, &manifest))) {
                    Step::Load => {
                        let plugin = &order.name;
                        source.warnings.iter().for_each(|warning| tracing::warn!(plugin, "{warning}"));
                        self.load(order, source, *manifest, room);
                        return None;
                    }
                    step => step,
                }
            }
        };
        self.change(&order, step, Duration::ZERO)
    }

    fn load(&mut self, order: Order, source: Source, manifest: Manifest, room: Option<OwnedSemaphorePermit>) {
        let (engine, archive) = (self.engine.clone(), self.archive.clone());
        let loading = order.clone();
        let task = self.tasks.spawn(async move {
            let _room = room;
            let started = Instant::now();
            let Source { wasm, digest, .. } = &source;
            let plugin = Plugin::load(&engine, &order.name, wasm.clone(), manifest, digest.clone()).await;
            let plugin = plugin.map(Arc::new);
            if plugin.is_ok() {
                let name = order.name.clone();
                let keep = move || archive.keep(&name, &source).map_err(|error| (name, error));
                if let Ok(Err((name, error))) = tokio::task::spawn_blocking(keep).await {
                    tracing::warn!(plugin = name, %error, "this version can't be kept: a restart can't go back to it");
                }
            }
            Done::Loaded(order, plugin, started.elapsed())
        });
        self.loading.insert(loading.name.clone(), task.clone());
        self.orders.insert(task.id(), vec![loading]);
    }

    /// A fault of ours must not leave a name loading for ever.
    fn has_failed(&mut self, order: &Order, error: &JoinError) -> Option<Change> {
        let step = self.deployment.read(order, Err(failed(error)));
        self.change(order, step, Duration::ZERO)
    }

    fn has_loaded(&mut self, order: &Order, plugin: Result<Arc<Plugin>, LoadError>, took: Duration) -> Option<Change> {
        let live = self.routes.borrow().plugins.get(&order.name).cloned();
        if let Some(live) = live.filter(|live| live.probation().is_stood()) {
            self.deployment.prove(&order.name, live.digest());
        }
        let step = self.deployment.loaded(order, plugin.as_ref().map(drop).map_err(Clone::clone));
        if let (Step::Live { is_proven, .. }, Ok(plugin)) = (&step, plugin) {
            let version = (order.name.clone(), plugin.digest().to_owned());
            if *is_proven {
                plugin.probation().end();
            } else {
                plugin.probation().begin(Instant::now(), version.clone(), self.court.clone());
            }
            let past = self.history.entry(order.name.clone()).or_default();
            past.push(Past { digest: version.1.clone(), since: Timestamp::now() });
            let over = past.len().saturating_sub(HISTORY_MAX);
            past.drain(..over);
            self.loaded.insert(version, plugin);
        }
        self.change(order, step, took)
    }

    /// At once where the version is still at hand.
    fn go_back(&mut self, order: Order) -> Option<Change> {
        let Goal::Restore { digest, .. } = &order.goal else { return None };
        self.overtake(&order);
        let Some(plugin) = self.loaded.get(&(order.name.clone(), digest.clone())).cloned() else {
            self.read(VecDeque::from([order]));
            return None;
        };
        match self.deployment.read(&order, Ok(version(digest, plugin.manifest()))) {
            Step::Load => self.has_loaded(&order, Ok(plugin), Duration::ZERO),
            step => self.change(&order, step, Duration::ZERO),
        }
    }

    fn change(&mut self, order: &Order, step: Step, took: Duration) -> Option<Change> {
        let entry = self.deployment.entry(&order.name)?;
        let (name, live) = (order.name.clone(), entry.live.as_ref().map(|live| live.digest.clone()));
        let again_in = entry.again_at().map(|at| self.until(at));
        match step {
            Step::Stale | Step::Unchanged | Step::Load => None,
            Step::Refused { refusal, restore } => {
                self.read(restore.into_iter().collect());
                Some(Change::Refused { name, reason: refusal.reason, keeps: live, again_in })
            }
            Step::NotRestored { reason } => Some(Change::NotRestored { name, reason, again_in }),
            Step::Live { replaced, .. } => {
                let digest = live?;
                Some(match &order.goal {
                    Goal::File => Change::Loaded { name, digest, replaced, took },
                    Goal::Restore { instead_of: Some((withdrawn, why)), .. } => {
                        Change::Withdrawn { name, digest: withdrawn.clone(), restored: digest, why: *why }
                    }
                    Goal::Restore { instead_of: None, .. } => Change::Restored { name, digest },
                })
            }
        }
    }

    /// Makes the routes follow what is live, and forgets what nobody can go
    /// back to. What runs has its own hold on its version.
    fn publish(&mut self) {
        let entries = self.deployment.entries();
        self.loaded.retain(|(name, digest), _| {
            entries.get(name).is_some_and(|entry| {
                entry.live.as_ref().is_some_and(|live| live.digest == *digest)
                    || entry.previous.as_ref() == Some(digest)
            })
        });
        let live = |(name, entry): (&String, &Entry<Stamp>)| {
            let digest = entry.live.as_ref()?.digest.clone();
            Some((name.clone(), self.loaded.get(&(name.clone(), digest))?.clone()))
        };
        let plugins: BTreeMap<String, Arc<Plugin>> = entries.iter().filter_map(live).collect();
        let topics = |plugin: &Arc<Plugin>| {
            plugin.topics().iter().map(|topic| (topic.clone(), plugin.clone())).collect::<Vec<_>>()
        };
        let there = entries.iter().filter(|(_, entry)| entry.is_there());
        self.routes.send_replace(Arc::new(Routes {
            by_topic: plugins.values().flat_map(topics).collect(),
            unclaimed: plugins.values().find(|plugin| self.is_settled && plugin.manifest().takes_unclaimed()).cloned(),
            kept: self.deployment.kept(),
            status: there.map(|(name, entry)| (name.clone(), self.status(name, entry))).collect(),
            plugins,
        }));
        self.note();
    }

    fn status(&self, name: &str, entry: &Entry<Stamp>) -> Status {
        let at = |at: Duration| Timestamp::now().checked_add(self.until(at)).ok();
        Status {
            live: entry.live.as_ref().map(|live| live.digest.clone()),
            previous: entry.previous.clone(),
            refusal: entry.refusal.clone(),
            again: entry.again_at().and_then(at),
            held: entry.held.clone(),
            is_loading: entry.is_loading(),
            history: self.history.get(name).cloned().unwrap_or_default(),
        }
    }

    /// In whole seconds, as people read it.
    fn until(&self, at: Duration) -> Duration {
        let left = at.saturating_sub(self.started.elapsed());
        Duration::from_secs(left.as_secs() + u64::from(left.subsec_nanos() > 0))
    }

    /// Notes in the archive what has changed.
    fn note(&mut self) {
        for (name, entry) in self.deployment.entries() {
            let record = entry.record();
            if self.noted.get(name).unwrap_or(&Record::default()) == &record {
                continue;
            }
            if let Err(error) = self.archive.note(name, &record, self.noted.get(name)) {
                tracing::warn!(plugin = name, %error, "where this plugin stands can't be kept for a restart");
            }
            self.noted.insert(name.clone(), record);
        }
    }
}

fn candidate(folder: &Folder, archive: &Archive, order: &Order, expected: Option<&Stamp>) -> Candidate {
    let source = match &order.goal {
        Goal::File => folder.read(&order.name),
        Goal::Restore { digest, .. } => archive.read(&order.name, digest),
    };
    if order.goal == Goal::File && folder.stamp(&order.name).ok().as_ref() != expected {
        return Candidate::Moved;
    }
    let read = source.and_then(|source| {
        let manifest = source.manifest(&order.name).map_err(|faults| LoadError::lasting(&faults.join("; ")))?;
        Ok((source, manifest))
    });
    match read {
        Ok((source, manifest)) => Candidate::Read(source, Box::new(manifest)),
        Err(error) => Candidate::Faulty(error),
    }
}

fn failed(error: &JoinError) -> LoadError {
    LoadError::lasting(&format!("the worker failed to load it: {error}"))
}

fn version(digest: &str, manifest: &Manifest) -> Version {
    let topics = manifest.topics.iter().cloned().map(Claim::Topic);
    let rest = manifest.takes_unclaimed().then_some(Claim::Rest);
    Version { digest: digest.to_owned(), claims: topics.chain(rest).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::Capabilities;
    use crate::plugin::compile::{CompileLimits, Compiler};
    use crate::settings::FilePermissionPolicy;

    /// Without a compiler: what is in the folder is no plugin anyway.
    fn registry(folder: &std::path::Path) -> Registry {
        let compiler = Compiler::of("/nowhere".into(), CompileLimits::default(), None);
        let engine = Engine::new(Capabilities::default(), compiler, 1).unwrap();
        Registry::new(engine, Folder::new(folder, FilePermissionPolicy::Ignore), Archive::nowhere())
    }

    #[tokio::test]
    async fn where_a_manifest_may_be_on_its_way_it_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let mut registry = registry(folder.path());
        std::fs::write(folder.path().join("a.wasm"), "no plugin").unwrap();
        let began = Instant::now();
        for _ in 0..2 {
            registry.scan(Duration::ZERO).unwrap();
        }
        let is_waiting = registry.is_moving();
        // On a machine so busy that the second look was late, it has been.
        assert!(is_waiting || began.elapsed() >= QUIET);
    }

    #[tokio::test]
    async fn what_is_overtaken_makes_room_for_what_comes_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut registry = registry(folder.path());
        std::fs::write(folder.path().join("a.wasm"), "no plugin").unwrap();
        std::fs::write(folder.path().join("a.toml"), "").unwrap();
        let room = registry.loads.clone().try_acquire_many_owned(4).unwrap();
        let slow = registry.tasks.spawn(async move {
            let _room = room;
            std::future::pending().await
        });
        registry.loading.insert("a".to_owned(), slow);
        for _ in 0..2 {
            registry.scan(Duration::ZERO).unwrap();
        }
        let refused = async { while registry.next().await.is_empty() {} };
        tokio::time::timeout(Duration::from_secs(30), refused).await.expect("there is no room");
    }

    #[tokio::test]
    async fn what_is_no_longer_as_it_was_found_is_found_anew() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let mut registry = registry(folder.path());
        write("a.wasm", "no plugin");
        write("a.toml", "");
        for _ in 0..2 {
            registry.scan(Duration::ZERO).unwrap();
        }
        // It is about to be read.
        assert!(!registry.is_moving() && !registry.is_at_rest());
        write("a.wasm", "nor is this");
        assert_eq!(registry.next().await, []);
        assert!(registry.is_moving());
        registry.scan(Duration::ZERO).unwrap();
        registry.scan(Duration::ZERO).unwrap();
        let refused = std::iter::once(registry.next().await).chain([registry.next().await]).flatten();
        assert!(refused.into_iter().any(|change| matches!(change, Change::Refused { .. })));
    }
}
