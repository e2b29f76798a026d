//! Mails of handlers, on their way to the operator's relay, or into a folder
//! where somebody only wants to see them. The only place that knows how mail is
//! written and handed over.

mod compose;
mod folder;
mod relay;

use crate::capability::{Fault, Letter, Mailer};
use crate::settings::{MailSettings, MailTransport};
use async_trait::async_trait;
use compose::{Senders, compose};
use folder::Folder;
use relay::Relay;

/// The sender where none is needed, since nothing is delivered.
const NOBODY: &str = "gateway-worker@localhost";

pub struct Post {
    way: Way,
    senders: Senders,
}

enum Way {
    Relay(Box<Relay>),
    Folder(Folder),
}

impl Post {
    /// Nothing where there is no outlet. An error says which setting is none.
    pub fn new(settings: &MailSettings) -> Result<Option<Self>, String> {
        let Some(outlet) = &settings.transport else { return Ok(None) };
        let from = settings.from.as_deref().unwrap_or(NOBODY);
        let senders = Senders::new(from, &settings.allow_from)?;
        let way = match outlet {
            MailTransport::Smtp(relay) => Way::Relay(Box::new(Relay::new(relay, settings)?)),
            MailTransport::Directory(path) => Way::Folder(Folder::new(path)),
        };
        Ok(Some(Self { way, senders }))
    }
}

#[async_trait]
impl Mailer for Post {
    async fn send(&self, plugin: &str, letter: Letter) -> Result<(), Fault> {
        let mail = compose(letter, &self.senders)?;
        match &self.way {
            Way::Relay(relay) => {
                relay.send(&mail).await?;
                let recipients = mail.envelope.to().len();
                tracing::debug!(plugin, message_id = mail.id, recipients, "mail sent");
            }
            Way::Folder(folder) => {
                let file = folder.keep(&mail).await?;
                let recipients: Vec<&str> = mail.envelope.to().iter().map(AsRef::as_ref).collect();
                let recipients = recipients.join(", ");
                tracing::info!(plugin, recipients, file = %file.display(), "mail written, not sent");
            }
        }
        Ok(())
    }
}
