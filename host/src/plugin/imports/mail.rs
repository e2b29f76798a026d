//! Mail through the operator's relay.

use super::fault;
use crate::capability::{Letter, Part};
use crate::plugin::bindings::{Fault, mail};
use crate::plugin::guest::Guest;

/// What one run may send.
const MAILS_MAX: usize = 10;

impl mail::Host for Guest {
    async fn send(
        &mut self,
        to: Vec<String>,
        headers: Vec<(String, String)>,
        parts: Vec<mail::Part>,
    ) -> Result<(), Fault> {
        self.need(self.facts.manifest.grants.mail, "mail", "mail = true")?;
        let mailer = self.capabilities.mailer.clone();
        let mailer =
            mailer.ok_or_else(|| fault("unavailable", "this host has no mail relay: mail.relay would name one"))?;
        if self.run.mails.len() >= MAILS_MAX {
            return Err(fault("too-many", format!("a run sends at most {MAILS_MAX} mails")));
        }
        let id = self.mail_id(&to);
        self.run.mails.push(to.join(","));
        let part = |part: mail::Part| Part { content_type: part.content_type, name: part.name, data: part.data };
        let letter = Letter { id, to, headers, parts: parts.into_iter().map(part).collect() };
        Ok(mailer.send(&self.facts.name, letter).await?)
    }
}

impl Guest {
    /// Another run of the same message makes the same again, even if it comes
    /// to fewer mails, or to others in between.
    fn mail_id(&self, to: &[String]) -> String {
        let to = to.join(",");
        let earlier = self.run.mails.iter().filter(|known| **known == to).count();
        let topic = self.run.topic_name();
        let ids: Vec<&str> = self.run.members.iter().map(|member| member.id.as_str()).collect();
        format!("{topic}/{}/{to}/{earlier}", ids.join("/"))
    }
}
