//! What is generated from `wit/gateway.wit`. All worlds share their imports.

mod one {
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

mod many {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "batch-message-handler",
        exports: { default: async },
        with: {
            "gateway:worker/types": super::one::gateway::worker::types,
            "gateway:worker/logging": super::one::gateway::worker::logging,
            "gateway:worker/config": super::one::gateway::worker::config,
            "gateway:worker/publisher": super::one::gateway::worker::publisher,
        },
    });
}

mod test {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "self-tested",
        exports: { default: async },
    });
}

pub(super) use many::{BatchMessageHandler, BatchMessageHandlerIndices};
pub(super) use one::gateway::worker::types::{Failure, Fault, Message as WitMessage};
pub(super) use one::gateway::worker::{config, key_value, logging, mail, publisher, secrets, types};
pub(super) use one::{FullHandler, FullHandlerIndices};
pub(super) use test::SelfTestedIndices;
