//! What lies in the plugins directory. Looks and reads, judges nothing.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A larger component is refused; a Python interpreter has 18 MiB.
const WASM_BYTES_MAX: u64 = 128 << 20;
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

pub struct Folder(PathBuf);

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
}

/// One version as it was read: these bytes are hashed, checked and compiled.
pub(super) struct Source {
    pub(super) wasm: Arc<[u8]>,
    pub(super) manifest: Option<String>,
    pub(super) digest: String,
}

impl Folder {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Every `<stem>.wasm`, by stem. Names that begin with a dot are skipped;
    /// the directory is not searched in depth.
    pub(super) fn scan(&self) -> Result<BTreeMap<String, Stamp>, FolderError> {
        let error = |source| FolderError { path: self.0.clone(), source };
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.0).map_err(error)? {
            let name = entry.map_err(error)?.file_name();
            let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".wasm")) else { continue };
            if stem.is_empty() || stem.starts_with('.') {
                continue;
            }
            if let Ok(stamp) = self.stamp(stem) {
                found.insert(stem.to_owned(), stamp);
            }
        }
        Ok(found)
    }

    fn stamp(&self, stem: &str) -> io::Result<Stamp> {
        let wasm = FileStamp::of(&fs::metadata(self.file(stem, "wasm"))?);
        let manifest = fs::metadata(self.file(stem, "toml")).ok();
        Ok(Stamp(wasm, manifest.as_ref().map(FileStamp::of)))
    }

    /// Reads a version. An error says what is wrong in words.
    pub(super) fn read(&self, stem: &str) -> Result<Source, String> {
        let told = |what: &str, error: io::Error| format!("{stem}.{what} can't be read: {error}");
        let before = self.stamp(stem).map_err(|error| told("wasm", error))?;
        let wasm = self.read_beneath(stem, "wasm", WASM_BYTES_MAX).map_err(|error| told("wasm", error))?;
        let manifest = match self.read_beneath(stem, "toml", MANIFEST_BYTES_MAX) {
            Ok(bytes) => Some(String::from_utf8(bytes).map_err(|_| format!("{stem}.toml is not UTF-8"))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(told("toml", error)),
        };
        if self.stamp(stem).ok() != Some(before) {
            return Err(format!("{stem} changed while it was read"));
        }
        let mut hash = Sha256::new();
        hash.update((wasm.len() as u64).to_le_bytes());
        hash.update(&wasm);
        hash.update(manifest.as_deref().unwrap_or_default());
        let digest = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Source { wasm: wasm.into(), manifest, digest })
    }

    /// Links may lead around within the directory, as Kubernetes makes them,
    /// and not out of it; devices and pipes are no files.
    fn read_beneath(&self, stem: &str, extension: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
        let path = self.file(stem, extension).canonicalize()?;
        if !path.starts_with(self.0.canonicalize()?) {
            return Err(io::Error::other("it is a link out of the plugins directory"));
        }
        let metadata = fs::metadata(&path)?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        if metadata.len() > bytes_max {
            return Err(io::Error::other(format!("it has {} bytes, at most {bytes_max} are taken", metadata.len())));
        }
        fs::read(path)
    }

    fn file(&self, stem: &str, extension: &str) -> PathBuf {
        self.0.join(format!("{stem}.{extension}"))
    }
}

impl Stamp {
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
        }
    }
}
