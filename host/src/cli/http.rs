//! Asking a running worker over HTTP.

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
/// Longer than the worker takes to say that something is still going on.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(100);
const BODY_BYTES_MAX: usize = 64 << 20;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Which worker is asked.
#[derive(Debug, Args)]
pub(super) struct WorkerArgs {
    /// Where the worker is
    #[arg(long, env = "GATEWAY_URL", value_name = "URL", default_value = "http://localhost:8084")]
    url: String,
    /// What the worker knows an operator by; better given by the environment
    #[arg(long, env = "GATEWAY_ADMIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    admin_token: Option<String>,
}

impl WorkerArgs {
    /// The answer to a request that succeeded.
    pub(super) async fn ask(&self, method: Method, path: &[&str]) -> Result<Value, Failure> {
        let url = self.target(path)?;
        let shown = url.clone();
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.request(&url, method)).await;
        let (status, body) = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(Unanswered::Nobody(error))) => {
                return Err(Failure::Failed(format!(
                    "no worker answers at {}: {error}; is it running? --url or GATEWAY_URL names another",
                    self.url
                )));
            }
            Ok(Err(Unanswered::Broken(error))) => return Err(Failure::Failed(format!("{shown}: {error}"))),
            Err(_) => return Err(Failure::Failed(format!("{shown}: no answer within {ANSWER_TIMEOUT:?}"))),
        };
        let body = serde_json::from_slice::<Value>(&body);
        match (status, body) {
            (200..=299, Ok(body)) => Ok(body),
            (200..=299, Err(_)) => {
                Err(Failure::Failed(format!("{shown}: what answers there is no gateway-worker of this version")))
            }
            (_, body) => {
                let told = body.ok().and_then(|body| Some(body.get("error")?.as_str()?.to_owned()));
                Err(Failure::Failed(told.unwrap_or_else(|| format!("{shown}: status {status}"))))
            }
        }
    }

    /// The page below the URL, with every part of the path as it was settings.
    fn target(&self, path: &[&str]) -> Result<Url, Failure> {
        let usage = |told: &str| Failure::Usage(format!("--url: \"{}\" {told}", self.url));
        let mut url = Url::parse(&self.url).map_err(|error| usage(&format!("is no URL: {error}")))?;
        if url.scheme() != "http" {
            return Err(usage("must begin with http://: the worker speaks plain HTTP"));
        }
        url.path_segments_mut().map_err(|()| usage("is no URL of a server"))?.pop_if_empty().extend(path);
        Ok(url)
    }

    async fn request(&self, url: &Url, method: Method) -> Result<(u16, Bytes), Unanswered> {
        let nobody = |error: Error| Unanswered::Nobody(error);
        let host = url.host_str().ok_or_else(|| nobody("it names no host".into()))?;
        let address = (host.trim_matches(['[', ']']), url.port_or_known_default().unwrap_or(80));
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let stream = stream.map_err(|error| nobody(error.into()))?.map_err(|error| nobody(error.into()))?;
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
        let asking = async {
            let response = sender.send_request(request).await?;
            let status = response.status().as_u16();
            Ok((status, Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await?.to_bytes()))
        };
        let mut connection = std::pin::pin!(connection);
        tokio::pin!(asking);
        tokio::select! {
            answer = &mut asking => answer,
            // The answer may be here already when the other side hangs up.
            ended = &mut connection => match ended {
                Ok(()) => asking.await,
                Err(error) => Err(error.into()),
            }
        }
    }
}

enum Unanswered {
    Nobody(Error),
    Broken(Error),
}

impl From<Error> for Unanswered {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}
