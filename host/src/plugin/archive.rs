//! Versions that were live, kept on disk: after a restart the last good one
//! runs even where the directory holds a broken one. A version is the one file
//! whose bytes its digest is made of, so what is read is what was written.

use super::folder::Source;
use super::load_error::LoadError;
use super::private;
use super::version::Held;
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

/// What is younger may be another worker's, or not live yet.
const SPARED: Duration = Duration::from_secs(600);

const RECORD: &str = "record.json";

/// What is known of a plugin name over a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) live: Option<String>,
    /// Whether what was live had stood its probation.
    pub(super) is_proven: bool,
    pub(super) previous: Option<String>,
    pub(super) held: Vec<(String, Held)>,
    pub(super) topics: BTreeSet<Topic>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Written {
    live: Option<String>,
    #[serde(default)]
    is_proven: bool,
    previous: Option<String>,
    held: Vec<(String, Held)>,
    topics: Vec<String>,
}

/// Without a place, nothing is kept.
pub struct Archive(Option<PathBuf>);

impl Archive {
    pub fn nowhere() -> Self {
        Self(None)
    }

    /// Below the cache, a place of its own for each plugins directory. What
    /// others could write is not used.
    pub fn open(cache: Option<&Path>, plugins: &Path) -> Self {
        let Some(cache) = cache else { return Self(None) };
        let plugins = std::path::absolute(plugins).unwrap_or_else(|_| plugins.to_owned());
        let own = hex(&Sha256::digest(plugins.as_os_str().as_encoded_bytes()));
        let place = cache.join("versions").join(&own[..16]);
        match private::open(&place) {
            Ok(_) => Self(Some(place)),
            Err(error) => {
                tracing::warn!(place = %place.display(), %error, "versions of plugins are kept in memory only: after a restart a refused file has no last good version; --plugins-cache names a private directory");
                Self(None)
            }
        }
    }

    /// All records. One that can't be read is as if it were not there.
    pub(super) fn records(&self) -> BTreeMap<String, Record> {
        let Some(place) = &self.0 else { return BTreeMap::new() };
        let Ok(entries) = fs::read_dir(place) else { return BTreeMap::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let read = |name: String| match read_record(&place.join(&name).join(RECORD)) {
            Ok(record) => {
                // What was spared when it was noted.
                let _ = forget(&place.join(&name), &record);
                Some((name, record))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let _ = forget(&place.join(name), &Record::default());
                None
            }
            Err(error) => {
                tracing::warn!(plugin = name, %error, "what was kept of a plugin can't be read and is passed over");
                None
            }
        };
        names.filter_map(read).collect()
    }

    /// Keeps a version that can be loaded.
    pub(super) fn keep(&self, name: &str, source: &Source) -> io::Result<()> {
        let Some(place) = &self.0 else { return Ok(()) };
        let folder = place.join(name);
        private::open(&folder).map_err(io::Error::other)?;
        let path = folder.join(&source.digest);
        if path.exists() {
            // As good as new, so that nobody forgets it before it is noted.
            return File::options().append(true).open(&path)?.set_modified(SystemTime::now());
        }
        let length = (source.wasm.len() as u64).to_le_bytes();
        write_whole(&path, &[&length, &source.wasm, source.manifest.as_deref().unwrap_or_default().as_bytes()])
    }

    /// A version that was kept, if its bytes are still what they were.
    pub(super) fn read(&self, name: &str, digest: &str) -> Result<Source, LoadError> {
        let none =
            || LoadError::lasting(&format!("version {} of {name} is not kept", digest.get(..12).unwrap_or(digest)));
        let path = self.0.as_ref().ok_or_else(none)?.join(name).join(digest);
        let bytes = fs::read(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => none(),
            _ => LoadError::of_io(&format!("{}: {error}", path.display()), &error),
        })?;
        let broken = || LoadError::lasting(&format!("{}: it is not what was written there", path.display()));
        let (length, rest) = bytes.split_first_chunk().ok_or_else(broken)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| broken())?;
        let (wasm, manifest) = rest.split_at_checked(length).ok_or_else(broken)?;
        let manifest = String::from_utf8(manifest.to_vec()).map_err(|_| broken())?;
        let source = Source::new(wasm.into(), Some(manifest).filter(|text| !text.is_empty()), Vec::new());
        if source.digest == digest { Ok(source) } else { Err(broken()) }
    }

    /// Notes where a name stands, after what was noted `before`, and forgets
    /// versions that it can't go back to.
    pub(super) fn note(&self, name: &str, record: &Record, before: Option<&Record>) -> io::Result<()> {
        let Some(place) = &self.0 else { return Ok(()) };
        let folder = place.join(name);
        let others = others_held(&folder, record, before);
        if *record == Record::default() && others.is_empty() {
            gone(fs::remove_file(folder.join(RECORD)))?;
            return forget(&folder, record);
        }
        private::open(&folder).map_err(io::Error::other)?;
        let topics = record.topics.iter().map(Topic::to_string).collect();
        let Record { live, is_proven, previous, mut held, .. } = record.clone();
        held.splice(..0, others);
        let text = serde_json::to_vec(&Written { live, is_proven, previous, held, topics })?;
        write_whole(&folder.join(RECORD), &[&text])?;
        forget(&folder, record)
    }
}

/// What other workers that share the archive keep out, each by the calls that
/// it made: what stands there and was never ours.
fn others_held(folder: &Path, record: &Record, before: Option<&Record>) -> Vec<(String, Held)> {
    let there = read_record(&folder.join(RECORD)).map(|there| there.held).unwrap_or_default();
    let ours = [Some(record), before].into_iter().flatten().flat_map(|record| &record.held);
    let ours: BTreeSet<&String> = ours.map(|(digest, _)| digest).collect();
    there.into_iter().filter(|(digest, _)| !ours.contains(digest)).collect()
}

/// Removes what a record does not name, and the folder where nothing is left.
fn forget(folder: &Path, record: &Record) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let is_named =
            name == RECORD || [&record.live, &record.previous].into_iter().flatten().any(|kept| name == **kept);
        let is_old = |modified: SystemTime| modified.elapsed().is_ok_and(|age| age >= SPARED);
        // Another worker may have been quicker.
        if !is_named && entry.metadata().and_then(|metadata| metadata.modified()).is_ok_and(is_old) {
            gone(fs::remove_file(entry.path()))?;
        }
    }
    if *record == Record::default() {
        // Not where something is spared.
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read_record(path: &Path) -> io::Result<Record> {
    let Written { live, is_proven, previous, held, topics } = serde_json::from_slice(&fs::read(path)?)?;
    let is_digest = |digest: &String| digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    if ![&live, &previous].into_iter().flatten().all(is_digest) {
        return Err(io::Error::other("it names what is no digest"));
    }
    let topics = topics.iter().map(|topic| Topic::parse(topic)).collect::<Result<_, _>>().map_err(io::Error::other)?;
    Ok(Record { live, is_proven, previous, held, topics })
}

/// All of it or nothing, also where the power fails.
fn write_whole(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    // A process is number 1 in every container.
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

    fn source(wasm: &[u8], manifest: Option<&str>) -> Source {
        Source::new(wasm.into(), manifest.map(ToOwned::to_owned), Vec::new())
    }

    /// As if it had been kept long ago.
    fn age(archive: &Archive, name: &str, source: &Source) {
        let path = archive.0.as_ref().unwrap().join(name).join(&source.digest);
        let long_ago = SystemTime::now() - SPARED;
        File::options().append(true).open(path).unwrap().set_modified(long_ago).unwrap();
    }

    fn record(live: &Source, previous: Option<&Source>) -> Record {
        let previous = previous.map(|source| source.digest.clone());
        Record { live: Some(live.digest.clone()), previous, ..Record::default() }
    }

    #[test]
    fn a_version_is_read_as_it_was_kept_and_only_then() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let archive = Archive::open(Some(&cache), Path::new("/plugins"));
        let (one, two) = (source(b"one", Some("config = {}")), source(b"two", None));
        for version in [&one, &two] {
            archive.keep("a", version).unwrap();
            let read = archive.read("a", &version.digest).unwrap();
            assert_eq!((read.wasm, read.manifest), (version.wasm.clone(), version.manifest.clone()));
        }
        let path = archive.0.as_ref().unwrap().join("a").join(&one.digest);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        let bytes = fs::read(&path).unwrap();
        for (place, _) in bytes.iter().enumerate() {
            let mut broken = bytes.clone();
            broken[place] ^= 1;
            fs::write(&path, broken).unwrap();
            assert!(archive.read("a", &one.digest).is_err(), "byte {place}");
            fs::write(&path, &bytes[..place]).unwrap();
            assert!(archive.read("a", &one.digest).is_err(), "cut at {place}");
        }
        // Another plugins directory has other versions.
        assert!(Archive::open(Some(&cache), Path::new("/others")).read("a", &two.digest).is_err());
    }

    #[test]
    fn what_can_be_gone_back_to_outlives_a_restart_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let archive = Archive::open(Some(&cache), Path::new("/plugins"));
        let versions = [source(b"one", None), source(b"two", None), source(b"three", None)];
        for version in &versions {
            archive.keep("a", version).unwrap();
            age(&archive, "a", version);
        }
        let mut noted = record(&versions[2], Some(&versions[1]));
        noted.is_proven = true;
        noted.held.push((versions[0].digest.clone(), Held::Quarantined));
        noted.topics.insert(Topic::parse("t").unwrap());
        archive.note("a", &noted, None).unwrap();
        let again = Archive::open(Some(&cache), Path::new("/plugins"));
        assert_eq!(again.records(), BTreeMap::from([("a".to_owned(), noted)]));
        assert!(again.read("a", &versions[0].digest).is_err());
        assert!(again.read("a", &versions[1].digest).is_ok() && again.read("a", &versions[2].digest).is_ok());
        let known = again.records().remove("a");
        again.note("a", &Record::default(), known.as_ref()).unwrap();
        assert!(again.records().is_empty() && again.read("a", &versions[2].digest).is_err());
        assert_eq!(fs::read_dir(again.0.unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn what_was_just_kept_is_spared_since_another_may_be_about_to_note_it() {
        let folder = tempfile::tempdir().unwrap();
        let archive = Archive::open(Some(folder.path()), Path::new("/plugins"));
        let versions = [source(b"one", None), source(b"two", None)];
        versions.iter().for_each(|version| archive.keep("a", version).unwrap());
        archive.note("a", &record(&versions[0], None), None).unwrap();
        assert!(archive.read("a", &versions[1].digest).is_ok());
        // Kept again, it is young again.
        age(&archive, "a", &versions[1]);
        archive.keep("a", &versions[1]).unwrap();
        archive.note("a", &record(&versions[0], None), None).unwrap();
        assert!(archive.read("a", &versions[1].digest).is_ok());
        age(&archive, "a", &versions[1]);
        archive.records();
        assert!(archive.read("a", &versions[1].digest).is_err());
    }

    /// Each process is number 1 in its container, and they may share a cache.
    #[test]
    fn workers_that_keep_the_same_at_once_are_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        let version = source(&[7; 100_000], None);
        let worker = || {
            let archive = Archive::open(Some(folder.path()), Path::new("/plugins"));
            for turn in 0..50 {
                let name = format!("a-{turn}");
                archive.keep(&name, &version).unwrap();
                archive.note(&name, &record(&version, None), None).unwrap();
                assert!(archive.read(&name, &version.digest).is_ok(), "{name}");
            }
        };
        std::thread::scope(|scope| {
            (0..4).for_each(|_| drop(scope.spawn(worker)));
        });
        let archive = Archive::open(Some(folder.path()), Path::new("/plugins"));
        let records = archive.records();
        assert!(records.len() == 50 && records.values().all(|noted| *noted == record(&version, None)));
        // The version and its record, and nothing half written.
        assert_eq!(fs::read_dir(archive.0.unwrap().join("a-0")).unwrap().count(), 2);
    }

    #[test]
    fn what_a_crash_left_half_written_goes_when_it_is_old() {
        let folder = tempfile::tempdir().unwrap();
        let archive = Archive::open(Some(folder.path()), Path::new("/plugins"));
        let version = source(b"one", None);
        archive.keep("a", &version).unwrap();
        archive.note("a", &record(&version, None), None).unwrap();
        let half = archive.0.as_ref().unwrap().join("a").join(&version.digest).with_extension("x.new");
        fs::write(&half, "half").unwrap();
        archive.records();
        assert!(half.exists(), "another worker may be writing it");
        File::options().append(true).open(&half).unwrap().set_modified(SystemTime::now() - SPARED).unwrap();
        assert_eq!(archive.records()["a"], record(&version, None));
        assert!(!half.exists() && archive.read("a", &version.digest).is_ok());
    }

    #[test]
    fn what_other_workers_hold_is_not_let_go_of() {
        let folder = tempfile::tempdir().unwrap();
        let archive = Archive::open(Some(folder.path()), Path::new("/plugins"));
        let good = source(b"one", None);
        let holding = |digests: &[&str]| Record {
            held: digests.iter().map(|digest| ((*digest).to_owned(), Held::Quarantined)).collect(),
            ..record(&good, None)
        };
        let held = || archive.records()["a"].held.iter().map(|(digest, _)| digest.clone()).collect::<BTreeSet<_>>();
        // Two that know nothing of each other.
        archive.note("a", &holding(&["x"]), None).unwrap();
        archive.note("a", &holding(&["y"]), None).unwrap();
        assert_eq!(held(), BTreeSet::from(["x".to_owned(), "y".to_owned()]));
        // The one lets go of what it held itself, and of nothing else.
        archive.note("a", &holding(&[]), Some(&holding(&["x"]))).unwrap();
        assert_eq!(held(), BTreeSet::from(["y".to_owned()]));
    }

    #[test]
    fn a_place_that_others_reach_into_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let place = Archive::open(Some(&cache), Path::new("/plugins")).0.unwrap();
        for (mode, is_used) in [(0o700, true), (0o710, false), (0o702, false)] {
            fs::set_permissions(&place, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Archive::open(Some(&cache), Path::new("/plugins")).0.is_some(), is_used, "{mode:o}");
        }
    }

    #[test]
    fn a_record_that_is_none_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let archive = Archive::open(Some(folder.path()), Path::new("/plugins"));
        let good = source(b"one", None);
        archive.note("good", &record(&good, None), None).unwrap();
        let bad = archive.0.as_ref().unwrap().join("bad");
        fs::create_dir(&bad).unwrap();
        let naming =
            |live: &str, previous: &str| format!(r#"{{"live":{live},"previous":{previous},"held":[],"topics":[]}}"#);
        let (out, as_long) = (r#""../../x""#, format!("\"../../{}\"", "0".repeat(58)));
        for text in ["", "{", &naming(out, "null"), &naming("null", out), &naming("null", &as_long)] {
            fs::write(bad.join(RECORD), text).unwrap();
            assert_eq!(archive.records().keys().collect::<Vec<_>>(), ["good"], "{text}");
        }
    }

    #[test]
    fn a_record_of_before_there_were_proven_versions_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let archive = Archive::open(Some(folder.path()), Path::new("/plugins"));
        let old = archive.0.as_ref().unwrap().join("old");
        fs::create_dir(&old).unwrap();
        let digest = source(b"one", None).digest;
        let text = format!(r#"{{"live":"{digest}","previous":null,"held":[],"topics":["t"]}}"#);
        fs::write(old.join(RECORD), text).unwrap();
        let record = &archive.records()["old"];
        assert_eq!((record.live.as_ref(), record.is_proven, record.topics.len()), (Some(&digest), false, 1));
    }
}
