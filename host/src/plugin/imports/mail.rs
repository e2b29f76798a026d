//! Mail through the operator's relay.

use super::fault;
use crate::capability::{Email, EmailPart};
use crate::plugin::bindings::{Fault, mail};
use crate::plugin::guest::Guest;
use crate::plugin::words::hex;
use sha2::{Digest, Sha256};

/// What one run may send.
const MAILS_MAX: usize = 10;
/// Of all recipients together. How many there may be, and how large a mail is,
/// the relay's side knows; this is what is not even looked at.
const TO_BYTES_MAX: usize = 64 << 10;

impl mail::Host for Guest {
    async fn send(
        &mut self,
        to: Vec<String>,
        headers: Vec<(String, String)>,
        parts: Vec<mail::Part>,
    ) -> Result<(), Fault> {
        self.need(self.facts.manifest.grants.mail, "mail", "mail = true")?;
        let mailer = self.facts.capabilities.mailer.clone();
        let mailer =
            mailer.ok_or_else(|| fault("unavailable", "this host has no mail relay: mail.relay would name one"))?;
        if self.run.mails.len() >= MAILS_MAX {
            return Err(fault("too-many", format!("a run sends at most {MAILS_MAX} mails")));
        }
        if to.iter().map(|one| one.len() + 1).sum::<usize>() > TO_BYTES_MAX {
            return Err(fault("too-large", format!("recipients have at most {TO_BYTES_MAX} bytes together")));
        }
        let id = self.mail_id(&to.join(","));
        let part = |part: mail::Part| EmailPart { content_type: part.content_type, name: part.name, data: part.data };
        let email = Email { id, to, headers, parts: parts.into_iter().map(part).collect() };
        Ok(mailer.send(&self.facts.name, email).await?)
    }
}

impl Guest {
    /// Another run of the same message makes the same again, even if it comes
    /// to fewer mails, or to others in between. To whom they went is kept as a
    /// hash: it is only compared.
    fn mail_id(&mut self, to: &str) -> String {
        let hash = hex(&Sha256::digest(to));
        let earlier = self.run.mails.iter().filter(|known| **known == hash).count();
        self.run.mails.push(hash);
        let topic = self.run.topic_name();
        let ids: Vec<&str> = self.run.members.iter().map(|member| member.id.as_str()).collect();
        format!("{topic}/{}/{to}/{earlier}", ids.join("/"))
    }
}
