//! Stores plugin versions on disk, so that after a restart the last good one
//! runs even if the plugins directory has a broken one. Each version is one file,
//! named by the digest of its contents and verified when it is read.

use super::load_error::LoadError;
use super::plugin_dir::PluginFiles;
use super::private_dir;
use super::version::BlockReason;
use crate::events;
use crate::text::hex;
use crate::topic::Topic;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use uuid::Uuid;

/// Unreferenced files are deleted at this age. Until then another worker may be
/// about to reference them.
const UNREFERENCED_MIN_AGE: Duration = Duration::from_secs(600);

const RECORD: &str = "record.json";

/// The state of a plugin name that survives a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) live: Option<String>,
    /// Whether the live version had passed its probation.
    pub(super) is_proven: bool,
    pub(super) previous: Option<String>,
    pub(super) blocked: Vec<(String, BlockReason)>,
    pub(super) topics: BTreeSet<Topic>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct StoredRecord {
    live: Option<String>,
    #[serde(default)]
    is_proven: bool,
    previous: Option<String>,
    blocked: Vec<(String, BlockReason)>,
    topics: Vec<String>,
}

/// Without a directory it stores nothing.
pub struct VersionStore(Option<PathBuf>);

impl VersionStore {
    pub fn disabled() -> Self {
        Self(None)
    }

    /// Uses a directory inside the cache, one for each plugins directory. If other
    /// users could write it, nothing is stored.
    pub fn open(cache: Option<&Path>, plugins: &Path) -> Self {
        let Some(cache) = cache else { return Self(None) };
        let plugins = std::path::absolute(plugins).unwrap_or_else(|_| plugins.to_owned());
        let id = hex(&Sha256::digest(plugins.as_os_str().as_encoded_bytes()));
        let directory = cache.join("versions").join(&id[..16]);
        match private_dir::open(&directory) {
            Ok(_) => Self(Some(directory)),
            Err(error) => {
                tracing::warn!(directory = %directory.display(), %error, "{}", events::VERSIONS_NOT_STORED);
                Self(None)
            }
        }
    }

    /// All records. Unreadable ones are skipped.
    pub(super) fn records(&self) -> BTreeMap<String, Record> {
        let Some(directory) = &self.0 else { return BTreeMap::new() };
        let Ok(entries) = fs::read_dir(directory) else { return BTreeMap::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let read = |name: String| match read_record(&directory.join(&name).join(RECORD)) {
            Ok(record) => {
                // Files that were too new when the record was written.
                let _ = prune(&directory.join(&name), &record);
                Some((name, record))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let _ = prune(&directory.join(name), &Record::default());
                None
            }
            Err(error) => {
                tracing::warn!(plugin = name, %error, "the stored state of this plugin can't be read and is ignored");
                None
            }
        };
        names.filter_map(read).collect()
    }

    /// Saves a version that could be loaded.
    pub(super) fn save(&self, name: &str, files: &PluginFiles) -> io::Result<()> {
        let Some(directory) = &self.0 else { return Ok(()) };
        let directory = directory.join(name);
        private_dir::open(&directory).map_err(io::Error::other)?;
        let path = directory.join(&files.digest);
        if path.exists() {
            // Made new again, so that it is not pruned before a record references it.
            return File::options().append(true).open(&path)?.set_modified(SystemTime::now());
        }
        let length = (files.wasm.len() as u64).to_le_bytes();
        write_atomically(&path, &[&length, &files.wasm, files.manifest.as_deref().unwrap_or_default().as_bytes()])
    }

    /// Reads a stored version and verifies its digest.
    pub(super) fn read(&self, name: &str, digest: &str) -> Result<PluginFiles, LoadError> {
        let none =
            || LoadError::permanent(&format!("version {} of {name} is not stored", digest.get(..12).unwrap_or(digest)));
        let path = self.0.as_ref().ok_or_else(none)?.join(name).join(digest);
        let bytes = fs::read(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => none(),
            _ => LoadError::from_io(&format!("{}: {error}", path.display()), &error),
        })?;
        let broken = || LoadError::permanent(&format!("{}: its contents do not match its digest", path.display()));
        let (length, contents) = bytes.split_first_chunk().ok_or_else(broken)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| broken())?;
        let (wasm, manifest) = contents.split_at_checked(length).ok_or_else(broken)?;
        let manifest = String::from_utf8(manifest.to_vec()).map_err(|_| broken())?;
        let files = PluginFiles::new(wasm.into(), Some(manifest).filter(|text| !text.is_empty()), Vec::new());
        if files.digest == digest { Ok(files) } else { Err(broken()) }
    }

    /// Writes the record of a name, where this worker last wrote `before`, and
    /// deletes versions that can't be restored any more.
    pub(super) fn write_record(&self, name: &str, record: &Record, before: Option<&Record>) -> io::Result<()> {
        let Some(directory) = &self.0 else { return Ok(()) };
        let directory = directory.join(name);
        let others = blocked_by_others(&directory, record, before);
        if *record == Record::default() && others.is_empty() {
            allow_missing(fs::remove_file(directory.join(RECORD)))?;
            return prune(&directory, record);
        }
        private_dir::open(&directory).map_err(io::Error::other)?;
        let topics = record.topics.iter().map(Topic::to_string).collect();
        let Record { live, is_proven, previous, mut blocked, .. } = record.clone();
        blocked.splice(..0, others);
        let text = serde_json::to_vec(&StoredRecord { live, is_proven, previous, blocked, topics })?;
        write_atomically(&directory.join(RECORD), &[&text])?;
        prune(&directory, record)
    }
}

/// Versions in the stored record that this worker has never blocked: other
/// workers that share the store have.
fn blocked_by_others(directory: &Path, record: &Record, before: Option<&Record>) -> Vec<(String, BlockReason)> {
    let stored = read_record(&directory.join(RECORD)).map(|stored| stored.blocked).unwrap_or_default();
    let ours = [Some(record), before].into_iter().flatten().flat_map(|record| &record.blocked);
    let ours: BTreeSet<&String> = ours.map(|(digest, _)| digest).collect();
    stored.into_iter().filter(|(digest, _)| !ours.contains(digest)).collect()
}

/// Deletes old files that the record does not reference, and the directory if it
/// is empty then.
fn prune(directory: &Path, record: &Record) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let is_referenced =
            name == RECORD || [&record.live, &record.previous].into_iter().flatten().any(|digest| name == **digest);
        let is_old = |modified: SystemTime| modified.elapsed().is_ok_and(|age| age >= UNREFERENCED_MIN_AGE);
        // Another worker may have deleted it already.
        if !is_referenced && entry.metadata().and_then(|metadata| metadata.modified()).is_ok_and(is_old) {
            allow_missing(fs::remove_file(entry.path()))?;
        }
    }
    if *record == Record::default() {
        // Fails if newer files remain.
        let _ = fs::remove_dir(directory);
    }
    Ok(())
}

fn allow_missing(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read_record(path: &Path) -> io::Result<Record> {
    let StoredRecord { live, is_proven, previous, blocked, topics } = serde_json::from_slice(&fs::read(path)?)?;
    let is_digest = |digest: &String| digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    if ![&live, &previous].into_iter().flatten().all(is_digest) {
        return Err(io::Error::other("it contains an invalid digest"));
    }
    let topics = topics.iter().map(|topic| Topic::parse(topic)).collect::<Result<_, _>>().map_err(io::Error::other)?;
    Ok(Record { live, is_proven, previous, blocked, topics })
}

/// Writes all of the file or nothing, even if the power fails.
fn write_atomically(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    // Not the process id, which is 1 in every container.
    let new = path.with_extension(format!("{}.new", Uuid::new_v4()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    parts.iter().try_for_each(|part| file.write_all(part))?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn files(wasm: &[u8], manifest: Option<&str>) -> PluginFiles {
        PluginFiles::new(wasm.into(), manifest.map(ToOwned::to_owned), Vec::new())
    }

    /// Makes a stored version old.
    fn make_old(store: &VersionStore, name: &str, files: &PluginFiles) {
        let path = store.0.as_ref().unwrap().join(name).join(&files.digest);
        let long_ago = SystemTime::now() - UNREFERENCED_MIN_AGE;
        File::options().append(true).open(path).unwrap().set_modified(long_ago).unwrap();
    }

    fn record(live: &PluginFiles, previous: Option<&PluginFiles>) -> Record {
        let previous = previous.map(|files| files.digest.clone());
        Record { live: Some(live.digest.clone()), previous, ..Record::default() }
    }

    #[test]
    fn a_stored_version_is_verified_when_it_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("cache");
        let store = VersionStore::open(Some(&cache), Path::new("/plugins"));
        let (one, two) = (files(b"one", Some("config = {}")), files(b"two", None));
        for version in [&one, &two] {
            store.save("a", version).unwrap();
            let read = store.read("a", &version.digest).unwrap();
            assert_eq!((read.wasm, read.manifest), (version.wasm.clone(), version.manifest.clone()));
        }
        let path = store.0.as_ref().unwrap().join("a").join(&one.digest);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        let bytes = fs::read(&path).unwrap();
        for (position, _) in bytes.iter().enumerate() {
            let mut broken = bytes.clone();
            broken[position] ^= 1;
            fs::write(&path, broken).unwrap();
            assert!(store.read("a", &one.digest).is_err(), "byte {position}");
            fs::write(&path, &bytes[..position]).unwrap();
            assert!(store.read("a", &one.digest).is_err(), "cut at {position}");
        }
        // Another plugins directory has other versions.
        assert!(VersionStore::open(Some(&cache), Path::new("/others")).read("a", &two.digest).is_err());
    }

    #[test]
    fn versions_that_can_be_restored_survive_a_restart_and_others_are_pruned() {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("cache");
        let store = VersionStore::open(Some(&cache), Path::new("/plugins"));
        let versions = [files(b"one", None), files(b"two", None), files(b"three", None)];
        for version in &versions {
            store.save("a", version).unwrap();
            make_old(&store, "a", version);
        }
        let mut stored = record(&versions[2], Some(&versions[1]));
        stored.is_proven = true;
        stored.blocked.push((versions[0].digest.clone(), BlockReason::Quarantined));
        stored.topics.insert(Topic::parse("t").unwrap());
        store.write_record("a", &stored, None).unwrap();
        let again = VersionStore::open(Some(&cache), Path::new("/plugins"));
        assert_eq!(again.records(), BTreeMap::from([("a".to_owned(), stored)]));
        assert!(again.read("a", &versions[0].digest).is_err());
        assert!(again.read("a", &versions[1].digest).is_ok() && again.read("a", &versions[2].digest).is_ok());
        let known = again.records().remove("a");
        again.write_record("a", &Record::default(), known.as_ref()).unwrap();
        assert!(again.records().is_empty() && again.read("a", &versions[2].digest).is_err());
        assert_eq!(fs::read_dir(again.0.unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn new_files_are_not_pruned_before_another_worker_can_reference_them() {
        let directory = tempfile::tempdir().unwrap();
        let store = VersionStore::open(Some(directory.path()), Path::new("/plugins"));
        let versions = [files(b"one", None), files(b"two", None)];
        versions.iter().for_each(|version| store.save("a", version).unwrap());
        store.write_record("a", &record(&versions[0], None), None).unwrap();
        assert!(store.read("a", &versions[1].digest).is_ok());
        // Saving it again makes it new.
        make_old(&store, "a", &versions[1]);
        store.save("a", &versions[1]).unwrap();
        store.write_record("a", &record(&versions[0], None), None).unwrap();
        assert!(store.read("a", &versions[1].digest).is_ok());
        make_old(&store, "a", &versions[1]);
        store.records();
        assert!(store.read("a", &versions[1].digest).is_err());
    }

    /// Workers in containers share the process id 1, and may share a cache.
    #[test]
    fn workers_can_store_the_same_version_at_the_same_time() {
        let directory = tempfile::tempdir().unwrap();
        let version = files(&[7; 100_000], None);
        let worker = || {
            let store = VersionStore::open(Some(directory.path()), Path::new("/plugins"));
            for round in 0..50 {
                let name = format!("a-{round}");
                store.save(&name, &version).unwrap();
                store.write_record(&name, &record(&version, None), None).unwrap();
                assert!(store.read(&name, &version.digest).is_ok(), "{name}");
            }
        };
        std::thread::scope(|scope| {
            (0..4).for_each(|_| drop(scope.spawn(worker)));
        });
        let store = VersionStore::open(Some(directory.path()), Path::new("/plugins"));
        let records = store.records();
        assert!(records.len() == 50 && records.values().all(|stored| *stored == record(&version, None)));
        // Only the version and its record: no temporary files.
        assert_eq!(fs::read_dir(store.0.unwrap().join("a-0")).unwrap().count(), 2);
    }

    #[test]
    fn leftovers_of_an_interrupted_write_are_pruned() {
        let directory = tempfile::tempdir().unwrap();
        let store = VersionStore::open(Some(directory.path()), Path::new("/plugins"));
        let version = files(b"one", None);
        store.save("a", &version).unwrap();
        store.write_record("a", &record(&version, None), None).unwrap();
        let half = store.0.as_ref().unwrap().join("a").join(&version.digest).with_extension("x.new");
        fs::write(&half, "half").unwrap();
        store.records();
        assert!(half.exists(), "another worker may be writing it");
        File::options()
            .append(true)
            .open(&half)
            .unwrap()
            .set_modified(SystemTime::now() - UNREFERENCED_MIN_AGE)
            .unwrap();
        assert_eq!(store.records()["a"], record(&version, None));
        assert!(!half.exists() && store.read("a", &version.digest).is_ok());
    }

    #[test]
    fn versions_blocked_by_other_workers_stay_blocked() {
        let directory = tempfile::tempdir().unwrap();
        let store = VersionStore::open(Some(directory.path()), Path::new("/plugins"));
        let good = files(b"one", None);
        let blocking = |digests: &[&str]| Record {
            blocked: digests.iter().map(|digest| ((*digest).to_owned(), BlockReason::Quarantined)).collect(),
            ..record(&good, None)
        };
        let blocked = || store.records()["a"].blocked.iter().map(|(digest, _)| digest.clone()).collect::<BTreeSet<_>>();
        // Two workers block one version each.
        store.write_record("a", &blocking(&["x"]), None).unwrap();
        store.write_record("a", &blocking(&["y"]), None).unwrap();
        assert_eq!(blocked(), BTreeSet::from(["x".to_owned(), "y".to_owned()]));
        // The first unblocks its own version only.
        store.write_record("a", &blocking(&[]), Some(&blocking(&["x"]))).unwrap();
        assert_eq!(blocked(), BTreeSet::from(["y".to_owned()]));
    }

    #[test]
    fn a_directory_that_other_users_can_access_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("cache");
        let directory = VersionStore::open(Some(&cache), Path::new("/plugins")).0.unwrap();
        for (mode, is_used) in [(0o700, true), (0o710, false), (0o702, false)] {
            fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(VersionStore::open(Some(&cache), Path::new("/plugins")).0.is_some(), is_used, "{mode:o}");
        }
    }

    #[test]
    fn an_invalid_record_is_skipped() {
        let directory = tempfile::tempdir().unwrap();
        let store = VersionStore::open(Some(directory.path()), Path::new("/plugins"));
        let good = files(b"one", None);
        store.write_record("good", &record(&good, None), None).unwrap();
        let bad = store.0.as_ref().unwrap().join("bad");
        fs::create_dir(&bad).unwrap();
        let naming =
            |live: &str, previous: &str| format!(r#"{{"live":{live},"previous":{previous},"blocked":[],"topics":[]}}"#);
        let (out, as_long) = (r#""../../x""#, format!("\"../../{}\"", "0".repeat(58)));
        for text in ["", "{", &naming(out, "null"), &naming("null", out), &naming("null", &as_long)] {
            fs::write(bad.join(RECORD), text).unwrap();
            assert_eq!(store.records().keys().collect::<Vec<_>>(), ["good"], "{text}");
        }
    }

    #[test]
    fn a_record_without_the_field_is_proven_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let store = VersionStore::open(Some(directory.path()), Path::new("/plugins"));
        let old = store.0.as_ref().unwrap().join("old");
        fs::create_dir(&old).unwrap();
        let digest = files(b"one", None).digest;
        let text = format!(r#"{{"live":"{digest}","previous":null,"blocked":[],"topics":["t"]}}"#);
        fs::write(old.join(RECORD), text).unwrap();
        let record = &store.records()["old"];
        assert_eq!((record.live.as_ref(), record.is_proven, record.topics.len()), (Some(&digest), false, 1));
    }
}
