//! Gateway Worker: consumes Redis queues and runs, for each message, a
//! sandboxed WebAssembly component chosen by the message's topic.
//!
//! A message passes through four verbs: `take` and `settle` in [`queue`],
//! `call` in [`plugin`], [`judge`](verdict::judge) in [`verdict`]. The loops of
//! [`worker`] know all four. The modules stand in reading order, and each uses
//! only those above it; a test enforces that.
//!
//! Invariants:
//!
//! 1. Rules (up to [`supervisor`]) never use the network, the disk or a clock. Only
//!    the settings read the environment, and the certificates and passwords that they name.
//! 2. Only [`queue`] knows that there is a Redis, only [`plugin`] that there is a
//!    Wasmtime, and neither knows the other.
//! 3. `judge` is the only place where the fate of a message that ran is decided.
//! 4. A message is taken only when there is capacity to run it, and stays in
//!    flight (its lease is renewed) until Redis has confirmed its settlement.
//!    Only then is its outcome counted and logged.
//! 5. A guest's failure is an [`Outcome`](verdict::Outcome), never an `Err` and
//!    never a panic of the host.
//! 6. Every task is joined, and every wait has an end.

// rules
pub mod events;
pub mod text;
pub mod backoff;
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
pub mod supervisor;

// edges
pub mod tls;
pub mod queue;
pub mod plugin;
pub mod secrets;
pub mod mail;
pub mod log;

// loops
pub mod worker;
pub mod reloader;
pub mod health;
pub mod key_watch;
pub mod readiness;
pub mod admin;

// the whole
pub mod app;
pub mod private_redis;
pub mod cli;
