//! The interfaces of `wit/gateway.wit`, one file for each.

mod config;
mod key_value;
pub(super) mod logging;
mod mail;
pub(super) mod publisher;
pub(super) mod secrets;

use super::bindings::{Fault, types};
use super::guest::Guest;
use crate::capability;
use std::fmt;

impl types::Host for Guest {}

fn fault(code: &str, reason: impl fmt::Display) -> Fault {
    Fault { code: code.to_owned(), reason: reason.to_string() }
}

impl From<capability::Fault> for Fault {
    fn from(denied: capability::Fault) -> Self {
        fault(denied.code, denied.reason)
    }
}

impl Guest {
    /// Logs a warning about the guest, within its log limit.
    fn warn(&self, text: &str) {
        if self.context.may_log(text.len()) {
            self.run.in_span(|| tracing::warn!("{text}"));
        }
    }

    /// Denies what the manifest does not grant, and says which line to add to it.
    fn require(&self, is_granted: bool, operation: &str, line: &str) -> Result<(), Fault> {
        if self.run.span.is_none() {
            return Err(fault("denied", format!("{operation}: not available during the load check")));
        }
        if is_granted {
            return Ok(());
        }
        let hint = format!("{}.toml does not grant it: under [grants], write {line}", self.context.name);
        self.warn(&format!("{operation} denied: {hint}"));
        Err(fault("denied", format!("{operation}: {hint}")))
    }
}
