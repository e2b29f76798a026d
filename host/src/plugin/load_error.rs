//! Why a file is no plugin, and whether that may pass by itself.

use crate::text::{sanitize, truncate_error};
use std::io;

/// Whether a load that failed is worth another try with the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Of the file: only another one can mend it, or somebody.
    Lasting,
    /// Of the moment: no memory, a machine under load, a folder that is away.
    Passing,
}

/// Why a file is no plugin, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{told}")]
pub struct LoadError {
    pub told: String,
    pub cause: Cause,
}

impl LoadError {
    /// What is told quotes the file, whose names may be long and are anybody's.
    pub(super) fn of(told: &str, cause: Cause) -> Self {
        Self { told: truncate_error(sanitize(told).into_owned()), cause }
    }

    pub(super) fn lasting(told: &str) -> Self {
        Self::of(told, Cause::Lasting)
    }

    pub(super) fn passing(told: &str) -> Self {
        Self::of(told, Cause::Passing)
    }

    /// What the system says may be otherwise later. What we say of a file, that
    /// it is too large or leads out of its folder, has no number of the system's.
    pub(super) fn of_io(told: &str, error: &io::Error) -> Self {
        let cause = if error.raw_os_error().is_some() { Cause::Passing } else { Cause::Lasting };
        Self::of(told, cause)
    }
}
