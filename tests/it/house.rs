//! The house keeps its order: modules stand in reading order and use only
//! those above them, and each outside thing is known in one place.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

/// Who may name a crate.
const OWNERS: [(&str, &[&str]); 9] = [
    ("redis", &["queue"]),
    ("wasmtime", &["plugin"]),
    ("wasmtime_wasi", &["plugin"]),
    ("wasmtime_wasi_http", &["plugin"]),
    ("wiggle", &["plugin"]),
    ("hyper_rustls", &["plugin"]),
    ("lettre", &["mail"]),
    ("notify", &["plugin"]),
    ("axum", &["admin", "app"]),
];

/// Every source file with the module of `lib.rs` that it belongs to.
fn files() -> Vec<(String, PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(Path::new(SOURCE), &mut paths);
    let module = |path: &Path| {
        let first = path.strip_prefix(SOURCE).unwrap().components().next().unwrap();
        first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
    };
    paths.into_iter().map(|path| (module(&path), path.clone(), fs::read_to_string(path).unwrap())).collect()
}

fn order() -> BTreeMap<String, usize> {
    let text = fs::read_to_string(Path::new(SOURCE).join("lib.rs")).unwrap();
    let modules = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    modules.enumerate().map(|(place, name)| (name.to_owned(), place)).collect()
}

/// The modules of ours that a text names.
fn used(text: &str) -> Vec<String> {
    let name = |rest: &str| rest.chars().take_while(|char| char.is_ascii_alphanumeric() || *char == '_').collect();
    text.split("crate::").skip(1).map(name).collect()
}

#[test]
fn modules_use_only_those_above_them() {
    let order = order();
    assert!(order.len() > 15);
    for (module, path, text) in files() {
        let Some(place) = order.get(&module) else { continue };
        for used in used(&text) {
            let above = order.get(&used).unwrap_or_else(|| panic!("{}: crate::{used} is no module", path.display()));
            assert!(above <= place, "{}: {module} uses {used}, which stands below it", path.display());
        }
    }
}

#[test]
fn each_outside_thing_has_one_owner() {
    for (module, path, text) in files() {
        for (outside, owners) in OWNERS {
            let is_named = text
                .lines()
                .map(str::trim_start)
                .filter(|line| !line.starts_with("//"))
                .any(|line| line.contains(&format!("{outside}::")) && !line.contains(&format!("_{outside}::")));
            assert!(!is_named || owners.contains(&module.as_str()), "{} names {outside}", path.display());
        }
    }
}

/// A worker's clock may be wrong, and two differ: what is due, and for how long
/// anything has been so, is said by Redis.
#[test]
fn the_queue_goes_by_redis_clock() {
    for (module, path, text) in files() {
        // Who is shown as living, for people.
        let is_allowed = ["queue/workers.rs"].iter().any(|file| path.ends_with(file));
        let asks = text.contains("Timestamp::now") || text.contains("SystemTime");
        assert!(module != "queue" || is_allowed || !asks, "{} asks another clock", path.display());
    }
}

#[test]
fn only_what_was_compiled_is_trusted() {
    for (_, path, text) in files() {
        let is_allowed = path.ends_with("plugin/cache.rs");
        assert!(is_allowed || !text.contains("unsafe {"), "{} has unsafe code", path.display());
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for (_, path, text) in files() {
        assert!(text.starts_with("//! "), "{} does not begin with //!", path.display());
        assert!(
            !text.contains("use crate::{"),
            "{}: one `use crate::module` a line, so that it can be seen",
            path.display()
        );
    }
}

#[test]
fn every_script_says_what_holds_afterwards() {
    for entry in fs::read_dir(Path::new(SOURCE).join("queue/lua")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "lua") {
            let text = fs::read_to_string(&path).unwrap();
            let header: String = text.lines().take_while(|line| line.starts_with("--")).collect();
            let is_whole = ["KEYS", "ARGV", "Returns"].iter().all(|word| header.contains(word));
            assert!(is_whole || path.ends_with("common.lua"), "{}", path.display());
        }
    }
}
