//! Sends emails to an SMTP server. Connections are reused, except after an error or
//! a cancelled email: the next reply on such a connection may belong to an earlier
//! email.

use super::compose::Mail;
use super::hello::{hello_name, host_name};
use super::transaction::{Progress, error_text, transact};
use crate::capability::Fault;
use crate::events;
use crate::settings::{MailSettings, MailTransport, Security, SmtpRelay as RelaySettings};
use crate::tls;
use lettre::transport::smtp::Error;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{AsyncSmtpConnection, Certificate, CertificateStore, TlsParameters};
use lettre::transport::smtp::extension::{ClientId, Extension};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Relays close idle connections, usually after minutes.
const IDLE_MAX: Duration = Duration::from_secs(30);
const IDLE_COUNT_MAX: usize = 4;

/// How long a silent relay is asked whether it expects TLS.
const PROBE_MAX: Duration = Duration::from_secs(2);

/// Reply codes of a failed or missing login: the email is not the cause.
const AUTH_FAILED: [u16; 4] = [530, 534, 535, 538];

pub(super) struct SmtpRelay {
    settings: RelaySettings,
    /// Its address without secrets.
    label: String,
    ehlo_name: ClientId,
    tls: Option<TlsParameters>,
    login: Option<Credentials>,
    timeout: Duration,
    idle: Mutex<Vec<(Instant, AsyncSmtpConnection)>>,
}

impl SmtpRelay {
    /// `sender_domain` is the domain of the default sender.
    pub(super) fn new(relay: &RelaySettings, settings: &MailSettings, sender_domain: &str) -> Result<Self, String> {
        let ehlo_name = hello_name(relay.ehlo_name.as_deref(), &host_name(), sender_domain);
        let tls = match relay.security {
            Security::None => None,
            Security::StartTls | Security::Tls => Some(parameters(&relay.host, settings.tls_ca.as_deref())?),
        };
        let login = relay.login.as_ref();
        let login = login.map(|(user, password)| Credentials::new(user.clone(), password.reveal().to_owned()));
        let label = MailTransport::Smtp(relay.clone()).to_string();
        let (settings, timeout) = (relay.clone(), settings.timeout);
        Ok(Self { settings, label, ehlo_name, tls, login, timeout, idle: Mutex::default() })
    }

    pub(super) async fn send(&self, plugin: &str, mail: &Mail) -> Result<(), Fault> {
        let mut progress = Progress::new(mail.envelope.to());
        let end = tokio::time::timeout(self.timeout, self.deliver(mail, &mut progress)).await;
        let timed_out =
            |_| Err(Fault::unavailable(format!("{} did not accept the email within {:?}", self.label, self.timeout)));
        let result = progress.result(&self.label, end.unwrap_or_else(timed_out));
        let refused = progress.refused();
        if let (Err(fault), false) = (&result, refused.is_empty()) {
            let (recipients, reason) = (refused.join(", "), &fault.reason);
            tracing::warn!(plugin, message_id = mail.id, recipients, reason, "{}", events::MAIL_RECIPIENTS_REFUSED);
        }
        result
    }

    async fn deliver(&self, mail: &Mail, progress: &mut Progress) -> Result<(), Fault> {
        let mut connection = match self.pooled().await {
            Some(connection) => connection,
            None => self.connect_in_time().await?,
        };
        if mail.needs_smtputf8() && !connection.server_info().supports_feature(Extension::SmtpUtfEight) {
            let reason =
                "an address has other characters than ASCII before its @, and the relay does not offer SMTPUTF8";
            return Err(Fault::new("invalid", format!("{} can't send the mail: {reason}", self.label)));
        }
        // A relay that takes only so many recipients at a time gets the others afterwards.
        while !progress.is_complete() {
            transact(&mut connection, mail, progress).await.map_err(|error| self.refusal(&error))?;
        }
        let mut idle = self.idle();
        if idle.len() < IDLE_COUNT_MAX {
            idle.push((Instant::now(), connection));
        }
        Ok(())
    }

    /// Leaves time to find out why a relay that says nothing may do so.
    async fn connect_in_time(&self) -> Result<AsyncSmtpConnection, Fault> {
        let for_probe = PROBE_MAX.min(self.timeout / 4);
        match tokio::time::timeout(self.timeout.saturating_sub(for_probe), self.connect()).await {
            Ok(connected) => connected.map_err(|error| self.unusable(&error)),
            Err(_) => {
                let (host, port) = (self.settings.host.as_str(), self.settings.port);
                if self.settings.security != Security::Tls && tls::speaks_tls(host, port, for_probe).await {
                    let reason = format!("{}: {}", self.label, tls::TLS_FROM_THE_START);
                    tracing::warn!(relay = self.label, "{}: {reason}", events::MAIL_RELAY_UNUSABLE);
                    return Err(Fault::unavailable(format!("{reason}; begin the URL with smtps://")));
                }
                Err(Fault::unavailable(format!("{} did not greet within {:?}", self.label, self.timeout - for_probe)))
            }
        }
    }

    /// An idle connection that still works.
    async fn pooled(&self) -> Option<AsyncSmtpConnection> {
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
            AsyncSmtpConnection::connect_tokio1(at, Some(self.timeout), &self.ehlo_name, from_the_start, None).await?;
        if let (Security::StartTls, Some(tls)) = (self.settings.security, &self.tls) {
            connection.starttls(tls.clone(), &self.ehlo_name).await?;
        }
        if let Some(login) = &self.login {
            connection.auth(DEFAULT_MECHANISMS, login).await?;
        }
        Ok(connection)
    }

    /// A failure that does not depend on the email.
    fn unusable(&self, error: &Error) -> Fault {
        let reason = error_text(error);
        // Transient failures are not logged.
        if error.is_permanent() || error.is_client() || error.is_tls() || reason.contains("certificate") {
            tracing::warn!(relay = self.label, "{}: {reason}", events::MAIL_RELAY_UNUSABLE);
        }
        Fault::unavailable(format!("{}: {reason}", self.label))
    }

    fn refusal(&self, error: &Error) -> Fault {
        let code = error.status().map_or(0, u16::from);
        if AUTH_FAILED.contains(&code) {
            self.unusable(error)
        } else if error.is_permanent() || error.is_client() {
            Fault::new("invalid", format!("{} refuses the mail: {}", self.label, error_text(error)))
        } else {
            Fault::unavailable(format!("{}: {}", self.label, error_text(error)))
        }
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
