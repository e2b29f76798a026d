//! Secrets that the operator gave to the host, by name.

use super::fault;
use crate::capability::Secrets;
use crate::manifest::{Manifest, SecretName};
use crate::plugin::bindings::{Fault, secrets};
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
        let store = self.facts.capabilities.secrets.as_ref();
        let store = store.ok_or_else(|| fault("unavailable", "this host has no secrets"))?;
        let secret = store.read(&self.facts.name, &name)?;
        self.facts.struck.learn(&name, &secret);
        if self.facts.may_log(name.len()) {
            tracing::debug!(plugin = self.facts.name, topic = self.run.topic_name(), secret = name, "secret read");
        }
        Ok(secret.reveal().to_owned())
    }
}

/// A secret that a manifest names, and what is not as it should be with it.
pub(in crate::plugin) struct Wanting {
    pub(in crate::plugin) secret: String,
    pub(in crate::plugin) told: String,
}

/// What handlers of a plugin will look for in vain, and what can't be kept out
/// of the log.
pub(in crate::plugin) fn wanting(manifest: &Manifest, secrets: &dyn Secrets) -> Vec<Wanting> {
    let told = |name: &SecretName| match secrets.get(name.as_str()) {
        Ok(secret) if secret.reveal().len() < struck::BYTES_MIN => {
            Some(format!("a secret of less than {} bytes is not struck out of the log", struck::BYTES_MIN))
        }
        Ok(_) => None,
        Err(fault) => Some(format!("a granted secret can't be had: {}", fault.reason)),
    };
    let granted = manifest.grants.secrets.iter();
    granted.filter_map(|name| Some(Wanting { secret: name.to_string(), told: told(name)? })).collect()
}
