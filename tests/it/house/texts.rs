//! Rules about the text and the names of files, which need no syntax.

use super::source::{Sources, made_up};
use std::collections::{BTreeMap, BTreeSet};

/// Each Rust file begins with its purpose, and each of its imports names one module.
pub(super) fn check_rust(sources: &Sources) -> Vec<String> {
    let mut failures = Vec::new();
    for (file, text) in sources.iter().filter(|(file, _)| file.ends_with(".rs")) {
        if !text.starts_with("//! ") {
            failures.push(format!("{file}: does not begin with `//! ` and what the file is for"));
        }
        if text.contains("use crate::{") {
            failures.push(format!("{file}: has `use crate::{{`; write one `use crate::module` a line"));
        }
    }
    failures
}

/// Each Lua script but common.lua begins with a comment about its keys, arguments and result.
pub(super) fn check_lua(sources: &Sources) -> Vec<String> {
    let mut failures = Vec::new();
    for (file, text) in sources.iter().filter(|(file, _)| file.ends_with(".lua") && !file.ends_with("/common.lua")) {
        let header: String = text.lines().take_while(|line| line.starts_with("--")).collect();
        let missing: Vec<_> = ["KEYS", "ARGV", "Returns"].into_iter().filter(|word| !header.contains(word)).collect();
        if !missing.is_empty() {
            failures.push(format!("{file}: its header does not describe {}", missing.join(", ")));
        }
    }
    failures
}

/// Two names in a directory that differ by one letter are easily confused, but a plural is not.
pub(super) fn check_names(sources: &Sources) -> Vec<String> {
    let mut names: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
    for file in sources.keys().filter(|file| !matches!(file.as_str(), "lib.rs" | "main.rs")) {
        let (directory, name) = file.rsplit_once('/').unwrap_or(("", file));
        let (name, extension) = name.split_once('.').unwrap_or((name, ""));
        names.entry((directory, extension)).or_default().insert(name);
    }
    let mut failures = Vec::new();
    for ((directory, extension), names) in names {
        for first in &names {
            for second in names.iter().filter(|second| first < *second && is_one_letter_apart(first, second)) {
                failures.push(format!(
                    "{directory}/{first}.{extension} and {second}.{extension} differ by one letter: rename one"
                ));
            }
        }
    }
    failures
}

/// `first` is the one that sorts before, so that a plural comes second.
fn is_one_letter_apart(first: &str, second: &str) -> bool {
    let is_plural = second.strip_suffix('s') == Some(first);
    let (first, second): (Vec<_>, Vec<_>) = (first.chars().collect(), second.chars().collect());
    let start = first.iter().zip(&second).take_while(|(first, second)| first == second).count();
    let (first, second) = (&first[start..], &second[start..]);
    let end = first.iter().rev().zip(second.iter().rev()).take_while(|(first, second)| first == second).count();
    !is_plural && (first.len() - end).max(second.len() - end) == 1
}

#[test]
fn a_file_without_its_purpose_fails() {
    assert_eq!(check_rust(&made_up(&[("a.rs", "use crate::b;")])).len(), 1);
    assert_eq!(check_rust(&made_up(&[("a.rs", "//! A.\nuse crate::{b, c};")])).len(), 1);
    assert!(check_rust(&made_up(&[("a.rs", "//! A.\nuse crate::b::{C, D};")])).is_empty());
}

#[test]
fn a_script_without_its_interface_fails_in_any_directory() {
    let scripts = [("queue/lua/a.lua", "-- KEYS: 1 the stream\nreturn 1 -- Returns"), ("queue/lua/common.lua", "")];
    assert_eq!(check_lua(&made_up(&scripts)), ["queue/lua/a.lua: its header does not describe ARGV, Returns"]);
    assert!(check_lua(&made_up(&[("b/a.lua", "-- Takes.\n-- KEYS: none\n-- ARGV: none. Returns: 1\n")])).is_empty());
}

#[test]
fn names_that_differ_by_one_letter_fail() {
    let names = |first: &str, second: &str| check_names(&made_up(&[(first, ""), (second, "")])).len();
    assert_eq!(names("queue/list.rs", "queue/lost.rs"), 1);
    assert_eq!(names("queue/take.rs", "queue/stake.rs"), 1);
    assert_eq!(names("queue/plugin.rs", "queue/plugins.rs"), 0);
    assert_eq!(names("queue/read.lua", "queue/dead.rs"), 0);
    assert_eq!(names("queue/list.rs", "plugin/lost.rs"), 0);
}
