//! Secrets that the operator gave to the host, by name.

use super::fault;
use crate::capability::Capabilities;
use crate::plugin::bindings::{Fault, secrets};
use crate::plugin::component::Facts;
use crate::plugin::guest::Guest;
use crate::plugin::struck;
use crate::plugin::words::cut_to;

/// As much of a name as a refusal shows: that of a secret is no longer.
const NAME_BYTES_MAX: usize = 128;

impl secrets::Host for Guest {
    fn get(&mut self, name: String) -> Result<String, Fault> {
        let is_granted = self.facts.manifest.grants.secrets.iter().any(|granted| granted.as_str() == name);
        let shown = cut_to(&name, NAME_BYTES_MAX).escape_debug().to_string();
        self.need(is_granted, &format!("the secret {shown}"), &format!("secrets = [\"{shown}\"]"))?;
        let store = self.capabilities.secrets.as_ref();
        let store = store.ok_or_else(|| fault("unavailable", "this host has no secrets"))?;
        let secret = store.read(&self.facts.name, &name)?;
        self.facts.struck.learn(&name, &secret);
        if self.facts.may_log(name.len()) {
            tracing::debug!(plugin = self.facts.name, topic = self.run.topic_name(), secret = name, "secret read");
        }
        Ok(secret.reveal().to_owned())
    }
}

/// Tells the operator what handlers of a plugin will look for in vain, and what
/// can't be kept out of the log.
pub(in crate::plugin) fn warn_of_missing(facts: &Facts, capabilities: &Capabilities) {
    let plugin = &facts.name;
    for name in &facts.manifest.grants.secrets {
        let Some(store) = &capabilities.secrets else { continue };
        match store.get(name.as_str()) {
            Ok(secret) if secret.reveal().len() < struck::BYTES_MIN => {
                let least = struck::BYTES_MIN;
                tracing::warn!(plugin, secret = %name, "a secret of less than {least} bytes is not struck out of the log");
            }
            Ok(_) => {}
            Err(fault) => tracing::warn!(plugin, secret = %name, "a granted secret can't be had: {}", fault.reason),
        }
    }
}
