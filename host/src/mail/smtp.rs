//! Hands mails to an SMTP server. A connection serves one mail after another;
//! one on which anything went wrong, or whose mail nobody waits for any more,
//! is never used again: what it would say next belongs to another mail.

use super::compose::Mail;
use crate::capability::Fault;
use crate::settings::{MailSettings, Outlet, Relay as RelaySettings, Security};
use lettre::transport::smtp::Error;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{AsyncSmtpConnection, Certificate, CertificateStore, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use std::error::Error as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Relays close what is idle, mostly after minutes.
const IDLE_MAX: Duration = Duration::from_secs(30);
const IDLE_COUNT_MAX: usize = 4;

/// What is wrong is our login, or that we have none: no mail is to blame.
const NOT_LET_IN: [u16; 4] = [530, 534, 535, 538];

pub(super) struct SmtpRelay {
    settings: RelaySettings,
    /// Its address without secrets.
    shown: String,
    hello: ClientId,
    tls: Option<TlsParameters>,
    login: Option<Credentials>,
    timeout: Duration,
    idle: Mutex<Vec<(Instant, AsyncSmtpConnection)>>,
}

impl SmtpRelay {
    pub(super) fn new(relay: &RelaySettings, settings: &MailSettings) -> Result<Self, String> {
        let tls = match relay.security {
            Security::None => None,
            Security::StartTls | Security::Tls => Some(parameters(&relay.host, settings.tls_ca.as_deref())?),
        };
        let hello = relay.hello.clone().map_or_else(ClientId::default, ClientId::Domain);
        let login = relay.login.as_ref();
        let login = login.map(|(user, password)| Credentials::new(user.clone(), password.reveal().to_owned()));
        let shown = Outlet::Relay(relay.clone()).to_string();
        let (settings, timeout) = (relay.clone(), settings.timeout);
        Ok(Self { settings, shown, hello, tls, login, timeout, idle: Mutex::default() })
    }

    pub(super) async fn send(&self, mail: &Mail) -> Result<(), Fault> {
        let late = |_| Fault::unavailable(format!("{} has not taken the mail within {:?}", self.shown, self.timeout));
        tokio::time::timeout(self.timeout, self.hand_over(mail)).await.map_err(late)?
    }

    async fn hand_over(&self, mail: &Mail) -> Result<(), Fault> {
        let mut connection = match self.tried().await {
            Some(connection) => connection,
            None => self.connect().await.map_err(|error| self.away(&error))?,
        };
        connection.send(&mail.envelope, &mail.bytes).await.map_err(|error| self.refusal(&error))?;
        let mut idle = self.idle();
        if idle.len() < IDLE_COUNT_MAX {
            idle.push((Instant::now(), connection));
        }
        Ok(())
    }

    /// One that is still good.
    async fn tried(&self) -> Option<AsyncSmtpConnection> {
        loop {
            let (since, mut connection) = self.idle().pop()?;
            if since.elapsed() < IDLE_MAX && connection.test_connected().await {
                return Some(connection);
            }
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<(Instant, AsyncSmtpConnection)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, Error> {
        let at = (self.settings.host.as_str(), self.settings.port);
        let from_the_start = self.tls.clone().filter(|_| self.settings.security == Security::Tls);
        let mut connection =
            AsyncSmtpConnection::connect_tokio1(at, Some(self.timeout), &self.hello, from_the_start, None).await?;
        if let (Security::StartTls, Some(tls)) = (self.settings.security, &self.tls) {
            connection.starttls(tls.clone(), &self.hello).await?;
        }
        if let Some(login) = &self.login {
            connection.auth(DEFAULT_MECHANISMS, login).await?;
        }
        Ok(connection)
    }

    /// The relay can't be used, whatever the mail.
    fn away(&self, error: &Error) -> Fault {
        let told = words(error);
        // Not what passes by itself.
        if error.is_permanent() || error.is_client() || error.is_tls() || told.contains("certificate") {
            tracing::warn!(relay = self.shown, "the mail relay can't be used: {told}");
        }
        Fault::unavailable(format!("{}: {told}", self.shown))
    }

    fn refusal(&self, error: &Error) -> Fault {
        let code = error.status().map_or(0, u16::from);
        if NOT_LET_IN.contains(&code) {
            self.away(error)
        } else if error.is_permanent() || error.is_client() {
            Fault::new("invalid", format!("{} refuses the mail: {}", self.shown, words(error)))
        } else {
            Fault::unavailable(format!("{}: {}", self.shown, words(error)))
        }
    }
}

/// The relay's own words, after its code.
fn words(error: &Error) -> String {
    match (error.status(), error.source()) {
        (Some(code), Some(words)) => format!("{code} {words}"),
        _ => error.to_string(),
    }
}

fn parameters(host: &str, ca: Option<&[u8]>) -> Result<TlsParameters, String> {
    let mut builder = TlsParameters::builder(host.to_owned());
    if let Some(ca) = ca {
        let ca = Certificate::from_pem(ca).map_err(|error| format!("mail.tls_ca: {error}"))?;
        builder = builder.certificate_store(CertificateStore::None).add_root_certificate(ca);
    }
    builder.build().map_err(|error| format!("mail.relay: TLS: {error}"))
}
