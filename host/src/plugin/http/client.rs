//! Connections to servers, kept for the next request. Each version of a plugin
//! has its own: what a manifest no longer grants is no longer connected to.
//! What drives a connection ends with it, at the latest with the handlers'
//! threads.

use super::resolve::Resolver;
use crate::manifest::Manifest;
use hyper::Uri;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::timeout;
use tower_service::Service;
use wasmtime_wasi_http::WasiBody;

/// Looking up, connecting and the TLS handshake together. Also the end of a
/// connection that is being made for a run that is over.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Bytes of a reply's status line and headers, and what is read ahead of its body.
pub(super) const HEADERS_BYTES_MAX: usize = 64 << 10;

/// Kept for each server, and for how long.
const IDLE_MAX: usize = 16;
const IDLE_FOR: Duration = Duration::from_secs(60);

pub(super) type Client = legacy::Client<Connector<HttpsConnector<HttpConnector<Resolver>>>, WasiBody>;

/// Reads the certificates of the system's authorities where they are needed.
pub(super) fn connect(plugin: &str, manifest: &Manifest) -> Result<Client, rustls::Error> {
    let needs_tls = manifest.grants.http.iter().any(|origin| origin.is_https());
    let tls = tls(plugin, needs_tls)?;
    let mut tcp = HttpConnector::new_with_resolver(Resolver::new(&manifest.grants.private_networks));
    tcp.set_nodelay(true);
    // Shared by a name's addresses, so that a dead one does not use it up.
    tcp.set_connect_timeout(Some(CONNECT_MAX));
    tcp.enforce_http(false);
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
    let client = legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_FOR)
        .pool_max_idle_per_host(IDLE_MAX)
        .http1_max_buf_size(HEADERS_BYTES_MAX)
        .set_host(false)
        .build(Connector(https));
    Ok(client)
}

fn tls(plugin: &str, needs_authorities: bool) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = || ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder_without = builder()?.with_root_certificates(RootCertStore::empty());
    if !needs_authorities {
        return Ok(builder_without.with_no_client_auth());
    }
    match builder()?.with_native_roots() {
        Ok(builder) => Ok(builder.with_no_client_auth()),
        Err(error) => {
            tracing::error!(
                plugin,
                "no https server can be trusted: {error}; install the system's certificates (ca-certificates), \
                 or name a file of them in SSL_CERT_FILE"
            );
            Ok(builder_without.with_no_client_auth())
        }
    }
}

/// Makes a connection in time, or none.
#[derive(Clone)]
pub(super) struct Connector<C>(C);

impl<C> Service<Uri> for Connector<C>
where
    C: Service<Uri>,
    C::Error: Into<Box<dyn Error + Send + Sync>>,
    C::Future: Send + 'static,
{
    type Response = C::Response;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.0.call(uri);
        Box::pin(async move {
            match timeout(CONNECT_MAX, connecting).await {
                Ok(connected) => connected.map_err(Into::into),
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            }
        })
    }
}
