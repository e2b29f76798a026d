//! Mail through the operator's relay.

use super::fault;
use crate::capability::{Letter, Part};
use crate::plugin::bindings::{Fault, mail};
use crate::plugin::guest::Guest;

impl mail::Host for Guest {
    async fn send(
        &mut self,
        to: Vec<String>,
        headers: Vec<(String, String)>,
        parts: Vec<mail::Part>,
    ) -> Result<(), Fault> {
        self.need(self.facts.manifest.grants.mail, "mail", "mail = true")?;
        let mailer = self.capabilities.mailer.clone();
        let mailer = mailer.ok_or_else(|| fault("unavailable", "this host has no mail relay"))?;
        let part = |part: mail::Part| Part { content_type: part.content_type, name: part.name, data: part.data };
        let letter = Letter { to, headers, parts: parts.into_iter().map(part).collect() };
        Ok(mailer.send(&self.facts.name, letter).await?)
    }
}
