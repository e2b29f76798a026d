//! The live plugins as other modules see them: which plugin handles which
//! topic, the status of each name, and what has changed.

use super::component::Plugin;
use super::probation::ProbationStats;
use super::version::{BlockReason, Refusal};
use crate::topic::Topic;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Default)]
pub struct Routes {
    pub by_topic: BTreeMap<Topic, Arc<Plugin>>,
    /// The plugin that handles the topics that no other plugin claims.
    pub catch_all: Option<Arc<Plugin>>,
    /// Topics that the catch-all must not get, and the plugin that each is
    /// reserved for: it handled the topic before, or asks for it and is refused.
    pub reserved: BTreeMap<Topic, String>,
    pub plugins: BTreeMap<String, Arc<Plugin>>,
    pub status: BTreeMap<String, PluginStatus>,
}

impl Routes {
    /// Which plugin handles which topic. `discovered` are the topics that have
    /// messages in Redis; those that nobody claims go to the catch-all.
    pub fn handlers(&self, discovered: &BTreeSet<Topic>) -> BTreeMap<Topic, Arc<Plugin>> {
        let mut handlers = self.by_topic.clone();
        if let Some(plugin) = &self.catch_all {
            for topic in discovered.iter().filter(|topic| self.is_for_catch_all(topic)) {
                handlers.insert(topic.clone(), plugin.clone());
            }
        }
        handlers
    }

    /// Whether the catch-all handles this topic.
    pub fn is_for_catch_all(&self, topic: &Topic) -> bool {
        let catch_all = self.catch_all.as_ref().and_then(|plugin| plugin.manifest().catch_all);
        let is_claimed = self.by_topic.contains_key(topic) || self.reserved.contains_key(topic);
        !is_claimed && catch_all.is_some_and(|catch_all| catch_all.includes(topic))
    }

    /// The probation counters of a version, while it is on probation.
    pub fn probation(&self, name: &str) -> Option<ProbationStats> {
        self.plugins.get(name)?.probation().stats()
    }

    /// Names whose version in the directory is refused: the reason, and the
    /// time of the next retry.
    pub fn refused(&self) -> impl Iterator<Item = (&str, &Refusal, Option<Timestamp>)> {
        self.status.iter().filter_map(|(name, status)| Some((name.as_str(), status.refusal.as_ref()?, status.retry_at)))
    }
}

/// The state of one plugin name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PluginStatus {
    /// The digest of the live version.
    pub live: Option<String>,
    /// The digest that a rollback restores.
    pub previous: Option<String>,
    /// Why the version in the directory is not the live one.
    pub refusal: Option<Refusal>,
    /// When the failed load or restore is retried.
    pub retry_at: Option<Timestamp>,
    /// Digests that must not be loaded again.
    pub blocked: Vec<(String, BlockReason)>,
    pub is_loading: bool,
    /// The versions that were live since the start, oldest first.
    pub history: Vec<VersionRecord>,
}

impl PluginStatus {
    /// Whether an older version is live because the one in the directory is
    /// refused.
    pub fn is_degraded(&self) -> bool {
        self.live.is_some() && self.refusal.is_some()
    }
}

/// A version that went live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRecord {
    pub digest: String,
    pub since: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Loaded {
        name: String,
        digest: String,
        replaced: Option<String>,
        took: Duration,
    },
    Refused {
        name: String,
        reason: String,
        /// The version that stays live.
        active_digest: Option<String>,
        retry_in: Option<Duration>,
    },
    Removed {
        name: String,
    },
    /// A version was quarantined or rolled back, and the previous one restored.
    Withdrawn {
        name: String,
        digest: String,
        restored: String,
        why: BlockReason,
    },
    /// The file is refused, so the version that was live before the start was
    /// restored.
    Restored {
        name: String,
        digest: String,
    },
    NotRestored {
        name: String,
        reason: String,
        retry_in: Option<Duration>,
    },
}

impl Change {
    pub fn name(&self) -> &str {
        match self {
            Self::Loaded { name, .. }
            | Self::Refused { name, .. }
            | Self::Removed { name }
            | Self::Withdrawn { name, .. }
            | Self::Restored { name, .. }
            | Self::NotRestored { name, .. } => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::version::RefusalKind;

    #[test]
    fn a_plugin_is_degraded_while_it_is_live_and_its_file_is_refused() {
        let refusal = Refusal { reason: String::new(), kind: RefusalKind::Invalid };
        let is_degraded = |live: Option<&str>, refusal: Option<&Refusal>| {
            let (live, refusal) = (live.map(ToOwned::to_owned), refusal.cloned());
            PluginStatus { live, refusal, ..PluginStatus::default() }.is_degraded()
        };
        assert!(is_degraded(Some("digest"), Some(&refusal)));
        assert!(!is_degraded(Some("digest"), None));
        assert!(!is_degraded(None, Some(&refusal)));
    }
}
