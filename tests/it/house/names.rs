//! Follows a path to the file that declares what it names, also through
//! imports and re-exports, or to the crate that it comes from.

use super::parsed::{Mention, Parsed, Scope, Segments, parse};
use super::source::{Sources, made_up, module_of};
use std::collections::{BTreeMap, BTreeSet};

/// Longer chains of re-exports than this are circles.
const MAX_REEXPORTS: usize = 8;
const STANDARD: [&str; 3] = ["std", "core", "alloc"];

/// All files, parsed.
pub(super) struct Tree {
    pub(super) files: Vec<Parsed>,
    /// From a module to the index of its file and of its scope in that file.
    modules: BTreeMap<Segments, (usize, usize)>,
    crates: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Target {
    /// An item of the host, and the file that declares it. There is no item if the path ends at a module.
    Ours { file: String, item: Option<String> },
    /// The full path in another crate.
    External(Segments),
}

/// A file names something that another one declares.
pub(super) struct Use {
    pub(super) from: String,
    pub(super) to: String,
    /// The path as the source has it.
    pub(super) path: Segments,
}

impl Tree {
    /// `crates` are the dependencies: any other name that is not declared here is a variable or from the prelude.
    pub(super) fn new<'a>(sources: &Sources, crates: impl IntoIterator<Item = &'a str>) -> Self {
        let is_rust = |file: &&String| file.ends_with(".rs");
        let files: Vec<_> = sources.keys().filter(is_rust).map(|file| parse(file, &sources[file])).collect();
        let mut modules = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for (scope, found) in file.scopes.iter().enumerate() {
                modules.insert(found.module.clone(), (index, scope));
            }
        }
        let crates = crates.into_iter().chain(STANDARD).map(|name| name.replace('-', "_")).collect();
        Self { files, modules, crates }
    }

    pub(super) fn scope(&self, module: &[String]) -> Option<&Scope> {
        let (file, scope) = self.modules.get(module)?;
        Some(&self.files[*file].scopes[*scope])
    }

    /// Whether a module, or a parent of it, is compiled for tests only.
    pub(super) fn is_test(&self, module: &[String]) -> bool {
        (1..=module.len()).any(|depth| {
            let (name, parent) = module[..depth].split_last().expect("at least one segment");
            let parent = self.scope(parent);
            parent.is_some_and(|scope| scope.children.iter().any(|child| child.name == *name && child.is_test))
        })
    }

    /// Every path that the code names, tests included.
    pub(super) fn mentions(&self) -> impl Iterator<Item = (&Parsed, &Mention, Target)> {
        self.files.iter().flat_map(move |file| {
            file.mentions.iter().flat_map(move |mention| {
                let targets = self.resolve(&mention.module, &mention.path);
                targets.into_iter().map(move |target| (file, mention, target))
            })
        })
    }

    /// What `item` of a file is an alias of: the path, and the module that it is written in.
    pub(super) fn aliased(&self, file: &str, item: &str) -> Option<(&Segments, &Segments)> {
        let file = self.files.iter().find(|parsed| parsed.file == file)?;
        file.scopes.iter().find_map(|scope| Some((&scope.module, scope.aliases.get(item)?)))
    }

    /// Paths into our modules that lead nowhere, which no rule could check.
    pub(super) fn unresolved(&self) -> Vec<String> {
        let is_ours = |mention: &&Mention| matches!(mention.path[0].as_str(), "crate" | "self" | "super");
        let mut found = Vec::new();
        for file in &self.files {
            let ours = file.mentions.iter().filter(is_ours);
            for mention in ours.filter(|mention| self.resolve(&mention.module, &mention.path).is_empty()) {
                found.push(format!("{}: can't follow `{}`", file.file, mention.path.join("::")));
            }
        }
        found
    }

    /// Which file uses which, without the tests.
    pub(super) fn uses(&self) -> Vec<Use> {
        let mut found = Vec::new();
        for (file, mention, target) in self.mentions() {
            let Target::Ours { file: to, item } = target else { continue };
            // A path that ends at the parent module names none of its items.
            let is_ancestor = item.is_none() && module_of(&file.file).starts_with(&module_of(&to));
            let is_test = mention.is_test || self.is_test(&mention.module);
            if file.file != to && !is_ancestor && !is_test {
                found.push(Use { from: file.file.clone(), to, path: mention.path.clone() });
            }
        }
        found
    }

    /// What a path in `module` names: a module and a function may have the same name.
    pub(super) fn resolve(&self, module: &[String], path: &[String]) -> Vec<Target> {
        self.begin(module, path, MAX_REEXPORTS)
    }

    fn begin(&self, module: &[String], path: &[String], reexports: usize) -> Vec<Target> {
        let Some((first, tail)) = path.split_first() else { return Vec::new() };
        if reexports == 0 || first == "Self" {
            return Vec::new();
        }
        let (start, path) = match first.as_str() {
            "" => return vec![Target::External(tail.to_vec())],
            "crate" | "gateway_worker" => (&[][..], tail),
            _ => (module, path),
        };
        let declared = self.walk(start, path, reexports, false);
        if !declared.is_empty() {
            return declared;
        }
        let is_keyword = matches!(first.as_str(), "crate" | "gateway_worker" | "self" | "super");
        if !is_keyword && self.crates.contains(first) {
            return vec![Target::External(path.to_vec())];
        }
        self.walk(start, path, reexports, true)
    }

    /// `is_guess` also follows globs, and takes an unknown name for one that a macro of the module declares.
    fn walk(&self, module: &[String], path: &[String], reexports: usize, is_guess: bool) -> Vec<Target> {
        let Some((file, scope)) = self.modules.get(module) else { return Vec::new() };
        let (file, scope) = (&self.files[*file].file, &self.files[*file].scopes[*scope]);
        let Some((name, tail)) = path.split_first() else {
            return vec![Target::Ours { file: file.clone(), item: None }];
        };
        match name.as_str() {
            "super" => {
                return self.walk(module.split_last().map_or(&[], |(_, parent)| parent), tail, reexports, is_guess);
            }
            "self" => return self.walk(module, tail, reexports, is_guess),
            _ => {}
        }
        let mut found = Vec::new();
        if scope.children.iter().any(|child| child.name == *name) {
            found = self.walk(&[module, std::slice::from_ref(name)].concat(), tail, reexports, is_guess);
            if !tail.is_empty() {
                return found;
            }
        }
        let item = Target::Ours { file: file.clone(), item: Some(name.clone()) };
        if scope.types.contains(name) || tail.is_empty() && scope.values.contains(name) {
            found.push(item.clone());
        }
        for import in scope.imports.iter().filter(|import| import.name.as_ref() == Some(name)) {
            found.extend(self.begin(module, &[import.path.as_slice(), tail].concat(), reexports - 1));
        }
        if is_guess && found.is_empty() {
            let globs = scope.imports.iter().filter(|import| import.name.is_none());
            found.extend(globs.flat_map(|glob| self.begin(module, &[&glob.path, path].concat(), reexports - 1)));
        }
        if is_guess && found.is_empty() && scope.has_item_macro {
            found.push(item);
        }
        found
    }
}

fn resolved(files: &[(&str, &str)], module: &str, path: &str) -> Vec<String> {
    let tree = Tree::new(&made_up(files), ["redis"]);
    let path: Vec<_> = path.split("::").map(str::to_owned).collect();
    let text = |target| match target {
        Target::Ours { file, item } => format!("{file} {}", item.unwrap_or_default()),
        Target::External(path) => path.join("::"),
    };
    tree.resolve(&module_of(module), &path).into_iter().map(text).collect()
}

const FILES: [(&str, &str); 5] = [
    ("lib.rs", "pub mod queue; pub mod cli;"),
    (
        "queue.rs",
        "mod lease; mod made; pub use lease::{Lease as Renewed, lease}; pub use redis::Client; pub use made::*;",
    ),
    ("queue/lease.rs", "pub struct Lease; pub fn lease() {}"),
    ("queue/made.rs", "script!(A);"),
    ("cli.rs", "use crate::queue; use std::env; mod inner { fn f() { super::g() } } fn g() {}"),
];

#[test]
fn a_path_leads_to_the_file_that_declares() {
    assert_eq!(resolved(&FILES, "cli.rs", "queue::Renewed::new"), ["queue/lease.rs Lease"]);
    assert_eq!(resolved(&FILES, "cli.rs", "crate::queue::lease"), ["queue/lease.rs ", "queue/lease.rs lease"]);
    assert_eq!(resolved(&FILES, "queue/lease.rs", "super::super::cli::g"), ["cli.rs g"]);
    assert_eq!(resolved(&FILES, "cli/inner.rs", "super::g"), ["cli.rs g"]);
    assert_eq!(resolved(&FILES, "main.rs", "gateway_worker::cli"), ["cli.rs "]);
}

#[test]
fn a_path_leads_to_a_crate() {
    assert_eq!(resolved(&FILES, "cli.rs", "env::var_os"), ["std::env::var_os"]);
    assert_eq!(resolved(&FILES, "cli.rs", "queue::Client::open"), ["redis::Client::open"]);
    assert_eq!(resolved(&FILES, "cli.rs", "::redis::Client"), ["redis::Client"]);
    assert!(resolved(&FILES, "cli.rs", "variable::method").is_empty());
}

#[test]
fn an_unknown_name_is_that_of_a_macro() {
    assert_eq!(resolved(&FILES, "cli.rs", "queue::A"), ["queue/made.rs A"]);
}

#[test]
fn a_path_that_leads_nowhere_is_found() {
    let tree = Tree::new(&made_up(&[("lib.rs", "mod a;"), ("a.rs", "fn f() { self::f(); crate::b::g() }")]), []);
    assert_eq!(tree.unresolved(), ["a.rs: can't follow `crate::b::g`"]);
}
