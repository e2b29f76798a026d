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
mod folders;
mod guest;
mod http;
mod imports;
mod inspect;
mod limits;
mod load_error;
mod lone;
mod offer;
mod open_files;
mod output;
mod plain;
mod private;
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

pub use archive::Archive;
pub use cache::{Cache, CacheError};
pub use call::Call;
pub use compile::{CompileError, CompileLimits, Compiler, compile_here};
pub use component::Plugin;
pub use deployment::{QUIET, SHORT_QUIET};
pub use engine::{Engine, EngineError, Means};
pub use folder::{Folder, FolderError};
pub use inspect::Inspection;
pub use load_error::{Cause, LoadError};
pub use lone::{LoneManifests, lone_manifests};
pub use offer::{Access, Import};
pub use plain::{is_dangerous, plain, plain_json};
pub use probation::Standing;
pub use registry::Registry;
pub use routes::{Change, Past, Routes, Status};
pub use version::{Denied, Held, Refusal, RefusalKind};
pub use watcher::{Hint, Watcher};
