//! Sends the emails of handlers to the operator's SMTP relay, or writes them to a
//! directory for development. Only this module knows how an email is formatted and
//! transmitted.

mod address;
mod hello;
mod compose;
mod transaction;
mod directory;
mod smtp;

use crate::capability::{Email, Fault, Mailer};
use crate::events;
use crate::settings::{MailSettings, MailTransport};
use async_trait::async_trait;
use compose::{Senders, compose};
use directory::MailDir;
use smtp::SmtpRelay;

/// The default sender. It is needed only with a directory, where nothing is
/// delivered.
const DEFAULT_SENDER: &str = "gateway-worker@localhost";

pub struct MailService {
    transport: Transport,
    senders: Senders,
}

enum Transport {
    Relay(Box<SmtpRelay>),
    Directory(MailDir),
}

impl MailService {
    /// None if mail is not configured. An error names the invalid setting.
    pub fn new(settings: &MailSettings) -> Result<Option<Self>, String> {
        let Some(outlet) = &settings.transport else { return Ok(None) };
        let from = settings.from.as_deref().unwrap_or(DEFAULT_SENDER);
        let senders = Senders::new(from, &settings.allow_from)?;
        let transport = match outlet {
            MailTransport::Smtp(relay) => {
                Transport::Relay(Box::new(SmtpRelay::new(relay, settings, senders.default_domain())?))
            }
            MailTransport::Directory(path) => Transport::Directory(MailDir::new(path)),
        };
        Ok(Some(Self { transport, senders }))
    }
}

#[async_trait]
impl Mailer for MailService {
    async fn send(&self, plugin: &str, email: Email) -> Result<(), Fault> {
        let mail = compose(email, &self.senders)?;
        match &self.transport {
            Transport::Relay(relay) => {
                relay.send(plugin, &mail).await?;
                let recipients = mail.envelope.to().len();
                tracing::debug!(plugin, message_id = mail.id, recipients, "mail sent");
            }
            Transport::Directory(directory) => {
                let file = directory.save(&mail).await?;
                let recipients: Vec<&str> = mail.envelope.to().iter().map(AsRef::as_ref).collect();
                let recipients = recipients.join(", ");
                tracing::info!(plugin, recipients, file = %file.display(), "{}", events::MAIL_WRITTEN);
            }
        }
        Ok(())
    }
}
