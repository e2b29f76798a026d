//! Domains as they are written in commands and headers. Relays that know nothing
//! of other alphabets get the ASCII form of a domain; a local part has none.

use lettre::address::Address;
use lettre::message::Mailbox;

/// A domain in ASCII. None if it is no domain, also after characters are mapped:
/// a wide `>` must not become one.
pub(super) fn ascii_domain(domain: &str) -> Option<String> {
    if domain.is_ascii() {
        return Some(domain.to_owned());
    }
    idna::domain_to_ascii_strict(domain).ok()
}

pub(super) fn with_ascii_domain(mailbox: Mailbox) -> Result<Mailbox, String> {
    let is_domain = || format!("\"{}\" is not a valid domain", mailbox.email.domain().escape_debug());
    let domain = ascii_domain(mailbox.email.domain()).ok_or_else(is_domain)?;
    let email = Address::new(mailbox.email.user(), domain).map_err(|error| format!("{}: {error}", mailbox.email))?;
    Ok(Mailbox::new(mailbox.name, email))
}
