//! Bindings generated from `wit/gateway.wit`. All worlds share the types of imports.

mod handler {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "full-handler",
        imports: {
            "gateway:worker/key-value.get": async,
            "gateway:worker/key-value.set": async,
            "gateway:worker/key-value.set-if-absent": async,
            "gateway:worker/key-value.compare-and-swap": async,
            "gateway:worker/key-value.delete": async,
            "gateway:worker/mail.send": async,
        },
        exports: { default: async },
    });
}

mod batch_handler {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "batch-message-handler",
        exports: { default: async },
        with: {
            "gateway:worker/types": super::handler::gateway::worker::types,
            "gateway:worker/logging": super::handler::gateway::worker::logging,
            "gateway:worker/config": super::handler::gateway::worker::config,
            "gateway:worker/publisher": super::handler::gateway::worker::publisher,
        },
    });
}

mod self_test {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "self-tested",
        exports: { default: async },
    });
}

pub(super) use batch_handler::{BatchMessageHandler, BatchMessageHandlerIndices};
pub(super) use handler::gateway::worker::types::{Failure, Fault, Message as WitMessage};
pub(super) use handler::gateway::worker::{config, key_value, logging, mail, publisher, secrets, types};
pub(super) use handler::{FullHandler, FullHandlerIndices};
pub(super) use self_test::SelfTestedIndices;
