//! Mail through the operator's relay. The manifest grants it: `mail = true`
//! under `[grants]`.
//!
//! A mail is sent at once, and another run of the message sends it again: with
//! the same `Message-ID`, so that receivers can tell. Whoever must not send
//! twice remembers it with [`kv::add`](crate::kv::add).
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
use crate::bindings_more::gateway::worker::mail;

/// A mail that is being written.
#[derive(Debug, Clone, Default)]
#[must_use = "a mail leaves with `send`"]
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

    /// One more to whom it goes. With `cc` and `bcc` they are 100 at most.
    pub fn and_to(mut self, address: impl Into<String>) -> Self {
        self.to.push(address.into());
        self
    }

    /// Gets a copy.
    pub fn cc(self, address: impl AsRef<str>) -> Self {
        self.joined("cc", address.as_ref())
    }

    /// Gets a copy, which the others do not see.
    pub fn bcc(self, address: impl AsRef<str>) -> Self {
        self.joined("bcc", address.as_ref())
    }

    /// Where answers go.
    pub fn reply_to(self, address: impl AsRef<str>) -> Self {
        self.joined("reply-to", address.as_ref())
    }

    /// The sender, where the operator allows it; else it is the operator's.
    pub fn from(self, address: impl Into<String>) -> Self {
        self.header("from", address)
    }

    /// What it is about; any characters but line breaks.
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

    /// The body as HTML. With [`text`](Self::text) before it, readers choose.
    pub fn html(self, body: impl Into<String>) -> Self {
        self.body("text/html; charset=utf-8", body.into())
    }

    /// A file that goes with it. All bodies and files have 10 MiB at most.
    pub fn attach(
        mut self,
        name: impl Into<String>,
        content_type: impl Into<String>,
        data: impl Into<Vec<u8>>,
    ) -> Self {
        self.parts.push(mail::Part { content_type: content_type.into(), name: Some(name.into()), data: data.into() });
        self
    }

    /// Hands it to the operator's relay.
    ///
    /// # Errors
    ///
    /// `denied` where the manifest does not grant mail or the operator does not
    /// allow this sender; `invalid` for an address or a header that can't be
    /// one, and where the relay refuses for good, in its words; `too-many`
    /// beyond 100 recipients, or 10 mails of one run; `too-large` beyond 10
    /// MiB; `unavailable` where there is no relay, or none that answers.
    pub fn send(&self) -> Result<(), Fault> {
        mail::send(&self.to, &self.headers, &self.parts)
    }

    fn body(mut self, content_type: &str, text: String) -> Self {
        self.parts.push(mail::Part { content_type: content_type.to_owned(), name: None, data: text.into_bytes() });
        self
    }

    /// Several addresses are one header.
    fn joined(mut self, name: &str, address: &str) -> Self {
        match self.headers.iter_mut().find(|(known, _)| known == name) {
            Some((_, value)) => {
                value.push_str(", ");
                value.push_str(address);
            }
            None => self.headers.push((name.to_owned(), address.to_owned())),
        }
        self
    }
}
