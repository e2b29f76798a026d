//! The command `gateway-worker`, which is implemented in the library.

use clap::Parser;
use gateway_worker::cli::Cli;
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    Cli::parse().execute().await
}
