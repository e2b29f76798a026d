//! The HTTP server. Anybody may reach its port, so everything has an end: how
//! many connections, how long a head takes, how large it and a body may be.

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
/// For the head of a request, and for the pause before the next one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For the answer to it, until its body begins.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
/// For a connection in all: who reads nothing holds none for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
const HEAD_BYTES_MAX: usize = 32 << 10;
const HEADERS_MAX: usize = 64;
/// A client that keeps its connection open keeps nobody from stopping.
const GRACE: Duration = Duration::from_secs(2);
/// After an accept that failed, as it does when there are no descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Who sent a request.
#[derive(Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Serves until stopped; then finishes what is being answered.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let accepting = async {
        loop {
            // Never closed.
            let Ok(permit) = room.clone().acquire_owned().await else { return };
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
                    tracing::debug!(%error, "a connection can't be accepted");
                    tokio::time::sleep(PAUSE).await;
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
        let answer = router.clone().call(request.map(Body::new));
        async {
            let late = || (StatusCode::SERVICE_UNAVAILABLE, "no answer in time\n").into_response();
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
            Ok::<Response, Infallible>(answer.map_or_else(|_| late(), |Ok(response)| response))
        }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    server.max_headers(HEADERS_MAX).max_buf_size(HEAD_BYTES_MAX);
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
    // How a stranger ends a connection is no news.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}
