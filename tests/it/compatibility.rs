//! Compatibility of components with the contract of this host: one built against a newer
//! contract loads if it uses no additions, and a rejection names what is missing.

use crate::guest::module;
use crate::support::{BINARY, OK, encode};
use gateway_worker::capability::Capabilities;
use gateway_worker::manifest::Manifest;
use gateway_worker::plugin::{CompileLimits, Compiler, Engine, Plugin};
use gateway_worker::topic::Topic;
use std::path::PathBuf;

const WIT: &str = include_str!("../../wit/gateway.wit");

/// Replacements in the text of the contract.
pub(crate) type Change<'a> = &'a [(&'a str, &'a str)];

/// A handler built against a changed contract, with these imports in its core module.
pub(crate) fn built(change: Change, imports: &str) -> Vec<u8> {
    let changed = |text: &str| change.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    let module = changed(&module("", OK).replacen("(module", &format!("(module {imports}"), 1));
    encode(&module, "other.wit", Some(&changed(WIT)))
}

fn engine() -> Engine {
    let compiler = Compiler::with_program(PathBuf::from(BINARY), CompileLimits::default(), None);
    Engine::new(Capabilities::default(), compiler, 1).unwrap()
}

async fn load(engine: &Engine, wasm: &[u8]) -> Result<Plugin, String> {
    let manifest = Manifest::default_for(Topic::parse("topic").unwrap());
    let loaded = Plugin::load(engine, "topic", wasm.into(), manifest, "digest".to_owned()).await;
    loaded.map_err(|error| error.to_string())
}

async fn refusal(wasm: &[u8]) -> Option<String> {
    load(&engine(), wasm).await.err()
}

const LOG: &str = r#"(import "gateway:worker/logging@1.0.0" "log" (func (param i32 i32 i32)))"#;
pub(crate) const NEWER: (&str, &str) = ("@1.0.0", "@1.1.0");
const NEXT: (&str, &str) = ("@1.0.0", "@2.0.0");

pub(crate) const ADD_FLUSH: (&str, &str) = ("  log: func(", "  flush: func();\n  log: func(");
/// Imports the added function.
pub(crate) const FLUSH: &str = r#"(import "gateway:worker/logging@1.0.0" "flush" (func))"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_contract_loads_if_its_additions_are_unused() {
    assert_eq!(refusal(&built(&[NEWER], LOG)).await, None);
    // The bindings for Rust and C import only the functions that are used.
    assert_eq!(refusal(&built(&[NEWER, ADD_FLUSH], LOG)).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_interface_is_named_together_with_those_available() {
    let other = |name: &str, interface: &str| {
        let (package, path) = name
            .split_once('@')
            .map(|(path, version)| (format!("{path}@{version}"), format!("{path}/it@{version}")))
            .unwrap();
        let nested = format!("package gateway:worker@1.0.0; package {package} {{ interface it {{ {interface} }} }}");
        (nested, format!("import config; import {path};"), format!("(import \"{path}\" \"go\" (func))"))
    };
    let wasi = other("wasi:clocks@0.3.0", "go: func();");
    let foreign = other("other:thing@0.1.0", "go: func();");
    let in_package = "package gateway:worker@1.0.0;";
    let missing = [
        ("import config;", "import config; import missing;"),
        ("interface config {", "interface missing { go: func(); }\ninterface config {"),
    ];
    let go = r#"(import "gateway:worker/missing@1.0.0" "go" (func))"#;
    let ours = "gateway:worker@1.0.0 with config, key-value, logging, mail, publisher, secrets, types";
    let of_wasi = "WASI 0.2 with cli, clocks, filesystem, http, io, random, sockets";
    let cases: [(Change, &str, String); 7] = [
        (&[NEWER, ADD_FLUSH], FLUSH, "it needs `flush` of gateway:worker/logging@1.1.0, which this host does not have: it offers gateway:worker/logging@1.0.0".to_owned()),
        (&missing, go, format!("it needs gateway:worker/missing@1.0.0 (`go`), which this host does not have: it offers {ours}")),
        (&[NEXT], LOG, "it needs gateway:worker/logging@2.0.0 (`log`), which this host does not have: it offers gateway:worker/logging@1.0.0".to_owned()),
        (&[(in_package, &wasi.0), ("import config;", &wasi.1)], &wasi.2, format!("it needs wasi:clocks/it@0.3.0 (`go`), which this host does not have: it offers {of_wasi}")),
        (&[(in_package, &foreign.0), ("import config;", &foreign.1)], &foreign.2, format!("it needs other:thing/it@0.1.0 (`go`), which this host does not have: it offers {ours}, and {of_wasi}")),
        (&[("enum level { debug,", "enum level { trace, debug,")], LOG, "`log` of gateway:worker/logging@1.0.0 has another type than this host's: type mismatch with parameters: expected enum of 4 names, found 5 names (expected is what the host has)".to_owned()),
        (&[("    retry(retry-options),", "    retry(retry-options),\n    other(retry-options),")], LOG, "its export gateway:worker/handler@1.0.0 has another type than this host's: ".to_owned()),
    ];
    for (change, imports, fragment) in cases {
        let reason = refusal(&built(change, imports)).await.unwrap();
        assert!(reason.contains(&fragment), "{fragment}\n{reason}");
        assert!(reason.contains("build it against this host's wit/gateway.wit"), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_with_an_additional_field_is_rejected_at_load() {
    let wider = module("", OK).replace(
        "(param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)",
        "(param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)",
    );
    let wit = WIT.replace("    attempt: u32,", "    attempt: u32,\n    more: u32,");
    let reason = refusal(&encode(&wider, "other.wit", Some(&wit))).await.unwrap();
    assert!(
        reason.contains("its export gateway:worker/handler@1.0.0 has another type")
            && reason.contains("expected record of 7 fields, found 8 fields"),
        "{reason}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_component_is_rejected_at_every_length() {
    let whole = built(&[], LOG);
    let (header, mut refused) = (8, 0);
    // At each byte of the header, and at regular distances after it.
    for at in (0..=header).chain((header + 1..whole.len()).step_by(whole.len() / 40)) {
        let reason = refusal(&whole[..at]).await.unwrap_or_else(|| panic!("{at} of {} bytes load", whole.len()));
        assert!(
            at >= header || reason.contains("it is incomplete: copy it under a name that begins with a dot"),
            "{at}: {reason}"
        );
        refused += 1;
    }
    assert!(refused > 40);
    assert!(refusal(b"PK\x03\x04rest").await.unwrap().contains("a zip archive: unpack it"));
}

/// Any bytes either load or are rejected with a reason, and the host keeps running.
#[tokio::test(flavor = "multi_thread")]
async fn a_component_with_a_changed_byte_loads_or_is_rejected_with_a_reason() {
    let whole = built(&[], LOG);
    let engine = engine();
    let mut refused = 0;
    for at in (0..whole.len()).step_by(17) {
        for change in [0xff, 0x01, 0x80] {
            let mut bytes = whole.clone();
            bytes[at] ^= change;
            if let Err(reason) = load(&engine, &bytes).await {
                assert!(!reason.is_empty() && reason.len() < 5000, "{at} {change}: {reason}");
                // Any reason is allowed, but the compiler must not crash.
                assert!(!reason.contains("the compiler crashed"), "{at} {change}: {reason}");
                refused += 1;
            }
        }
    }
    assert!(refused > 50, "{refused}");
}
