//! The methods of a type are in the file that declares it or in a module below:
//! with an `impl` elsewhere, files depend on each other without an import.

use super::names::{Target, Tree};
use super::parsed::Segments;
use super::source::{Sources, is_in, locate_line, made_up};
use std::collections::BTreeSet;

/// `exceptions` are files or rooms that may break the rule for a type, `*` for all.
pub(super) fn check(sources: &Sources, tree: &Tree, exceptions: &[(&str, &str)]) -> Vec<String> {
    let found = misplaced(tree);
    let covers = |(room, type_): &(&str, &str), block: &Misplaced| {
        is_in(&block.file, room) && (*type_ == "*" || *type_ == block.type_)
    };
    let mut failures = Vec::new();
    for exception in exceptions {
        if !found.iter().any(|block| covers(exception, block)) {
            let (room, type_) = exception;
            failures.push(format!("{room} has no misplaced impl of {type_}: delete its entry in MISPLACED_IMPLS"));
        }
    }
    for block in found.iter().filter(|block| !exceptions.iter().any(|exception| covers(exception, block))) {
        let Misplaced { file, type_, home } = block;
        let is_header = |line: &str| line.trim_start().starts_with("impl") && line.contains(type_.as_str());
        let location = locate_line(sources, file, is_header);
        failures.push(format!(
            "{location}: an impl of {type_}, which {home} declares: move it there or into a module below"
        ));
    }
    failures
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Misplaced {
    file: String,
    type_: String,
    home: String,
}

fn misplaced(tree: &Tree) -> BTreeSet<Misplaced> {
    let mut found = BTreeSet::new();
    for file in &tree.files {
        for block in file.impls.iter().filter(|block| !block.is_test && !tree.is_test(&block.module)) {
            let home = |path: &Segments| declaring_file(tree, &block.module, path);
            let is_near = |home: String| is_in(&file.file, home.trim_end_matches(".rs"));
            let Some(declared_in) = home(&block.self_type) else { continue };
            // A trait of ours belongs to both. `From<A> for B` may be near A: B need not know of A.
            let others = block.implemented.iter().chain(&block.arguments);
            if !others.chain([&block.self_type]).filter_map(home).any(is_near) {
                let type_ = block.self_type.last().cloned().unwrap_or_default();
                found.insert(Misplaced { file: file.file.clone(), type_, home: declared_in });
            }
        }
    }
    found
}

/// The file of ours that declares a type or a trait, not an alias of it.
fn declaring_file(tree: &Tree, module: &[String], path: &[String]) -> Option<String> {
    tree.resolve(module, path).into_iter().find_map(|target| match target {
        Target::Ours { file, item: Some(item) } => match tree.aliased(&file, &item) {
            Some((module, path)) => declaring_file(tree, module, path),
            None => Some(file),
        },
        _ => None,
    })
}

fn failures(file: &str, text: &str, exceptions: &[(&str, &str)]) -> String {
    let sources = made_up(&[
        ("lib.rs", "mod lane; mod job;"),
        ("lane.rs", "mod take; pub struct Lane; impl Lane {} pub trait Run {} mod tests {}"),
        ("lane/take.rs", if file == "lane/take.rs" { text } else { "" }),
        ("job.rs", if file == "job.rs" { text } else { "" }),
    ]);
    check(&sources, &Tree::new(&sources, ["tokio"]), exceptions).join("\n")
}

#[test]
fn an_impl_in_another_file_fails() {
    for text in [
        "use crate::lane::Lane; impl Lane { fn f() {} }",
        "impl super::lane::Lane {}",
        "use crate::lane::Lane; impl std::fmt::Display for Lane {}",
        "use crate::lane::Lane; impl<'a> From<&'a Lane> for &Lane {}",
        "use crate::lane::Lane; impl From<Vec<u8>> for Lane {}",
        "type Other = crate::lane::Lane; impl Other {}",
        "use crate::lane::Lane as Other; fn f() { impl Drop for Other {} }",
    ] {
        let found = failures("job.rs", text, &[]);
        assert!(found.contains("which lane.rs declares"), "{text}: {found}");
    }
}

#[test]
fn an_impl_near_its_type_or_our_trait_passes() {
    assert_eq!(failures("lane/take.rs", "use super::Lane; impl Lane {}", &[]), "");
    assert_eq!(
        failures(
            "job.rs",
            "use crate::lane::Run; struct Job; impl Run for Job {} impl<T: Run> Into<T> for Job {}",
            &[]
        ),
        ""
    );
    assert_eq!(
        failures("job.rs", "use crate::lane::Lane; trait Ours {} impl Ours for Lane {} impl<T> Ours for T {}", &[]),
        ""
    );
    assert_eq!(failures("job.rs", "use crate::lane::Lane; struct Job; impl From<Job> for Lane {}", &[]), "");
    assert_eq!(failures("job.rs", "trait Ours {} impl Ours for Vec<u8> {} impl Ours for tokio::A {}", &[]), "");
    assert_eq!(failures("job.rs", "#[cfg(test)] mod tests { impl crate::lane::Lane {} }", &[]), "");
}

#[test]
fn an_exception_holds_for_one_type_until_it_is_unused() {
    let text = "impl crate::lane::Lane {}";
    assert_eq!(failures("job.rs", text, &[("job", "Lane")]), "");
    assert_eq!(failures("job.rs", text, &[("job", "*")]), "");
    let found = failures("job.rs", text, &[("job", "Other")]);
    assert!(found.contains("which lane.rs declares") && found.contains("no misplaced impl of Other"), "{found}");
}
