//! Says where a connection failed and why: the client names no address, and a
//! server of the wrong protocol is silent or hangs up.

use crate::tls;
use redis::{ConnectionAddr, ErrorKind, RedisError};
use std::io;
use std::time::Duration;

/// Together with an attempt to connect this is shorter than the limit of a ping,
/// which otherwise would report only that time is up.
const PROBE_MAX: Duration = Duration::from_millis(500);
const LISTEN_MAX: Duration = Duration::from_millis(200);

/// The error of an attempt to connect, with the name of the server. Errors that
/// the server has sent keep their code.
pub(super) async fn named(error: RedisError, name: &str, address: &ConnectionAddr) -> RedisError {
    if error.kind() == ErrorKind::AuthenticationFailed {
        return (ErrorKind::AuthenticationFailed, "login refused", format!("{name}: {error}")).into();
    }
    if !error.is_io_error() && error.kind() != ErrorKind::Parse {
        return error;
    }
    let text = tls::explained(&error.to_string());
    let reason = if error.is_connection_refusal() { None } else { reason(address).await };
    let text = reason.map_or(format!("{name}: {text}"), |reason| format!("{name}: {text}: {reason}"));
    let kind = if error.is_timeout() {
        io::ErrorKind::TimedOut
    } else if error.is_connection_refusal() {
        io::ErrorKind::ConnectionRefused
    } else {
        io::ErrorKind::ConnectionAborted
    };
    io::Error::new(kind, text).into()
}

/// A server may have hung up before its reason was read, or speak another protocol.
async fn reason(address: &ConnectionAddr) -> Option<String> {
    if let ConnectionAddr::Tcp(host, port) = address
        && let Some(line) = tls::unasked(host, *port, LISTEN_MAX).await
        && let Some(error) = line.strip_prefix('-')
    {
        return Some(error.to_owned());
    }
    match address {
        ConnectionAddr::Tcp(host, port) if tls::speaks_tls(host, *port, PROBE_MAX).await => {
            Some(format!("{}; its URL begins with rediss", tls::TLS_FROM_THE_START))
        }
        ConnectionAddr::TcpTls { host, port, .. } if tls::speaks_plain_text(host, *port, PROBE_MAX).await => {
            Some(format!("{}; its URL begins with redis, not rediss", tls::PLAIN_TEXT))
        }
        _ => None,
    }
}
