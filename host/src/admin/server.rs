//! The HTTP server. Anyone may reach its port, so connections, times and sizes
//! are limited.

use super::problem::Problem;
use super::slots::{Slot, Slots};
use axum::Router;
use axum::body::Body;
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Request, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

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
/// What an orchestrator and a scraper ask for. They are answered however many other
/// requests there are.
const PROBES: [&str; 6] = ["/healthz", "/livez", "/ready", "/readyz", "/metrics", "/metrics/prometheus"];
/// The delay after a failed accept, for example without free file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The address that a request came from.
#[derive(Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Serves until stopped, and then finishes the open requests.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let slots = Slots::new();
    let mut connections = JoinSet::new();
    let accepting = async {
        loop {
            while connections.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let Some(slot) = slots.take().await else { return };
                    let (router, stop) = (router.clone(), stop.clone());
                    connections.spawn(async move {
                        let serving = serve_one(stream, peer, router, &slot, stop);
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

async fn serve_one(stream: TcpStream, peer: SocketAddr, router: Router, slot: &Slot, stop: CancellationToken) {
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        let answering = slot.answer(PROBES.contains(&request.uri().path()));
        let is_valid = check_host(&request);
        let response = router.clone().call(request.map(Body::new));
        async {
            let Some(answering) = answering else {
                let detail = "too many requests are being answered; try again in a moment";
                let headers = [(header::RETRY_AFTER, HeaderValue::from_static("1"))];
                let busy = Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail);
                return Ok::<Response, Infallible>((headers, busy).into_response());
            };
            let response = match is_valid {
                Err(problem) => problem.into_response(),
                Ok(()) => match tokio::time::timeout(RESPONSE_TIMEOUT, response).await {
                    Ok(Ok(response)) => response,
                    Err(_) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the request timed out").into_response(),
                },
            };
            Ok(answering.until_sent(response))
        }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    server.max_headers(HEADERS_MAX).max_buf_size(HEAD_BYTES_MAX);
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
    // Errors of clients are not logged.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = slot.evicted.cancelled() => {}
        // A stop waits for no client that has not asked for anything.
        () = stop.cancelled() => if !slot.is_waiting() {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// RFC 9112, 3.2: a request of HTTP/1.1 has one `Host`, and none has two or an invalid
/// one. Programs between a client and us could read different hosts otherwise.
fn check_host(request: &Request<Incoming>) -> Result<(), Problem> {
    let bad = |detail: &str| Err(Problem::new(StatusCode::BAD_REQUEST, detail));
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version() >= Version::HTTP_11 => bad("the header Host is missing"),
        (_, Some(_)) => bad("there is more than one header Host"),
        (Some(host), None) if !is_host(host.as_bytes()) => bad("the header Host is no host with an optional port"),
        _ => Ok(()),
    }
}

fn is_host(host: &[u8]) -> bool {
    Authority::try_from(host).is_ok_and(|host| !host.as_str().contains('@'))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_host_is_a_name_or_an_address_with_an_optional_port() {
        for (host, expected) in [
            ("localhost", true),
            ("gateway-worker:8084", true),
            ("[::1]:8084", true),
            ("10.0.0.1", true),
            ("", false),
            ("a b", false),
            ("user@host", false),
            ("host/path", false),
            ("host:80:80", false),
        ] {
            assert_eq!(super::is_host(host.as_bytes()), expected, "{host}");
        }
    }
}
