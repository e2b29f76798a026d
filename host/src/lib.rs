//! Gateway Worker: consumes Redis queues and runs, for each message, a
//! sandboxed WebAssembly component chosen by the message's topic.
//!
//! A message passes through four verbs: `take` and `settle` in [`queue`],
//! `call` in [`plugin`], [`judge`](verdict::judge) in [`verdict`]. One loop,
//! [`worker`], knows all four. The modules stand in reading order, and each
//! uses only those above it; a test holds us to it.
//!
//! Invariants, mostly about what is absent:
//!
//! 1. Rules (up to [`metrics`]) never touch the network, the disk or a clock;
//!    only the settings read the certificates that they name, and the
//!    environment.
//! 2. Only [`queue`] knows that there is a Redis, only [`plugin`] that there
//!    is a Wasmtime; they do not know each other.
//! 3. `judge` is the only place where the fate of a message that ran is
//!    decided.
//! 4. A message is taken only when there is room to run it, and every message
//!    that was taken is held until Redis has confirmed that it is settled.
//! 5. A guest's failure is an [`Outcome`](verdict::Outcome), never an `Err`
//!    and never a panic of the host.
//! 6. Every task is joined by somebody, and every wait has an end.

// rules
pub mod events;
pub mod text;
pub mod topic;
pub mod run_span;
pub mod message;
pub mod publication;
pub mod verdict;
pub mod schedule;
pub mod capability;
pub mod manifest;
pub mod settings;
pub mod metrics;

// edges
pub mod queue;
pub mod plugin;
pub mod secrets;
pub mod mail;

// loops
pub mod backlog;
pub mod worker;
pub mod lanes;
pub mod reloader;
pub mod health;
pub mod admin;

// the whole
pub mod app;
pub mod private_redis;
pub mod cli;
