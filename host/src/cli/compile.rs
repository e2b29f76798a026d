//! `compile-component`: compiles a plugin in a process of its own. Only the
//! worker starts it.

use super::Failure;
use crate::plugin::{CompileLimits, compile_here};
use std::process::ExitCode;

pub(super) fn compile(limits: &CompileLimits) -> Result<(), Failure> {
    compile_here(limits, std::io::stdin().lock(), std::io::stdout().lock())
        .map_err(|(code, message)| Failure::WithCode(ExitCode::from(code), message))
}
