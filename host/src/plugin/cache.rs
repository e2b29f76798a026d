//! What has been compiled, kept on disk: a directory that is ours alone, since
//! what is read from it runs as native code.

use super::private;
use super::program::Compiled;
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

/// Below the directory that the settings name, which may be one that others
/// can look into, such as a volume or what systemd has made.
const FOLDER: &str = "compiled";
const DIGEST_BYTES: usize = 32;
pub(super) const ARTIFACT_BYTES_MAX: u64 = 1 << 30;
/// What a writer that has died left half-written.
const NEW: &str = ".new-";
const NEW_AGE_MAX: Duration = Duration::from_secs(3600);

/// How much is kept, for the time being a little more: see [`Cache::put`].
struct Keep {
    /// Since it was last used.
    age: Duration,
    bytes: u64,
}

const KEEP: Keep = Keep { age: Duration::from_secs(30 * 86_400), bytes: 2 << 30 };

pub struct Cache {
    path: PathBuf,
    folder: OwnedFd,
    keep: Keep,
    /// What was put since this process last looked for what can go.
    bytes_since: AtomicU64,
}

/// Why a directory is not used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub struct CacheError {
    path: PathBuf,
    why: String,
}

/// What an artifact is found by: the component, and all that the compiler's
/// output depends on.
pub(super) struct Key([u8; DIGEST_BYTES]);

/// Wasmtime tells what its output depends on only as something to be hashed:
/// its settings, the features of this CPU and its full version. (What stands
/// in an artifact itself is just the major version, so that without this a
/// security fix would go on with code of the faulty compiler. A version of
/// ours in [`wasmtime::Config::module_version`] would take its place here.)
struct Fingerprint(Sha256);

impl Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// Nobody asks.
    fn finish(&self) -> u64 {
        0
    }
}

impl Key {
    pub(super) fn of(engine: &Engine, wasm: &[u8]) -> Self {
        let mut fingerprint = Fingerprint(Sha256::new());
        engine.precompile_compatibility_hash().hash(&mut fingerprint);
        let mut hash = fingerprint.0;
        hash.update(Sha256::digest(wasm));
        Self(hash.finalize().into())
    }

    fn name(&self) -> String {
        hex(&self.0)
    }

    /// Covers the key, so that an artifact under another's name is none.
    fn digest(&self, artifact: &[u8]) -> [u8; DIGEST_BYTES] {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(artifact);
        hash.finalize().into()
    }
}

/// Makes a component or a module of what the compiler has written. It is
/// copied, not mapped: a file that is mapped could still change after it was
/// verified, and a millisecond is saved by it at most.
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
    // Now, or the first message would wait for it.
    match &compiled {
        Compiled::Component(component) => component.initialize_copy_on_write_image()?,
        Compiled::Module(module) => module.initialize_copy_on_write_image()?,
    }
    Ok(compiled)
}

impl Cache {
    /// Makes the directory where it is missing.
    pub fn open(base: &Path) -> Result<Self, CacheError> {
        Self::open_and_keep(base, KEEP)
    }

    fn open_and_keep(base: &Path, keep: Keep) -> Result<Self, CacheError> {
        let path = base.join(FOLDER);
        let folder = private::open(&path).map_err(|why| CacheError { path: path.clone(), why })?;
        let cache = Self { path, folder, keep, bytes_since: AtomicU64::new(0) };
        cache.prune(SystemTime::now());
        Ok(cache)
    }

    /// The artifact, if it is there and just as it was put. What is not is
    /// removed.
    pub(super) fn get(&self, key: &Key) -> Option<Vec<u8>> {
        let name = key.name();
        match self.read(key, &name) {
            Ok(artifact) => Some(artifact),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                let file = self.path.join(&name);
                tracing::warn!(file = %file.display(), %error, "a compiled plugin in the cache is not used; it is compiled again");
                let _ = rustix::fs::unlinkat(&self.folder, &name, AtFlags::empty());
                None
            }
        }
    }

    fn read(&self, key: &Key, name: &str) -> io::Result<Vec<u8>> {
        let mut file = self.open_file(name)?;
        let metadata = file.metadata()?;
        if !is_ours(&metadata) {
            return Err(io::Error::other("it is no file of this user's alone"));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len().min(ARTIFACT_BYTES_MAX)).unwrap_or(0));
        (&mut file).take(ARTIFACT_BYTES_MAX + DIGEST_BYTES as u64).read_to_end(&mut bytes)?;
        let length = bytes.len().saturating_sub(DIGEST_BYTES);
        if bytes.get(length..) != Some(&key.digest(&bytes[..length])[..]) {
            return Err(io::Error::other("its digest is wrong"));
        }
        bytes.truncate(length);
        // The time of its last use, for who prunes.
        let _ = file.set_modified(SystemTime::now());
        Ok(bytes)
    }

    fn open_file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.folder, name, flags, Mode::empty())?.into())
    }

    /// Whole or not at all, also after a crash. The folder is looked through
    /// once in a while: each time it would cost time and memory for all that is
    /// kept.
    pub(super) fn put(&self, key: &Key, artifact: &[u8]) {
        // Workers in containers that share it may have the same process id.
        let new = format!("{NEW}{}", Uuid::new_v4());
        if let Err(error) = self.write(&new, key, artifact) {
            let _ = rustix::fs::unlinkat(&self.folder, &new, AtFlags::empty());
            tracing::warn!(folder = %self.path.display(), %error, "a compiled plugin can't be kept; the next start compiles it again");
        }
        let bytes = (artifact.len() + DIGEST_BYTES) as u64;
        if self.bytes_since.fetch_add(bytes, Ordering::Relaxed) + bytes > self.keep.bytes / 16 {
            self.prune(SystemTime::now());
        }
    }

    fn write(&self, new: &str, key: &Key, artifact: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&self.folder, new, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(artifact)?;
        file.write_all(&key.digest(artifact))?;
        file.sync_all()?;
        rustix::fs::renameat(&self.folder, new, &self.folder, key.name())?;
        Ok(())
    }

    /// Removes what has not been used for long, and then what was used least
    /// lately until the rest is small enough.
    fn prune(&self, now: SystemTime) {
        self.bytes_since.store(0, Ordering::Relaxed);
        let mut files: Vec<(String, Metadata)> = self.files();
        let remove = |name: &str| {
            let _ = rustix::fs::unlinkat(&self.folder, name, AtFlags::empty());
        };
        files.retain(|(name, metadata)| {
            let age = metadata.modified().ok().and_then(|used| now.duration_since(used).ok()).unwrap_or_default();
            let is_new = name.starts_with(NEW);
            let is_kept = age <= if is_new { NEW_AGE_MAX } else { self.keep.age };
            if !is_kept {
                remove(name);
            }
            is_kept && !is_new
        });
        files.sort_by_key(|(_, metadata)| std::cmp::Reverse(metadata.modified().ok()));
        let mut bytes = 0;
        for (name, metadata) in files {
            bytes += metadata.len();
            if bytes > self.keep.bytes {
                remove(&name);
            }
        }
    }

    /// Only what is named as ours is: nothing else is ever removed.
    fn files(&self) -> Vec<(String, Metadata)> {
        let Ok(entries) = Dir::read_from(&self.folder) else { return Vec::new() };
        let file = |entry: rustix::io::Result<rustix::fs::DirEntry>| {
            let name = entry.ok()?.file_name().to_str().ok()?.to_owned();
            let is_artifact = name.len() == 2 * DIGEST_BYTES && name.bytes().all(|byte| byte.is_ascii_hexdigit());
            let metadata = (is_artifact || name.starts_with(NEW)).then(|| self.open_file(&name)?.metadata())?.ok()?;
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
