//! Secrets that the operator gave to the host, by name.

use super::fault;
use crate::plugin::bindings::{Fault, secrets};
use crate::plugin::guest::Guest;

impl secrets::Host for Guest {
    fn get(&mut self, name: String) -> Result<String, Fault> {
        let is_granted = self.facts.manifest.grants.secrets.iter().any(|granted| granted.as_str() == name);
        let shown = name.escape_debug();
        self.need(is_granted, &format!("the secret {shown}"), &format!("secrets = [\"{shown}\"]"))?;
        let store = self.capabilities.secrets.as_ref();
        let store = store.ok_or_else(|| fault("unavailable", "this host has no secrets"))?;
        Ok(store.get(&name)?.reveal().to_owned())
    }
}
