//! Connection pools. Each plugin version has its own, so that a connection is never
//! reused under a manifest that does not grant it.

use super::resolve::Resolver;
use crate::events;
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

/// Upper bound for resolving, connecting and the TLS handshake together, also for
/// attempts that continue after their run has ended.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Bytes of a response's status line and headers, and of the read-ahead of its body.
pub(super) const HEADERS_BYTES_MAX: usize = 64 << 10;

/// Idle connections per server, and their idle timeout.
const IDLE_MAX: usize = 16;
const IDLE_FOR: Duration = Duration::from_secs(60);

pub(super) type Client = legacy::Client<Connector<HttpsConnector<HttpConnector<Resolver>>>, WasiBody>;

/// Reads the system's CA certificates only if the manifest grants https.
pub(super) fn connect(plugin: &str, manifest: &Manifest) -> Result<Client, rustls::Error> {
    let needs_tls = manifest.grants.http.iter().any(|origin| origin.is_https());
    let tls = tls(plugin, needs_tls)?;
    let mut tcp = HttpConnector::new_with_resolver(Resolver::new(&manifest.grants.private_networks));
    tcp.set_nodelay(true);
    // hyper divides it among the addresses of a name, so that an unreachable one
    // does not use it up.
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

fn tls(plugin: &str, needs_ca_certificates: bool) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = || ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder_without = builder()?.with_root_certificates(RootCertStore::empty());
    if !needs_ca_certificates {
        return Ok(builder_without.with_no_client_auth());
    }
    match builder()?.with_native_roots() {
        Ok(builder) => Ok(builder.with_no_client_auth()),
        Err(error) => {
            tracing::error!(
                plugin,
                "{}: {error}; install the system's CA certificates (ca-certificates), \
                 or set SSL_CERT_FILE",
                events::NO_CA_CERTIFICATES
            );
            Ok(builder_without.with_no_client_auth())
        }
    }
}

/// Adds a timeout to a connector.
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
