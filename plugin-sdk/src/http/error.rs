//! The error of a request.

use crate::Failure;
use std::fmt;
use wasip2::http::types::{ErrorCode, http_error_code};

/// Why a request has no reply, or only part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    code: &'static str,
    reason: String,
}

impl Error {
    /// The code for programs; later versions may add more:
    ///
    /// - `denied`: the manifest does not grant the server; the worker's log says
    ///   which line to add
    /// - `invalid`: the request is malformed, or the reply can't be read
    /// - `too-large`: a body or the headers exceed their limit, in either
    ///   direction
    /// - `too-many`: this run has too many requests in progress
    /// - `timeout`: the connection or the server took too long
    /// - `unavailable`: any other failure; a retry may succeed
    pub fn code(&self) -> &str {
        self.code
    }

    /// The reason, for people.
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
                ("denied", "the name resolves to an address that is not public: see the worker's log".to_owned())
            }
            Code::HttpRequestUriInvalid | Code::HttpRequestMethodInvalid | Code::HttpRequestUriTooLong => {
                ("invalid", format!("{code:?}"))
            }
            Code::HttpRequestBodySize(max) => ("too-large", format!("the request's body; allowed: {max:?} bytes")),
            Code::HttpResponseBodySize(max) => ("too-large", format!("the reply's body; allowed: {max:?} bytes")),
            Code::HttpResponseHeaderSectionSize(_) => ("too-large", "the reply's headers".to_owned()),
            Code::ConnectionLimitReached => {
                ("too-many", "requests in progress: limits.http_requests of the manifest".to_owned())
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

/// `denied`, `invalid` and `too-large` reject the message, since a retry would
/// fail again; every other code becomes a retry.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.code {
            "denied" | "invalid" | "too-large" => Self::reject(error.code, error.reason),
            _ => Self::retry(error.to_string()),
        }
    }
}
