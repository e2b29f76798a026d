//! `secrets`: values that the operator has configured, by name.

use super::fault;
use crate::capability::Secrets;
use crate::events;
use crate::manifest::{Manifest, SecretName};
use crate::plugin::bindings::{Fault, secrets};
use crate::plugin::guest::Guest;
use crate::plugin::redact;
use crate::text::truncate;

/// How much of a denied name the error shows. No secret has a longer name.
const NAME_BYTES_MAX: usize = 128;

impl secrets::Host for Guest {
    fn get(&mut self, name: String) -> Result<String, Fault> {
        let is_granted = self.context.manifest.grants.secrets.iter().any(|granted| granted.as_str() == name);
        let shown = truncate(&name, NAME_BYTES_MAX).escape_debug().to_string();
        self.require(is_granted, &format!("the secret {shown}"), &format!("secrets = [\"{shown}\"]"))?;
        let store = self.context.capabilities.secrets.as_ref();
        let store = store.ok_or_else(|| fault("unavailable", "this host has no secrets"))?;
        let secret = store.read(&self.context.name, &name)?;
        self.context.redactor.add(&name, &secret);
        if self.context.may_log(name.len()) {
            self.run.in_span(|| tracing::debug!(secret = name, "{}", events::SECRET_READ));
        }
        Ok(secret.reveal().to_owned())
    }
}

/// A secret that a manifest grants, and the problem with it.
pub(in crate::plugin) struct SecretWarning {
    pub(in crate::plugin) secret: String,
    pub(in crate::plugin) message: String,
}

/// Granted secrets that are missing, or too short to be redacted.
pub(in crate::plugin) fn secret_warnings(manifest: &Manifest, secrets: &dyn Secrets) -> Vec<SecretWarning> {
    let problem = |name: &SecretName| match secrets.get(name.as_str()) {
        Ok(secret) if secret.reveal().len() < redact::BYTES_MIN => {
            Some(format!("a secret of less than {} bytes is not redacted from the log", redact::BYTES_MIN))
        }
        Ok(_) => None,
        Err(fault) => Some(format!("{}: {}", events::SECRET_UNAVAILABLE, fault.reason)),
    };
    let granted = manifest.grants.secrets.iter();
    granted.filter_map(|name| Some(SecretWarning { secret: name.to_string(), message: problem(name)? })).collect()
}
