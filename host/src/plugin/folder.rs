//! What lies in the plugins directory. Looks and reads, judges nothing.

use super::beneath::{Beneath, open_to_others};
use super::load_error::LoadError;
use crate::manifest::Manifest;
use crate::settings::FileCheck;
use crate::text::hex;
use crate::topic::Topic;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// A larger component is refused; a Python interpreter has 18 MiB.
const WASM_BYTES_MAX: u64 = 128 << 20;
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// What is beyond them, by name, is left alone.
const PLUGINS_MAX: usize = 1000;

pub struct Folder {
    path: PathBuf,
    check: FilePermissionPolicy,
    /// So that too many are told once, not at every scan.
    has_told: AtomicBool,
}

/// The directory itself can't be looked at.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct FolderError {
    path: PathBuf,
    source: io::Error,
}

/// What tells, without reading it, that a version has changed: that of the
/// component and that of its manifest together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp(FileStamp, Option<FileStamp>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    /// Changes with owner and mode too, and goes on where a copy in place sets
    /// the time of modification back.
    changed: (i64, i64),
}

/// One version as it was read: these bytes are hashed, checked and compiled.
pub(super) struct Source {
    pub(super) wasm: Arc<[u8]>,
    pub(super) manifest: Option<String>,
    pub(super) digest: String,
    /// What is not as it should be, and no reason to refuse it.
    pub(super) warnings: Vec<String>,
}

impl Folder {
    pub fn new(path: impl Into<PathBuf>, check: FilePermissionPolicy) -> Self {
        Self { path: path.into(), check, has_told: AtomicBool::new(false) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every `<stem>.wasm`, by stem, also what can't be looked at now.
    pub(super) fn scan(&self) -> Result<BTreeMap<String, io::Result<Stamp>>, FolderError> {
        let (stems, beyond) = self.names()?;
        if let Some(first) = beyond.first().filter(|_| !self.has_told.swap(true, Ordering::Relaxed)) {
            let found = stems.len() + beyond.len();
            tracing::error!(
                found,
                at_most = PLUGINS_MAX,
                first,
                "too many plugins: those from the first on are not loaded"
            );
        }
        let beneath = Beneath::open(&self.path).map_err(|source| FolderError { path: self.path.clone(), source })?;
        let found = stems.into_iter().map(|stem| (stem.clone(), stamp(&beneath, &stem)));
        let is_gone =
            |stamp: &io::Result<Stamp>| stamp.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        Ok(found.filter(|(_, stamp)| !is_gone(stamp)).collect())
    }

    /// The stems in order, and those beyond what is taken. Names that begin with
    /// a dot are skipped; the directory is not searched in depth.
    pub fn names(&self) -> Result<(Vec<String>, Vec<String>), FolderError> {
        let error = |source| FolderError { path: self.path.clone(), source };
        let mut stems = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(error)? {
            let name = entry.map_err(error)?.file_name();
            let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".wasm")) else { continue };
            if !stem.is_empty() && !stem.starts_with('.') {
                stems.push(stem.to_owned());
            }
        }
        stems.sort_unstable();
        let beyond = stems.split_off(stems.len().min(PLUGINS_MAX));
        Ok((stems, beyond))
    }

    pub(super) fn stamp(&self, stem: &str) -> io::Result<Stamp> {
        stamp(&Beneath::open(&self.path)?, stem)
    }

    /// Reads a version. An error says what is wrong in words.
    pub(super) fn read(&self, stem: &str) -> Result<Source, LoadError> {
        let told =
            |what: &str, error: io::Error| LoadError::of_io(&format!("{stem}.{what} can't be read: {error}"), &error);
        let of_folder = |error: io::Error| LoadError::of_io(&format!("{}: {error}", self.path.display()), &error);
        let beneath = Beneath::open(&self.path).map_err(of_folder)?;
        let before = stamp(&beneath, stem).map_err(|error| told("wasm", error))?;
        let wasm = beneath.read(&format!("{stem}.wasm"), WASM_BYTES_MAX).map_err(|error| told("wasm", error))?;
        let manifest = match beneath.read(&format!("{stem}.toml"), MANIFEST_BYTES_MAX) {
            Ok(read) => Some(read),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(told("toml", error)),
        };
        if stamp(&beneath, stem).ok() != Some(before) {
            return Err(LoadError::passing(&format!("{stem} changed while it was read")));
        }
        let mut warnings = Vec::new();
        let folder = beneath.folder().metadata().map_err(of_folder)?;
        let files = [Some((self.path.display().to_string(), &folder)), Some((format!("{stem}.wasm"), &wasm.1))];
        let of_manifest = manifest.as_ref().map(|(_, metadata)| (format!("{stem}.toml"), metadata));
        for (name, metadata) in files.into_iter().chain([of_manifest]).flatten() {
            match (self.check, open_to_others(metadata)) {
                (FilePermissionPolicy::Ignore, _) | (_, None) => {}
                (FilePermissionPolicy::Warn, Some(why)) => warnings.push(format!("{name}: {why}")),
                (FilePermissionPolicy::Enforce, Some(why)) => {
                    let told = format!("{name} is not to be trusted (plugins.file_permissions): {why}");
                    return Err(LoadError::lasting(&told));
                }
            }
        }
        let manifest = manifest.map(|(bytes, _)| String::from_utf8(bytes)).transpose();
        let manifest = manifest.map_err(|_| LoadError::lasting(&format!("{stem}.toml is not UTF-8")))?;
        Ok(Source::new(wasm.0.into(), manifest, warnings))
    }
}

/// Of what a link leads to, except where that is not in the directory.
fn stamp(beneath: &Beneath, stem: &str) -> io::Result<Stamp> {
    let of = |extension: &str| {
        let name = format!("{stem}.{extension}");
        let metadata = match beneath.look(&name) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                fs::symlink_metadata(beneath.path().join(name))
            }
            found => found?.metadata(),
        };
        metadata.map(|metadata| FileStamp::of(&metadata))
    };
    let wasm = of("wasm")?;
    match of("toml") {
        Ok(manifest) => Ok(Stamp(wasm, Some(manifest))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Stamp(wasm, None)),
        Err(error) => Err(error),
    }
}

impl Source {
    /// The digest is over both, each with where it ends.
    pub(super) fn new(wasm: Arc<[u8]>, manifest: Option<String>, warnings: Vec<String>) -> Self {
        let mut hash = Sha256::new();
        hash.update((wasm.len() as u64).to_le_bytes());
        hash.update(&wasm);
        hash.update(manifest.as_deref().unwrap_or_default());
        let digest = hex(&hash.finalize());
        Self { wasm, manifest, digest, warnings }
    }

    /// What its manifest says, or what applies without one; else all that is
    /// wrong.
    pub(super) fn manifest(&self, name: &str) -> Result<Manifest, Vec<String>> {
        match &self.manifest {
            Some(text) => Manifest::parse(text, name)
                .map_err(|error| error.0.iter().map(|fault| format!("{name}.toml: {fault}")).collect()),
            None => Topic::from_file_name(name)
                .map(Manifest::default_for)
                .map_err(|error| vec![format!("{error}; name the file <topic>.wasm, or the topics in {name}.toml")]),
        }
    }
}

impl Stamp {
    pub(super) fn has_manifest(&self) -> bool {
        self.1.is_some()
    }

    /// Whether both files were last written at least `age` before `now`.
    pub(super) fn is_older_than(&self, age: Duration, now: SystemTime) -> bool {
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let is_old = |file: &FileStamp| {
            u64::try_from(file.modified.0).is_ok_and(|seconds| Duration::from_secs(seconds + 1) + age <= since_epoch)
        };
        is_old(&self.0) && self.1.as_ref().is_none_or(is_old)
    }
}

impl FileStamp {
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
    fn what_begins_with_a_dot_is_no_plugin() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".a.wasm", "..b.wasm", ".wasm", "c.wasm", "d.toml", "e.wasm.new"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::create_dir(folder.path().join("f")).unwrap();
        fs::write(folder.path().join("f/g.wasm"), "").unwrap();
        let found = Folder::new(folder.path(), FilePermissionPolicy::Ignore).names().unwrap();
        assert_eq!(found, (vec!["c".to_owned()], Vec::new()));
    }

    #[test]
    fn a_version_is_as_old_as_the_younger_of_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let (minute, second) = (Duration::from_secs(60), Duration::from_secs(1));
        let write = |name: &str, age: Duration| {
            let path = folder.path().join(name);
            fs::write(&path, "").unwrap();
            fs::File::open(path).unwrap().set_modified(now - age).unwrap();
        };
        let is_older = |age: Duration| {
            let stamp = Folder::new(folder.path(), FilePermissionPolicy::Ignore).stamp("a").unwrap();
            stamp.is_older_than(age, now)
        };
        write("a.wasm", minute);
        assert!(is_older(minute - 2 * second) && !is_older(minute + second));
        write("a.toml", 10 * second);
        assert!(is_older(8 * second) && !is_older(11 * second));
        // A clock that was wrong says nothing.
        fs::File::open(folder.path().join("a.toml")).unwrap().set_modified(now + minute).unwrap();
        assert!(!is_older(Duration::ZERO));
    }
}
