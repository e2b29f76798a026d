//! Why a plugin file can't be loaded, and whether loading it later may succeed.

use crate::text::{sanitize, truncate_error};
use std::io;

/// Whether a failed load is worth another try with the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadErrorKind {
    /// Only a changed file or an operator can fix it.
    Permanent,
    /// Out of memory, overloaded machine, missing directory: worth a retry.
    Transient,
}

/// Why a plugin file can't be loaded, and how to fix it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LoadError {
    pub message: String,
    pub kind: LoadErrorKind,
}

impl LoadError {
    /// Sanitizes and truncates the message, because it quotes names from the
    /// file.
    pub(super) fn new(message: &str, kind: LoadErrorKind) -> Self {
        Self { message: truncate_error(sanitize(message).into_owned()), kind }
    }

    pub(super) fn permanent(message: &str) -> Self {
        Self::new(message, LoadErrorKind::Permanent)
    }

    pub(super) fn transient(message: &str) -> Self {
        Self::new(message, LoadErrorKind::Transient)
    }

    /// Errors of the operating system may go away. The host's own checks of a
    /// file, such as its size, have no error number and are permanent.
    pub(super) fn from_io(message: &str, error: &io::Error) -> Self {
        let is_of_system = error.raw_os_error().is_some();
        Self::new(message, if is_of_system { LoadErrorKind::Transient } else { LoadErrorKind::Permanent })
    }
}
