//! Stores compiled plugins on disk. The directory must be private to this user,
//! because its files run as native code.

use super::private_dir;
use super::program::Compiled;
use crate::events;
use crate::text::hex;
use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::process::geteuid;
use sha2::{Digest, Sha256};
use std::fs::{File, Metadata};
use std::hash::{Hash, Hasher};
use std::io::{self, ErrorKind, Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use uuid::Uuid;
use wasmtime::component::Component;
use wasmtime::{Engine, Module, Precompiled};

/// A subdirectory, because others may be able to read the configured directory,
/// such as a volume or one that systemd made.
const SUBDIRECTORY: &str = "compiled";
const DIGEST_BYTES: usize = 32;
pub(super) const ARTIFACT_BYTES_MAX: u64 = 1 << 30;
/// The prefix of files that are still being written.
const TEMPORARY: &str = ".new-";
const TEMPORARY_AGE_MAX: Duration = Duration::from_secs(3600);

/// The limits that pruning enforces. Between two prunings the cache may exceed them, see
/// [`Cache::put`].
struct Retention {
    /// Since the last use.
    age: Duration,
    bytes: u64,
}

const RETENTION: Retention = Retention { age: Duration::from_secs(30 * 86_400), bytes: 2 << 30 };

pub struct Cache {
    path: PathBuf,
    directory: OwnedFd,
    retention: Retention,
    /// Bytes that this process has added since it last pruned.
    bytes_since: AtomicU64,
}

/// Why a directory can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub struct CacheError {
    path: PathBuf,
    why: String,
}

/// Identifies an artifact: a hash of the component and of everything else that
/// the compiler's output depends on.
pub(super) struct Key([u8; DIGEST_BYTES]);

/// Collects what Wasmtime's output depends on: its settings, the CPU features and
/// its full version. Wasmtime exposes them only through [`Hash`]. (An artifact
/// names only the major version, so without this hash code from a faulty compiler
/// would survive a security fix. A custom
/// [`wasmtime::Config::module_version`] would replace the version here.)
struct CompatibilityHasher(Sha256);

impl Hasher for CompatibilityHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// Unused: the SHA-256 is taken instead.
    fn finish(&self) -> u64 {
        0
    }
}

impl Key {
    pub(super) fn new(engine: &Engine, wasm: &[u8]) -> Self {
        let mut hasher = CompatibilityHasher(Sha256::new());
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let mut hash = hasher.0;
        hash.update(Sha256::digest(wasm));
        Self(hash.finalize().into())
    }

    fn name(&self) -> String {
        hex(&self.0)
    }

    /// Covers the key, so that a renamed artifact is invalid.
    fn digest(&self, artifact: &[u8]) -> [u8; DIGEST_BYTES] {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(artifact);
        hash.finalize().into()
    }
}

/// Loads an artifact. Its bytes are copied, because a memory-mapped file could
/// change after it was verified, and mapping saves a millisecond at most.
#[allow(unsafe_code, reason = "Wasmtime can't check machine code: it must come from our own compiler, see below")]
pub(super) fn compiled(engine: &Engine, artifact: &[u8]) -> wasmtime::Result<Compiled> {
    // SAFETY: every artifact is the output of our own program's compiler,
    // taken from its pipe or from a file that only this user can write (see
    // `Cache::open` and `is_ours`) and whose digest has just been compared
    // over these same bytes. Nothing else is ever handed in: native code from
    // the plugins directory is refused by its first bytes.
    let compiled = unsafe {
        match Engine::detect_precompiled(artifact) {
            Some(Precompiled::Module) => Compiled::Module(Module::deserialize(engine, artifact)?),
            _ => Compiled::Component(Component::deserialize(engine, artifact)?),
        }
    };
    // Otherwise the first message would wait for it.
    match &compiled {
        Compiled::Component(component) => component.initialize_copy_on_write_image()?,
        Compiled::Module(module) => module.initialize_copy_on_write_image()?,
    }
    Ok(compiled)
}

impl Cache {
    /// Creates the directory if it is missing.
    pub fn open(base: &Path) -> Result<Self, CacheError> {
        Self::open_with(base, RETENTION)
    }

    fn open_with(base: &Path, retention: Retention) -> Result<Self, CacheError> {
        let path = base.join(SUBDIRECTORY);
        let directory = private_dir::open(&path).map_err(|why| CacheError { path: path.clone(), why })?;
        let cache = Self { path, directory, retention, bytes_since: AtomicU64::new(0) };
        cache.prune(SystemTime::now());
        Ok(cache)
    }

    /// The artifact, if it is stored and intact. A damaged one is removed.
    pub(super) fn get(&self, key: &Key) -> Option<Vec<u8>> {
        let name = key.name();
        match self.read(key, &name) {
            Ok(artifact) => Some(artifact),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                let file = self.path.join(&name);
                tracing::warn!(file = %file.display(), %error, "{}", events::ARTIFACT_DISCARDED);
                let _ = rustix::fs::unlinkat(&self.directory, &name, AtFlags::empty());
                None
            }
        }
    }

    fn read(&self, key: &Key, name: &str) -> io::Result<Vec<u8>> {
        let mut file = self.open_file(name)?;
        let metadata = file.metadata()?;
        if !is_ours(&metadata) {
            return Err(io::Error::other("it is not a regular file that only this user can write"));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len().min(ARTIFACT_BYTES_MAX)).unwrap_or(0));
        (&mut file).take(ARTIFACT_BYTES_MAX + DIGEST_BYTES as u64).read_to_end(&mut bytes)?;
        let length = bytes.len().saturating_sub(DIGEST_BYTES);
        if bytes.get(length..) != Some(&key.digest(&bytes[..length])[..]) {
            return Err(io::Error::other("its digest does not match"));
        }
        bytes.truncate(length);
        // Records the last use, for pruning.
        let _ = file.set_modified(SystemTime::now());
        Ok(bytes)
    }

    fn open_file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.directory, name, flags, Mode::empty())?.into())
    }

    /// Written atomically. Prunes only now and then, because that lists the whole
    /// directory.
    pub(super) fn put(&self, key: &Key, artifact: &[u8]) {
        // Not by process id: workers in containers may share both id and cache.
        let temporary = format!("{TEMPORARY}{}", Uuid::new_v4());
        if let Err(error) = self.write(&temporary, key, artifact) {
            let _ = rustix::fs::unlinkat(&self.directory, &temporary, AtFlags::empty());
            tracing::warn!(directory = %self.path.display(), %error, "a compiled plugin can't be cached; the next start compiles it again");
        }
        let bytes = (artifact.len() + DIGEST_BYTES) as u64;
        if self.bytes_since.fetch_add(bytes, Ordering::Relaxed) + bytes > self.retention.bytes / 16 {
            self.prune(SystemTime::now());
        }
    }

    fn write(&self, temporary: &str, key: &Key, artifact: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&self.directory, temporary, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(artifact)?;
        file.write_all(&key.digest(artifact))?;
        file.sync_all()?;
        rustix::fs::renameat(&self.directory, temporary, &self.directory, key.name())?;
        Ok(())
    }

    /// Removes artifacts that were not used for long, and then the least recently
    /// used until the size limit is met.
    fn prune(&self, now: SystemTime) {
        self.bytes_since.store(0, Ordering::Relaxed);
        let mut files: Vec<(String, Metadata)> = self.files();
        let remove = |name: &str| {
            let _ = rustix::fs::unlinkat(&self.directory, name, AtFlags::empty());
        };
        files.retain(|(name, metadata)| {
            let age = metadata.modified().ok().and_then(|used| now.duration_since(used).ok()).unwrap_or_default();
            let is_temporary = name.starts_with(TEMPORARY);
            let is_recent = age <= if is_temporary { TEMPORARY_AGE_MAX } else { self.retention.age };
            if !is_recent {
                remove(name);
            }
            is_recent && !is_temporary
        });
        files.sort_by_key(|(_, metadata)| std::cmp::Reverse(metadata.modified().ok()));
        let mut bytes = 0;
        for (name, metadata) in files {
            bytes += metadata.len();
            if bytes > self.retention.bytes {
                remove(&name);
            }
        }
    }

    /// Only files with a name that this cache gives, so that pruning never removes
    /// others.
    fn files(&self) -> Vec<(String, Metadata)> {
        let Ok(entries) = Dir::read_from(&self.directory) else { return Vec::new() };
        let file = |entry: rustix::io::Result<rustix::fs::DirEntry>| {
            let name = entry.ok()?.file_name().to_str().ok()?.to_owned();
            let is_artifact = name.len() == 2 * DIGEST_BYTES && name.bytes().all(|byte| byte.is_ascii_hexdigit());
            let metadata =
                (is_artifact || name.starts_with(TEMPORARY)).then(|| self.open_file(&name)?.metadata())?.ok()?;
            Some((name, metadata))
        };
        entries.filter_map(file).collect()
    }
}

fn is_ours(metadata: &Metadata) -> bool {
    metadata.is_file() && metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o022 == 0
}

#[cfg(test)]
mod tests;
