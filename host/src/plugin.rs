//! The WebAssembly side: only this module uses Wasmtime. It takes messages and
//! returns an [`Outcome`](crate::verdict::Outcome) for each. A guest's failure is
//! an outcome, never an error. The types generated from the WIT are private to this
//! module.

mod bindings;
mod budgets;
mod cache;
mod call;
mod call_permits;
mod command;
mod compile;
mod component;
mod contained_dir;
mod cpu;
mod deployment;
mod engine;
mod guest;
mod host_interfaces;
mod http;
mod imports;
mod inspect;
mod instance_pool;
mod load_error;
mod memory;
mod open_files;
mod orphan_manifests;
mod output;
mod plugin_dir;
mod preopens;
mod private_dir;
mod probation;
mod program;
mod quotas;
mod redact;
mod registry;
mod routes;
mod version;
mod version_store;
mod watcher;

pub use cache::{Cache, CacheError};
pub use call::{Called, Job};
pub use compile::{COMPILE_COMMAND, CompileError, CompileLimits, Compiler, compile_here};
pub use component::Plugin;
pub use deployment::{QUIET, SHORT_QUIET};
pub use engine::{Engine, EngineError, EngineResources};
pub use host_interfaces::{Access, Import};
pub use inspect::Inspection;
pub use load_error::{LoadError, LoadErrorKind};
pub use orphan_manifests::{OrphanManifests, orphan_manifests};
pub use plugin_dir::{PluginDir, PluginDirError};
pub use probation::ProbationStats;
pub use registry::Registry;
pub use routes::{Change, PluginStatus, Routes, VersionRecord};
pub use version::{BlockReason, Refusal, RefusalKind, VersionError};
pub use version_store::VersionStore;
pub use watcher::{Hint, Watcher};
