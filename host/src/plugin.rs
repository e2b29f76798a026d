//! The Wasm edge: the only place that knows there is a Wasmtime. A message
//! goes in, an [`Outcome`](crate::verdict::Outcome) comes out; what a guest
//! does wrong is such a value, never an error of ours. The types generated
//! from the WIT stay in here.

mod contained_dir;
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
mod plugin_dir;
mod folders;
mod guest;
mod http;
mod imports;
mod inspect;
mod limits;
mod load_error;
mod orphan_manifests;
mod offer;
mod open_files;
mod output;
mod plain;
mod private_dir;
mod version_store;
mod probation;
mod program;
mod registry;
mod reuse;
mod routes;
mod shares;
mod slots;
mod struck;
mod version;
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
