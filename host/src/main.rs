//! The command `gateway-worker`; all of it is in the library.

use clap::Parser;
use gateway_worker::cli::Cli;
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    Cli::parse().execute().await
}
