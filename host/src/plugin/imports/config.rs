//! `config`: the `[config]` table of the manifest.

use crate::plugin::bindings::config;
use crate::plugin::guest::Guest;

impl config::Host for Guest {
    fn get(&mut self, key: String) -> Option<String> {
        self.context.manifest.config.get(&key).cloned()
    }

    fn get_all(&mut self) -> Vec<(String, String)> {
        self.context.manifest.config.clone().into_iter().collect()
    }
}
