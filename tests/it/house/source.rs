//! The text of every source file, read from disk or made up by a test.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// From the path below `src`, such as `queue/leases.rs`, to the text.
pub(super) type Sources = BTreeMap<String, String>;

/// Every Rust file and Lua script below `root`.
pub(super) fn read(root: &Path) -> Sources {
    let mut sources = Sources::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            if path.is_dir() {
                directories.push(path);
            } else if matches!(extension, Some("rs" | "lua")) {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                sources.insert(name, fs::read_to_string(path).unwrap());
            }
        }
    }
    sources
}

/// A tree that a unit test makes up.
pub(super) fn made_up(files: &[(&str, &str)]) -> Sources {
    files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

/// The path of a file's module: `queue/leases.rs` is `["queue", "leases"]`, `lib.rs` is `[]`.
pub(super) fn module_of(file: &str) -> Vec<String> {
    match file.strip_suffix(".rs").unwrap_or(file) {
        "lib" => Vec::new(),
        path => path.trim_end_matches("/mod").split('/').map(str::to_owned).collect(),
    }
}

/// Whether `file` is the file of `room`, or is in its directory.
pub(super) fn is_in(file: &str, room: &str) -> bool {
    let path = file.strip_suffix(".rs").unwrap_or(file);
    path == room || path.strip_prefix(room).is_some_and(|end| end.starts_with('/'))
}

/// `file:line` of the first line of code that names `word`.
pub(super) fn locate(sources: &Sources, file: &str, word: &str) -> String {
    let is_part = |char: char| char.is_alphanumeric() || char == '_';
    locate_line(sources, file, |line| line.split(|char| !is_part(char)).any(|part| part == word))
}

/// `file:line` of the first line of code that fits. The file alone if none does.
pub(super) fn locate_line(sources: &Sources, file: &str, fits: impl Fn(&str) -> bool) -> String {
    let is_found = |line: &str| !line.trim_start().starts_with("//") && fits(line);
    let text = sources.get(file).map_or("", String::as_str);
    text.lines().position(is_found).map_or_else(|| file.to_owned(), |line| format!("{file}:{}", line + 1))
}

#[test]
fn a_room_is_a_file_and_its_directory() {
    assert!(is_in("queue.rs", "queue") && is_in("queue/dead/list.rs", "queue") && is_in("queue/dead.rs", "queue/dead"));
    assert!(!is_in("queues.rs", "queue") && !is_in("queue.rs", "queue/dead"));
    assert_eq!(module_of("queue/dead/list.rs"), ["queue", "dead", "list"]);
    assert!(module_of("lib.rs").is_empty());
}

#[test]
fn a_finding_names_the_first_line_of_code() {
    let sources = made_up(&[("a.rs", "//! Uses b.\n\nuse crate::bb;\nuse crate::b;\n")]);
    assert_eq!(locate(&sources, "a.rs", "b"), "a.rs:4");
    assert_eq!(locate(&sources, "a.rs", "c"), "a.rs");
}
