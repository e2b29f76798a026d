//! What `wit/gateway.wit` offers to guests, one file for each interface.

mod config;
mod key_value;
mod logging;
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
    fn from(told: capability::Fault) -> Self {
        fault(told.code, told.reason)
    }
}

impl Guest {
    /// A line about the guest, which is not to flood the log with those either.
    fn warn(&self, text: &str) {
        if self.context.may_log(text.len()) {
            tracing::warn!(plugin = self.context.name, "{text}");
        }
    }

    /// Refuses what the manifest does not grant, with the line to write.
    fn need(&self, is_granted: bool, what: &str, line: &str) -> Result<(), Fault> {
        if self.run.topic.is_none() {
            return Err(fault("denied", format!("{what}: not while a version is only tried out")));
        }
        if is_granted {
            return Ok(());
        }
        let mend = format!("{}.toml does not grant it: under [grants], write {line}", self.context.name);
        self.warn(&format!("{what} denied: {mend}"));
        Err(fault("denied", format!("{what}: {mend}")))
    }
}
