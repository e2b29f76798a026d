//! Keeps the registry up to what lies in the plugins directory: a hint, a
//! moment of quiet, a scan. The slow poll is always on, since events are only
//! hints and some file systems send none.

use crate::metrics::Metrics;
use crate::plugin::{Change, Registry, Watcher};
use crate::topic::Topic;
use crate::worker::short;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// A version is loaded when nothing has changed for this long.
const QUIET: Duration = Duration::from_millis(150);
const POLL: Duration = Duration::from_secs(2);

pub struct Reloader {
    pub registry: Registry,
    pub metrics: Arc<Metrics>,
    /// Somebody asks for a scan now, as `SIGHUP` does.
    pub requests: mpsc::Receiver<()>,
    /// Becomes true after the first scan.
    pub has_scanned: watch::Sender<bool>,
}

impl Reloader {
    pub async fn run(mut self, stop: CancellationToken) {
        let (mut watcher, mut hints) = Watcher::new(self.registry.folder().path());
        let mut is_readable = true;
        while !stop.is_cancelled() {
            watcher.ensure();
            let is_moving = match self.registry.rescan().await {
                Ok((changes, is_moving)) => {
                    changes.iter().for_each(|change| self.report(change));
                    is_readable = true;
                    is_moving
                }
                Err(error) => {
                    // Once, not at every poll. What is live stays live.
                    if std::mem::replace(&mut is_readable, false) {
                        tracing::error!(%error, "the plugins directory can't be read; live plugins stay as they are");
                    }
                    false
                }
            };
            if !is_moving {
                self.has_scanned.send_replace(true);
            }
            let pause = if is_moving { QUIET } else { POLL };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                Some(()) = hints.recv() => tokio::time::sleep(QUIET).await,
                Some(()) = self.requests.recv() => {}
                () = stop.cancelled() => {}
            }
        }
    }

    fn report(&self, change: &Change) {
        match change {
            Change::Loaded { name, digest, replaced, took } => {
                self.metrics.reload("loaded");
                let replaced = replaced.as_deref().map(short);
                let routes = self.registry.routes().borrow().clone();
                let manifest = routes.plugins.get(name).map(|plugin| plugin.manifest());
                let topics = manifest.map(|manifest| shown(&manifest.topics));
                let grants = manifest.map(|manifest| manifest.grants.to_string());
                tracing::info!(plugin = name, digest = short(digest), replaced, topics, grants, ?took, "plugin loaded");
            }
            Change::Refused { name, reason, keeps } => {
                self.metrics.reload("refused");
                let keeps = keeps.as_deref().map(short);
                tracing::error!(plugin = name, reason, keeps, "plugin refused");
            }
            Change::Removed { name } => {
                self.metrics.reload("removed");
                tracing::info!(plugin = name, "plugin removed; messages of its topics wait");
            }
        }
    }
}

fn shown(topics: &[Topic]) -> String {
    if topics.is_empty() {
        return "*".to_owned();
    }
    topics.iter().map(Topic::as_str).collect::<Vec<_>>().join(", ")
}
