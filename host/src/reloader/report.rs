//! Reports changes of plugins: a log line each, and the metrics.

use crate::events;
use crate::manifest::Manifest;
use crate::metrics::Metrics;
use crate::plugin::{BlockReason, Change, Routes};
use crate::text::short_digest;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::watch;
use tracing::field;

pub(super) struct Report {
    metrics: Arc<Metrics>,
    routes: watch::Receiver<Arc<Routes>>,
    /// The plugins and digests in the metrics.
    in_metrics: BTreeSet<(String, String)>,
}

impl Report {
    pub(super) fn new(metrics: Arc<Metrics>, routes: watch::Receiver<Arc<Routes>>) -> Self {
        Self { metrics, routes, in_metrics: BTreeSet::new() }
    }

    pub(super) fn change(&self, change: &Change) {
        let result = match change {
            Change::Loaded { name, digest, replaced, took } => {
                let replaced = replaced.as_deref().map(short_digest);
                let routes = self.routes.borrow().clone();
                let plugin = routes.plugins.get(name);
                let not_granted = plugin.map(|plugin| plugin.withheld().join(", ")).filter(|names| !names.is_empty());
                let manifest = plugin.map(|plugin| plugin.manifest());
                let topics = manifest.map(format_topics);
                let grants = manifest.map(|manifest| manifest.grants.to_string());
                tracing::info!(
                    plugin = name,
                    digest = short_digest(digest),
                    replaced,
                    topics,
                    grants,
                    not_granted,
                    ?took,
                    "{}",
                    events::PLUGIN_LOADED
                );
                "loaded"
            }
            Change::Refused { name, reason, active_digest, retry_in } => {
                let active_digest = active_digest.as_deref().map(short_digest);
                tracing::error!(
                    plugin = name,
                    reason,
                    active_digest,
                    retry_in = retry_in.map(field::debug),
                    "{}",
                    events::PLUGIN_REFUSED
                );
                "refused"
            }
            Change::Removed { name } => {
                tracing::info!(plugin = name, "{}", events::PLUGIN_REMOVED);
                "removed"
            }
            Change::Withdrawn { name, digest, restored, why } => {
                let (digest, restored, reason) = (short_digest(digest), short_digest(restored), why.to_string());
                tracing::error!(plugin = name, digest, restored, reason, "{}", events::VERSION_WITHDRAWN);
                why.as_str()
            }
            Change::Restored { name, digest } => {
                tracing::error!(plugin = name, digest = short_digest(digest), "{}", events::VERSION_RESTORED);
                "restored"
            }
            Change::NotRestored { name, reason, retry_in } => {
                tracing::error!(
                    plugin = name,
                    reason,
                    retry_in = retry_in.map(field::debug),
                    "{}",
                    events::VERSION_NOT_RESTORED
                );
                "not-restored"
            }
        };
        self.metrics.reload(result);
    }

    pub(super) fn unblocked(&mut self, name: &str) {
        tracing::info!(plugin = name, "plugin unblocked");
        self.live();
    }

    /// Updates the metrics to the live plugins.
    pub(super) fn live(&mut self) {
        let routes = self.routes.borrow().clone();
        let version = |(name, plugin): (&String, &Arc<crate::plugin::Plugin>)| {
            (name.clone(), short_digest(plugin.digest()).to_owned())
        };
        let live: BTreeSet<_> = routes.plugins.iter().map(version).collect();
        for (name, digest) in self.in_metrics.difference(&live) {
            self.metrics.plugin(name, digest, false);
        }
        for (name, digest) in live.difference(&self.in_metrics) {
            self.metrics.plugin(name, digest, true);
        }
        self.in_metrics = live;
        let is_quarantined = |status: &&crate::plugin::PluginStatus| {
            status.blocked.iter().any(|(_, why)| *why == BlockReason::Quarantined)
        };
        let quarantined = routes.status.values().filter(is_quarantined).count();
        self.metrics.plugins_quarantined.set(i64::try_from(quarantined).unwrap_or(i64::MAX));
    }
}

/// The value of `topics`, as in the manifest.
fn format_topics(manifest: &Manifest) -> String {
    manifest.topic_patterns().join(", ")
}
