//! Builds components from a few lines of WAT: handlers that no compiler would
//! produce, and the smallest possible handler.

/// A component whose handler is `body` in WAT. The result is at address 16: zero
/// bytes, which mean ok, unless the body writes something else.
pub(crate) fn guest(body: &str) -> Vec<u8> {
    guest_with("", body)
}

/// The same with additional module fields, such as a start function.
pub(crate) fn guest_with(more: &str, body: &str) -> Vec<u8> {
    guest_in("message-handler", "", "", more, body)
}

/// The same in another world, which `wit` adds to the contract; `imports` are
/// the module's imports from it.
pub(crate) fn guest_in(world: &str, wit: &str, imports: &str, more: &str, body: &str) -> Vec<u8> {
    let module = module_with(imports, more, body);
    encode_in(&module, "gateway.wit", &format!("{}\n{wit}", contract()), world)
}

/// Only the core module.
#[allow(dead_code, reason = "not for benchmarks")]
pub(crate) fn module(more: &str, body: &str) -> String {
    module_with("", more, body)
}

fn module_with(imports: &str, more: &str, body: &str) -> String {
    format!(
        r#"(module
            {imports}
            (memory (export "memory") 1)
            (data (i32.const 512) "busy")
            (global $heap (mut i32) (i32.const 1024))
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (local $at i32)
                (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
                (global.set $heap (i32.add (local.get $at) (local.get 3)))
                (if (i32.gt_u (global.get $heap) (i32.shl (memory.size) (i32.const 16)))
                    (then (if (i32.eq (i32.const -1) (memory.grow (i32.add (i32.const 1) (i32.shr_u (local.get 3) (i32.const 16)))))
                        (then unreachable))))
                (local.get $at))
            {more}
            (func (export "gateway:worker/handler@1.0.0#handle")
                (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
                {body}))"#
    )
}

/// Turns a core module into a component in the world `message-handler` of a WIT.
#[allow(dead_code, reason = "not for benchmarks")]
pub(crate) fn encode(module: &str, wit_name: &str, wit: Option<&str>) -> Vec<u8> {
    encode_in(module, wit_name, wit.unwrap_or(&contract()), "message-handler")
}

fn contract() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../wit/gateway.wit")).unwrap()
}

fn encode_in(module: &str, wit_name: &str, wit: &str, world: &str) -> Vec<u8> {
    let mut module = wat::parse_str(module).unwrap_or_else(|error| panic!("{error}"));
    let mut resolve = wit_parser::Resolve::default();
    let package = resolve.push_str(wit_name, wit).unwrap_or_else(|error| panic!("{error:?}"));
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    wit_component::embed_component_metadata(&mut module, &resolve, world, wit_component::StringEncoding::UTF8).unwrap();
    wit_component::ComponentEncoder::default().module(&module).unwrap().encode().unwrap()
}

/// Turns a WASI preview 1 program into a component with the standard adapter.
#[allow(dead_code, reason = "not for benchmarks")]
pub(crate) fn adapted(program: &[u8]) -> Vec<u8> {
    use wasi_preview1_component_adapter_provider::{
        WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME as NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER as ADAPTER,
    };
    let encoder = wit_component::ComponentEncoder::default().module(program).unwrap();
    encoder.adapter(NAME, ADAPTER).unwrap().encode().unwrap()
}

pub(crate) const OK: &str = "(i32.const 16)";

/// The same component with `instances` additional empty core instances. The
/// component must have exactly one core module, so it must not have imports.
#[allow(dead_code, reason = "not for benchmarks")]
pub(crate) fn crowded(component: &[u8], instances: u8) -> Vec<u8> {
    assert!(instances <= 42, "the section size must fit in one byte");
    let module = [1, 8, 0, b'a', b's', b'm', 1, 0, 0, 0];
    let each = [0, 1, 0].repeat(instances.into());
    let section = [2, u8::try_from(each.len() + 1).unwrap(), instances];
    [component, &module, &section, &each].concat()
}
