//! Secrets that the operator gave to the host, by name.

use super::fault;
use crate::capability::Secrets;
use crate::manifest::{Manifest, SecretName};
use crate::plugin::bindings::{Fault, secrets};
use crate::plugin::guest::Guest;
use crate::plugin::redact;
use crate::text::truncate;

/// As much of a name as a refusal shows: that of a secret is no longer.
const NAME_BYTES_MAX: usize = 128;

impl secrets::Host for Guest {
    fn get(&mut self, name: String) -> Result<String, Fault> {
        let is_granted = self.context.manifest.grants.secrets.iter().any(|granted| granted.as_str() == name);
        let shown = truncate(&name, NAME_BYTES_MAX).escape_debug().to_string();
        self.need(is_granted, &format!("the secret {shown}"), &format!("secrets = [\"{shown}\"]"))?;
        let store = self.context.capabilities.secrets.as_ref();
        let store = store.ok_or_else(|| fault("unavailable", "this host has no secrets"))?;
        let secret = store.read(&self.context.name, &name)?;
        self.context.redactor.add(&name, &secret);
        if self.context.may_log(name.len()) {
            tracing::debug!(plugin = self.context.name, topic = self.run.topic_name(), secret = name, "secret read");
        }
        Ok(secret.reveal().to_owned())
    }
}

/// A secret that a manifest names, and what is not as it should be with it.
pub(in crate::plugin) struct SecretWarning {
    pub(in crate::plugin) secret: String,
    pub(in crate::plugin) told: String,
}

/// What handlers of a plugin will look for in vain, and what can't be kept out
/// of the log.
pub(in crate::plugin) fn secret_warnings(manifest: &Manifest, secrets: &dyn Secrets) -> Vec<SecretWarning> {
    let told = |name: &SecretName| match secrets.get(name.as_str()) {
        Ok(secret) if secret.reveal().len() < redact::BYTES_MIN => {
            Some(format!("a secret of less than {} bytes is not struck out of the log", redact::BYTES_MIN))
        }
        Ok(_) => None,
        Err(fault) => Some(format!("a granted secret can't be had: {}", fault.reason)),
    };
    let granted = manifest.grants.secrets.iter();
    granted.filter_map(|name| Some(SecretWarning { secret: name.to_string(), told: told(name)? })).collect()
}
