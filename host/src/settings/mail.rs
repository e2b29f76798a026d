//! The way that mails of handlers take.

use super::{parse, set, span};
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
    /// Without one there is no mail.
    pub outlet: Option<Outlet>,
    /// The sender of mails that name none.
    pub from: Option<String>,
    /// Senders that handlers may name: addresses, or `*@domain`.
    pub allow_from: Vec<String>,
    /// Certificates in PEM; without them those of the system are trusted.
    pub tls_ca: Option<Vec<u8>>,
    /// How long one mail may take.
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outlet {
    Relay(Relay),
    /// Each mail becomes a file: to look at, not to deliver.
    Folder(PathBuf),
}

/// An SMTP server that takes our mails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    pub security: Security,
    pub host: String,
    pub port: u16,
    pub login: Option<(String, Secret)>,
    /// The name that we greet it with.
    pub hello: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// Begins without TLS and goes on only with it.
    StartTls,
    Tls,
    /// Everybody on the way reads it, the password too.
    None,
}

const SHAPE: &str = "smtp://[user:password@]host[:587][/our-name] (STARTTLS), smtps://...[:465], smtp+insecure://...[:25], or file:FOLDER";

impl FromStr for Outlet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("file:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err("it names no folder".to_owned()) } else { Ok(Self::Folder(path.into())) };
        }
        let url = Url::parse(text).map_err(|error| error.to_string())?;
        let (security, port) = match url.scheme() {
            "smtp" => (Security::StartTls, 587),
            "smtps" => (Security::Tls, 465),
            "smtp+insecure" => (Security::None, 25),
            other => return Err(format!("\"{other}\" is no way to send mail")),
        };
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or("it names no host")?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err("nothing can follow a ? or a #".to_owned());
        }
        let decode = |text: &str| {
            percent_decode_str(text).decode_utf8().map(|text| text.into_owned()).map_err(|_| "not UTF-8".to_owned())
        };
        let login = match (decode(url.username())?, url.password().map(decode).transpose()?) {
            (user, None) if user.is_empty() => None,
            (user, Some(password)) if !user.is_empty() => Some((user, Secret::new(password))),
            _ => return Err("a user needs a password, and a password a user".to_owned()),
        };
        let hello = Some(url.path().trim_matches('/').to_owned()).filter(|name| !name.is_empty());
        Ok(Self::Relay(Relay {
            security,
            host: host.trim_matches(['[', ']']).to_owned(),
            port: url.port().unwrap_or(port),
            login,
            hello,
        }))
    }
}

/// Without its secrets, for logs.
impl fmt::Display for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "file:{}", path.display()),
            Self::Relay(relay) => {
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
pub struct TypedMail {
    /// The relay for mails of handlers
    #[arg(
        long,
        env = "GATEWAY_MAIL_RELAY",
        value_name = "URL",
        hide_env_values = true,
        help = "Where mails of handlers go: smtp://[user:password@]host (STARTTLS), smtps://..., or file:FOLDER [default: nowhere]"
    )]
    pub mail_relay: Option<String>,
    /// Their sender, like "Shop <noreply@shop.example>"
    #[arg(long, env = "GATEWAY_MAIL_FROM", value_name = "SENDER")]
    pub mail_from: Option<String>,
    /// Senders that handlers may name instead: addresses or *@domain, with commas [default: none]
    #[arg(long, env = "GATEWAY_MAIL_ALLOW_FROM", value_name = "LIST")]
    pub mail_allow_from: Option<String>,
    /// The certificates that the relay's own is signed by [default: those of the system]
    #[arg(long, env = "GATEWAY_MAIL_TLS_CA", value_name = "FILE")]
    pub mail_tls_ca: Option<String>,
    /// How long one mail may take [default: 15s]
    #[arg(long, env = "GATEWAY_MAIL_TIMEOUT", value_name = "TIME")]
    pub mail_timeout: Option<String>,
}

/// The table `[mail]` of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FileMail {
    relay: Option<String>,
    from: Option<String>,
    allow_from: Option<Vec<String>>,
    tls_ca: Option<String>,
    timeout: Option<String>,
}

impl TypedMail {
    pub(super) fn or_file(self, file: FileMail) -> Self {
        Self {
            mail_relay: set(&self.mail_relay).or(file.relay),
            mail_from: set(&self.mail_from).or(file.from),
            mail_allow_from: set(&self.mail_allow_from).or(file.allow_from.map(|list| list.join(","))),
            mail_tls_ca: set(&self.mail_tls_ca).or(file.tls_ca),
            mail_timeout: set(&self.mail_timeout).or(file.timeout),
        }
    }

    pub fn check(&self, faults: &mut Vec<String>) -> MailSettings {
        let outlet = set(&self.mail_relay).and_then(|text| match text.trim().parse() {
            Ok(outlet) => Some(outlet),
            // What stands before the @ is nobody's business.
            Err(error) => {
                let shown = text.rsplit('@').next().unwrap_or_default();
                faults.push(format!("mail.relay: \"{shown}\": {error}; allowed: {SHAPE}"));
                None
            }
        });
        let from = set(&self.mail_from);
        if from.is_none() && matches!(outlet, Some(Outlet::Relay(_))) {
            faults.push("mail.from: needed where mail.relay is: the sender of mails that name none".to_owned());
        }
        let list: String = parse("mail.allow_from", &self.mail_allow_from, String::new(), "addresses", faults);
        let allow_from: Vec<String> =
            list.split(',').map(|one| one.trim().to_lowercase()).filter(|one| !one.is_empty()).collect();
        for bad in allow_from.iter().filter(|one| !is_pattern(one)) {
            faults.push(format!("mail.allow_from: \"{bad}\" is neither an address nor *@domain"));
        }
        MailSettings {
            outlet,
            from,
            allow_from,
            tls_ca: super::redis_target::pem("mail.tls_ca", &self.mail_tls_ca, "CERTIFICATE", faults),
            timeout: span("mail.timeout", &self.mail_timeout, 15_000, (100, 600_000), faults),
        }
    }
}

/// An address, or all of a domain; never all of the world.
fn is_pattern(text: &str) -> bool {
    let is_word = |part: &str| !part.is_empty() && !part.contains(['*', '@', ' ', '<', '>', '"']);
    text.split_once('@').is_some_and(|(user, domain)| (user == "*" || is_word(user)) && is_word(domain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(text: &str) -> Relay {
        match text.parse::<Outlet>() {
            Ok(Outlet::Relay(relay)) => relay,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_relay_is_reached_with_tls_unless_it_is_said_otherwise() {
        let ways = ["smtp://h", "smtps://h", "smtp+insecure://h"].map(relay);
        let seen = ways.map(|relay| (relay.security, relay.port));
        assert_eq!(seen, [(Security::StartTls, 587), (Security::Tls, 465), (Security::None, 25)]);
        let full = relay("smtp://user%40h:p%3Aw@[::1]:2525/worker.example");
        assert_eq!((full.host.as_str(), full.port, full.hello.as_deref()), ("::1", 2525, Some("worker.example")));
        assert_eq!(full.login, Some(("user@h".to_owned(), Secret::new("p:w".to_owned()))));
        assert_eq!("file:/a/b".parse(), Ok(Outlet::Folder("/a/b".into())));
        assert_eq!("file:///a/b".parse(), Ok(Outlet::Folder("/a/b".into())));
        assert_eq!("file:a".parse(), Ok(Outlet::Folder("a".into())));
    }

    #[test]
    fn every_fault_is_told_without_the_password() {
        for bad in ["http://u:hidden@h", "smtp://", "smtp://u@h", "smtp://h?tls=none", "h:25", "file:"] {
            let mut faults = Vec::new();
            let typed = TypedMail { mail_relay: Some(bad.to_owned()), ..TypedMail::default() };
            typed.check(&mut faults);
            assert_eq!(faults.len(), 1, "{bad}: {faults:?}");
            assert!(faults[0].starts_with("mail.relay: ") && faults[0].contains("smtps://"), "{faults:?}");
            assert!(!faults[0].contains("hidden"), "{faults:?}");
        }
        let typed = TypedMail {
            mail_relay: Some("smtp://u:hidden@h".to_owned()),
            mail_allow_from: Some("*@a.example, B@c.example, *, *@*, a*@a.example".to_owned()),
            mail_tls_ca: Some("/nowhere".to_owned()),
            mail_timeout: Some("1h".to_owned()),
            ..TypedMail::default()
        };
        let mut faults = Vec::new();
        let settings = typed.check(&mut faults);
        assert_eq!(faults.len(), 6, "{faults:#?}");
        assert_eq!(settings.allow_from[..2], ["*@a.example", "b@c.example"]);
        assert!(!format!("{settings:?}").contains("hidden"));
        assert_eq!(settings.outlet.unwrap().to_string(), "smtp://h:587");
    }
}
