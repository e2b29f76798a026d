//! Authorisation of changes. Without cookies no foreign page can make a browser
//! send the token. Where no token is needed, only loopback clients are trusted,
//! and cross-site requests of browsers are rejected.

use super::Status;
use super::problem::Problem;
use super::server::Peer;
use crate::events;
use crate::readiness::Reason;
use crate::settings::AdminSettings;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An extractor that accepts only requests with the permission to make changes.
pub(super) struct Operator {
    /// Where the request came from.
    pub(super) address: Option<IpAddr>,
}

/// Wrong tokens are logged at most this often, so that a stranger can't flood the log.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Counts requests with a wrong token, until they are logged.
#[derive(Default)]
pub struct WrongTokens(Mutex<Counted>);

#[derive(Default)]
struct Counted {
    count: u64,
    logged_at: Option<Instant>,
}

impl WrongTokens {
    fn add(&self, address: Option<IpAddr>) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.count += 1;
        if counted.logged_at.is_some_and(|at| at.elapsed() < LOG_INTERVAL) {
            return;
        }
        let count = std::mem::take(&mut counted.count);
        counted.logged_at = Some(Instant::now());
        tracing::warn!(count, last_address = %address_text(address), "{}", events::WRONG_TOKEN);
    }
}

impl Operator {
    /// Logs what was asked for and what became of it.
    pub(super) fn log<T>(&self, change: &str, plugin: Option<&str>, result: &Result<T, Problem>) {
        let (address, error) = (address_text(self.address), result.as_ref().err().map(Problem::detail));
        tracing::info!(%address, change, plugin, error, "{}", events::CHANGE_REQUESTED);
    }
}

fn address_text(address: Option<IpAddr>) -> String {
    address.map_or_else(|| "?".to_owned(), |address| address.to_canonical().to_string())
}

impl FromRequestParts<Arc<Status>> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, status: &Arc<Status>) -> Result<Self, Problem> {
        let peer = parts.extensions.get::<Peer>().map(|peer| peer.0.ip());
        let checked = check(&status.admin, &parts.headers, peer).map(|()| Self { address: peer });
        let has_token = parts.headers.contains_key(header::AUTHORIZATION);
        checked.inspect_err(|problem| {
            if has_token && problem.status() == StatusCode::UNAUTHORIZED {
                status.wrong_tokens.add(peer);
            }
        })
    }
}

/// An extractor that says whether the caller may learn hosts, paths and users. Whoever
/// may not gets an answer nevertheless.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sight {
    is_operator: bool,
}

impl FromRequestParts<Arc<Status>> for Sight {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, status: &Arc<Status>) -> Result<Self, Infallible> {
        let is_operator = Operator::from_request_parts(parts, status).await.is_ok();
        Ok(Self { is_operator })
    }
}

impl Sight {
    pub(super) fn texts(self, reasons: &[Reason]) -> Value {
        let text = |reason: &Reason| if self.is_operator { reason.text.clone() } else { reason.public_text.clone() };
        reasons.iter().map(text).collect()
    }
}

fn check(settings: &AdminSettings, headers: &HeaderMap, peer: Option<IpAddr>) -> Result<(), Problem> {
    let Some(token) = &settings.token else {
        let is_trusted = settings.trusts_loopback && peer.is_some_and(is_loopback) && is_same_site(headers);
        let detail = if settings.trusts_loopback {
            "without GATEWAY_ADMIN_TOKEN only programs on the worker's machine may make changes"
        } else {
            "changes are disabled: the worker was started without GATEWAY_ADMIN_TOKEN"
        };
        return if is_trusted { Ok(()) } else { Err(Problem::new(StatusCode::FORBIDDEN, detail)) };
    };
    let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let given = given.and_then(|value| Some((value.get(..7)?, value.get(7..)?)));
    match given {
        Some((scheme, given)) if scheme.eq_ignore_ascii_case(b"bearer ") => {
            if is_same(given, token.reveal().as_bytes()) {
                Ok(())
            } else {
                Err(Problem::new(StatusCode::UNAUTHORIZED, "the token differs from GATEWAY_ADMIN_TOKEN"))
            }
        }
        _ => Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "the header Authorization: Bearer <GATEWAY_ADMIN_TOKEN> is missing",
        )),
    }
}

/// Compares in constant time: digests of equal length, and all their bytes.
fn is_same(given: &[u8], token: &[u8]) -> bool {
    let (given, token) = (Sha256::digest(given), Sha256::digest(token));
    given.iter().zip(token.iter()).fold(0, |differs, (one, other)| differs | (one ^ other)) == 0
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Whether no foreign page sent the request. Programs send no origin, and a
/// browser sends the one of the page. The host must be local too, because a
/// foreign domain may resolve to this machine (DNS rebinding).
fn is_same_site(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value: &axum::http::HeaderValue| value.to_str().unwrap_or("?"));
    let host = text(header::HOST).unwrap_or_default();
    let name = host
        .rsplit_once(':')
        .map_or(host, |(name, port)| if port.bytes().all(|byte| byte.is_ascii_digit()) { name } else { host });
    let is_local = name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    is_local && text(header::ORIGIN).is_none_or(|origin| origin.strip_prefix("http://") == Some(host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::Secret;

    const TOKEN: &str = "0123456789abcdef";

    fn answer(settings: &AdminSettings, sent: &[(&'static str, &str)], peer: &str) -> u16 {
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            headers.insert(*name, value.parse().unwrap());
        }
        check(settings, &headers, Some(peer.parse().unwrap()))
            .map_or_else(|problem| problem.status().as_u16(), |()| 200)
    }

    #[test]
    fn only_the_complete_token_authorises() {
        let settings = AdminSettings { token: Some(Secret::new(TOKEN.to_owned())), trusts_loopback: true };
        for (sent, status) in [
            (format!("Bearer {TOKEN}"), 200),
            (format!("bearer {TOKEN}"), 200),
            (format!("Bearer {TOKEN}0"), 401),
            (format!("Bearer {}", &TOKEN[..15]), 401),
            ("Bearer ".to_owned(), 401),
            (format!("Basic {TOKEN}"), 401),
            (TOKEN.to_owned(), 401),
            ("Bear".to_owned(), 401),
        ] {
            assert_eq!(answer(&settings, &[("authorization", &sent)], "127.0.0.1"), status, "{sent}");
        }
        // With a token, loopback clients need it too.
        assert_eq!(answer(&settings, &[("host", "localhost")], "127.0.0.1"), 401);
    }

    #[test]
    fn without_a_token_only_loopback_clients_of_dev_are_authorised() {
        let host: (&str, &str) = ("host", "localhost:8084");
        assert_eq!(answer(&AdminSettings::default(), &[host, ("authorization", "Bearer ")], "127.0.0.1"), 403);
        let dev = AdminSettings { token: None, trusts_loopback: true };
        for (sent, peer, status) in [
            (vec![host], "127.0.0.1", 200),
            (vec![host], "::ffff:127.0.0.1", 200),
            (vec![("host", "[::1]:8084")], "::1", 200),
            (vec![("host", "127.0.0.1")], "127.0.0.1", 200),
            (vec![host, ("origin", "http://localhost:8084")], "127.0.0.1", 200),
            (vec![host], "192.168.1.9", 403),
            (vec![host, ("origin", "https://evil.example")], "127.0.0.1", 403),
            (vec![host, ("origin", "null")], "127.0.0.1", 403),
            (vec![host, ("origin", "http://localhost:9999")], "127.0.0.1", 403),
            // A foreign domain that resolves to this machine.
            (vec![("host", "evil.example:8084"), ("origin", "http://evil.example:8084")], "127.0.0.1", 403),
            (vec![], "127.0.0.1", 403),
        ] {
            assert_eq!(answer(&dev, &sent, peer), status, "{sent:?} from {peer}");
        }
    }
}
