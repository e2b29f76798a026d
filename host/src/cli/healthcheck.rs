//! `healthcheck`: requests `/healthz`, for containers without a shell.

use super::output::print_line;
use super::{Failure, RunArgs, with_file};
use crate::settings::ListenAddress;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) async fn healthcheck(args: RunArgs) -> Result<(), Failure> {
    let mut address = with_file(args.settings, args.config.as_deref())?.check()?.listen;
    let loopback = match address.host.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() && ip.is_ipv4() => Some(Ipv4Addr::LOCALHOST.to_string()),
        Ok(ip) if ip.is_unspecified() => Some(Ipv6Addr::LOCALHOST.to_string()),
        _ => None,
    };
    address.host = loopback.unwrap_or(address.host);
    let failed = |reason: String| Failure::Failed(format!("http://{address}/healthz: {reason}"));
    match tokio::time::timeout(TIMEOUT, status(&address)).await {
        Ok(Ok(200)) => {
            print_line!("ok");
            Ok(())
        }
        Ok(Ok(status)) => Err(failed(format!("status {status}"))),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("no response within {TIMEOUT:?}"))),
    }
}

async fn status(address: &ListenAddress) -> Result<u16, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TokioIo::new(TcpStream::connect((address.host.as_str(), address.port)).await?);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<hyper::body::Bytes>>(stream).await?;
    let request = hyper::Request::get("/healthz").header(hyper::header::HOST, address.to_string()).body(Empty::new())?;
    let response = sender.send_request(request);
    tokio::pin!(connection);
    tokio::select! {
        response = response => Ok(response?.status().as_u16()),
        ended = connection => {
            ended?;
            Err("the connection was closed".into())
        }
    }
}
