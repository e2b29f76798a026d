//! The argument `--data`, and what is piped into a command.

use super::Failure;
use super::output::print_note;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::mpsc;
use std::time::Duration;

/// Redis stores no longer string.
const DATA_BYTES_MAX: u64 = 512 << 20;
/// After this time without an end of stdin, the command says what it waits for.
const SILENT_WAIT: Duration = Duration::from_secs(2);

/// The data: that of the argument, or else what is piped or redirected into the
/// command. `None` where there is neither.
pub(super) fn read_data(argument: Option<&str>) -> Result<Option<String>, Failure> {
    match argument {
        Some(argument) => read(argument).map(Some),
        None if is_piped()? => {
            read_stdin("write --data null to publish a message without data, or < /dev/null").map(Some)
        }
        None => Ok(None),
    }
}

/// Reads the argument of `--data`.
pub(super) fn read(argument: &str) -> Result<String, Failure> {
    match argument.strip_prefix('@') {
        _ if argument == "-" => read_stdin("--data - reads the data from there"),
        Some(path) => {
            let file = File::open(path).map_err(|error| failure(argument, &error))?;
            read_text(file).map_err(|error| failure(argument, &error))
        }
        None => Ok(argument.to_owned()),
    }
}

fn failure(source: &str, error: &io::Error) -> Failure {
    Failure::Usage(format!("--data {source}: {error}"))
}

/// Whether somebody wrote `... | publish` or `publish < file`. A service or a
/// container has /dev/null there, which nobody has meant as data.
fn is_piped() -> Result<bool, Failure> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Ok(false);
    }
    let kind = stdin.as_fd().try_clone_to_owned().and_then(|stdin| File::from(stdin).metadata());
    let kind = kind.map_err(|error| Failure::Failed(format!("stdin: {error}")))?.file_type();
    Ok(kind.is_fifo() || kind.is_file() || kind.is_socket())
}

fn read_stdin(hint: &str) -> Result<String, Failure> {
    let (is_read, reading) = mpsc::channel::<()>();
    let waiting = std::thread::spawn(move || {
        if reading.recv_timeout(SILENT_WAIT) == Err(mpsc::RecvTimeoutError::Timeout) {
            print_note!("reading the data from stdin until its end (Ctrl-D in a terminal); --data JSON reads nothing");
        }
    });
    let text = read_text(io::stdin().lock()).map_err(|error| failure("-", &error));
    drop(is_read);
    let _ = waiting.join();
    match text? {
        text if text.trim().is_empty() => Err(Failure::Usage(format!("stdin is empty: {hint}"))),
        text => Ok(text),
    }
}

fn read_text(source: impl Read) -> io::Result<String> {
    let mut text = String::new();
    source.take(DATA_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > DATA_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "more than Redis can store in a message (512 MiB)"));
    }
    Ok(text)
}
