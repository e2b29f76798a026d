//! What a component exports, and which of it is called.

use super::bindings::{BatchMessageHandlerIndices, FullHandlerIndices};
use super::guest::Guest;
use wasmtime::Store;
use wasmtime::component::{Instance, InstancePre};

pub(super) enum Export {
    Handler(FullHandlerIndices),
    BatchHandler(BatchMessageHandlerIndices),
}

impl Export {
    /// The export that the manifest asks for, `[batch]` or not.
    pub(super) fn find(instance: &InstancePre<Guest>, is_batch: bool, exports: &str) -> Result<Self, String> {
        let handler = FullHandlerIndices::new(instance).ok().map(Self::Handler);
        let batch_handler = BatchMessageHandlerIndices::new(instance).ok().map(Export::BatchHandler);
        let exports = if exports.is_empty() { "nothing" } else { exports };
        match (is_batch, handler, batch_handler) {
            (false, Some(handler), _) => Ok(handler),
            (true, _, Some(batch_handler)) => Ok(batch_handler),
            (true, ..) => Err(format!(
                "it exports {exports}; with [batch] in its manifest it must export gateway:worker/batch-handler@1.0.0"
            )),
            (false, None, Some(_)) => {
                Err("it exports gateway:worker/batch-handler@1.0.0: write [batch] with size and wait into its manifest"
                    .to_owned())
            }
            (false, None, None) => Err(format!(
                "it exports {exports}; a handler exports gateway:worker/handler@1.0.0 (world message-handler)"
            )),
        }
    }

    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Handler(_) => "handler",
            Self::BatchHandler(_) => "batch-handler",
        }
    }

    pub(super) fn interface(&self) -> &'static str {
        match self {
            Self::Handler(_) => "gateway:worker/handler@1.0.0",
            Self::BatchHandler(_) => "gateway:worker/batch-handler@1.0.0",
        }
    }

    /// Compares the types of what is exported: they are known only when there
    /// is an instance.
    pub(super) fn check(&self, store: &mut Store<Guest>, instance: &Instance) -> wasmtime::Result<()> {
        match self {
            Self::Handler(indices) => indices.load(store, instance).map(drop),
            Self::BatchHandler(indices) => indices.load(store, instance).map(drop),
        }
    }
}
