//! Requests to the outside, where the manifest's `grants.http` names the
//! server's origin.
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
//! The host follows no redirect, unpacks nothing, and takes bodies up to the
//! manifest's `limits.http_body` bytes each way. Up to `limits.http_requests`
//! requests may be under way at once. A header that the manifest's
//! `http_headers` set for the origin replaces one of the same name.

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

/// What one write takes, by WASI's own rule.
const WRITE_BYTES_MAX: usize = 4096;
const READ_BYTES: u64 = 64 << 10;

/// Asks for what is at a URL.
///
/// # Errors
///
/// Those of [`Request::send`].
pub fn get(url: &str) -> Result<Response, Error> {
    Request::get(url).send()
}

/// A request that is being put together.
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    url: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Option<Vec<u8>>,
    timeout: Option<Duration>,
}

/// A request that is under way.
pub struct Pending(FutureIncomingResponse);

/// A whole reply, whatever its status.
#[derive(Debug, Clone)]
pub struct Response {
    /// From 100 to 999; 200 to 299 is well.
    pub status: u16,
    /// Names are in lower case, and may come more than once.
    pub headers: Vec<(String, Vec<u8>)>,
    /// As it came: up to `limits.http_body` bytes.
    pub body: Vec<u8>,
}

impl Request {
    /// A request with any method, in capitals.
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

    /// Adds a header. Those of the connection (`host`, `connection`,
    /// `transfer-encoding` and the like) are the host's own.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sends these bytes.
    #[must_use]
    pub fn body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.body = Some(bytes.into());
        self
    }

    /// Sends this as JSON, and says so in `content-type`.
    ///
    /// # Errors
    ///
    /// `invalid` where it can't be written as JSON.
    pub fn json(self, value: &impl Serialize) -> Result<Self, Error> {
        let json = serde_json::to_vec(value).map_err(|error| Error::invalid(error.to_string()))?;
        Ok(self.header("content-type", "application/json").body(json))
    }

    /// How long each may take: to connect, until the reply begins, and between
    /// its pieces. Without it a connection has 10 s, and all of it what is left
    /// of the run's `limits.timeout`.
    #[must_use]
    pub fn timeout(mut self, each: Duration) -> Self {
        self.timeout = Some(each);
        self
    }

    /// Sends it and waits for the whole reply.
    ///
    /// # Errors
    ///
    /// See [`Error::code`]. A status of the server's is none.
    pub fn send(self) -> Result<Response, Error> {
        self.start()?.wait()
    }

    /// Sends it and does not wait for the reply, so that several may be under
    /// way.
    ///
    /// # Errors
    ///
    /// `invalid` where it is no request; all others come with the reply.
    pub fn start(self) -> Result<Pending, Error> {
        let options = self.options()?;
        let mut headers = self.headers;
        if let Some(body) = &self.body {
            headers.push(("content-length".to_owned(), body.len().to_string().into_bytes()));
        }
        let headers = Headers::from_list(&headers).map_err(|error| Error::invalid(format!("a header: {error:?}")))?;
        let request = OutgoingRequest::new(headers);
        let (scheme, authority, path) = parts(&self.url)?;
        let is_taken = request.set_method(&method(&self.method)).is_ok()
            && request.set_scheme(Some(&scheme)).is_ok()
            && request.set_authority(Some(authority)).is_ok()
            && request.set_path_with_query(Some(&path)).is_ok();
        if !is_taken {
            return Err(Error::invalid(format!("no request: {} {}", self.method, self.url)));
        }
        let bytes = self.body.unwrap_or_default();
        let body = if bytes.is_empty() { None } else { request.body().ok() };
        let pending = outgoing_handler::handle(request, options).map_err(|code| Error::of(&code))?;
        if let Some(body) = body {
            // What goes wrong here, the reply says better.
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
            .map_err(|()| Error::invalid("the host knows no such timeout"))?;
        Ok(Some(options))
    }
}

impl Pending {
    /// Waits for the whole reply.
    ///
    /// # Errors
    ///
    /// Those of [`Request::send`].
    pub fn wait(self) -> Result<Response, Error> {
        self.0.subscribe().block();
        match self.0.get() {
            Some(Ok(Ok(reply))) => read(reply),
            Some(Ok(Err(code))) => Err(Error::of(&code)),
            Some(Err(())) | None => Err(Error::invalid("the reply was taken already")),
        }
    }
}

impl Response {
    /// The first header of this lower-case name, where it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        std::str::from_utf8(value).ok()
    }

    /// The body as text; what is no UTF-8 shows as `\u{fffd}`.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Reads the body as JSON.
    ///
    /// # Errors
    ///
    /// `invalid`, and what is wrong where.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|error| Error::invalid(format!("the reply: {error}")))
    }
}

/// Scheme, authority, and path with query of a URL.
fn parts(url: &str) -> Result<(Scheme, &str, String), Error> {
    let wrong = || Error::invalid(format!("\"{url}\" is no URL like \"https://api.example.com/path\""));
    let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "https" => Scheme::Https,
        "http" => Scheme::Http,
        _ => return Err(wrong()),
    };
    let (rest, _fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
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
    // Dropped unfinished, a body is given up: the server never takes it for whole.
    let stream = body.write().map_err(|()| StreamError::Closed)?;
    for piece in bytes.chunks(WRITE_BYTES_MAX) {
        stream.blocking_write_and_flush(piece)?;
    }
    drop(stream);
    OutgoingBody::finish(body, None).map_err(|_| StreamError::Closed)
}

fn read(reply: IncomingResponse) -> Result<Response, Error> {
    let (status, headers) = (reply.status(), reply.headers().entries());
    let again = || Error::invalid("the body was taken already");
    let body: IncomingBody = reply.consume().map_err(|()| again())?;
    let stream = body.stream().map_err(|()| again())?;
    let mut bytes = Vec::new();
    loop {
        match stream.blocking_read(READ_BYTES) {
            Ok(mut piece) => bytes.append(&mut piece),
            Err(StreamError::Closed) => return Ok(Response { status, headers, body: bytes }),
            Err(StreamError::LastOperationFailed(error)) => return Err(Error::of_stream(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_its_parts() {
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
