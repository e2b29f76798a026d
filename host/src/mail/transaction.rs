//! Hands one mail to a relay, recipient by recipient: one that is refused does not
//! stop the mail for the others.

use super::compose::Mail;
use crate::capability::Fault;
use crate::text::truncate_error;
use crate::tls;
use lettre::address::Address;
use lettre::transport::smtp::Error;
use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::{Data, Mail as MailFrom, Rcpt, Rset};
use lettre::transport::smtp::extension::{MailBodyParameter, MailParameter};
use std::error::Error as _;

/// Replies to a recipient that concern the whole connection: it is closed, or
/// nobody is logged in.
const OF_THE_CONNECTION: [u16; 5] = [421, 530, 534, 535, 538];

/// Too many recipients for one transaction (RFC 5321, 4.5.3.1.10).
const TOO_MANY: [u16; 2] = [452, 552];

/// What has become of the recipients so far.
pub(super) struct Progress {
    waiting: Vec<Address>,
    sent: usize,
    refused: Vec<RefusedRecipient>,
}

struct RefusedRecipient {
    address: Address,
    reply: String,
    is_permanent: bool,
}

impl Progress {
    /// An address that is given twice gets one mail.
    pub(super) fn new(recipients: &[Address]) -> Self {
        let mut waiting: Vec<Address> = Vec::new();
        for recipient in recipients {
            if !waiting.contains(recipient) {
                waiting.push(recipient.clone());
            }
        }
        Self { waiting, sent: 0, refused: Vec::new() }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The addresses that the relay refuses.
    pub(super) fn refused(&self) -> Vec<&str> {
        self.refused.iter().map(|refused| refused.address.as_ref()).collect()
    }

    /// The result for the handler; `end` is the failure that ended the attempt, or
    /// ok. A fault says who has got the mail, because another attempt sends it to
    /// them again.
    pub(super) fn result(&self, relay: &str, end: Result<(), Fault>) -> Result<(), Fault> {
        if self.refused.is_empty() && self.sent == 0 || self.refused.is_empty() && end.is_ok() {
            return end;
        }
        let mut reasons = Vec::new();
        for RefusedRecipient { address, reply, .. } in &self.refused {
            reasons.push(format!("refuses the recipient {address}: {reply}"));
        }
        let mut is_permanent = self.refused.iter().all(|refused| refused.is_permanent);
        if let Err(fault) = &end {
            is_permanent &= fault.code != "unavailable";
            let waiting: Vec<&str> = self.waiting.iter().map(AsRef::as_ref).collect();
            reasons.push(format!("{} is not sent the mail: {}", waiting.join(", "), fault.reason));
        }
        let others = match self.sent {
            0 => String::new(),
            1 => "; the mail was sent to the other recipient".to_owned(),
            sent => format!("; the mail was sent to the other {sent} recipients"),
        };
        let reason = format!("{}{others}", truncate_error(format!("{relay} {}", reasons.join("; "))));
        Err(if is_permanent { Fault::new("invalid", reason) } else { Fault::unavailable(reason) })
    }
}

/// Sends the mail to the waiting recipients that the relay takes in one
/// transaction. An error is about those that still wait.
pub(super) async fn transact(
    connection: &mut AsyncSmtpConnection,
    mail: &Mail,
    progress: &mut Progress,
) -> Result<(), Error> {
    let mut options = Vec::new();
    if mail.needs_smtputf8() {
        options = vec![MailParameter::SmtpUtfEight, MailParameter::Body(MailBodyParameter::EightBitMime)];
    }
    connection.command(MailFrom::new(mail.envelope.from().cloned(), options)).await?;
    let (mut accepted, mut later) = (0, Vec::new());
    for recipient in progress.waiting.clone() {
        let Err(error) = connection.command(Rcpt::new(recipient.clone(), vec![])).await else {
            accepted += 1;
            continue;
        };
        let code = error.status().map_or(0, u16::from);
        if code == 0 || OF_THE_CONNECTION.contains(&code) {
            return Err(error);
        }
        if TOO_MANY.contains(&code) && accepted > 0 {
            later.push(recipient);
            continue;
        }
        progress.waiting.retain(|waiting| *waiting != recipient);
        let (reply, is_permanent) = (error_text(&error), error.is_permanent());
        progress.refused.push(RefusedRecipient { address: recipient, reply, is_permanent });
    }
    if accepted == 0 {
        connection.command(Rset).await?;
        return Ok(());
    }
    connection.command(Data).await?;
    connection.message(&mail.bytes).await?;
    progress.sent += accepted;
    progress.waiting = later;
    Ok(())
}

/// The relay's reply code and text, or what went wrong on the way.
pub(super) fn error_text(error: &Error) -> String {
    match (error.status(), error.source()) {
        (Some(code), Some(text)) => format!("{code} {text}"),
        _ => tls::explained(&error.to_string()),
    }
}
