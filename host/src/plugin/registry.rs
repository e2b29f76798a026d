//! The plugins that are live. A change in the directory becomes a change here
//! only after the new version has been quiet, read, compiled and checked; what
//! fails on the way is refused, and the version before it goes on.

use super::component::Plugin;
use super::engine::Engine;
use super::folder::{Folder, FolderError, Stamp};
use crate::manifest::Manifest;
use crate::topic::Topic;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// At the first scan, a file that has not been written for this long is not
/// being written.
const SETTLED: Duration = Duration::from_secs(2);

/// Which plugin handles which topic, and what is known about the others.
#[derive(Clone, Default)]
pub struct Routes {
    pub by_topic: BTreeMap<Topic, Arc<Plugin>>,
    pub plugins: BTreeMap<String, Arc<Plugin>>,
    pub refused: BTreeMap<String, Refusal>,
}

/// Why the newest version of a file is not the one that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    is_conflict: bool,
}

/// What a scan changed, by plugin name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Loaded { name: String, digest: String, replaced: Option<String>, took: Duration },
    Refused { name: String, reason: String, keeps: Option<String> },
    Removed { name: String },
}

pub struct Registry {
    engine: Engine,
    folder: Folder,
    /// The stamps at the last scan.
    seen: BTreeMap<String, Stamp>,
    /// The stamps of what has been loaded or refused.
    handled: BTreeMap<String, Stamp>,
    is_first_scan: bool,
    routes: watch::Sender<Arc<Routes>>,
}

impl Registry {
    pub fn new(engine: Engine, folder: Folder) -> Self {
        Self {
            engine,
            folder,
            seen: BTreeMap::new(),
            handled: BTreeMap::new(),
            is_first_scan: true,
            routes: watch::Sender::new(Arc::default()),
        }
    }

    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    pub fn routes(&self) -> watch::Receiver<Arc<Routes>> {
        self.routes.subscribe()
    }

    /// Brings the live plugins up to what the directory holds. What is still
    /// moving is left for the next call: the second value says that there is
    /// such. A directory that can't be read changes nothing.
    pub async fn rescan(&mut self) -> Result<(Vec<Change>, bool), FolderError> {
        let found = self.folder.scan()?;
        let now = SystemTime::now();
        let mut is_moving = false;
        let mut changes = Vec::new();

        let gone: Vec<String> = self.handled.keys().filter(|name| !found.contains_key(*name)).cloned().collect();
        for name in gone {
            // Between a delete and a create there is nothing for a moment.
            if self.seen.contains_key(&name) {
                is_moving = true;
            } else {
                changes.extend(self.remove(&name));
            }
        }
        for (name, stamp) in &found {
            if self.handled.get(name) == Some(stamp) {
                continue;
            }
            let is_old = self.is_first_scan && stamp.is_older_than(SETTLED, now);
            if is_old || self.seen.get(name) == Some(stamp) {
                changes.extend(self.load(name).await);
                self.handled.insert(name.clone(), stamp.clone());
            } else {
                is_moving = true;
            }
        }
        self.seen = found;
        self.is_first_scan = false;
        Ok((changes, is_moving))
    }

    fn remove(&mut self, name: &str) -> Option<Change> {
        self.handled.remove(name);
        let mut was_live = false;
        let mut freed = Vec::new();
        self.change_routes(|routes| {
            routes.refused.remove(name);
            was_live = routes.plugins.remove(name).is_some();
            freed = routes
                .refused
                .iter()
                .filter(|(_, refusal)| refusal.is_conflict)
                .map(|(name, _)| name.clone())
                .collect();
        });
        // Who was refused for a topic of this one gets another chance.
        for name in freed {
            self.handled.remove(&name);
        }
        was_live.then(|| Change::Removed { name: name.to_owned() })
    }

    async fn load(&mut self, name: &str) -> Option<Change> {
        let started = std::time::Instant::now();
        let live = self.routes.borrow().plugins.get(name).map(|plugin| plugin.digest().to_owned());
        match self.try_load(name, live.as_deref()).await {
            Ok(None) => {
                // Touched, or back to what runs: nothing is refused any more.
                self.change_routes(|routes| drop(routes.refused.remove(name)));
                None
            }
            Ok(Some(plugin)) => {
                let digest = plugin.digest().to_owned();
                self.change_routes(|routes| {
                    routes.refused.remove(name);
                    routes.plugins.insert(name.to_owned(), Arc::new(plugin));
                });
                Some(Change::Loaded { name: name.to_owned(), digest, replaced: live, took: started.elapsed() })
            }
            Err(refusal) => {
                let reason = refusal.reason.clone();
                self.change_routes(|routes| drop(routes.refused.insert(name.to_owned(), refusal)));
                Some(Change::Refused { name: name.to_owned(), reason, keeps: live })
            }
        }
    }

    /// `None` where these bytes are the ones that run.
    async fn try_load(&self, name: &str, live: Option<&str>) -> Result<Option<Plugin>, Refusal> {
        let refusal = |reason| Refusal { reason, is_conflict: false };
        let source = self.folder.read(name).map_err(refusal)?;
        if Some(source.digest.as_str()) == live {
            return Ok(None);
        }
        let manifest = match &source.manifest {
            Some(text) => Manifest::parse(text, name).map_err(|error| refusal(format!("{name}.toml: {error}")))?,
            None => Manifest::default_for(Topic::parse(name).map_err(|error| {
                refusal(format!("{error}; name the file <topic>.wasm, or the topics in {name}.toml"))
            })?),
        };
        self.check_topics(name, &manifest)?;
        let plugin = Plugin::load(&self.engine, name, source.wasm, manifest, source.digest).await;
        plugin.map(Some).map_err(|error| refusal(error.to_string()))
    }

    /// A topic has one handler: the one that is live keeps it.
    fn check_topics(&self, name: &str, manifest: &Manifest) -> Result<(), Refusal> {
        let routes = self.routes.borrow();
        for topic in &manifest.topics {
            if let Some(owner) = routes.by_topic.get(topic).filter(|owner| owner.name() != name) {
                let reason =
                    format!("topic {topic} is handled by {}.wasm: remove it there, or from {name}", owner.name());
                return Err(Refusal { reason, is_conflict: true });
            }
        }
        Ok(())
    }

    fn change_routes(&self, change: impl FnOnce(&mut Routes)) {
        self.routes.send_modify(|current| {
            let mut routes = Routes::clone(current);
            change(&mut routes);
            let topics = |plugin: &Arc<Plugin>| {
                plugin.topics().iter().map(|topic| (topic.clone(), plugin.clone())).collect::<Vec<_>>()
            };
            routes.by_topic = routes.plugins.values().flat_map(topics).collect();
            *current = Arc::new(routes);
        });
    }
}
