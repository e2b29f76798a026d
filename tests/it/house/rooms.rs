//! Imports go only upwards: inside each room, a module uses only those whose
//! `mod` lines are above its own. No two files use each other.

use super::names::{Tree, Use};
use super::source::{Sources, is_in, locate, made_up, module_of};
use std::collections::{BTreeMap, BTreeSet};

/// What is wrong in a room, from the room's path to sentences.
type Findings = BTreeMap<String, Vec<String>>;

/// `unclean` are the rooms that may break the rules, with the reason.
pub(super) fn check(sources: &Sources, tree: &Tree, unclean: &[(&str, &str)]) -> Vec<String> {
    let uses = tree.uses();
    let mut findings = missing_modules(tree);
    let upward = upward(sources, tree, &uses);
    let unordered: BTreeSet<_> = upward.keys().cloned().collect();
    for (room, found) in upward.into_iter().chain(circles(sources, &uses)) {
        findings.entry(room).or_default().extend(found);
    }
    let mut failures = Vec::new();
    for (room, _) in unclean {
        if findings.remove(*room).is_none() {
            failures.push(format!("{room} is clean now: delete its entry in UNCLEAN_ROOMS"));
        }
    }
    for (room, found) in findings {
        failures.extend(found);
        let order = unordered.contains(&room).then(|| possible_order(tree, &uses, &room)).flatten();
        if let Some(order) = order {
            failures.push(format!("an order of the `mod` lines of {} that fits: {}", title(&room), order.join(", ")));
        }
    }
    failures
}

/// What a room may not use although it is above: the two rooms, and the reason.
pub(super) fn check_forbidden(sources: &Sources, tree: &Tree, forbidden: &[(&str, &str, &str)]) -> Vec<String> {
    let mut failures = Vec::new();
    for (user, room, reason) in forbidden {
        for named in [user, room].into_iter().filter(|named| !sources.keys().any(|file| is_in(file, named))) {
            failures.push(format!("{named} in FORBIDDEN is no room"));
        }
        for used in tree.uses().iter().filter(|used| is_in(&used.from, user) && is_in(&used.to, room)) {
            let location = location(sources, used);
            failures.push(format!("{location}: `{}` is in {}: {reason}", used.path.join("::"), used.to));
        }
    }
    failures
}

/// Files that no `mod` line names, which the compiler does not read.
fn missing_modules(tree: &Tree) -> Findings {
    let mut findings = Findings::new();
    for file in tree.files.iter().filter(|file| !matches!(file.file.as_str(), "lib.rs" | "main.rs")) {
        let module = module_of(&file.file);
        let (name, parent) = module.split_last().expect("only lib.rs is the root");
        let is_named = tree.scope(parent).is_some_and(|scope| scope.children.iter().any(|child| child.name == *name));
        if !is_named {
            findings.entry(parent.join("/")).or_default().push(format!("{}: no `mod` line names it", file.file));
        }
    }
    findings
}

fn upward(sources: &Sources, tree: &Tree, uses: &[Use]) -> Findings {
    let mut findings = Findings::new();
    let mut pairs = BTreeSet::new();
    for used in uses.iter().filter(|used| used.from != "main.rs") {
        let Some((room, from, to)) = siblings(used) else { continue };
        let scope = tree.scope(&room);
        let position =
            |name: &String| scope.and_then(|scope| scope.children.iter().position(|child| child.name == *name));
        if position(&to) >= position(&from) && pairs.insert((&used.from, &used.to)) {
            let path = used.path.join("::");
            let location = location(sources, used);
            let text = format!(
                "{location}: `{path}` is in {}, but {from} may only use what is above it in {}, and {to} is below",
                used.to,
                title(&room.join("/"))
            );
            findings.entry(room.join("/")).or_default().push(text);
        }
    }
    findings
}

/// The room where the modules of two files part, and the room's children that they are in.
fn siblings(used: &Use) -> Option<(Vec<String>, String, String)> {
    let (from, to) = (module_of(&used.from), module_of(&used.to));
    let shared = from.iter().zip(&to).take_while(|(from, to)| from == to).count();
    Some((from[..shared].to_vec(), from.get(shared)?.clone(), to.get(shared)?.clone()))
}

/// Files that use each other, directly or through others. Each room is searched
/// by itself, so that a large circle does not hide one inside it.
fn circles(sources: &Sources, uses: &[Use]) -> Findings {
    let room_of = |used: &Use| common_room(&[&used.from, &used.to]);
    let mut findings = Findings::new();
    for room in uses.iter().map(room_of).collect::<BTreeSet<_>>() {
        let is_inside = |used: &&Use| room_of(used).starts_with(&room);
        let inside: Vec<_> = uses.iter().filter(is_inside).collect();
        for circle in circles_among(&inside).iter().filter(|circle| common_room(circle) == room) {
            let text = format!("a circle of files, {}: {}", circle.join(", "), examples(sources, &inside, circle));
            findings.entry(room.join("/")).or_default().push(text);
        }
    }
    findings
}

fn circles_among<'a>(uses: &[&'a Use]) -> Vec<Vec<&'a str>> {
    let mut graph: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for used in uses {
        graph.entry(&used.from).or_default().insert(&used.to);
    }
    let reached: BTreeMap<_, _> = graph.keys().map(|file| (*file, reachable(&graph, file))).collect();
    let mut circles: Vec<Vec<&str>> = Vec::new();
    for (file, others) in reached.iter().filter(|(file, others)| others.contains(*file)) {
        if !circles.iter().any(|circle| circle.contains(file)) {
            let returns = |other: &&&str| reached.get(**other).is_some_and(|reached| reached.contains(file));
            circles.push(others.iter().filter(returns).copied().collect());
        }
    }
    circles
}

/// One use for each two files of a circle.
fn examples(sources: &Sources, uses: &[&Use], circle: &[&str]) -> String {
    let mut pairs = BTreeSet::new();
    let mut found = Vec::new();
    for used in uses.iter().filter(|used| circle.contains(&used.from.as_str()) && circle.contains(&used.to.as_str())) {
        if pairs.insert((&used.from, &used.to)) {
            found.push(format!("{} uses `{}` of {}", location(sources, used), used.path.join("::"), used.to));
        }
    }
    found.join("; ")
}

/// The line of a use.
fn location(sources: &Sources, used: &Use) -> String {
    locate(sources, &used.from, used.path.last().map_or("", String::as_str))
}

fn reachable<'a>(graph: &BTreeMap<&'a str, BTreeSet<&'a str>>, start: &str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut waiting: Vec<_> = graph.get(start).into_iter().flatten().copied().collect();
    while let Some(file) = waiting.pop() {
        if found.insert(file) {
            waiting.extend(graph.get(file).into_iter().flatten());
        }
    }
    found
}

/// The innermost room that all of the files are in.
fn common_room(files: &[&str]) -> Vec<String> {
    let mut modules = files.iter().map(|file| module_of(file));
    let first = modules.next().unwrap_or_default();
    modules.fold(first, |room, module| room.into_iter().zip(module).map_while(|(a, b)| (a == b).then_some(a)).collect())
}

/// The children of a room, each after those that it uses, else as they are. None if they use each other.
fn possible_order(tree: &Tree, uses: &[Use], room: &str) -> Option<Vec<String>> {
    let parent: Vec<_> = room.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let children = tree.scope(&parent)?.children.iter().filter(|child| !child.is_test);
    let mut waiting: Vec<_> = children.map(|child| child.name.clone()).collect();
    let inside = uses.iter().filter_map(siblings).filter(|(room, ..)| *room == parent);
    let needs: BTreeSet<_> = inside.map(|(_, from, to)| (from, to)).collect();
    let mut order = Vec::new();
    while !waiting.is_empty() {
        let is_free = |name: &String| !waiting.iter().any(|other| needs.contains(&(name.clone(), other.clone())));
        let next = waiting.iter().position(is_free)?;
        order.push(waiting.remove(next));
    }
    Some(order)
}

fn title(room: &str) -> String {
    if room.is_empty() { "lib.rs".to_owned() } else { format!("{room}.rs") }
}

fn failures(files: &[(&str, &str)], unclean: &[(&str, &str)]) -> String {
    let sources = made_up(files);
    check(&sources, &Tree::new(&sources, []), unclean).join("\n")
}

const LIB: (&str, &str) = ("lib.rs", "pub mod queue; pub mod cli;");
const QUEUE: (&str, &str) = ("queue.rs", "mod keys; mod lease; pub use lease::Lease; pub use keys::key;");
const KEYS: (&str, &str) = ("queue/keys.rs", "pub fn key() {}");
const LEASE: (&str, &str) = ("queue/lease.rs", "use super::keys::key; pub struct Lease;");

#[test]
fn a_tree_whose_imports_go_upwards_passes() {
    let cli = ("cli.rs", "use crate::queue::{Lease, key}; fn f() { crate::queue::key() }");
    assert_eq!(failures(&[LIB, QUEUE, KEYS, LEASE, cli], &[]), "");
}

#[test]
fn an_import_from_below_fails_at_the_top_level() {
    let found =
        failures(&[LIB, ("cli.rs", "pub fn f() {}"), ("queue.rs", "//! Queue.\nfn g() { crate::cli::f() }")], &[]);
    assert!(found.contains("queue.rs:2: `crate::cli::f` is in cli.rs"), "{found}");
    assert!(found.contains("of lib.rs that fits: cli, queue"), "{found}");
}

#[test]
fn an_import_from_below_fails_inside_a_room_however_it_is_written() {
    for keys in [
        "use crate::queue::lease::Lease;",
        "use super::{lease::Lease};",
        "fn f() { let lease = self::super::super::queue::lease::Lease; }",
        "use crate::queue::Lease;", // a re-export
        "use crate::queue; fn f(_: queue::Lease) {}",
        "fn f() { vec![super::Lease] }",
        "mod inner { use super::super::Lease; }",
    ] {
        let cli = ("cli.rs", "");
        let lease = ("queue/lease.rs", "pub struct Lease;");
        let found = failures(&[LIB, QUEUE, ("queue/keys.rs", &format!("pub fn key() {{}} {keys}")), lease, cli], &[]);
        assert!(
            found.contains("is in queue/lease.rs, but keys may only use what is above it in queue.rs"),
            "{keys}: {found}"
        );
    }
}

#[test]
fn a_test_may_use_what_is_below() {
    let cli = ("cli.rs", "");
    let test = ("queue/keys.rs", "pub fn key() {} #[cfg(test)] mod tests { use crate::queue::Lease; }");
    assert_eq!(failures(&[LIB, QUEUE, test, LEASE, cli], &[]), "");
    let parent = ("queue/keys.rs", "pub fn key() {} #[cfg(test)] mod tests;");
    let child = ("queue/keys/tests.rs", "use super::super::Lease;");
    assert_eq!(failures(&[LIB, QUEUE, parent, child, LEASE, cli], &[]), "");
}

#[test]
fn a_parent_and_a_child_that_use_each_other_are_a_circle() {
    let parent = ("cli.rs", "mod print; pub struct Args; fn f() { print::show() }");
    let found = failures(&[LIB, ("queue.rs", ""), parent, ("cli/print.rs", "use super::Args; pub fn show() {}")], &[]);
    assert!(found.contains("a circle of files, cli.rs, cli/print.rs"), "{found}");
    assert!(found.contains("uses `super::Args` of cli.rs"), "{found}");
    // A circle that goes through the whole tree does not hide it.
    let queue = ("queue.rs", "use crate::cli::Args; pub struct Queue;");
    let child = ("cli/print.rs", "use super::Args; use crate::queue::Queue; pub fn show() {}");
    let found = failures(&[LIB, queue, parent, child], &[]);
    assert!(
        found.contains("files, cli.rs, cli/print.rs:") && found.contains("files, cli.rs, cli/print.rs, queue.rs:"),
        "{found}"
    );
    // A child may use its parent's types if the parent only declares them.
    let parent = ("cli.rs", "mod print; pub struct Args;");
    assert_eq!(failures(&[LIB, ("queue.rs", ""), parent, ("cli/print.rs", "use super::Args;")], &[]), "");
}

#[test]
fn two_files_of_a_room_that_use_each_other_are_a_circle() {
    let keys = ("queue/keys.rs", "use super::Lease; pub fn key() {}");
    let found = failures(&[LIB, QUEUE, keys, LEASE, ("cli.rs", "")], &[]);
    assert!(found.contains("a circle of files, queue/keys.rs, queue/lease.rs"), "{found}");
    assert!(!found.contains("that fits"), "{found}");
}

#[test]
fn an_unclean_room_passes_until_it_is_clean() {
    let keys = ("queue/keys.rs", "use super::Lease; pub fn key() {}");
    assert_eq!(failures(&[LIB, QUEUE, keys, LEASE, ("cli.rs", "")], &[("queue", "rooms follow")]), "");
    let found = failures(&[LIB, QUEUE, KEYS, LEASE, ("cli.rs", "")], &[("queue", "rooms follow")]);
    assert_eq!(found, "queue is clean now: delete its entry in UNCLEAN_ROOMS");
}

#[test]
fn a_file_without_a_mod_line_fails() {
    let found = failures(&[LIB, QUEUE, KEYS, LEASE, ("cli.rs", ""), ("queue/old.rs", "")], &[]);
    assert!(found.contains("queue/old.rs: no `mod` line names it"), "{found}");
}

#[test]
fn a_forbidden_use_fails_even_through_a_facade() {
    let cli = ("cli.rs", "use crate::queue; fn f(_: queue::Lease) {}");
    let sources = made_up(&[LIB, QUEUE, KEYS, LEASE, cli]);
    let check = |room| check_forbidden(&sources, &Tree::new(&sources, []), &[("cli", room, "a lease is for workers")]);
    assert_eq!(check("queue/lease"), ["cli.rs:1: `queue::Lease` is in queue/lease.rs: a lease is for workers"]);
    assert!(check("queue/keys").is_empty());
    assert_eq!(check("queue/old"), ["queue/old in FORBIDDEN is no room"]);
}
