//! The Wasm edge: the only place that knows there is a Wasmtime. A message
//! goes in, an [`Outcome`](crate::verdict::Outcome) comes out; what a guest
//! does wrong is such a value, never an error of ours. The types generated
//! from the WIT stay in here.

mod bindings;
mod call;
mod component;
mod engine;
mod export;
mod folder;
mod guest;
mod imports;
mod limits;
mod output;
mod registry;
mod watcher;
mod words;

pub use call::Call;
pub use component::{LoadError, Plugin};
pub use engine::{Engine, EngineError};
pub use folder::{Folder, FolderError};
pub use registry::{Change, Refusal, Registry, Routes};
pub use watcher::Watcher;
