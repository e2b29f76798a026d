//! Requests to the admin API of a running worker.

use super::Failure;
use clap::Args;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::time::Duration;
use tokio::net::TcpStream;
use url::Url;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than the worker takes to answer that a reload is still running.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(100);
const BODY_BYTES_MAX: usize = 64 << 20;

const DEFAULT_URL: &str = "http://localhost:8084";

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The worker that a command applies to.
#[derive(Debug, Args)]
pub(super) struct WorkerArgs {
    /// URL of the worker
    #[arg(long, env = "GATEWAY_URL", value_name = "URL", default_value = DEFAULT_URL)]
    url: String,
    /// Bearer token of the worker; set it in the environment, since other users can see flags
    #[arg(long, env = "GATEWAY_ADMIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    admin_token: Option<String>,
}

impl WorkerArgs {
    /// Sends a request and returns the JSON of a successful response.
    pub(super) async fn request(&self, method: Method, path: &[&str]) -> Result<Value, Failure> {
        let url = self.target(path)?;
        let response = tokio::time::timeout(RESPONSE_TIMEOUT, self.send(&url, method)).await;
        let (status, body) = match response {
            Ok(Ok(response)) => response,
            Ok(Err(RequestError::Connect(error))) => {
                return Err(Failure::Failed(format!(
                    "cannot connect to a worker at {}: {error}; is it running? Set --url or GATEWAY_URL for another one",
                    self.base_url()
                )));
            }
            Ok(Err(RequestError::Exchange(error))) => return Err(Failure::Failed(format!("{url}: {error}"))),
            Err(_) => return Err(Failure::Failed(format!("{url}: no response within {RESPONSE_TIMEOUT:?}"))),
        };
        let body = serde_json::from_slice::<Value>(&body);
        match (status, body) {
            (200..=299, Ok(body)) => Ok(body),
            (200..=299, Err(_)) => {
                Err(Failure::Failed(format!("{url}: the server is not a gateway-worker of this version")))
            }
            (_, problem) => {
                let detail = problem.ok().and_then(|problem| Some(problem.get("detail")?.as_str()?.to_owned()));
                Err(Failure::Failed(detail.unwrap_or_else(|| format!("{url}: status {status}"))))
            }
        }
    }

    /// An empty variable counts as unset.
    fn base_url(&self) -> &str {
        if self.url.trim().is_empty() { DEFAULT_URL } else { self.url.trim() }
    }

    /// The URL with the path appended. Each segment is percent-encoded.
    fn target(&self, path: &[&str]) -> Result<Url, Failure> {
        let usage = |problem: &str| Failure::Usage(format!("--url (GATEWAY_URL): \"{}\" {problem}", self.base_url()));
        let mut url = Url::parse(self.base_url()).map_err(|error| usage(&format!("is not a URL: {error}")))?;
        if url.scheme() != "http" {
            return Err(usage("must begin with http://, because the worker does not support TLS"));
        }
        url.path_segments_mut().map_err(|()| usage("has no host"))?.pop_if_empty().extend(path);
        Ok(url)
    }

    async fn send(&self, url: &Url, method: Method) -> Result<(u16, Bytes), RequestError> {
        let connect = |error: Error| RequestError::Connect(error);
        let host = url.host_str().ok_or_else(|| connect("the URL has no host".into()))?;
        let address = (host.trim_matches(['[', ']']), url.port_or_known_default().unwrap_or(80));
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let stream = stream.map_err(|error| connect(error.into()))?.map_err(|error| connect(error.into()))?;
        Ok(self.exchange(stream, url, method).await?)
    }

    async fn exchange(&self, stream: TcpStream, url: &Url, method: Method) -> Result<(u16, Bytes), Error> {
        let (mut sender, connection) = handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await?;
        let authority = url.authority().rsplit('@').next().unwrap_or_default().to_owned();
        let mut request = Request::builder().method(method).uri(url.path()).header(header::HOST, authority);
        if let Some(token) = self.admin_token.as_deref().map(str::trim).filter(|token| !token.is_empty()) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Empty::new())?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status().as_u16();
            Ok((status, Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await?.to_bytes()))
        };
        let mut connection = std::pin::pin!(connection);
        tokio::pin!(exchange);
        tokio::select! {
            response = &mut exchange => response,
            // The response may have arrived before the server closed the
            // connection.
            ended = &mut connection => match ended {
                Ok(()) => exchange.await,
                Err(error) => Err(error.into()),
            }
        }
    }
}

enum RequestError {
    Connect(Error),
    Exchange(Error),
}

impl From<Error> for RequestError {
    fn from(error: Error) -> Self {
        Self::Exchange(error)
    }
}
