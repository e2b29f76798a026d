//! Each crate, and each function that reads the machine's state, belongs to
//! some rooms. Code in other rooms must not name it, and tests neither.

use super::names::{Target, Tree};
use super::source::{Sources, is_in, locate, made_up};
use std::collections::{BTreeMap, BTreeSet};

pub(super) enum Owners {
    /// Any room may name it, for this reason.
    Everybody(&'static str),
    Rooms(&'static [&'static str]),
}
use Owners::{Everybody, Rooms};

pub(super) type Crates<'a> = [(&'a str, Owners)];

/// Paths that only some files may name.
pub(super) struct Restricted {
    /// A longer path that begins with one of these is restricted too.
    pub(super) paths: &'static [&'static str],
    /// The room where the rule applies; an empty text is everywhere.
    pub(super) room: &'static str,
    /// Files or rooms that may name the paths, with the reason.
    pub(super) allowed: &'static [(&'static str, &'static str)],
    pub(super) reason: &'static str,
}

/// The names of the crates in the tables of a `Cargo.toml` called `table`, also those of one target.
pub(super) fn dependencies(manifest: &str, table: &str) -> BTreeSet<String> {
    let manifest: toml::Table = manifest.parse().expect("Cargo.toml is TOML");
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    let tables = targets.into_iter().flat_map(toml::Table::values).filter_map(toml::Value::as_table);
    let found = tables.chain([&manifest]).filter_map(|tables| tables.get(table)?.as_table());
    found.flat_map(toml::Table::keys).map(|name| name.replace('-', "_")).collect()
}

pub(super) fn check_crates(
    sources: &Sources,
    tree: &Tree,
    known: &BTreeSet<String>,
    owners: &Crates<'_>,
) -> Vec<String> {
    let mut failures = Vec::new();
    let users = users(tree);
    let owned: BTreeSet<_> = owners.iter().map(|(name, _)| (*name).to_owned()).collect();
    failures
        .extend(known.difference(&owned).map(|name| format!("{name} is a crate without an owner: add it to CRATES")));
    failures.extend(owned.difference(known).map(|name| format!("{name} in CRATES is no dependency of the host")));
    for (name, owners) in owners {
        let files: BTreeSet<_> = users.get(*name).into_iter().flatten().collect();
        let rooms = match owners {
            Rooms(rooms) => *rooms,
            Everybody(reason) if files.is_empty() => {
                failures.push(format!("{name} is for everybody ({reason}), but no file names it"));
                continue;
            }
            Everybody(_) => continue,
        };
        for file in files.iter().filter(|file| !rooms.iter().any(|room| is_in(file, room))) {
            failures.push(format!(
                "{}: names {name}, which only {} may",
                locate(sources, file, name),
                rooms.join(", ")
            ));
        }
        for room in rooms.iter().filter(|room| !files.iter().any(|file| is_in(file, room))) {
            failures.push(format!("{room} does not name {name}: delete it in CRATES"));
        }
    }
    failures
}

/// From a crate to the files that name it.
fn users(tree: &Tree) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (file, _, target) in tree.mentions() {
        if let Target::External(path) = target {
            found.entry(path.into_iter().next().unwrap_or_default()).or_default().insert(file.file.clone());
        }
    }
    found
}

pub(super) fn check_restricted(sources: &Sources, tree: &Tree, restricted: &Restricted) -> Vec<String> {
    let mut failures = Vec::new();
    let mut used = BTreeSet::new();
    for (file, mention, target) in tree.mentions() {
        let Target::External(path) = target else { continue };
        let is_here = restricted.room.is_empty() || is_in(&file.file, restricted.room);
        if !is_here || !restricted.paths.iter().any(|start| begins_with(&path, start)) {
            continue;
        }
        match restricted.allowed.iter().find(|(room, _)| is_in(&file.file, room)) {
            Some((room, _)) => drop(used.insert(*room)),
            None => {
                let location = locate(sources, &file.file, mention.path.last().expect("a path has a segment"));
                failures.push(format!("{location}: names {}: {}", path.join("::"), restricted.reason));
            }
        }
    }
    let unused = restricted.allowed.iter().filter(|(room, _)| !used.contains(room));
    failures
        .extend(unused.map(|(room, _)| format!("{room} names none of {:?}: delete its permission", restricted.paths)));
    failures
}

fn begins_with(path: &[String], start: &str) -> bool {
    let mut segments = path.iter();
    start.split("::").all(|segment| segments.next().is_some_and(|named| named == segment))
}

/// Unsafe code is in `allowed` alone.
pub(super) fn check_unsafe(tree: &Tree, allowed: &str) -> Vec<String> {
    let found = tree.files.iter().filter(|file| file.has_unsafe && file.file != allowed);
    found.map(|file| format!("{}: has unsafe code, which only {allowed} may", file.file)).collect()
}

const MANIFEST: &str = "[dependencies]\nredis.workspace = true\nserde-json = \"1\"\n[dev-dependencies]\nwat = \"1\"\n[target.'cfg(unix)'.dependencies]\nrustix = \"1\"";

fn crate_failures(cli: &str, owners: &Crates<'_>) -> String {
    let queue = ("queue.rs", "//! Uses redis.\nuse redis::Script; pub use redis::Client;");
    let sources = made_up(&[("lib.rs", "pub mod queue; pub mod cli; use serde::Serialize;"), queue, ("cli.rs", cli)]);
    let known = BTreeSet::from(["redis".to_owned(), "serde".to_owned()]);
    check_crates(&sources, &Tree::new(&sources, ["redis", "serde"]), &known, owners).join("\n")
}

#[test]
fn dependencies_are_those_of_every_target() {
    assert_eq!(dependencies(MANIFEST, "dependencies"), ["redis", "rustix", "serde_json"].map(str::to_owned).into());
    assert_eq!(dependencies(MANIFEST, "dev-dependencies"), ["wat".to_owned()].into());
}

#[test]
fn a_crate_outside_of_its_room_fails_however_it_is_written() {
    for cli in [
        "use redis::Client;",
        "fn f() { redis::cmd() }",
        "fn f(_: ::redis::Client) {}",
        "fn f() { assert!(redis::is_up()) }",
        "#[derive(redis::FromValue)] struct A;",
        "#[redis::main] fn f() {}",
        "use crate::queue::Client;", // a re-export
        "#[cfg(test)] mod tests { use redis::Client; }",
    ] {
        let found = crate_failures(cli, &[("redis", Rooms(&["queue"])), ("serde", Everybody(""))]);
        assert!(found.contains("cli.rs") && found.contains("names redis, which only queue may"), "{cli}: {found}");
    }
    let found = crate_failures(
        "// redis::cmd\nfn f() { let redis = \"redis::cmd\"; }",
        &[("redis", Rooms(&["queue"])), ("serde", Everybody(""))],
    );
    assert_eq!(found, "");
}

#[test]
fn a_crate_without_an_owner_fails() {
    assert!(crate_failures("", &[("redis", Rooms(&["queue"]))]).contains("serde is a crate without an owner"));
}

#[test]
fn a_permission_that_nobody_needs_fails() {
    let found =
        crate_failures("", &[("redis", Rooms(&["queue", "cli"])), ("serde", Everybody("")), ("axum", Everybody(""))]);
    assert!(found.contains("cli does not name redis") && found.contains("axum in CRATES is no dependency"), "{found}");
    assert!(found.contains("axum is for everybody"), "{found}");
}

fn restricted_failures(file: &str, text: &str) -> String {
    const ENVIRONMENT: Restricted = Restricted {
        paths: &["std::env::var", "std::env::var_os"],
        room: "",
        allowed: &[("settings", "reads the settings")],
        reason: "only the settings read the environment",
    };
    let settings = if file == "settings.rs" { text } else { "fn f() { std::env::var(\"A\") }" };
    let cli = if file == "cli.rs" { text } else { "" };
    let sources = made_up(&[("lib.rs", "mod settings; mod cli;"), ("settings.rs", settings), ("cli.rs", cli)]);
    check_restricted(&sources, &Tree::new(&sources, []), &ENVIRONMENT).join("\n")
}

#[test]
fn a_function_that_only_one_room_may_call_fails_elsewhere() {
    for text in
        ["fn f() { std::env::var_os(\"A\") }", "use std::env; fn f() { env::var(\"A\") }", "use std::env::var as get;"]
    {
        assert!(restricted_failures("cli.rs", text).contains("only the settings read the environment"), "{text}");
    }
    assert_eq!(restricted_failures("cli.rs", "fn f() { std::env::current_dir(); std::env::vars() }"), "");
    assert!(restricted_failures("settings.rs", "").contains("delete its permission"));
}

#[test]
fn unsafe_code_fails_but_in_one_file() {
    let check = |text: &str| check_unsafe(&Tree::new(&made_up(&[("cli.rs", text)]), []), "plugin/cache.rs");
    assert_eq!(check("fn f() { unsafe { g() } }").len(), 1);
    assert_eq!(check("fn f() { call!(unsafe { g() }) }").len(), 1);
    assert!(check("//! unsafe { }\n#![deny(unsafe_code)]").is_empty());
}
