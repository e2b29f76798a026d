//! What is generated from `wit/gateway.wit`. Both worlds share their imports.

mod one {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "message-handler",
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

pub(super) use many::BatchMessageHandlerIndices;
pub(super) use one::gateway::worker::types::{Failure, Fault, Message as WitMessage};
pub(super) use one::gateway::worker::{config, logging, publisher, types};
pub(super) use one::{MessageHandler, MessageHandlerIndices};
