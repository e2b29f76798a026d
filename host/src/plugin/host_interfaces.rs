//! The interfaces of this host, the grants that they need, and the errors for missing
//! ones.

use super::command::WASI_P1;
use crate::manifest::Grants;
use crate::text::truncate_error;
use serde::Serialize;

/// The version of `wit/gateway.wit`.
const VERSION: &str = "1.0.0";
/// Each interface with the kinds of grants that permit its use.
const GATEWAY_INTERFACES: [(&str, &[&str]); 7] = [
    ("config", &[]),
    ("key-value", &["keyvalue"]),
    ("logging", &[]),
    ("mail", &["mail"]),
    ("publisher", &["publish"]),
    ("secrets", &["secrets"]),
    ("types", &[]),
];

/// Each package of WASI 0.2 with the kinds of grants that permit its use.
const WASI_PACKAGES: [(&str, &[&str]); 7] = [
    ("cli", &[]),
    ("clocks", &[]),
    ("filesystem", FILES),
    ("http", &["http"]),
    ("io", &[]),
    ("random", &[]),
    (SOCKETS, &[]),
];
/// The grants for files. A core module has one import for all of WASI.
const FILES: &[&str] = &["read", "write"];
/// Linked, because language runtimes import them, but always denied.
const SOCKETS: &str = "sockets";

/// Whether the manifest permits an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "access", rename_all = "kebab-case")]
pub enum Access {
    /// Needs no grant.
    Always,
    Granted {
        what: Vec<String>,
    },
    /// Calls are denied until the manifest has this line in `[grants]`.
    NotGranted {
        write: String,
    },
    /// Calls are always denied.
    Denied,
    /// The host does not have it.
    Missing,
}

/// An interface that a component imports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Import {
    pub name: String,
    #[serde(flatten)]
    pub access: Access,
}

impl Import {
    pub(super) fn classify(name: &str, grants: &Grants) -> Self {
        Self { name: name.to_owned(), access: access(name, grants) }
    }

    /// Whether a grant is missing. Files do not count: language runtimes import them
    /// even if the handler does not use them.
    pub(super) fn is_ungranted(&self) -> bool {
        matches!(self.access, Access::NotGranted { .. })
            && InterfaceName::parse(&self.name).grant_kinds() != Some(FILES)
    }
}

fn access(name: &str, grants: &Grants) -> Access {
    let name = InterfaceName::parse(name);
    let Some(grant_kinds) = name.grant_kinds() else { return Access::Missing };
    if grant_kinds.is_empty() {
        return if name.package.ends_with(SOCKETS) { Access::Denied } else { Access::Always };
    }
    let by_kind = grants.by_kind();
    let what: Vec<String> = grant_kinds.iter().filter_map(|kind| by_kind.get(kind)).flatten().cloned().collect();
    if what.is_empty() {
        Access::NotGranted { write: example(grant_kinds).to_owned() }
    } else {
        Access::Granted { what }
    }
}

fn example(grant_kinds: &[&str]) -> &'static str {
    match grant_kinds {
        ["keyvalue"] => "keyvalue = true",
        ["mail"] => "mail = true",
        ["publish"] => "publish = [\"topic\"]",
        ["secrets"] => "secrets = [\"NAME\"]",
        ["http"] => "http = [\"https://api.example.com\"]",
        _ => "read = { \"/in\" = \"/data/in\" }",
    }
}

/// Kinds of grants that no import uses.
pub(super) fn unused(imports: &[Import], grants: &Grants) -> Vec<String> {
    let used: Vec<&str> = imports
        .iter()
        .filter_map(|import| InterfaceName::parse(&import.name).grant_kinds())
        .flatten()
        .copied()
        .collect();
    // Networks restrict the targets of HTTP requests.
    let is_used = |kind| used.contains(&if kind == "private_networks" { "http" } else { kind });
    grants.by_kind().into_keys().filter(|kind| !is_used(kind)).map(str::to_owned).collect()
}

/// The parts of a name such as `gateway:worker/logging@1.0.0`.
struct InterfaceName<'a> {
    package: &'a str,
    interface: &'a str,
    version: &'a str,
}

impl<'a> InterfaceName<'a> {
    fn parse(name: &'a str) -> Self {
        let (path, version) = name.split_once('@').unwrap_or((name, ""));
        let (package, interface) = path.split_once('/').unwrap_or((path, ""));
        Self { package, interface, version }
    }

    /// The kinds of grants, any of which permits its use. `None` if the host has no
    /// version of it.
    fn grant_kinds(&self) -> Option<&'static [&'static str]> {
        let found = match self.package.strip_prefix("wasi:") {
            Some(package) => WASI_PACKAGES.iter().find(|(name, _)| *name == package),
            None if self.package == WASI_P1 => return Some(FILES),
            None if self.package == "gateway:worker" => {
                GATEWAY_INTERFACES.iter().find(|(name, _)| *name == self.interface)
            }
            None => None,
        };
        found.map(|(_, grant_kinds)| *grant_kinds)
    }
}

/// Turns Wasmtime's link error into one that names the interface, the function, the
/// available interfaces, and a remedy.
pub(super) fn link_error(error: &wasmtime::Error) -> String {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    let quoted =
        |cause: Option<&String>, before: &str| Some(cause?.split_once(before)?.1.split_once('`')?.0.to_owned());
    let interface = quoted(causes.first(), "component imports instance `");
    let function = quoted(causes.get(1), "instance export `");
    let (Some(interface), Some(function), Some(why)) = (interface, function, causes.get(2)) else {
        return truncate_error(format!("it needs an import that this host does not have: {error:#}; {HINT}"));
    };
    let name = InterfaceName::parse(&interface);
    truncate_error(if !why.contains("is missing") {
        let why = causes.get(2..).unwrap_or_default().join(": ");
        format!(
            "`{function}` of {interface} has another type than this host's: {why} (expected is what the host has); {HINT}"
        )
    } else if name.grant_kinds().is_some() && is_compatible_version(&name) {
        format!("it needs `{function}` of {interface}, which this host does not have: {}; {HINT}", offered(&name))
    } else {
        format!("it needs {interface} (`{function}`), which this host does not have: {}; {HINT}", offered(&name))
    })
}

const HINT: &str = "build it against this host's wit/gateway.wit, or update the worker";

/// Whether the version differs from that of the host only by additions.
fn is_compatible_version(name: &InterfaceName) -> bool {
    let track = |version: &str| {
        version.split('.').take(if version.starts_with('0') { 2 } else { 1 }).map(str::to_owned).collect::<Vec<_>>()
    };
    let ours = if name.package == "gateway:worker" { VERSION } else { "0.2.0" };
    track(name.version) == track(ours)
}

fn offered(name: &InterfaceName) -> String {
    let ours = || {
        let names: Vec<&str> = GATEWAY_INTERFACES.iter().map(|(name, _)| *name).collect();
        format!("gateway:worker@{VERSION} with {}", names.join(", "))
    };
    let wasi = || {
        let names: Vec<&str> = WASI_PACKAGES.iter().map(|(name, _)| *name).collect();
        format!("WASI 0.2 with {}", names.join(", "))
    };
    match name.package {
        "gateway:worker" if name.grant_kinds().is_some() => {
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
    fn access_depends_on_interface_and_manifest() {
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
    fn unused_grants_are_found() {
        let granted = grants("publish = [\"a\"]\nmail = true");
        let imports = [Import::classify("gateway:worker/mail@1.0.0", &granted)];
        assert_eq!(unused(&imports, &granted), ["publish"]);
        assert!(unused(&imports, &grants("mail = true")).is_empty());
    }

    #[test]
    fn every_example_of_a_grant_is_valid() {
        for import in ["publisher", "mail", "key-value", "secrets"].map(|name| format!("gateway:worker/{name}@1.0.0")) {
            let Access::NotGranted { write } = access(&import, &Grants::default()) else { panic!("{import}") };
            assert!(matches!(access(&import, &grants(&write)), Access::Granted { .. }), "{write}");
        }
    }
}
