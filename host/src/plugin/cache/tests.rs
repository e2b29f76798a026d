//! Ownership and integrity of the files, and pruning.

use super::*;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

fn cache() -> (TempDir, Cache) {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    (directory, cache)
}

fn key(byte: u8) -> Key {
    Key([byte; DIGEST_BYTES])
}

fn path(cache: &Cache, key: &Key) -> PathBuf {
    cache.path.join(key.name())
}

#[test]
fn an_artifact_is_found_under_its_own_key_only() {
    let (_directory, cache) = cache();
    assert_eq!(cache.get(&key(1)), None);
    cache.put(&key(1), b"artifact");
    assert_eq!(cache.get(&key(1)).as_deref(), Some(&b"artifact"[..]));
    assert_eq!(cache.get(&key(2)), None);
    assert_eq!(path(&cache, &key(1)).metadata().unwrap().mode() & 0o777, 0o600);
    // A renamed artifact is invalid and removed.
    std::fs::rename(path(&cache, &key(1)), path(&cache, &key(2))).unwrap();
    assert_eq!(cache.get(&key(2)), None);
    assert!(!path(&cache, &key(2)).exists());
}

#[test]
fn a_change_of_any_byte_and_a_cut_at_any_byte_is_noticed() {
    let (_directory, cache) = cache();
    cache.put(&key(1), b"artifact");
    let whole = std::fs::read(path(&cache, &key(1))).unwrap();
    let is_accepted = |bytes: &[u8]| {
        let file = path(&cache, &key(1));
        std::fs::write(&file, bytes).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        cache.get(&key(1)).is_some()
    };
    for at in 0..whole.len() {
        assert!(!is_accepted(&whole[..at]));
        let mut changed = whole.clone();
        changed[at] ^= 1;
        assert!(!is_accepted(&changed));
    }
    assert!(is_accepted(&whole));
}

#[test]
fn a_file_that_others_can_write_and_a_link_are_not_used() {
    let (_directory, cache) = cache();
    cache.put(&key(1), b"artifact");
    std::fs::set_permissions(path(&cache, &key(1)), PermissionsExt::from_mode(0o620)).unwrap();
    assert_eq!(cache.get(&key(1)), None);
    cache.put(&key(1), b"artifact");
    std::os::unix::fs::symlink(key(1).name(), path(&cache, &key(2))).unwrap();
    assert_eq!(cache.get(&key(2)), None);
    assert!(cache.get(&key(1)).is_some());
    // A link to an intact artifact is not used either, because it may lead anywhere.
    std::fs::rename(path(&cache, &key(1)), cache.path.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", path(&cache, &key(1))).unwrap();
    assert_eq!(cache.get(&key(1)), None);
}

/// Other compiler settings or another version give other code.
#[test]
fn a_key_depends_on_the_component_and_on_the_compiler() {
    let config = crate::plugin::engine::config;
    let name = |config: &wasmtime::Config, wasm: &[u8]| Key::new(&Engine::new(config).unwrap(), wasm).name();
    let known = name(&config(), b"a");
    assert_eq!(name(&config(), b"a"), known);
    assert_ne!(name(&config(), b"b"), known);
    assert_ne!(name(config().epoch_interruption(false), b"a"), known);
}

#[test]
fn old_temporary_files_are_pruned() {
    let (_directory, cache) = cache();
    let now = SystemTime::now();
    let left = |name: &str, age: Duration| {
        let path = cache.path.join(name);
        std::fs::write(&path, "half").unwrap();
        File::open(&path).unwrap().set_modified(now - age).unwrap();
        path
    };
    let second = Duration::from_secs(1);
    let (young, old) = (left(".new-a", TEMPORARY_AGE_MAX - second), left(".new-b", TEMPORARY_AGE_MAX + second));
    cache.prune(now);
    assert!(young.exists() && !old.exists());
}

#[test]
fn a_directory_that_other_users_can_access_is_not_used() {
    let (directory, cache) = cache();
    let error = |mode| {
        std::fs::set_permissions(&cache.path, PermissionsExt::from_mode(mode)).unwrap();
        Cache::open(directory.path()).err().map(|error| error.to_string())
    };
    assert!(error(0o710).unwrap().contains("its mode is 710"));
    assert!(error(0o702).unwrap().contains("chmod 700"));
    assert_eq!(error(0o700), None);
    std::fs::remove_dir(&cache.path).unwrap();
    std::fs::write(&cache.path, "").unwrap();
    assert!(Cache::open(directory.path()).is_err());
    std::fs::remove_file(&cache.path).unwrap();
    std::os::unix::fs::symlink("/", &cache.path).unwrap();
    assert!(Cache::open(directory.path()).is_err());
}

#[test]
fn the_least_recently_used_artifact_is_pruned_first() {
    let (_directory, mut cache) = cache();
    let now = SystemTime::now();
    let day = Duration::from_secs(86_400);
    let path = |number: u8| cache.path.join(key(number).name());
    let paths: Vec<PathBuf> = (0..=4).map(path).collect();
    let other = cache.path.join("other");
    for number in 1..=4 {
        cache.put(&key(number), &[0; 68]);
        File::open(path(number)).unwrap().set_modified(now - day * number.into()).unwrap();
    }
    let left = |numbers: &[usize]| numbers.iter().filter(|number| paths[**number].exists()).count();
    std::fs::write(&other, "not ours").unwrap();
    let mut prune = |days: u32, bytes| {
        cache.retention = Retention { age: day * days, bytes };
        cache.prune(now);
    };
    prune(4, 400);
    assert_eq!(left(&[1, 2, 3, 4]), 4);
    prune(3, 400);
    assert_eq!((left(&[1, 2, 3]), left(&[4])), (3, 0));
    prune(3, 299);
    assert_eq!((left(&[1, 2]), left(&[3])), (2, 0));
    // Using it makes it recent again.
    File::open(&paths[2]).unwrap().set_modified(now + day).unwrap();
    prune(3, 100);
    assert_eq!((left(&[2]), left(&[1])), (1, 0));
    assert!(other.exists());
}

#[test]
fn using_an_artifact_makes_it_recent() {
    let (_directory, cache) = cache();
    cache.put(&key(1), b"artifact");
    let age = || path(&cache, &key(1)).metadata().unwrap().modified().unwrap().elapsed().unwrap_or_default();
    let day = Duration::from_secs(86_400);
    File::open(path(&cache, &key(1))).unwrap().set_modified(SystemTime::now() - day).unwrap();
    assert!(age() >= day);
    assert!(cache.get(&key(1)).is_some());
    assert!(age() < day);
}

#[test]
fn the_size_stays_limited_however_many_artifacts_are_added() {
    let directory = tempfile::tempdir().unwrap();
    let retention = Retention { age: RETENTION.age, bytes: 16 * 200 };
    let cache = Cache::open_with(directory.path(), retention).unwrap();
    let bytes = || cache.files().iter().map(|(_, metadata)| metadata.len()).sum::<u64>();
    let mut most = 0;
    for number in 0..60 {
        cache.put(&key(number), &[0; 68]);
        most = most.max(bytes());
    }
    assert_eq!(most, 16 * 200 + 200);
    assert!(cache.get(&key(59)).is_some());
}
