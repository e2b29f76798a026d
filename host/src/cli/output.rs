//! What a command prints. A reader that goes away early, as `head` does, ends the
//! output and not the command: `dead replay | head -1` replays everything. Stdout
//! that fails otherwise, like a file on a full disk, makes the command fail at its
//! end, because what it found is lost. Nothing panics, whatever becomes of a stream.
//!
//! Names and texts from messages and plugins are sanitised before, because control
//! characters in them could steer the terminal.

use super::Failure;
use crate::text::sanitize_json;
use serde::Serialize;
use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

/// Why stdout takes no more text. The process has only one, however many print to it.
static STDOUT_ERROR: OnceLock<io::Error> = OnceLock::new();

/// Prints a line to stdout.
macro_rules! print_line {
    ($($text:tt)*) => { $crate::cli::output::write_line(format_args!($($text)*)) };
}

/// Prints a line to stderr: a warning, a question, or the progress of the command.
macro_rules! print_note {
    ($($text:tt)*) => { $crate::cli::output::write_note(format_args!($($text)*)) };
}

pub(super) use print_line;
pub(super) use print_note;

pub(super) fn write_line(text: Arguments<'_>) {
    if STDOUT_ERROR.get().is_some() {
        return;
    }
    if let Err(error) = writeln!(io::stdout().lock(), "{text}") {
        let _ = STDOUT_ERROR.set(error);
    }
}

/// Where stderr takes nothing, there is nowhere to say it.
pub(super) fn write_note(text: Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

pub(super) fn print_json(value: &(impl Serialize + ?Sized)) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(value).map_err(|error| Failure::Failed(error.to_string()))?;
    print_line!("{}", sanitize_json(&json));
    Ok(())
}

/// Prints the help, the version, or what is wrong with the arguments.
pub(super) fn print_usage(usage: &clap::Error) {
    let printed = usage.print().and_then(|()| io::stdout().flush());
    if let Err(error) = printed
        && !usage.use_stderr()
    {
        let _ = STDOUT_ERROR.set(error);
    }
}

/// Fails if stdout could not be written, unless its reader had seen enough.
pub(super) fn check_stdout() -> Result<(), Failure> {
    match STDOUT_ERROR.get() {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("the output could not be written to stdout: {error}")))
        }
        _ => Ok(()),
    }
}
