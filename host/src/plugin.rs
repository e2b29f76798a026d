//! The Wasm edge: the only place that knows there is a Wasmtime. A message
//! goes in, an [`Outcome`](crate::verdict::Outcome) comes out; what a guest
//! does wrong is such a value, never an error of ours. The types generated
//! from the WIT stay in here.

mod archive;
mod beneath;
mod bindings;
mod budgets;
mod cache;
mod call;
mod command;
mod compile;
mod component;
mod cpu;
mod deployment;
mod engine;
mod folder;
mod preopens;
mod guest;
mod http;
mod imports;
mod inspect;
mod memory;
mod load_error;
mod lone;
mod host_interfaces;
mod open_files;
mod output;
mod private;
mod probation;
mod program;
mod registry;
mod instance_pool;
mod routes;
mod quotas;
mod call_permits;
mod redact;
mod version;
mod watcher;

pub use archive::Archive;
pub use cache::{Cache, CacheError};
pub use call::{Called, Job};
pub use compile::{CompileError, CompileLimits, Compiler, compile_here};
pub use component::Plugin;
pub use deployment::{QUIET, SHORT_QUIET};
pub use engine::{Engine, EngineError, EngineResources};
pub use folder::{Folder, FolderError};
pub use host_interfaces::{Access, Import};
pub use inspect::Inspection;
pub use load_error::{Cause, LoadError};
pub use lone::{LoneManifests, lone_manifests};
pub use probation::Standing;
pub use registry::Registry;
pub use routes::{Change, Past, Routes, Status};
pub use version::{Denied, Held, Refusal, RefusalKind};
pub use watcher::{Hint, Watcher};
