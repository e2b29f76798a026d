//! Files that are whose they should be, and as they were put.

use super::*;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

fn cache() -> (TempDir, Cache) {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path()).unwrap();
    (folder, cache)
}

fn key(byte: u8) -> Key {
    Key([byte; DIGEST_BYTES])
}

fn path(cache: &Cache, key: &Key) -> PathBuf {
    cache.path.join(key.name())
}

#[test]
fn what_was_put_is_got_under_its_own_key_only() {
    let (_folder, cache) = cache();
    assert_eq!(cache.get(&key(1)), None);
    cache.put(&key(1), b"artifact");
    assert_eq!(cache.get(&key(1)).as_deref(), Some(&b"artifact"[..]));
    assert_eq!(cache.get(&key(2)), None);
    assert_eq!(path(&cache, &key(1)).metadata().unwrap().mode() & 0o777, 0o600);
    // Under another's name it is none, and is removed.
    std::fs::rename(path(&cache, &key(1)), path(&cache, &key(2))).unwrap();
    assert_eq!(cache.get(&key(2)), None);
    assert!(!path(&cache, &key(2)).exists());
}

#[test]
fn a_change_of_any_byte_and_a_cut_at_any_byte_is_noticed() {
    let (_folder, cache) = cache();
    cache.put(&key(1), b"artifact");
    let whole = std::fs::read(path(&cache, &key(1))).unwrap();
    let is_taken = |bytes: &[u8]| {
        let file = path(&cache, &key(1));
        std::fs::write(&file, bytes).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        cache.get(&key(1)).is_some()
    };
    for at in 0..whole.len() {
        assert!(!is_taken(&whole[..at]));
        let mut changed = whole.clone();
        changed[at] ^= 1;
        assert!(!is_taken(&changed));
    }
    assert!(is_taken(&whole));
}

#[test]
fn a_file_that_others_may_write_is_not_used_nor_a_link() {
    let (_folder, cache) = cache();
    cache.put(&key(1), b"artifact");
    std::fs::set_permissions(path(&cache, &key(1)), PermissionsExt::from_mode(0o620)).unwrap();
    assert_eq!(cache.get(&key(1)), None);
    cache.put(&key(1), b"artifact");
    std::os::unix::fs::symlink(key(1).name(), path(&cache, &key(2))).unwrap();
    assert_eq!(cache.get(&key(2)), None);
    assert!(cache.get(&key(1)).is_some());
    // Nor a link to what is whole, since it may lead anywhere.
    std::fs::rename(path(&cache, &key(1)), cache.path.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", path(&cache, &key(1))).unwrap();
    assert_eq!(cache.get(&key(1)), None);
}

/// A compiler with other settings, or a newer one, writes other code.
#[test]
fn an_artifact_is_of_one_component_and_of_one_compiler() {
    let config = crate::plugin::engine::config;
    let name = |config: &wasmtime::Config, wasm: &[u8]| Key::of(&Engine::new(config).unwrap(), wasm).name();
    let known = name(&config(), b"a");
    assert_eq!(name(&config(), b"a"), known);
    assert_ne!(name(&config(), b"b"), known);
    assert_ne!(name(config().epoch_interruption(false), b"a"), known);
}

#[test]
fn what_a_writer_left_half_written_goes_when_it_is_old() {
    let (_folder, cache) = cache();
    let now = SystemTime::now();
    let left = |name: &str, age: Duration| {
        let path = cache.path.join(name);
        std::fs::write(&path, "half").unwrap();
        File::open(&path).unwrap().set_modified(now - age).unwrap();
        path
    };
    let second = Duration::from_secs(1);
    let (young, old) = (left(".new-a", NEW_AGE_MAX - second), left(".new-b", NEW_AGE_MAX + second));
    cache.prune(now);
    assert!(young.exists() && !old.exists());
}

#[test]
fn a_directory_that_others_can_enter_is_not_used() {
    let (folder, cache) = cache();
    let error = |mode| {
        std::fs::set_permissions(&cache.path, PermissionsExt::from_mode(mode)).unwrap();
        Cache::open(folder.path()).err().map(|error| error.to_string())
    };
    assert!(error(0o710).unwrap().contains("its mode is 710"));
    assert!(error(0o702).unwrap().contains("chmod 700"));
    assert_eq!(error(0o700), None);
    std::fs::remove_dir(&cache.path).unwrap();
    std::fs::write(&cache.path, "").unwrap();
    assert!(Cache::open(folder.path()).is_err());
    std::fs::remove_file(&cache.path).unwrap();
    std::os::unix::fs::symlink("/", &cache.path).unwrap();
    assert!(Cache::open(folder.path()).is_err());
}

#[test]
fn what_was_used_least_lately_goes_first() {
    let (_folder, mut cache) = cache();
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
        cache.keep = Keep { age: day * days, bytes };
        cache.prune(now);
    };
    prune(4, 400);
    assert_eq!(left(&[1, 2, 3, 4]), 4);
    prune(3, 400);
    assert_eq!((left(&[1, 2, 3]), left(&[4])), (3, 0));
    prune(3, 299);
    assert_eq!((left(&[1, 2]), left(&[3])), (2, 0));
    // Being used makes it young again.
    File::open(&paths[2]).unwrap().set_modified(now + day).unwrap();
    prune(3, 100);
    assert_eq!((left(&[2]), left(&[1])), (1, 0));
    assert!(other.exists());
}

#[test]
fn using_an_artifact_makes_it_young() {
    let (_folder, cache) = cache();
    cache.put(&key(1), b"artifact");
    let age = || path(&cache, &key(1)).metadata().unwrap().modified().unwrap().elapsed().unwrap_or_default();
    let day = Duration::from_secs(86_400);
    File::open(path(&cache, &key(1))).unwrap().set_modified(SystemTime::now() - day).unwrap();
    assert!(age() >= day);
    assert!(cache.get(&key(1)).is_some());
    assert!(age() < day);
}

#[test]
fn what_is_put_without_end_does_not_fill_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let keep = Keep { age: KEEP.age, bytes: 16 * 200 };
    let cache = Cache::open_and_keep(folder.path(), keep).unwrap();
    let bytes = || cache.files().iter().map(|(_, metadata)| metadata.len()).sum::<u64>();
    let mut most = 0;
    for number in 0..60 {
        cache.put(&key(number), &[0; 68]);
        most = most.max(bytes());
    }
    assert_eq!(most, 16 * 200 + 200);
    assert!(cache.get(&key(59)).is_some());
}
