//! `mail`: sends through the operator's relay.

use super::fault;
use crate::capability::{Email, EmailPart};
use crate::plugin::bindings::{Fault, mail};
use crate::plugin::guest::Guest;
use crate::text::hex;
use sha2::{Digest, Sha256};
use tracing::Instrument as _;

/// Mails of one run.
const MAILS_MAX: usize = 10;
/// Length of all recipients together. The mailer limits their number and the size
/// of a mail; this bounds the work before that check.
const TO_BYTES_MAX: usize = 64 << 10;

impl mail::Host for Guest {
    async fn send(
        &mut self,
        to: Vec<String>,
        headers: Vec<(String, String)>,
        parts: Vec<mail::Part>,
    ) -> Result<(), Fault> {
        self.require(self.context.manifest.grants.mail, "mail", "mail = true")?;
        let mailer = self.context.capabilities.mailer.clone();
        let mailer = mailer
            .ok_or_else(|| fault("unavailable", "this host has no mail relay; the operator sets it in mail.relay"))?;
        if self.run.mails.len() >= MAILS_MAX {
            return Err(fault("too-many", format!("a run sends at most {MAILS_MAX} mails")));
        }
        if to.iter().map(|one| one.len() + 1).sum::<usize>() > TO_BYTES_MAX {
            return Err(fault("too-large", format!("recipients have at most {TO_BYTES_MAX} bytes together")));
        }
        let id = self.mail_id(&to.join(","));
        let part = |part: mail::Part| EmailPart { content_type: part.content_type, name: part.name, data: part.data };
        let email = Email { id, to, headers, parts: parts.into_iter().map(part).collect() };
        let sending = mailer.send(&self.context.name, email);
        match &self.run.span {
            Some(span) => sending.instrument(span.span().clone()).await?,
            None => sending.await?,
        }
        Ok(())
    }
}

impl Guest {
    /// An id that is stable over retries of the message, even if a retry sends
    /// fewer or other mails. Of the recipients only a hash is stored, because they
    /// are only compared.
    fn mail_id(&mut self, to: &str) -> String {
        let hash = hex(&Sha256::digest(to));
        let earlier = self.run.mails.iter().filter(|sent| **sent == hash).count();
        self.run.mails.push(hash);
        let topic = self.run.topic_name();
        let ids: Vec<&str> = self.run.items.iter().map(|item| item.id.as_str()).collect();
        format!("{topic}/{}/{to}/{earlier}", ids.join("/"))
    }
}
