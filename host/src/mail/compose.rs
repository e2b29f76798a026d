//! Formats an email. No text of a handler can add a header, a part or a recipient
//! other than those that it names.

use super::address::{ascii_domain, with_ascii_domain};
use crate::capability::{Email, EmailPart, Fault};
use lettre::address::{Address, Envelope};
use lettre::message::header::{
    Cc, ContentDisposition, ContentTransferEncoding, ContentType, HeaderName, HeaderValue, ReplyTo,
};
use lettre::message::{Attachment, Body, Mailbox, Mailboxes, MessageBuilder, MultiPart, SinglePart};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

const RECIPIENTS_MAX: usize = 100;
/// Headers, bodies and attachments together, before they are encoded.
const BYTES_MAX: usize = 10 << 20;
const HEADERS_MAX: usize = 100;
const PARTS_MAX: usize = 100;
/// Lines are folded at spaces, and may have at most 998 bytes.
const WORD_BYTES_MAX: usize = 900;

/// Headers that only the host or the relay sets.
const RESERVED: [&str; 12] = [
    "sender",
    "return-path",
    "received",
    "message-id",
    "mime-version",
    "delivered-to",
    "bounces-to",
    "errors-to",
    "authentication-results",
    "received-spf",
    "dkim-signature",
    "domainkey-signature",
];
const RESERVED_PREFIXES: [&str; 4] = ["content-", "resent-", "arc-", "x-gateway-"];

/// The allowed senders.
pub(super) struct Senders {
    default: Mailbox,
    allowed: Vec<String>,
}

pub(super) struct Mail {
    pub(super) envelope: Envelope,
    /// `<this>` in the header.
    pub(super) id: String,
    pub(super) bytes: Vec<u8>,
}

impl Mail {
    /// Whether an address has other characters than ASCII before its `@`.
    pub(super) fn needs_smtputf8(&self) -> bool {
        self.envelope
            .from()
            .into_iter()
            .chain(self.envelope.to())
            .any(|address| !AsRef::<str>::as_ref(address).is_ascii())
            || !self.bytes.is_ascii()
    }
}

impl Senders {
    pub(super) fn new(default: &str, allowed: &[String]) -> Result<Self, String> {
        let default = mailbox(default).map_err(|error| format!("mail.from: {error}"))?;
        let ascii = |pattern: &String| {
            let (user, domain) = pattern.split_once('@').unwrap_or(("", pattern));
            let domain = ascii_domain(domain).ok_or_else(|| format!("mail.allow_from: {pattern}: no valid domain"))?;
            Ok(format!("{user}@{domain}"))
        };
        Ok(Self { default, allowed: allowed.iter().map(ascii).collect::<Result<_, String>>()? })
    }

    pub(super) fn default_domain(&self) -> &str {
        self.default.email.domain()
    }

    /// The default sender is always allowed.
    fn is_allowed(&self, sender: &Address) -> bool {
        let address = sender.to_string().to_lowercase();
        let is_allowed = |pattern: &String| match pattern.strip_prefix('*') {
            Some(domain) => address.ends_with(domain),
            None => address == *pattern,
        };
        *sender == self.default.email || self.allowed.iter().any(is_allowed)
    }
}

pub(super) fn compose(email: Email, senders: &Senders) -> Result<Mail, Fault> {
    check_sizes(&email)?;
    let mut recipients = Vec::new();
    let mut builder = MessageBuilder::new();
    for address in &email.to {
        let to = mailbox(address).map_err(|error| Fault::new("invalid", format!("to: {error}")))?;
        recipients.push(to.email.clone());
        builder = builder.to(to);
    }
    let mut from = senders.default.clone();
    let mut seen = BTreeSet::new();
    for (name, value) in email.headers {
        let name = header_name(&name, &value)?;
        if !seen.insert(name.to_ascii_lowercase()) {
            return Err(Fault::new("invalid", format!("the header {name} is given twice")));
        }
        let list = || mailboxes(&value).map_err(|error| Fault::new("invalid", format!("{name}: {error}")));
        match name.to_ascii_lowercase().as_str() {
            "from" => {
                from = mailbox(&value).map_err(|error| Fault::new("invalid", format!("from: {error}")))?;
                if !senders.is_allowed(&from.email) {
                    let reason =
                        format!("the sender {}: the operator allows none but those of mail.allow_from", from.email);
                    return Err(Fault::new("denied", reason));
                }
            }
            "to" => return Err(Fault::new("invalid", "recipients are given apart from headers")),
            "cc" => {
                let list = list()?;
                recipients.extend(list.iter().map(|one| one.email.clone()));
                builder = builder.header(Cc::from(list));
            }
            "bcc" => recipients.extend(list()?.iter().map(|one| one.email.clone())),
            "reply-to" => builder = builder.header(ReplyTo::from(list()?)),
            "date" if jiff::fmt::rfc2822::parse(&value).is_err() => {
                return Err(Fault::new("invalid", "date: it is written like Tue, 24 Nov 2026 03:53:14 +0000"));
            }
            _ => builder = builder.raw_header(HeaderValue::new(raw_name(&name)?, value)),
        }
    }
    if recipients.is_empty() {
        return Err(Fault::new("invalid", "a mail needs at least one recipient"));
    }
    if recipients.len() > RECIPIENTS_MAX {
        let reason = format!("a mail has at most {RECIPIENTS_MAX} recipients, not {}", recipients.len());
        return Err(Fault::new("too-many", reason));
    }
    let id = format!("{}@{}", digest(&email.id), from.email.domain());
    let envelope = Envelope::new(Some(from.email.clone()), recipients).map_err(invalid)?;
    let builder = builder.from(from).message_id(Some(format!("<{id}>"))).envelope(envelope.clone());
    let message = match content(email.parts)? {
        Content::One(part) => builder.singlepart(part),
        Content::Many(parts) => builder.multipart(parts),
    };
    Ok(Mail { envelope, id, bytes: message.map_err(invalid)?.formatted() })
}

fn invalid(error: impl std::fmt::Display) -> Fault {
    Fault::new("invalid", error)
}

fn check_sizes(email: &Email) -> Result<(), Fault> {
    for (what, count, most) in [("headers", email.headers.len(), HEADERS_MAX), ("parts", email.parts.len(), PARTS_MAX)]
    {
        if count > most {
            return Err(Fault::new("too-many", format!("a mail has at most {most} {what}, not {count}")));
        }
    }
    if email.to.len() > RECIPIENTS_MAX {
        let reason = format!("a mail has at most {RECIPIENTS_MAX} recipients, not {}", email.to.len());
        return Err(Fault::new("too-many", reason));
    }
    let headers = email.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    let part = |part: &EmailPart| part.data.len() + part.content_type.len() + part.name.as_ref().map_or(0, String::len);
    let bytes = headers + email.to.iter().map(String::len).sum::<usize>() + email.parts.iter().map(part).sum::<usize>();
    if bytes > BYTES_MAX {
        return Err(Fault::new("too-large", format!("a mail has at most {BYTES_MAX} bytes, not {bytes}")));
    }
    Ok(())
}

/// Checks the name and value of a header that a handler sets.
fn header_name(name: &str, value: &str) -> Result<String, Fault> {
    let escaped: String = name.escape_debug().take(80).collect();
    let is_name = (1..=76).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
    if !is_name {
        return Err(Fault::new("invalid", format!("\"{escaped}\" is not a valid header name")));
    }
    let lower = name.to_ascii_lowercase();
    if RESERVED.contains(&lower.as_str()) || RESERVED_PREFIXES.iter().any(|prefix| lower.starts_with(prefix)) {
        return Err(Fault::new("invalid", format!("the header {escaped} can't be set by a handler")));
    }
    if value.contains(|char: char| char.is_control() && char != '\t') {
        return Err(Fault::new(
            "invalid",
            format!("the header {escaped} has a line break or another control character"),
        ));
    }
    if value.split([' ', '\t']).any(|word| word.len() > WORD_BYTES_MAX) {
        let reason = format!("the header {escaped} has more than {WORD_BYTES_MAX} bytes without a space");
        return Err(Fault::new("invalid", reason));
    }
    Ok(name.to_owned())
}

/// Capitalizes the name, as mail programs do.
fn raw_name(name: &str) -> Result<HeaderName, Fault> {
    let mut is_first = true;
    let capital = |char: char| {
        let written = if is_first { char.to_ascii_uppercase() } else { char };
        is_first = char == '-';
        written
    };
    HeaderName::new_from_ascii(name.chars().map(capital).collect()).map_err(invalid)
}

/// `ada@example.com`, or `Ada <ada@example.com>`.
fn mailbox(text: &str) -> Result<Mailbox, String> {
    let mut list = mailboxes(text)?.into_iter();
    match (list.next(), list.next()) {
        (Some(only), None) => Ok(only),
        _ => Err(format!("\"{}\" is not one address", escaped(text))),
    }
}

fn mailboxes(text: &str) -> Result<Mailboxes, String> {
    if text.contains(char::is_control) {
        return Err(format!("\"{}\" has a line break or another control character", escaped(text)));
    }
    if text.split([' ', ',']).any(|word| word.len() > WORD_BYTES_MAX) {
        return Err(format!("\"{}\" is too long", escaped(text)));
    }
    let list: Mailboxes = text.parse().map_err(|error| format!("\"{}\": {error}", escaped(text)))?;
    let ascii = list.into_iter().map(with_ascii_domain).collect::<Result<Vec<_>, _>>()?;
    Ok(ascii.into_iter().collect())
}

fn escaped(text: &str) -> String {
    text.escape_debug().take(200).collect()
}

/// Equal for every attempt to send an email, so that a receiver can recognize
/// duplicates.
fn digest(seed: &str) -> String {
    Sha256::digest(seed).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

enum Content {
    One(SinglePart),
    Many(MultiPart),
}

/// Several bodies are alternatives, the preferred one last. Attachments follow.
fn content(parts: Vec<EmailPart>) -> Result<Content, Fault> {
    let (files, bodies): (Vec<EmailPart>, Vec<EmailPart>) = parts.into_iter().partition(|part| part.name.is_some());
    let mut bodies: Vec<SinglePart> = bodies.into_iter().map(body).collect::<Result<_, _>>()?;
    let files: Vec<SinglePart> = files.into_iter().map(attachment).collect::<Result<_, _>>()?;
    let bodies = match (bodies.pop(), bodies.is_empty()) {
        (None, _) if files.is_empty() => return Err(Fault::new("invalid", "a mail has a body or an attachment")),
        (None, _) => None,
        (Some(only), true) => Some(Content::One(only)),
        (Some(last), false) => {
            let several = bodies.into_iter().fold(MultiPart::alternative().build(), MultiPart::singlepart);
            Some(Content::Many(several.singlepart(last)))
        }
    };
    if files.is_empty()
        && let Some(bodies) = bodies
    {
        return Ok(bodies);
    }
    let mixed = match bodies {
        None => MultiPart::mixed().build(),
        Some(Content::One(body)) => MultiPart::mixed().singlepart(body),
        Some(Content::Many(bodies)) => MultiPart::mixed().multipart(bodies),
    };
    Ok(Content::Many(files.into_iter().fold(mixed, MultiPart::singlepart)))
}

fn body(part: EmailPart) -> Result<SinglePart, Fault> {
    let lower = part.content_type.to_ascii_lowercase();
    let is_text = lower.trim_start().starts_with("text/");
    let charset = lower.split_once("charset=").map(|(_, rest)| rest.trim_start_matches('"'));
    // Bytes of another charset, like UTF-16, may look like UTF-8 with line ends.
    let is_utf8 = charset.is_none_or(|name| name.starts_with("utf-8") || name.starts_with("us-ascii"));
    let kind = if is_text && charset.is_none() {
        content_type(&format!("{}; charset=utf-8", part.content_type))?
    } else {
        content_type(&part.content_type)?
    };
    let builder = SinglePart::builder().header(kind);
    match String::from_utf8(part.data) {
        Ok(text) if is_text && is_utf8 => Ok(builder.body(text_body(&text)?)),
        Err(_) if is_text && is_utf8 => Err(Fault::new("invalid", "a body of text is not UTF-8")),
        Ok(text) => encoded(builder.header(ContentDisposition::inline()), text.into_bytes()),
        Err(error) => encoded(builder, error.into_bytes()),
    }
}

/// Every line of a mail ends with CR LF, whatever ends it in the text (RFC 5322,
/// 2.3): a CR or LF alone lets relays disagree about where a mail ends. Other
/// control characters are encoded.
fn text_body(text: &str) -> Result<Body, Fault> {
    let mut lines = String::with_capacity(text.len() + text.len() / 32);
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\r' | '\n' => {
                if char == '\r' {
                    chars.next_if_eq(&'\n');
                }
                lines.push_str("\r\n");
            }
            other => lines.push(other),
        }
    }
    if lines.bytes().any(|byte| byte.is_ascii_control() && !matches!(byte, b'\t' | b'\r' | b'\n')) {
        let kind = ContentTransferEncoding::Base64;
        return Body::new_with_encoding(lines, kind).map_err(|_| Fault::new("invalid", "a body can't be encoded"));
    }
    Ok(Body::new(lines))
}

fn encoded(builder: lettre::message::SinglePartBuilder, data: Vec<u8>) -> Result<SinglePart, Fault> {
    let kind = ContentTransferEncoding::Base64;
    let body = Body::new_with_encoding(data, kind).map_err(|_| Fault::new("invalid", "a body can't be encoded"))?;
    Ok(builder.body(body))
}

fn attachment(part: EmailPart) -> Result<SinglePart, Fault> {
    let name = part.name.unwrap_or_default();
    if !(1..=255).contains(&name.len()) || name.contains(char::is_control) {
        let reason = format!(
            "\"{}\" is not a valid attachment name: use 1 to 255 bytes without control characters",
            escaped(&name)
        );
        return Err(Fault::new("invalid", reason));
    }
    let kind = content_type(&part.content_type)?;
    let data = Body::new_with_encoding(part.data, ContentTransferEncoding::Base64)
        .map_err(|_| Fault::new("invalid", format!("{} can't be encoded", escaped(&name))))?;
    Ok(Attachment::new(name).body(data, kind))
}

fn content_type(text: &str) -> Result<ContentType, Fault> {
    let refusal = |why: &str| Fault::new("invalid", format!("content-type \"{}\": {why}", escaped(text)));
    if text.len() > WORD_BYTES_MAX || !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(refusal("it must be short printable ASCII"));
    }
    if text.trim_start().to_ascii_lowercase().starts_with("multipart/") {
        return Err(refusal("a part can't be multipart"));
    }
    ContentType::parse(text).map_err(|error| refusal(&error.to_string()))
}

#[cfg(test)]
mod tests;
