//! Scans and reads the plugins directory. What to do with the files is decided
//! elsewhere.

use super::contained_dir::{ContainedDir, open_to_others};
use super::load_error::LoadError;
use crate::events;
use crate::manifest::{Manifest, topic_from_stem};
use crate::settings::FilePermissionPolicy;
use crate::text::hex;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// Larger components are refused. A Python interpreter has 18 MiB.
const WASM_BYTES_MAX: u64 = 128 << 20;
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Of more plugins, the last by name are ignored.
const PLUGINS_MAX: usize = 1000;

pub struct PluginDir {
    path: PathBuf,
    check: FilePermissionPolicy,
    /// Too many plugins are logged once, not at every scan.
    has_warned: AtomicBool,
}

/// The directory itself can't be read.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct PluginDirError {
    path: PathBuf,
    source: io::Error,
}

/// File metadata of a component and its manifest. It differs if either file
/// has changed, so that unchanged files need not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fingerprint(FileFingerprint, Option<FileFingerprint>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct FileFingerprint {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    /// Also changes with owner and mode, and when a copy in place sets the time
    /// of modification back.
    changed: (i64, i64),
}

/// The files of one version, read once: the same bytes are hashed, checked and
/// compiled.
pub(super) struct PluginFiles {
    pub(super) wasm: Arc<[u8]>,
    pub(super) manifest: Option<String>,
    pub(super) digest: String,
    /// Problems that are no reason to refuse it.
    pub(super) warnings: Vec<String>,
}

impl PluginDirError {
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

impl PluginDir {
    pub fn new(path: impl Into<PathBuf>, check: FilePermissionPolicy) -> Self {
        Self { path: path.into(), check, has_warned: AtomicBool::new(false) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every `<stem>.wasm`, by stem, with its fingerprint or why it has none.
    pub(super) fn scan(&self) -> Result<BTreeMap<String, io::Result<Fingerprint>>, PluginDirError> {
        let (stems, ignored) = self.names()?;
        if let Some(first) = ignored.first().filter(|_| !self.has_warned.swap(true, Ordering::Relaxed)) {
            let found = stems.len() + ignored.len();
            tracing::error!(found, at_most = PLUGINS_MAX, first, "{}", events::TOO_MANY_PLUGINS);
        }
        let contained =
            ContainedDir::open(&self.path).map_err(|source| PluginDirError { path: self.path.clone(), source })?;
        let found = stems.into_iter().map(|stem| (stem.clone(), fingerprint(&contained, &stem)));
        let is_gone = |found: &io::Result<Fingerprint>| {
            found.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        Ok(found.filter(|(_, fingerprint)| !is_gone(fingerprint)).collect())
    }

    /// The stems in order, and those that are ignored because there are too many.
    /// Names that begin with a dot and subdirectories are skipped.
    pub fn names(&self) -> Result<(Vec<String>, Vec<String>), PluginDirError> {
        let error = |source| PluginDirError { path: self.path.clone(), source };
        let mut stems = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(error)? {
            let name = entry.map_err(error)?.file_name();
            let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".wasm")) else { continue };
            if !stem.is_empty() && !stem.starts_with('.') {
                stems.push(stem.to_owned());
            }
        }
        stems.sort_unstable();
        let ignored = stems.split_off(stems.len().min(PLUGINS_MAX));
        Ok((stems, ignored))
    }

    pub(super) fn fingerprint(&self, stem: &str) -> io::Result<Fingerprint> {
        fingerprint(&ContainedDir::open(&self.path)?, stem)
    }

    pub(super) fn read(&self, stem: &str) -> Result<PluginFiles, LoadError> {
        let unreadable =
            |what: &str, error: io::Error| LoadError::from_io(&format!("{stem}.{what} can't be read: {error}"), &error);
        let of_directory = |error: io::Error| LoadError::from_io(&format!("{}: {error}", self.path.display()), &error);
        let contained = ContainedDir::open(&self.path).map_err(of_directory)?;
        let before = fingerprint(&contained, stem).map_err(|error| unreadable("wasm", error))?;
        let wasm =
            contained.read(&format!("{stem}.wasm"), WASM_BYTES_MAX).map_err(|error| unreadable("wasm", error))?;
        let manifest = match contained.read(&format!("{stem}.toml"), MANIFEST_BYTES_MAX) {
            Ok(read) => Some(read),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(unreadable("toml", error)),
        };
        if fingerprint(&contained, stem).ok() != Some(before) {
            return Err(LoadError::transient(&format!("{stem} changed while it was read")));
        }
        let mut warnings = Vec::new();
        let directory = contained.directory().metadata().map_err(of_directory)?;
        let files = [Some((self.path.display().to_string(), &directory)), Some((format!("{stem}.wasm"), &wasm.1))];
        let of_manifest = manifest.as_ref().map(|(_, metadata)| (format!("{stem}.toml"), metadata));
        for (name, metadata) in files.into_iter().chain([of_manifest]).flatten() {
            match (self.check, open_to_others(metadata)) {
                (FilePermissionPolicy::Ignore, _) | (_, None) => {}
                (FilePermissionPolicy::Warn, Some(why)) => warnings.push(format!("{name}: {why}")),
                (FilePermissionPolicy::Enforce, Some(why)) => {
                    let message = format!("{name} can't be trusted (plugins.file_permissions): {why}");
                    return Err(LoadError::permanent(&message));
                }
            }
        }
        let manifest = manifest.map(|(bytes, _)| String::from_utf8(bytes)).transpose();
        let manifest = manifest.map_err(|_| LoadError::permanent(&format!("{stem}.toml is not UTF-8")))?;
        Ok(PluginFiles::new(wasm.0.into(), manifest, warnings))
    }
}

/// The fingerprint of a link's target, or of the link itself if its target is
/// outside of the directory.
fn fingerprint(contained: &ContainedDir, stem: &str) -> io::Result<Fingerprint> {
    let of = |extension: &str| {
        let name = format!("{stem}.{extension}");
        let metadata = match contained.open_path(&name) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                fs::symlink_metadata(contained.path().join(name))
            }
            found => found?.metadata(),
        };
        metadata.map(|metadata| FileFingerprint::of(&metadata))
    };
    let wasm = of("wasm")?;
    match of("toml") {
        Ok(manifest) => Ok(Fingerprint(wasm, Some(manifest))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Fingerprint(wasm, None)),
        Err(error) => Err(error),
    }
}

impl PluginFiles {
    /// The digest covers both files. The length comes first, so that no bytes can
    /// move from one to the other.
    pub(super) fn new(wasm: Arc<[u8]>, manifest: Option<String>, warnings: Vec<String>) -> Self {
        let mut hash = Sha256::new();
        hash.update((wasm.len() as u64).to_le_bytes());
        hash.update(&wasm);
        hash.update(manifest.as_deref().unwrap_or_default());
        let digest = hex(&hash.finalize());
        Self { wasm, manifest, digest, warnings }
    }

    /// The parsed manifest, or the default for a file without one; else every
    /// fault.
    pub(super) fn manifest(&self, name: &str) -> Result<Manifest, Vec<String>> {
        match &self.manifest {
            Some(text) => Manifest::parse(text, name)
                .map_err(|error| error.0.iter().map(|fault| format!("{name}.toml: {fault}")).collect()),
            None => topic_from_stem(name)
                .map(Manifest::default_for)
                .map_err(|error| vec![format!("{error}: name the topic in {name}.toml")]),
        }
    }
}

impl Fingerprint {
    pub(super) fn has_manifest(&self) -> bool {
        self.1.is_some()
    }

    /// Whether both files were last written at least `age` before `now`.
    pub(super) fn is_older_than(&self, age: Duration, now: SystemTime) -> bool {
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let is_old = |file: &FileFingerprint| {
            u64::try_from(file.modified.0).is_ok_and(|seconds| Duration::from_secs(seconds + 1) + age <= since_epoch)
        };
        is_old(&self.0) && self.1.as_ref().is_none_or(is_old)
    }
}

impl FileFingerprint {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_begin_with_a_dot_and_subdirectories_are_skipped() {
        let directory = tempfile::tempdir().unwrap();
        for name in [".a.wasm", "..b.wasm", ".wasm", "c.wasm", "d.toml", "e.wasm.new"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        fs::create_dir(directory.path().join("f")).unwrap();
        fs::write(directory.path().join("f/g.wasm"), "").unwrap();
        let found = PluginDir::new(directory.path(), FilePermissionPolicy::Ignore).names().unwrap();
        assert_eq!(found, (vec!["c".to_owned()], Vec::new()));
    }

    #[test]
    fn a_version_is_as_old_as_the_newer_of_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let (minute, second) = (Duration::from_secs(60), Duration::from_secs(1));
        let write = |name: &str, age: Duration| {
            let path = directory.path().join(name);
            fs::write(&path, "").unwrap();
            fs::File::open(path).unwrap().set_modified(now - age).unwrap();
        };
        let is_older = |age: Duration| {
            let fingerprint = PluginDir::new(directory.path(), FilePermissionPolicy::Ignore).fingerprint("a").unwrap();
            fingerprint.is_older_than(age, now)
        };
        write("a.wasm", minute);
        assert!(is_older(minute - 2 * second) && !is_older(minute + second));
        write("a.toml", 10 * second);
        assert!(is_older(8 * second) && !is_older(11 * second));
        // A time in the future is no proof of age.
        fs::File::open(directory.path().join("a.toml")).unwrap().set_modified(now + minute).unwrap();
        assert!(!is_older(Duration::ZERO));
    }
}
