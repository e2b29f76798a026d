//! The transport for the mails of handlers.

use super::{parse, parse_duration, set};
use crate::capability::Secret;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use url::Url;

#[derive(Debug, Clone, PartialEq)]
pub struct MailSettings {
    /// None disables mail.
    pub transport: Option<MailTransport>,
    /// The default sender.
    pub from: Option<String>,
    /// Senders that handlers may choose: addresses, or `*@domain`.
    pub allow_from: Vec<String>,
    /// CA certificates in PEM. None trusts the certificates of the system.
    pub tls_ca: Option<Vec<u8>>,
    /// The time limit for sending one mail.
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MailTransport {
    Smtp(SmtpRelay),
    /// Writes each mail to a file instead of delivering it.
    Directory(PathBuf),
}

/// The SMTP server that mails are submitted to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmtpRelay {
    pub security: Security,
    pub host: String,
    pub port: u16,
    pub login: Option<(String, Secret)>,
    /// The host name for EHLO.
    pub ehlo_name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// Upgrades the connection to TLS and fails where the server can't.
    StartTls,
    Tls,
    /// Sends mails and the password unencrypted.
    None,
}

const FORMAT: &str = "smtp://[user:password@]host[:587][/ehlo-name] (STARTTLS), smtps://...[:465], smtp+insecure://...[:25], or file:DIR";

impl FromStr for MailTransport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("file:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() {
                Err("the directory is missing".to_owned())
            } else {
                Ok(Self::Directory(path.into()))
            };
        }
        // A URL ignores line ends inside it, and a password would be another one.
        if text.contains(char::is_control) {
            return Err("it has a line end or another control character inside".to_owned());
        }
        let url = Url::parse(text).map_err(|error| error.to_string())?;
        let (security, port) = match url.scheme() {
            "smtp" => (Security::StartTls, 587),
            "smtps" => (Security::Tls, 465),
            "smtp+insecure" => (Security::None, 25),
            other => return Err(format!("unknown scheme \"{other}\"")),
        };
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or("the host is missing")?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err("a query or fragment is not supported".to_owned());
        }
        let decode = |text: &str| {
            percent_decode_str(text).decode_utf8().map(|text| text.into_owned()).map_err(|_| "not UTF-8".to_owned())
        };
        let login = match (decode(url.username())?, url.password().map(decode).transpose()?) {
            (user, None) if user.is_empty() => None,
            (user, Some(password)) if !user.is_empty() => Some((user, Secret::new(password))),
            _ => return Err("user and password must be given together".to_owned()),
        };
        // Hosts may be written in any alphabet; the name system knows their ASCII form.
        let domain = |text: &str| {
            let text = decode(text)?;
            let is_ip = text.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
            let ascii = if is_ip { Some(text.clone()) } else { idna::domain_to_ascii_strict(&text).ok() };
            ascii.ok_or_else(|| format!("\"{}\" is not a host name", text.escape_debug()))
        };
        let host = domain(host)?;
        let ehlo_name = Some(url.path().trim_matches('/')).filter(|name| !name.is_empty()).map(domain).transpose()?;
        Ok(Self::Smtp(SmtpRelay {
            security,
            host: host.trim_matches(['[', ']']).to_owned(),
            port: url.port().unwrap_or(port),
            login,
            ehlo_name,
        }))
    }
}

/// The transport without user and password, for logs.
impl fmt::Display for MailTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "file:{}", path.display()),
            Self::Smtp(relay) => {
                let scheme = match relay.security {
                    Security::StartTls => "smtp",
                    Security::Tls => "smtps",
                    Security::None => "smtp+insecure",
                };
                write!(f, "{scheme}://{}:{}", relay.host, relay.port)
            }
        }
    }
}

#[derive(Debug, Clone, Default, clap::Args)]
pub struct RawMail {
    /// SMTP server for mails of handlers
    #[arg(
        long,
        env = "GATEWAY_MAIL_RELAY",
        value_name = "URL",
        hide_env_values = true,
        help = "SMTP server for mails of handlers: smtp://[user:password@]host (STARTTLS), smtps://..., or file:DIR [default: no mail]"
    )]
    pub mail_relay: Option<String>,
    /// Default sender of mails, like "Shop <noreply@shop.example>"
    #[arg(long, env = "GATEWAY_MAIL_FROM", value_name = "SENDER")]
    pub mail_from: Option<String>,
    /// Other senders that handlers may choose: comma-separated addresses or *@domain [default: none]
    #[arg(long, env = "GATEWAY_MAIL_ALLOW_FROM", value_name = "LIST")]
    pub mail_allow_from: Option<String>,
    /// CA certificates for the SMTP server, in PEM [default: those of the system]
    #[arg(long, env = "GATEWAY_MAIL_TLS_CA", value_name = "FILE")]
    pub mail_tls_ca: Option<String>,
    /// Time limit for sending one mail [default: 15s]
    #[arg(long, env = "GATEWAY_MAIL_TIMEOUT", value_name = "TIME")]
    pub mail_timeout: Option<String>,
}

/// The table `[mail]` of the settings file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FileMail {
    relay: Option<String>,
    from: Option<String>,
    allow_from: Option<Vec<String>>,
    tls_ca: Option<String>,
    timeout: Option<String>,
}

impl RawMail {
    pub(super) fn or_file(self, file: FileMail) -> Self {
        Self {
            mail_relay: set(&self.mail_relay).or(file.relay),
            mail_from: set(&self.mail_from).or(file.from),
            mail_allow_from: set(&self.mail_allow_from).or(file.allow_from.map(|list| list.join(","))),
            mail_tls_ca: set(&self.mail_tls_ca).or(file.tls_ca),
            mail_timeout: set(&self.mail_timeout).or(file.timeout),
        }
    }

    pub fn check(&self, errors: &mut Vec<String>) -> MailSettings {
        let transport = set(&self.mail_relay).and_then(|text| match text.trim().parse() {
            Ok(transport) => Some(transport),
            // The part before the @ may contain the password.
            Err(error) => {
                let redacted = text.rsplit('@').next().unwrap_or_default();
                errors.push(format!("mail.relay: \"{redacted}\": {error}; allowed: {FORMAT}"));
                None
            }
        });
        let from = set(&self.mail_from);
        if from.is_none() && matches!(transport, Some(MailTransport::Smtp(_))) {
            errors.push("mail.from: missing; mail.relay needs a default sender".to_owned());
        }
        let list: String = parse("mail.allow_from", &self.mail_allow_from, String::new(), "addresses", errors);
        let allow_from: Vec<String> =
            list.split(',').map(|one| one.trim().to_lowercase()).filter(|one| !one.is_empty()).collect();
        for bad in allow_from.iter().filter(|one| !is_pattern(one)) {
            errors.push(format!("mail.allow_from: \"{bad}\" is neither an address nor *@domain"));
        }
        MailSettings {
            transport,
            from,
            allow_from,
            tls_ca: super::redis_target::pem("mail.tls_ca", &self.mail_tls_ca, "CERTIFICATE", errors),
            timeout: parse_duration("mail.timeout", &self.mail_timeout, 15_000, (100, 600_000), errors),
        }
    }
}

/// Whether the text is an address or `*@domain`. The domain may not be `*`.
fn is_pattern(text: &str) -> bool {
    let is_word = |part: &str| !part.is_empty() && !part.contains(['*', '@', ' ', '<', '>', '"']);
    text.split_once('@').is_some_and(|(user, domain)| (user == "*" || is_word(user)) && is_word(domain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(text: &str) -> SmtpRelay {
        match text.parse::<MailTransport>() {
            Ok(MailTransport::Smtp(relay)) => relay,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn smtp_uses_tls_unless_the_scheme_is_insecure() {
        let relays = ["smtp://h", "smtps://h", "smtp+insecure://h"].map(relay);
        let found = relays.map(|relay| (relay.security, relay.port));
        assert_eq!(found, [(Security::StartTls, 587), (Security::Tls, 465), (Security::None, 25)]);
        let full = relay("smtp://user%40h:p%3Aw@[::1]:2525/worker.example");
        assert_eq!((full.host.as_str(), full.port, full.ehlo_name.as_deref()), ("::1", 2525, Some("worker.example")));
        assert_eq!(full.login, Some(("user@h".to_owned(), Secret::new("p:w".to_owned()))));
        assert_eq!("file:/a/b".parse(), Ok(MailTransport::Directory("/a/b".into())));
        assert_eq!("file:///a/b".parse(), Ok(MailTransport::Directory("/a/b".into())));
        assert_eq!("file:a".parse(), Ok(MailTransport::Directory("a".into())));
    }

    #[test]
    fn every_error_is_reported_without_the_password() {
        for bad in ["http://u:hidden@h", "smtp://", "smtp://u@h", "smtp://h?tls=none", "h:25", "file:"] {
            let mut errors = Vec::new();
            let raw = RawMail { mail_relay: Some(bad.to_owned()), ..RawMail::default() };
            raw.check(&mut errors);
            assert_eq!(errors.len(), 1, "{bad}: {errors:?}");
            assert!(errors[0].starts_with("mail.relay: ") && errors[0].contains("smtps://"), "{errors:?}");
            assert!(!errors[0].contains("hidden"), "{errors:?}");
        }
        let raw = RawMail {
            mail_relay: Some("smtp://u:hidden@h".to_owned()),
            mail_allow_from: Some("*@a.example, B@c.example, *, *@*, a*@a.example".to_owned()),
            mail_tls_ca: Some("/nowhere".to_owned()),
            mail_timeout: Some("1h".to_owned()),
            ..RawMail::default()
        };
        let mut errors = Vec::new();
        let settings = raw.check(&mut errors);
        assert_eq!(errors.len(), 6, "{errors:#?}");
        assert_eq!(settings.allow_from[..2], ["*@a.example", "b@c.example"]);
        assert!(!format!("{settings:?}").contains("hidden"));
        assert_eq!(settings.transport.unwrap().to_string(), "smtp://h:587");
    }
}
