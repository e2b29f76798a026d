//! The HTTP server. Anyone may reach its port, so connections, times and sizes
//! are limited.

use super::problem::Problem;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

const CONNECTIONS_MAX: usize = 512;
/// For the head of a request, and for the time until the next one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For the head of the response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(90);
/// For a whole connection, so that clients that stop reading don't block one
/// forever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
const HEAD_BYTES_MAX: usize = 32 << 10;
const HEADERS_MAX: usize = 64;
/// For connections that are open at a shutdown.
const GRACE: Duration = Duration::from_secs(2);
/// The delay after a failed accept, for example without free file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The address that a request came from.
#[derive(Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Serves until stopped, and then finishes the open requests.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let accepting = async {
        loop {
            // The semaphore is never closed.
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            while connections.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let (router, stop) = (router.clone(), stop.clone());
                    connections.spawn(async move {
                        let _permit = permit;
                        let serving = serve_one(stream, peer, router, stop);
                        let _ = tokio::time::timeout(CONNECTION_TIMEOUT, serving).await;
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    };
    let _ = stop.run_until_cancelled(accepting).await;
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(GRACE, ended).await;
}

async fn serve_one(stream: TcpStream, peer: SocketAddr, router: Router, stop: CancellationToken) {
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        let response = router.clone().call(request.map(Body::new));
        async {
            let late = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the request timed out").into_response();
            let response = tokio::time::timeout(RESPONSE_TIMEOUT, response).await;
            Ok::<Response, Infallible>(response.map_or_else(|_| late(), |Ok(response)| response))
        }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    server.max_headers(HEADERS_MAX).max_buf_size(HEAD_BYTES_MAX);
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
    // Errors of clients are not logged.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}
