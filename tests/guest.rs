//! Components made on the spot from a few lines of text, for what no compiler
//! would produce, or as small as a handler can be.

/// A component whose handler is `body`, in the text format. The reply is at
/// address 16: all zero, which is ok, unless the body writes something else.
pub(crate) fn guest(body: &str) -> Vec<u8> {
    guest_with("", body)
}

/// The same with more in the module, such as a start function.
pub(crate) fn guest_with(more: &str, body: &str) -> Vec<u8> {
    let module = format!(
        r#"(module
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
    );
    encode(&module, "gateway.wit", None)
}

/// A component of a core module in the world `message-handler` of a WIT.
pub(crate) fn encode(module: &str, wit_name: &str, wit: Option<&str>) -> Vec<u8> {
    let mut module = wat::parse_str(module).unwrap_or_else(|error| panic!("{error}"));
    let mut resolve = wit_parser::Resolve::default();
    let ours = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../wit/gateway.wit")).unwrap();
    let package = resolve.push_str(wit_name, wit.unwrap_or(&ours)).unwrap();
    let world = resolve.select_world(&[package], Some("message-handler")).unwrap();
    wit_component::embed_component_metadata(&mut module, &resolve, world, wit_component::StringEncoding::UTF8).unwrap();
    wit_component::ComponentEncoder::default().module(&module).unwrap().encode().unwrap()
}

pub(crate) const OK: &str = "(i32.const 16)";
