//! Outbound HTTP requests to the origins that the manifest's `grants.http`
//! names.
//!
//! ```no_run
//! # use gateway_plugin_sdk::{Failure, Message, http};
//! # #[derive(serde::Serialize)]
//! # struct Charge { cents: u32 }
//! fn charge(message: Message) -> Result<(), Failure> {
//!     let reply = http::Request::post("https://pay.example/charges")
//!         .header("idempotency-key", &message.id)
//!         .json(&Charge { cents: 995 })?
//!         .send()?;
//!     match reply.status {
//!         200..300 => Ok(()),
//!         400..500 => Err(Failure::reject("refused", reply.text())),
//!         status => Err(Failure::retry(format!("the server says {status}"))),
//!     }
//! }
//! ```
//!
//! The host follows no redirects, does not decompress bodies, and accepts bodies
//! of up to the manifest's `limits.http_body` bytes in each direction. Up to
//! `limits.http_requests` requests may be in progress at once. A header that
//! `http_headers` in the manifest sets for the origin replaces one of the same
//! name.

mod error;

pub use error::Error;

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    FutureIncomingResponse, Headers, IncomingBody, IncomingResponse, Method, OutgoingBody, OutgoingRequest,
    RequestOptions, Scheme,
};
use wasip2::io::streams::StreamError;

/// WASI allows at most this many bytes in one write.
const WRITE_BYTES_MAX: usize = 4096;
const READ_BYTES: u64 = 64 << 10;

/// Sends a GET request to a URL.
///
/// # Errors
///
/// Those of [`Request::send`].
pub fn get(url: &str) -> Result<Response, Error> {
    Request::get(url).send()
}

/// A request under construction.
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    url: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Option<Vec<u8>>,
    timeout: Option<Duration>,
}

/// A request in progress.
pub struct Pending(FutureIncomingResponse);

/// A complete reply of any status.
#[derive(Debug, Clone)]
pub struct Response {
    /// From 100 to 999; 200 to 299 means success.
    pub status: u16,
    /// Names are in lower case and may repeat.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body as the server sent it: up to `limits.http_body` bytes.
    pub body: Vec<u8>,
}

impl Request {
    /// A request with any method, in upper case.
    pub fn new(method: &str, url: &str) -> Self {
        let (method, url) = (method.to_owned(), url.to_owned());
        Self { method, url, headers: Vec::new(), body: None, timeout: None }
    }

    /// A GET.
    pub fn get(url: &str) -> Self {
        Self::new("GET", url)
    }

    /// A POST.
    pub fn post(url: &str) -> Self {
        Self::new("POST", url)
    }

    /// A PUT.
    pub fn put(url: &str) -> Self {
        Self::new("PUT", url)
    }

    /// A DELETE.
    pub fn delete(url: &str) -> Self {
        Self::new("DELETE", url)
    }

    /// Adds a header. Only the host sets the headers of the connection (`host`,
    /// `connection`, `transfer-encoding` and the like).
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets the body to these bytes.
    #[must_use]
    pub fn body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.body = Some(bytes.into());
        self
    }

    /// Sets the body to this value as JSON, and `content-type` with it.
    ///
    /// # Errors
    ///
    /// `invalid` if it can't be written as JSON.
    pub fn json(self, value: &impl Serialize) -> Result<Self, Error> {
        let json = serde_json::to_vec(value).map_err(|error| Error::invalid(error.to_string()))?;
        Ok(self.header("content-type", "application/json").body(json))
    }

    /// Limits each of three waits: to connect, for the first byte of the reply,
    /// and between chunks of its body. The default is 10 s to connect; the whole
    /// request always ends with the run's `limits.timeout`.
    #[must_use]
    pub fn timeout(mut self, each: Duration) -> Self {
        self.timeout = Some(each);
        self
    }

    /// Sends the request and waits for the complete reply.
    ///
    /// # Errors
    ///
    /// See [`Error::code`]. No status of a reply is an error.
    pub fn send(self) -> Result<Response, Error> {
        self.start()?.wait()
    }

    /// Sends the request without waiting for the reply, so that several may be
    /// in progress.
    ///
    /// # Errors
    ///
    /// `invalid` if the request is malformed; [`Pending::wait`] returns every
    /// other error.
    pub fn start(self) -> Result<Pending, Error> {
        let options = self.options()?;
        let mut headers = self.headers;
        if let Some(body) = &self.body {
            headers.push(("content-length".to_owned(), body.len().to_string().into_bytes()));
        }
        let headers = Headers::from_list(&headers).map_err(|error| Error::invalid(format!("a header: {error:?}")))?;
        let request = OutgoingRequest::new(headers);
        let (scheme, authority, path) = parts(&self.url)?;
        let is_valid = request.set_method(&method(&self.method)).is_ok()
            && request.set_scheme(Some(&scheme)).is_ok()
            && request.set_authority(Some(authority)).is_ok()
            && request.set_path_with_query(Some(&path)).is_ok();
        if !is_valid {
            return Err(Error::invalid(format!("malformed request: {} {}", self.method, self.url)));
        }
        let bytes = self.body.unwrap_or_default();
        let body = if bytes.is_empty() { None } else { request.body().ok() };
        let pending = outgoing_handler::handle(request, options).map_err(|code| Error::of(&code))?;
        if let Some(body) = body {
            // If this fails, the reply's error says why.
            let _ = write(body, &bytes);
        }
        Ok(Pending(pending))
    }

    fn options(&self) -> Result<Option<RequestOptions>, Error> {
        let Some(each) = self.timeout else { return Ok(None) };
        let nanoseconds = u64::try_from(each.as_nanos()).unwrap_or(u64::MAX);
        let options = RequestOptions::new();
        options
            .set_connect_timeout(Some(nanoseconds))
            .and_then(|()| options.set_first_byte_timeout(Some(nanoseconds)))
            .and_then(|()| options.set_between_bytes_timeout(Some(nanoseconds)))
            .map_err(|()| Error::invalid("the host does not support this timeout"))?;
        Ok(Some(options))
    }
}

impl Pending {
    /// Waits for the complete reply.
    ///
    /// # Errors
    ///
    /// Those of [`Request::send`].
    pub fn wait(self) -> Result<Response, Error> {
        self.0.subscribe().block();
        match self.0.get() {
            Some(Ok(Ok(reply))) => read(reply),
            Some(Ok(Err(code))) => Err(Error::of(&code)),
            Some(Err(())) | None => Err(Error::invalid("the reply was already read")),
        }
    }
}

impl Response {
    /// The first header of this lower-case name, if it is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        std::str::from_utf8(value).ok()
    }

    /// The body as text; invalid UTF-8 becomes `\u{fffd}`.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Reads the body as JSON.
    ///
    /// # Errors
    ///
    /// `invalid`, with the position of the fault.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|error| Error::invalid(format!("the reply: {error}")))
    }
}

/// Scheme, authority, and path with query of a URL.
fn parts(url: &str) -> Result<(Scheme, &str, String), Error> {
    let wrong = || Error::invalid(format!("\"{url}\" is not a URL like \"https://api.example.com/path\""));
    let (scheme, remainder) = url.split_once("://").ok_or_else(wrong)?;
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "https" => Scheme::Https,
        "http" => Scheme::Http,
        _ => return Err(wrong()),
    };
    let (remainder, _fragment) = remainder.split_once('#').unwrap_or((remainder, ""));
    let (authority, path) = remainder.split_at(remainder.find(['/', '?']).unwrap_or(remainder.len()));
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    if authority.is_empty() { Err(wrong()) } else { Ok((scheme, authority, path)) }
}

fn method(name: &str) -> Method {
    match name {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "OPTIONS" => Method::Options,
        "PATCH" => Method::Patch,
        other => Method::Other(other.to_owned()),
    }
}

fn write(body: OutgoingBody, bytes: &[u8]) -> Result<(), StreamError> {
    // A body that is dropped unfinished is aborted, so the server can't mistake
    // it for a complete one.
    let stream = body.write().map_err(|()| StreamError::Closed)?;
    for chunk in bytes.chunks(WRITE_BYTES_MAX) {
        stream.blocking_write_and_flush(chunk)?;
    }
    drop(stream);
    OutgoingBody::finish(body, None).map_err(|_| StreamError::Closed)
}

fn read(reply: IncomingResponse) -> Result<Response, Error> {
    let (status, headers) = (reply.status(), reply.headers().entries());
    let already_read = || Error::invalid("the body was already read");
    let body: IncomingBody = reply.consume().map_err(|()| already_read())?;
    let stream = body.stream().map_err(|()| already_read())?;
    let mut bytes = Vec::new();
    loop {
        match stream.blocking_read(READ_BYTES) {
            Ok(mut chunk) => bytes.append(&mut chunk),
            Err(StreamError::Closed) => return Ok(Response { status, headers, body: bytes }),
            Err(StreamError::LastOperationFailed(error)) => return Err(Error::of_stream(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_split_into_its_parts() {
        for (url, expected) in [
            ("https://a.example", "Scheme::Https a.example /"),
            ("HTTP://a.example:81/b?c=d#e", "Scheme::Http a.example:81 /b?c=d"),
            ("https://a.example?q", "Scheme::Https a.example /?q"),
            ("https://[::1]:8/x", "Scheme::Https [::1]:8 /x"),
        ] {
            let (scheme, authority, path) = parts(url).unwrap();
            assert_eq!(format!("{scheme:?} {authority} {path}"), expected);
        }
        for url in ["a.example", "ftp://a.example/", "https://", "https:///x", ""] {
            assert_eq!(parts(url).unwrap_err().code(), "invalid", "{url}");
        }
    }
}
