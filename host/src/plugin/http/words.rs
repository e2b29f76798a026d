//! Why a request was not made or has failed: a code for the guest, words for
//! the log. A guest that is refused may ask for ever, so the log is told once
//! a minute of each.

use super::resolve::ResolveError;
use hyper_util::client::legacy;
use std::collections::HashSet;
use std::error::Error as _;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use wasmtime_wasi_http::Error;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;

#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: Error,
    /// Told apart in the log.
    kind: &'static str,
    /// Empty where the code says it all.
    pub(super) words: String,
}

impl Refusal {
    pub(super) fn new(code: Error, kind: &'static str, words: impl Into<String>) -> Self {
        Self { code, kind, words: words.into() }
    }

    fn code(code: Error) -> Self {
        Self::new(code, "", "")
    }

    /// A request that was made and has failed.
    pub(super) fn of(error: &legacy::Error, plugin: &str) -> Self {
        let mut cause = error.source();
        while let Some(error) = cause {
            if let Some(refusal) = of_cause(error, plugin) {
                return refusal;
            }
            // An error within an I/O error is not among its sources.
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            cause = inner.map(|inner| inner as _).or_else(|| error.source());
        }
        Self::code(if error.is_connect() { Error::DestinationUnavailable } else { Error::HttpProtocolError })
    }
}

fn of_cause(error: &(dyn std::error::Error + 'static), plugin: &str) -> Option<Refusal> {
    if let Some(error) = error.downcast_ref::<ResolveError>() {
        return Some(match error {
            ResolveError::Lookup(_) => {
                let code = Error::DnsError { rcode: Some("no address".to_owned()), info_code: None };
                Refusal::new(code, "lookup", error.to_string())
            }
            ResolveError::Prohibited(address) => Refusal::new(
                Error::DestinationIpProhibited,
                "address",
                format!(
                    "{error}; where that is meant: {plugin}.toml, under [grants], write private_networks = [\"{address}/{}\"]",
                    if address.is_ipv4() { 32 } else { 128 }
                ),
            ),
        });
    }
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        let code = match error {
            rustls::Error::InvalidCertificate(_) => Error::TlsCertificateError,
            _ => Error::TlsProtocolError,
        };
        return Some(Refusal::new(code, "tls", format!("the server's TLS is not accepted: {error}")));
    }
    // What our own bodies say.
    match error.downcast_ref::<Error>() {
        Some(Error::HttpRequestBodySize(max)) => return Some(Refusal::code(Error::HttpRequestBodySize(*max))),
        Some(Error::ConnectionTerminated) => return Some(Refusal::code(Error::ConnectionTerminated)),
        _ => {}
    }
    if let Some(error) = error.downcast_ref::<hyper::Error>() {
        if error.is_parse_too_large() {
            return Some(Refusal::code(Error::HttpResponseHeaderSectionSize(None)));
        }
        if error.is_incomplete_message() {
            return Some(Refusal::code(Error::HttpResponseIncomplete));
        }
    }
    match error.downcast_ref::<io::Error>()?.kind() {
        io::ErrorKind::TimedOut => Some(Refusal::code(Error::ConnectionTimeout)),
        io::ErrorKind::ConnectionRefused => Some(Refusal::code(Error::ConnectionRefused)),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
            Some(Refusal::code(Error::ConnectionTerminated))
        }
        _ => None,
    }
}

/// What a body ended with, as a guest knows it.
pub(super) fn body_code(error: &Error) -> Option<ErrorCode> {
    match error {
        Error::HttpRequestBodySize(max) => Some(ErrorCode::HttpRequestBodySize(*max)),
        Error::HttpResponseBodySize(max) => Some(ErrorCode::HttpResponseBodySize(*max)),
        Error::HttpResponseIncomplete => Some(ErrorCode::HttpResponseIncomplete),
        Error::ConnectionReadTimeout => Some(ErrorCode::ConnectionReadTimeout),
        _ => None,
    }
}

/// How long what was told is not told again, and how much is told in that time.
const QUIET_FOR: Duration = Duration::from_secs(60);
const TOLD_MAX: usize = 32;

/// What the log has been told lately about one version of a plugin.
pub(super) struct Told(Mutex<(Instant, HashSet<(String, &'static str)>)>);

impl Told {
    pub(super) fn new() -> Self {
        Self(Mutex::new((Instant::now(), HashSet::new())))
    }

    /// Tells the log why a plugin's request to this target is not made.
    pub(super) fn tell(&self, plugin: &str, target: &str, refusal: &Refusal) {
        if !refusal.words.is_empty() && self.is_new(target, refusal.kind, Instant::now()) {
            tracing::warn!(plugin, target_origin = target, "request not made: {}", refusal.words);
        }
    }

    fn is_new(&self, target: &str, kind: &'static str, now: Instant) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(told.0) >= QUIET_FOR {
            *told = (now, HashSet::new());
        }
        told.1.len() < TOLD_MAX && told.1.insert((target.to_owned(), kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_once_a_minute_and_not_too_much_of_it() {
        let told = Told::new();
        let start = Instant::now();
        assert!(told.is_new("https://a.example", "origin", start));
        assert!(!told.is_new("https://a.example", "origin", start));
        assert!(told.is_new("https://a.example", "tls", start));
        let heard = (0..1000).filter(|number| told.is_new(&number.to_string(), "origin", start)).count();
        assert_eq!(heard, TOLD_MAX - 2);
        assert!(told.is_new("https://a.example", "origin", start + QUIET_FOR + Duration::from_secs(1)));
    }
}
