//! `compile-component`: compiles a plugin in a process of its own. Only the
//! worker starts it, so it is no subcommand that help or a suggestion could name.

use super::Failure;
use crate::plugin::{COMPILE_COMMAND, CompileLimits, compile_here};
use clap::Parser;
use std::ffi::OsString;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = COMPILE_COMMAND)]
struct CompileArgs {
    #[command(flatten)]
    limits: CompileLimits,
}

/// The limits, if these are the arguments that the worker starts itself with.
pub(super) fn limits(args: &[OsString]) -> Option<Result<CompileLimits, clap::Error>> {
    let (_program, args) = args.split_first()?;
    let is_ours = args.first().is_some_and(|command| command == COMPILE_COMMAND);
    is_ours.then(|| CompileArgs::try_parse_from(args).map(|args| args.limits))
}

pub(super) fn compile(limits: &CompileLimits) -> Result<(), Failure> {
    compile_here(limits, std::io::stdin().lock(), std::io::stdout().lock())
        .map_err(|(code, message)| Failure::WithCode(ExitCode::from(code), message))
}
