//! What is live, as others see it: who handles which topic, how each name
//! stands, and what has changed.

use super::component::Plugin;
use super::probation::Standing;
use super::version::{Held, Refusal};
use crate::topic::Topic;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Which plugin handles which topic, and what is known about the others.
#[derive(Clone, Default)]
pub struct Routes {
    pub by_topic: BTreeMap<Topic, Arc<Plugin>>,
    /// Who takes the topics that nobody else has.
    pub unclaimed: Option<Arc<Plugin>>,
    /// Topics that had a plugin of their own, or are asked for by one that is
    /// refused, and its name: they are not for `unclaimed`.
    pub kept: BTreeMap<Topic, String>,
    pub plugins: BTreeMap<String, Arc<Plugin>>,
    pub status: BTreeMap<String, Status>,
}

impl Routes {
    /// Who handles which topic, if these are the ones that have messages and
    /// that nobody names.
    pub fn handlers(&self, rest: &BTreeSet<Topic>) -> BTreeMap<Topic, Arc<Plugin>> {
        let mut handlers = self.by_topic.clone();
        if let Some(plugin) = &self.unclaimed {
            for topic in rest.iter().filter(|topic| !self.kept.contains_key(*topic)) {
                handlers.entry(topic.clone()).or_insert_with(|| plugin.clone());
            }
        }
        handlers
    }

    /// How a version's probation stands, while it has one.
    pub fn probation(&self, name: &str) -> Option<Standing> {
        self.plugins.get(name)?.probation().standing()
    }

    /// Those that are not the version in the directory, why, and when they are
    /// tried again by themselves.
    pub fn refused(&self) -> impl Iterator<Item = (&str, &Refusal, Option<Timestamp>)> {
        self.status.iter().filter_map(|(name, status)| Some((name.as_str(), status.refusal.as_ref()?, status.again)))
    }
}

/// What is known about one name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The digest that runs.
    pub live: Option<String>,
    /// The digest that a way back leads to.
    pub previous: Option<String>,
    /// Why the version in the directory is not the one that runs.
    pub refusal: Option<Refusal>,
    /// When it, or the way back, is tried again by itself.
    pub again: Option<Timestamp>,
    /// Digests that are kept out.
    pub held: Vec<(String, Held)>,
    pub is_loading: bool,
    /// What has been live since the start, oldest first.
    pub history: Vec<Past>,
}

/// A version that went live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    pub digest: String,
    pub since: Timestamp,
}

/// What became of a plugin.
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
        keeps: Option<String>,
        /// After how long it is tried again by itself.
        again_in: Option<Duration>,
    },
    Removed {
        name: String,
    },
    /// A version is withdrawn, and the one before it runs again.
    Withdrawn {
        name: String,
        digest: String,
        restored: String,
        why: Held,
    },
    /// What ran before the start runs again, since the file is refused.
    Restored {
        name: String,
        digest: String,
    },
    NotRestored {
        name: String,
        reason: String,
        again_in: Option<Duration>,
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
