//! Manifests in the plugins directory that have no plugin. Usually one of the
//! two file names is misspelt; without a warning nobody would notice.

use crate::events::orphan_manifest;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// When both files are copied, the manifest may appear this much earlier.
const GRACE: Duration = Duration::from_secs(1);
/// At most this many are reported.
const ORPHANS_MAX: usize = 100;

/// Their names, sorted. An unreadable directory has none: the scan reports it.
pub fn orphan_manifests(directory: &Path) -> Vec<String> {
    let (mut plugins, mut manifests) = (BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((stem, extension)) = name.to_str().and_then(|name| name.rsplit_once('.')) else { continue };
        match extension {
            _ if stem.is_empty() || stem.starts_with('.') => {}
            "wasm" => drop(plugins.insert(stem.to_owned())),
            "toml" => drop(manifests.insert(stem.to_owned())),
            _ => {}
        }
    }
    manifests.into_iter().filter(|name| !plugins.contains(name)).take(ORPHANS_MAX).collect()
}

/// The orphaned manifests: when each was first seen, and whether it was logged.
#[derive(Default)]
pub struct OrphanManifests(BTreeMap<String, (Instant, bool)>);

impl OrphanManifests {
    /// Warns once of each orphan that has outlived the grace period. Called
    /// after every scan.
    pub fn check(&mut self, directory: &Path) {
        for name in self.overdue_at(orphan_manifests(directory), Instant::now()) {
            tracing::warn!("{}", orphan_manifest(&name));
        }
    }

    fn overdue_at(&mut self, found: Vec<String>, now: Instant) -> Vec<String> {
        self.0.retain(|name, _| found.contains(name));
        let mut overdue = Vec::new();
        for name in found {
            let (since, was_logged) = self.0.entry(name.clone()).or_insert((now, false));
            if !*was_logged && now.saturating_duration_since(*since) >= GRACE {
                *was_logged = true;
                overdue.push(name);
            }
        }
        overdue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_without_a_plugin_is_orphaned() {
        let directory = tempfile::tempdir().unwrap();
        for file in ["a.toml", "a.wasm", "b.toml", "c.wasm", ".d.toml", "e.sample.json", "f.g.toml", "toml"] {
            fs::write(directory.path().join(file), "").unwrap();
        }
        assert_eq!(orphan_manifests(directory.path()), ["b", "f.g"]);
        assert!(orphan_manifests(&directory.path().join("none")).is_empty());
    }

    #[test]
    fn an_orphan_is_logged_once_and_only_after_the_grace_period() {
        let (mut orphans, start) = (OrphanManifests::default(), Instant::now());
        let found = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(orphans.overdue_at(found(&["a", "b"]), start).is_empty());
        assert!(orphans.overdue_at(found(&["a"]), start + GRACE / 2).is_empty());
        // The plugin of b appeared and was removed, which restarts its grace period.
        assert_eq!(orphans.overdue_at(found(&["a", "b"]), start + GRACE), ["a"]);
        assert_eq!(orphans.overdue_at(found(&["a", "b"]), start + 2 * GRACE), ["b"]);
        assert!(orphans.overdue_at(found(&["a", "b"]), start + 9 * GRACE).is_empty());
    }
}
