//! Tells what became of plugins: a log line each, and the metrics.

use crate::metrics::Metrics;
use crate::plugin::{Change, Held, Routes};
use crate::text::short_digest;
use crate::topic::Topic;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::watch;
use tracing::field;

pub(super) struct Report {
    metrics: Arc<Metrics>,
    routes: watch::Receiver<Arc<Routes>>,
    /// The plugins and digests that the metrics show.
    shown: BTreeSet<(String, String)>,
}

impl Report {
    pub(super) fn new(metrics: Arc<Metrics>, routes: watch::Receiver<Arc<Routes>>) -> Self {
        Self { metrics, routes, shown: BTreeSet::new() }
    }

    pub(super) fn change(&self, change: &Change) {
        let result = match change {
            Change::Loaded { name, digest, replaced, took } => {
                let replaced = replaced.as_deref().map(short_digest);
                let routes = self.routes.borrow().clone();
                let plugin = routes.plugins.get(name);
                let not_granted = plugin.map(|plugin| plugin.withheld().join(", ")).filter(|names| !names.is_empty());
                let manifest = plugin.map(|plugin| plugin.manifest());
                let topics = manifest.map(|manifest| shown(&manifest.topics));
                let grants = manifest.map(|manifest| manifest.grants.to_string());
                tracing::info!(
                    plugin = name,
                    digest = short_digest(digest),
                    replaced,
                    topics,
                    grants,
                    not_granted,
                    ?took,
                    "plugin loaded"
                );
                "loaded"
            }
            Change::Refused { name, reason, keeps, again_in } => {
                let keeps = keeps.as_deref().map(short_digest);
                tracing::error!(plugin = name, reason, keeps, again_in = again_in.map(field::debug), "plugin refused");
                "refused"
            }
            Change::Removed { name } => {
                tracing::info!(plugin = name, "plugin removed; messages of its topics wait");
                "removed"
            }
            Change::Withdrawn { name, digest, restored, why } => {
                let (digest, restored, reason) = (short_digest(digest), short_digest(restored), why.to_string());
                tracing::error!(
                    plugin = name,
                    digest,
                    restored,
                    reason,
                    "plugin version withdrawn; the one before it runs again"
                );
                match why {
                    Held::Quarantined => "quarantined",
                    Held::RolledBack => "rolled-back",
                }
            }
            Change::Restored { name, digest } => {
                tracing::error!(
                    plugin = name,
                    digest = short_digest(digest),
                    "the plugin's file is refused; the last good version, kept from before the start, runs instead: mend the file"
                );
                "restored"
            }
            Change::NotRestored { name, reason, again_in } => {
                tracing::error!(
                    plugin = name,
                    reason,
                    again_in = again_in.map(field::debug),
                    "no earlier version of the plugin can be restored"
                );
                "not-restored"
            }
        };
        self.metrics.reload(result);
    }

    pub(super) fn released(&mut self, name: &str) {
        tracing::info!(plugin = name, "nothing is held against this plugin any longer");
        self.live();
    }

    /// Makes the metrics show what is live now.
    pub(super) fn live(&mut self) {
        let routes = self.routes.borrow().clone();
        let version = |(name, plugin): (&String, &Arc<crate::plugin::Plugin>)| {
            (name.clone(), short_digest(plugin.digest()).to_owned())
        };
        let live: BTreeSet<_> = routes.plugins.iter().map(version).collect();
        for (name, digest) in self.shown.difference(&live) {
            self.metrics.plugin(name, digest, false);
        }
        for (name, digest) in live.difference(&self.shown) {
            self.metrics.plugin(name, digest, true);
        }
        self.shown = live;
        let is_quarantined =
            |status: &&crate::plugin::Status| status.held.iter().any(|(_, why)| *why == Held::Quarantined);
        let quarantined = routes.status.values().filter(is_quarantined).count();
        self.metrics.plugins_quarantined.set(i64::try_from(quarantined).unwrap_or(i64::MAX));
    }
}

fn shown(topics: &[Topic]) -> String {
    if topics.is_empty() {
        return "*".to_owned();
    }
    topics.iter().map(Topic::as_str).collect::<Vec<_>>().join(", ")
}
