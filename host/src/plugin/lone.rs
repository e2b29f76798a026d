//! Manifests that lie in the plugins directory without their plugin: mostly a
//! slip in one of the names, and otherwise nobody would hear of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Who copies both may take as long in between.
const PATIENCE: Duration = Duration::from_secs(1);
/// More are not told.
const LONE_MAX: usize = 100;

/// The names of those in a directory, in order. Where it can't be read there are
/// none: that is told elsewhere.
pub fn lone_manifests(folder: &Path) -> Vec<String> {
    let (mut plugins, mut manifests) = (BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((stem, extension)) = name.to_str().and_then(|name| name.rsplit_once('.')) else { continue };
        match extension {
            _ if stem.is_empty() || stem.starts_with('.') => {}
            "wasm" => drop(plugins.insert(stem.to_owned())),
            "toml" => drop(manifests.insert(stem.to_owned())),
            _ => {}
        }
    }
    manifests.into_iter().filter(|name| !plugins.contains(name)).take(LONE_MAX).collect()
}

/// Those that are there, each with since when, and whether that was told.
#[derive(Default)]
pub struct LoneManifests(BTreeMap<String, (Instant, bool)>);

impl LoneManifests {
    /// Warns of those that have been there for a while, once of each. To be
    /// called once in a while.
    pub fn look(&mut self, folder: &Path) {
        for name in self.told_at(lone_manifests(folder), Instant::now()) {
            tracing::warn!("{name}.toml is for nothing: there is no {name}.wasm beside it");
        }
    }

    fn told_at(&mut self, found: Vec<String>, now: Instant) -> Vec<String> {
        self.0.retain(|name, _| found.contains(name));
        let mut told = Vec::new();
        for name in found {
            let (since, was_told) = self.0.entry(name.clone()).or_insert((now, false));
            if !*was_told && now.saturating_duration_since(*since) >= PATIENCE {
                *was_told = true;
                told.push(name);
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_lone_until_its_plugin_comes() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["a.toml", "a.wasm", "b.toml", "c.wasm", ".d.toml", "e.sample.json", "f.g.toml", "toml"] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        assert_eq!(lone_manifests(folder.path()), ["b", "f.g"]);
        assert!(lone_manifests(&folder.path().join("none")).is_empty());
    }

    #[test]
    fn it_is_told_once_and_not_while_both_are_copied() {
        let (mut lone, start) = (LoneManifests::default(), Instant::now());
        let found = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(lone.told_at(found(&["a", "b"]), start).is_empty());
        assert!(lone.told_at(found(&["a"]), start + PATIENCE / 2).is_empty());
        // The plugin of one came, and went.
        assert_eq!(lone.told_at(found(&["a", "b"]), start + PATIENCE), ["a"]);
        assert_eq!(lone.told_at(found(&["a", "b"]), start + 2 * PATIENCE), ["b"]);
        assert!(lone.told_at(found(&["a", "b"]), start + 9 * PATIENCE).is_empty());
    }
}
