//! The WebAssembly side: only this module uses Wasmtime. It takes messages and
//! returns an [`Outcome`](crate::verdict::Outcome) for each. A guest's failure is
//! an outcome, never an error. The types generated from the WIT are private to this
//! module.

mod bindings;
mod budgets;
mod cache;
mod call;
mod command;
mod compile;
mod component;
mod contained_dir;
mod cpu;
mod deployment;
mod engine;
mod folders;
mod guest;
mod http;
mod imports;
mod inspect;
mod limits;
mod load_error;
mod offer;
mod open_files;
mod orphan_manifests;
mod output;
mod plain;
mod plugin_dir;
mod private_dir;
mod probation;
mod program;
mod registry;
mod reuse;
mod routes;
mod shares;
mod slots;
mod struck;
mod version;
mod version_store;
mod watcher;
mod words;

pub use cache::{Cache, CacheError};
pub use call::Call;
pub use compile::{CompileError, CompileLimits, Compiler, compile_here};
pub use component::Plugin;
pub use deployment::{QUIET, SHORT_QUIET};
pub use engine::{Engine, EngineError, Means};
pub use inspect::Inspection;
pub use load_error::{LoadError, LoadErrorKind};
pub use offer::{Access, Import};
pub use orphan_manifests::{OrphanManifests, orphan_manifests};
pub use plain::{is_dangerous, plain, plain_json};
pub use plugin_dir::{PluginDir, PluginDirError};
pub use probation::ProbationStats;
pub use registry::Registry;
pub use routes::{Change, PluginStatus, Routes, VersionRecord};
pub use version::{BlockReason, Refusal, RefusalKind, VersionError};
pub use version_store::VersionStore;
pub use watcher::{Hint, Watcher};
