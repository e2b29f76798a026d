//! Mail through the operator's relay. The manifest grants it: `mail = true`
//! under `[grants]`.
//!
//! A mail is sent immediately, so another run of the message sends it again,
//! with the same `Message-ID`, which lets receivers drop the copy. To never send
//! twice, remember the mail with
//! [`kv::set_if_absent`](crate::kv::set_if_absent).
//!
//! ```no_run
//! use gateway_plugin_sdk::{Failure, Message, mail::Mail};
//!
//! fn confirm(message: Message) -> Result<(), Failure> {
//!     Mail::to("Ada <ada@example.com>")
//!         .subject("Your order")
//!         .text("It is on its way.")
//!         .html("<p>It is on its way.</p>")
//!         .attach("invoice.pdf", "application/pdf", message.data)
//!         .send()?;
//!     Ok(())
//! }
//! ```

use crate::Fault;
use crate::capability_bindings::gateway::worker::mail;

/// A mail under construction.
#[derive(Debug, Clone, Default)]
#[must_use = "`send` sends the mail"]
pub struct Mail {
    to: Vec<String>,
    headers: Vec<(String, String)>,
    parts: Vec<mail::Part>,
}

impl Mail {
    /// A mail to `ada@example.com` or `Ada <ada@example.com>`.
    pub fn to(address: impl Into<String>) -> Self {
        Self::default().and_to(address)
    }

    /// Adds a recipient. With `cc` and `bcc` a mail has at most 100.
    pub fn and_to(mut self, address: impl Into<String>) -> Self {
        self.to.push(address.into());
        self
    }

    /// Adds a recipient of a copy.
    pub fn cc(self, address: impl AsRef<str>) -> Self {
        self.joined("cc", address.as_ref())
    }

    /// Adds a recipient of a copy whom the others do not see.
    pub fn bcc(self, address: impl AsRef<str>) -> Self {
        self.joined("bcc", address.as_ref())
    }

    /// The address that replies are sent to.
    pub fn reply_to(self, address: impl AsRef<str>) -> Self {
        self.joined("reply-to", address.as_ref())
    }

    /// The sender, which the operator must allow. The default is the operator's
    /// `mail.from`.
    pub fn from(self, address: impl Into<String>) -> Self {
        self.header("from", address)
    }

    /// The subject: any characters except line breaks.
    pub fn subject(self, subject: impl Into<String>) -> Self {
        self.header("subject", subject)
    }

    /// Any other header, such as `list-unsubscribe`.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The body as plain text.
    pub fn text(self, body: impl Into<String>) -> Self {
        self.body("text/plain; charset=utf-8", body.into())
    }

    /// The body as HTML. With a [`text`](Self::text) before it, the mail reader
    /// shows one of the two.
    pub fn html(self, body: impl Into<String>) -> Self {
        self.body("text/html; charset=utf-8", body.into())
    }

    /// Attaches a file. All bodies and files together have at most 10 MiB.
    pub fn attach(
        mut self,
        name: impl Into<String>,
        content_type: impl Into<String>,
        data: impl Into<Vec<u8>>,
    ) -> Self {
        self.parts.push(mail::Part { content_type: content_type.into(), name: Some(name.into()), data: data.into() });
        self
    }

    /// Sends the mail through the operator's relay.
    ///
    /// # Errors
    ///
    /// `denied` if the manifest does not grant mail or the operator does not
    /// allow this sender; `invalid` for a malformed address or header, and with
    /// the relay's text if the relay rejects the mail permanently; `too-many`
    /// beyond 100 recipients, or 10 mails in one run; `too-large` beyond 10
    /// MiB; `unavailable` if no relay is configured or it does not answer.
    pub fn send(&self) -> Result<(), Fault> {
        mail::send(&self.to, &self.headers, &self.parts)
    }

    fn body(mut self, content_type: &str, text: String) -> Self {
        self.parts.push(mail::Part { content_type: content_type.to_owned(), name: None, data: text.into_bytes() });
        self
    }

    /// Appends to the header if it is already there: addresses share one header.
    fn joined(mut self, name: &str, address: &str) -> Self {
        match self.headers.iter_mut().find(|(existing, _)| existing == name) {
            Some((_, value)) => {
                value.push_str(", ");
                value.push_str(address);
            }
            None => self.headers.push((name.to_owned(), address.to_owned())),
        }
        self
    }
}
