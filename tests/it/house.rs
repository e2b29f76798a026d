//! The architecture of the host, as rules that its source must obey. The rules
//! parse the source, and unit tests show that each finds what it forbids.

mod source;
mod parsed;
mod names;
mod rooms;
mod impls;
mod owners;
mod texts;
mod tables;

use names::Tree;
use source::Sources;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

struct Host {
    manifest: String,
    sources: Sources,
    tree: Tree,
}

static HOST: LazyLock<Host> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let sources = source::read(&root.join("src"));
    let mut crates = owners::dependencies(&manifest, "dependencies");
    crates.extend(owners::dependencies(&manifest, "dev-dependencies"));
    let tree = Tree::new(&sources, crates.iter().map(String::as_str));
    Host { manifest, sources, tree }
});

fn assert_none(failures: &[String]) {
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn each_path_can_be_followed() {
    assert_none(&HOST.tree.unresolved());
}

#[test]
fn imports_go_only_upwards() {
    assert!(HOST.sources.len() > 100);
    assert_none(&rooms::check(&HOST.sources, &HOST.tree, tables::UNCLEAN_ROOMS));
}

#[test]
fn no_room_uses_what_it_must_not_know() {
    assert_none(&rooms::check_forbidden(&HOST.sources, &HOST.tree, tables::FORBIDDEN));
}

#[test]
fn methods_are_where_their_type_is() {
    assert_none(&impls::check(&HOST.sources, &HOST.tree, tables::MISPLACED_IMPLS));
}

#[test]
fn each_crate_has_its_owners() {
    let known = owners::dependencies(&HOST.manifest, "dependencies");
    assert_none(&owners::check_crates(&HOST.sources, &HOST.tree, &known, tables::CRATES));
}

#[test]
fn only_the_settings_read_the_environment() {
    assert_none(&owners::check_restricted(&HOST.sources, &HOST.tree, &tables::ENVIRONMENT));
}

#[test]
fn the_queue_uses_the_clock_of_redis() {
    assert_none(&owners::check_restricted(&HOST.sources, &HOST.tree, &tables::CLOCK));
}

#[test]
fn only_the_cache_has_unsafe_code() {
    assert_none(&owners::check_unsafe(&HOST.tree, tables::UNSAFE));
}

#[test]
fn each_file_says_what_it_is_for() {
    assert_none(&texts::check_rust(&HOST.sources));
    assert_none(&texts::check_lua(&HOST.sources));
}

#[test]
fn no_two_names_in_a_room_are_easily_confused() {
    assert_none(&texts::check_names(&HOST.sources));
}
