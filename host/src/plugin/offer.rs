//! What this host offers to guests, what each of it takes to be granted, and
//! words for what it does not have.

use super::command::WASI_P1;
use super::words::cut;
use crate::manifest::Grants;
use serde::Serialize;

/// The version of `wit/gateway.wit`, and its interfaces with the kinds of
/// grants that each takes any of.
const VERSION: &str = "1.0.0";
const OURS: [(&str, &[&str]); 7] = [
    ("config", &[]),
    ("key-value", &["keyvalue"]),
    ("logging", &[]),
    ("mail", &["mail"]),
    ("publisher", &["publish"]),
    ("secrets", &["secrets"]),
    ("types", &[]),
];

/// The same for packages of WASI 0.2.
const WASI: [(&str, &[&str]); 7] = [
    ("cli", &[]),
    ("clocks", &[]),
    ("filesystem", FILES),
    ("http", &["http"]),
    ("io", &[]),
    ("random", &[]),
    (SOCKETS, &[]),
];
/// What a core module gets, all in one.
const FILES: &[&str] = &["read", "write"];
/// They are there, since languages import them, and lead nowhere.
const SOCKETS: &str = "sockets";

/// How an import stands with a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "access", rename_all = "kebab-case")]
pub enum Access {
    /// Needs no grant.
    Always,
    Granted {
        what: Vec<String>,
    },
    /// It is there and denies, until this is written into `[grants]`.
    NotGranted {
        write: String,
    },
    /// It is there and denies, whatever is written.
    Denied,
    /// The host does not have it.
    Missing,
}

/// One interface that a component imports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Import {
    pub name: String,
    #[serde(flatten)]
    pub access: Access,
}

impl Import {
    pub(super) fn of(name: &str, grants: &Grants) -> Self {
        Self { name: name.to_owned(), access: access(name, grants) }
    }

    /// Whether a grant was forgotten or is withheld. Files do not count: whole
    /// languages import them and never look.
    pub(super) fn is_withheld(&self) -> bool {
        matches!(self.access, Access::NotGranted { .. }) && Name::of(&self.name).kinds() != Some(FILES)
    }
}

fn access(name: &str, grants: &Grants) -> Access {
    let name = Name::of(name);
    let Some(kinds) = name.kinds() else { return Access::Missing };
    if kinds.is_empty() {
        return if name.package.ends_with(SOCKETS) { Access::Denied } else { Access::Always };
    }
    let by_kind = grants.by_kind();
    let what: Vec<String> = kinds.iter().filter_map(|kind| by_kind.get(kind)).flatten().cloned().collect();
    if what.is_empty() { Access::NotGranted { write: example(kinds).to_owned() } } else { Access::Granted { what } }
}

fn example(kinds: &[&str]) -> &'static str {
    match kinds {
        ["keyvalue"] => "keyvalue = true",
        ["mail"] => "mail = true",
        ["publish"] => "publish = [\"topic\"]",
        ["secrets"] => "secrets = [\"NAME\"]",
        ["http"] => "http = [\"https://api.example.com\"]",
        _ => "read = { \"/in\" = \"/data/in\" }",
    }
}

/// What is granted and, as nothing that could use it is imported, for nothing.
pub(super) fn unused(imports: &[Import], grants: &Grants) -> Vec<String> {
    let used: Vec<&str> =
        imports.iter().filter_map(|import| Name::of(&import.name).kinds()).flatten().copied().collect();
    // Networks only say where requests may lead.
    let is_used = |kind| used.contains(&if kind == "private_networks" { "http" } else { kind });
    grants.by_kind().into_keys().filter(|kind| !is_used(kind)).map(str::to_owned).collect()
}

/// `gateway:worker/logging@1.0.0` in its parts.
struct Name<'a> {
    package: &'a str,
    interface: &'a str,
    version: &'a str,
}

impl<'a> Name<'a> {
    fn of(name: &'a str) -> Self {
        let (path, version) = name.split_once('@').unwrap_or((name, ""));
        let (package, interface) = path.split_once('/').unwrap_or((path, ""));
        Self { package, interface, version }
    }

    /// The kinds of grants that it takes any of. None where the host does not
    /// have it, in whatever version.
    fn kinds(&self) -> Option<&'static [&'static str]> {
        let found = match self.package.strip_prefix("wasi:") {
            Some(package) => WASI.iter().find(|(name, _)| *name == package),
            None if self.package == WASI_P1 => return Some(FILES),
            None if self.package == "gateway:worker" => OURS.iter().find(|(name, _)| *name == self.interface),
            None => None,
        };
        found.map(|(_, kinds)| *kinds)
    }
}

/// What a component needs that is not here, in words of ours: which interface,
/// which function, what there is instead, and what to do.
pub(super) fn lacking(error: &wasmtime::Error) -> String {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    let quoted =
        |cause: Option<&String>, before: &str| Some(cause?.split_once(before)?.1.split_once('`')?.0.to_owned());
    let interface = quoted(causes.first(), "component imports instance `");
    let function = quoted(causes.get(1), "instance export `");
    let (Some(interface), Some(function), Some(why)) = (interface, function, causes.get(2)) else {
        return cut(format!("it needs what this host does not offer: {error:#}; {MEND}"));
    };
    let name = Name::of(&interface);
    cut(if !why.contains("is missing") {
        let why = causes.get(2..).unwrap_or_default().join(": ");
        format!(
            "`{function}` of {interface} has another type than this host's: {why} (expected is what the host has); {MEND}"
        )
    } else if name.kinds().is_some() && is_our_track(&name) {
        format!("it needs `{function}` of {interface}, which this host does not have: {}; {MEND}", offered(&name))
    } else {
        format!("it needs {interface} (`{function}`), which this host does not have: {}; {MEND}", offered(&name))
    })
}

const MEND: &str = "build it against this host's wit/gateway.wit, or update the worker";

/// Versions that only differ in what they add.
fn is_our_track(name: &Name) -> bool {
    let track = |version: &str| {
        version.split('.').take(if version.starts_with('0') { 2 } else { 1 }).map(str::to_owned).collect::<Vec<_>>()
    };
    let ours = if name.package == "gateway:worker" { VERSION } else { "0.2.0" };
    track(name.version) == track(ours)
}

fn offered(name: &Name) -> String {
    let ours = || {
        let names: Vec<&str> = OURS.iter().map(|(name, _)| *name).collect();
        format!("gateway:worker@{VERSION} with {}", names.join(", "))
    };
    let wasi = || {
        let names: Vec<&str> = WASI.iter().map(|(name, _)| *name).collect();
        format!("WASI 0.2 with {}", names.join(", "))
    };
    match name.package {
        "gateway:worker" if name.kinds().is_some() => {
            format!("it offers gateway:worker/{}@{VERSION}", name.interface)
        }
        "gateway:worker" => format!("it offers {}", ours()),
        package if package.starts_with("wasi:") => format!("it offers {}", wasi()),
        _ => format!("it offers {}, and {}", ours(), wasi()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;

    fn grants(text: &str) -> Grants {
        Manifest::parse(&format!("[grants]\n{text}"), "topic").unwrap().grants
    }

    #[test]
    fn every_import_stands_somehow_with_a_manifest() {
        let none = Grants::default();
        let all = grants(
            "publish = [\"b\", \"a\"]\nmail = true\nkeyvalue = true\nsecrets = [\"S\"]\nread = { \"/in\" = \"/data\" }",
        );
        let granted = |what: &[&str]| Access::Granted { what: what.iter().map(ToString::to_string).collect() };
        for (name, without, with) in [
            ("logging", Access::Always, Access::Always),
            ("config", Access::Always, Access::Always),
            ("publisher", not_granted("publish = [\"topic\"]"), granted(&["a", "b"])),
            ("mail", not_granted("mail = true"), granted(&["true"])),
            ("key-value", not_granted("keyvalue = true"), granted(&["true"])),
            ("secrets", not_granted("secrets = [\"NAME\"]"), granted(&["S"])),
            ("other", Access::Missing, Access::Missing),
        ] {
            let name = format!("gateway:worker/{name}@1.0.0");
            assert_eq!((access(&name, &none), access(&name, &all)), (without, with), "{name}");
        }
        assert_eq!(access("wasi:clocks/wall-clock@0.2.6", &none), Access::Always);
        assert_eq!(access("wasi:sockets/tcp@0.2.6", &all), Access::Denied);
        assert_eq!(access("wasi:filesystem/types@0.2.6", &all), granted(&["/in = /data"]));
        assert_eq!(access("wasi:gpu/gpu@0.2.6", &all), Access::Missing);
        assert_eq!(access("thing", &all), Access::Missing);
    }

    fn not_granted(write: &str) -> Access {
        Access::NotGranted { write: write.to_owned() }
    }

    #[test]
    fn what_is_granted_for_nothing_is_told() {
        let granted = grants("publish = [\"a\"]\nmail = true");
        let imports = [Import::of("gateway:worker/mail@1.0.0", &granted)];
        assert_eq!(unused(&imports, &granted), ["publish"]);
        assert!(unused(&imports, &grants("mail = true")).is_empty());
    }

    #[test]
    fn every_example_of_a_grant_is_one() {
        for import in ["publisher", "mail", "key-value", "secrets"].map(|name| format!("gateway:worker/{name}@1.0.0")) {
            let Access::NotGranted { write } = access(&import, &Grants::default()) else { panic!("{import}") };
            assert!(matches!(access(&import, &grants(&write)), Access::Granted { .. }), "{write}");
        }
    }
}
