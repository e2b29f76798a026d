//! Why a request was not made or has failed: a code for the guest, a message for
//! the log. Warnings are rate limited, because a guest may retry for ever.

use super::resolve::ResolveError;
use crate::events;
use crate::run_span::RunSpan;
use crate::tls;
use hyper_util::client::legacy;
use std::collections::HashSet;
use std::error::Error as _;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use wasmtime_wasi_http::Error;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;

#[derive(Debug)]
pub(super) struct RequestError {
    pub(super) code: Error,
    /// Warnings are rate limited for each kind.
    kind: &'static str,
    /// Empty where the code is enough.
    pub(super) message: String,
}

impl RequestError {
    pub(super) fn new(code: Error, kind: &'static str, message: impl Into<String>) -> Self {
        Self { code, kind, message: message.into() }
    }

    fn code(code: Error) -> Self {
        Self::new(code, "", "")
    }

    /// From an error of the HTTP client.
    pub(super) fn from_client(error: &legacy::Error, plugin: &str) -> Self {
        let mut cause = error.source();
        while let Some(error) = cause {
            if let Some(error) = from_cause(error, plugin) {
                return error;
            }
            // `source()` of an I/O error skips the error that it wraps.
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            cause = inner.map(|inner| inner as _).or_else(|| error.source());
        }
        Self::code(if error.is_connect() { Error::DestinationUnavailable } else { Error::HttpProtocolError })
    }
}

fn from_cause(error: &(dyn std::error::Error + 'static), plugin: &str) -> Option<RequestError> {
    if let Some(error) = error.downcast_ref::<ResolveError>() {
        return Some(match error {
            ResolveError::Resolve(_) => {
                let code = Error::DnsError { rcode: Some("no address".to_owned()), info_code: None };
                RequestError::new(code, "resolve", error.to_string())
            }
            ResolveError::Prohibited(address) => RequestError::new(
                Error::DestinationIpProhibited,
                "address",
                format!(
                    "{error}; to allow it, write private_networks = [\"{address}/{}\"] under [grants] in {plugin}.toml",
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
        return Some(RequestError::new(
            code,
            "tls",
            format!("the TLS handshake failed: {}", tls::explained(&error.to_string())),
        ));
    }
    // The errors of our own bodies.
    match error.downcast_ref::<Error>() {
        Some(Error::HttpRequestBodySize(max)) => return Some(RequestError::code(Error::HttpRequestBodySize(*max))),
        Some(Error::ConnectionTerminated) => return Some(RequestError::code(Error::ConnectionTerminated)),
        _ => {}
    }
    if let Some(error) = error.downcast_ref::<hyper::Error>() {
        if error.is_parse_too_large() {
            return Some(RequestError::code(Error::HttpResponseHeaderSectionSize(None)));
        }
        if error.is_parse() {
            let message = "the server does not answer in HTTP; if it expects TLS, the URL begins with https";
            return Some(RequestError::new(Error::HttpProtocolError, "protocol", message));
        }
        if error.is_incomplete_message() {
            return Some(RequestError::code(Error::HttpResponseIncomplete));
        }
    }
    match error.downcast_ref::<io::Error>()?.kind() {
        io::ErrorKind::TimedOut => Some(RequestError::code(Error::ConnectionTimeout)),
        io::ErrorKind::ConnectionRefused => Some(RequestError::code(Error::ConnectionRefused)),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
            Some(RequestError::code(Error::ConnectionTerminated))
        }
        _ => None,
    }
}

/// The code that a guest gets for an error of a body.
pub(super) fn body_code(error: &Error) -> Option<ErrorCode> {
    match error {
        Error::HttpRequestBodySize(max) => Some(ErrorCode::HttpRequestBodySize(*max)),
        Error::HttpResponseBodySize(max) => Some(ErrorCode::HttpResponseBodySize(*max)),
        Error::HttpResponseIncomplete => Some(ErrorCode::HttpResponseIncomplete),
        Error::ConnectionReadTimeout => Some(ErrorCode::ConnectionReadTimeout),
        _ => None,
    }
}

/// A warning is logged once in this time, and at most `WARNINGS_MAX` are.
const INTERVAL: Duration = Duration::from_secs(60);
const WARNINGS_MAX: usize = 32;

/// The recent warnings about a plugin version.
pub(super) struct RateLimitedWarning(Mutex<(Instant, HashSet<(String, &'static str)>)>);

impl RateLimitedWarning {
    pub(super) fn new() -> Self {
        Self(Mutex::new((Instant::now(), HashSet::new())))
    }

    /// Logs why a request to this target was not made.
    pub(super) fn log(&self, plugin: &str, span: Option<&RunSpan>, target: &str, error: &RequestError) {
        if !error.message.is_empty() && self.is_new(target, error.kind, Instant::now()) {
            let _entered = span.map(|span| span.span().enter());
            // The span names the plugin; a load check has no span.
            let plugin = span.is_none().then_some(plugin);
            tracing::warn!(plugin, target_origin = target, "{}: {}", events::REQUEST_NOT_MADE, error.message);
        }
    }

    fn is_new(&self, target: &str, kind: &'static str, now: Instant) -> bool {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(recent.0) >= INTERVAL {
            *recent = (now, HashSet::new());
        }
        recent.1.len() < WARNINGS_MAX && recent.1.insert((target.to_owned(), kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_rate_limited() {
        let warning = RateLimitedWarning::new();
        let start = Instant::now();
        assert!(warning.is_new("https://a.example", "origin", start));
        assert!(!warning.is_new("https://a.example", "origin", start));
        assert!(warning.is_new("https://a.example", "tls", start));
        let logged = (0..1000).filter(|number| warning.is_new(&number.to_string(), "origin", start)).count();
        assert_eq!(logged, WARNINGS_MAX - 2);
        assert!(warning.is_new("https://a.example", "origin", start + INTERVAL + Duration::from_secs(1)));
    }
}
