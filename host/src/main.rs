//! The command `gateway-worker`; all of it is in the library.

use clap::Parser;
use gateway_worker::cli::Cli;
use std::process::ExitCode;

/// A message is some fifty small allocations, freed on another thread than the
/// one that made them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    Cli::parse().execute().await
}
