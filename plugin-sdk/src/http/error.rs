//! Why there is no reply.

use crate::Failure;
use std::fmt;
use wasip2::http::types::{ErrorCode, http_error_code};

/// Why there is no reply, or not all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    code: &'static str,
    reason: String,
}

impl Error {
    /// For machines; expect more to come:
    ///
    /// - `denied`: the manifest does not grant it; the worker's log says which
    ///   line to write
    /// - `invalid`: it is no request, or its answer no reply
    /// - `too-large`: a body or the headers, in either direction
    /// - `too-many`: requests of this run under way
    /// - `timeout`: the server, or the way to it, took too long
    /// - `unavailable`: all else; it may be better another time
    pub fn code(&self) -> &str {
        self.code
    }

    /// For people.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    pub(super) fn invalid(reason: impl Into<String>) -> Self {
        Self { code: "invalid", reason: reason.into() }
    }

    pub(super) fn of(code: &ErrorCode) -> Self {
        use ErrorCode as Code;
        let (code, reason) = match code {
            Code::HttpRequestDenied => ("denied", "the manifest does not grant it: see the worker's log".to_owned()),
            Code::DestinationIpProhibited => {
                ("denied", "the name leads to an address that is not public: see the worker's log".to_owned())
            }
            Code::HttpRequestUriInvalid | Code::HttpRequestMethodInvalid | Code::HttpRequestUriTooLong => {
                ("invalid", format!("{code:?}"))
            }
            Code::HttpRequestBodySize(max) => ("too-large", format!("the request's body; allowed: {max:?} bytes")),
            Code::HttpResponseBodySize(max) => ("too-large", format!("the reply's body; allowed: {max:?} bytes")),
            Code::HttpResponseHeaderSectionSize(_) => ("too-large", "the reply's headers".to_owned()),
            Code::ConnectionLimitReached => {
                ("too-many", "requests under way: limits.http_requests of the manifest".to_owned())
            }
            Code::ConnectionTimeout
            | Code::DnsTimeout
            | Code::ConnectionReadTimeout
            | Code::ConnectionWriteTimeout
            | Code::HttpResponseTimeout => ("timeout", format!("{code:?}")),
            other => ("unavailable", format!("{other:?}")),
        };
        Self { code, reason }
    }

    pub(super) fn of_stream(error: &wasip2::io::error::Error) -> Self {
        match http_error_code(error) {
            Some(code) => Self::of(&code),
            None => Self { code: "unavailable", reason: error.to_debug_string() },
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.reason)
    }
}

impl std::error::Error for Error {}

/// What another time may be better is tried again; the rest is rejected.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.code {
            "denied" | "invalid" | "too-large" => Self::reject(error.code, error.reason),
            _ => Self::retry(error.to_string()),
        }
    }
}
