//! `compile-component`: what the worker starts to compile a plugin apart. Not
//! for people.

use super::Failure;
use crate::plugin::{CompileLimits, compile_here};
use std::process::ExitCode;

pub(super) fn compile(limits: &CompileLimits) -> Result<(), Failure> {
    compile_here(limits, std::io::stdin().lock(), std::io::stdout().lock())
        .map_err(|(code, told)| Failure::Ended(ExitCode::from(code), told))
}
