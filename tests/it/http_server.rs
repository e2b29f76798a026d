//! An HTTP server whose behaviour, correct or hostile, depends on the path, and that
//! records the requests.

use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) connection: usize,
    /// The request line and the headers.
    pub(crate) head: String,
    pub(crate) body: usize,
    /// Whether the body was complete.
    pub(crate) is_whole: bool,
}

pub(crate) struct Server {
    pub(crate) port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    closed: Arc<Mutex<Vec<usize>>>,
    /// Aborted when the test ends.
    _tasks: JoinSet<()>,
}

/// The state that all connections share.
#[derive(Clone)]
struct Shared {
    seen: Arc<Mutex<Vec<Seen>>>,
    closed: Arc<Mutex<Vec<usize>>>,
    pair: Arc<Barrier>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1", None).await
    }

    pub(crate) async fn start_at(address: &str, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Shared { seen: Arc::default(), closed: Arc::default(), pair: Arc::new(Barrier::new(2)) };
        let (seen, closed) = (shared.seen.clone(), shared.closed.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            for number in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (shared, closed, tls) = (shared.clone(), shared.closed.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, number, shared).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, number, shared).await;
                            }
                        }
                    }
                    closed.lock().unwrap().push(number);
                });
            }
        });
        Self { port, seen, closed, _tasks: tasks }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The connections that were closed.
    pub(crate) fn closed(&self) -> Vec<usize> {
        self.closed.lock().unwrap().clone()
    }

    pub(crate) fn origin(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, connection: usize, shared: Shared) {
    let mut read = Vec::new();
    loop {
        let Some(head) = until_read(&mut stream, &mut read, b"\r\n\r\n").await else { return };
        let head = String::from_utf8(head).unwrap();
        let path = head.split(' ').nth(1).unwrap().to_owned();
        if path == "/early" {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").await;
        }
        let body = read_body(&mut stream, &mut read, &head).await;
        let seen = Seen { connection, head, body: body.unwrap_or(0), is_whole: body.is_some() };
        let echoed = seen.head.clone();
        shared.seen.lock().unwrap().push(seen);
        if path == "/echo" && reply(&mut stream, "", echoed.as_bytes()).await.is_some() {
            continue;
        }
        if body.is_none() || answer(&mut stream, &path, &shared).await.is_none() {
            return;
        }
    }
}

/// Returns what was read up to and including a delimiter; None if the stream ends
/// before.
async fn until_read(stream: &mut (impl AsyncRead + Unpin), read: &mut Vec<u8>, delimiter: &[u8]) -> Option<Vec<u8>> {
    loop {
        if let Some(at) = read.windows(delimiter.len()).position(|window| window == delimiter) {
            return Some(read.drain(..at + delimiter.len()).collect());
        }
        if stream.read_buf(read).await.ok()? == 0 {
            return None;
        }
    }
}

/// The length of the body; None if it is incomplete.
async fn read_body(stream: &mut (impl AsyncRead + Unpin), read: &mut Vec<u8>, head: &str) -> Option<usize> {
    let head = head.to_ascii_lowercase();
    if head.contains("transfer-encoding: chunked") {
        let mut total = 0;
        loop {
            let line = until_read(stream, read, b"\r\n").await?;
            let length = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
            take(stream, read, length + 2).await?;
            if length == 0 {
                return Some(total);
            }
            total += length;
        }
    }
    let length =
        head.split("content-length: ").nth(1).map_or(0, |rest| rest.split("\r\n").next().unwrap().parse().unwrap());
    take(stream, read, length).await?;
    Some(length)
}

async fn take(stream: &mut (impl AsyncRead + Unpin), read: &mut Vec<u8>, length: usize) -> Option<()> {
    while read.len() < length {
        if stream.read_buf(read).await.ok()? == 0 {
            return None;
        }
    }
    read.drain(..length);
    Some(())
}

/// Answers a request; None if the connection has to be closed.
async fn answer(stream: &mut (impl AsyncWrite + Unpin), path: &str, shared: &Shared) -> Option<()> {
    let path = path.split('?').next()?;
    let (what, number) = path[1..].split_once('/').unwrap_or((&path[1..], "0"));
    let number: usize = number.parse().unwrap_or(0);
    match what {
        "hello" => reply(stream, "", b"hello").await,
        "redirect" => {
            let head = "HTTP/1.1 302 Found\r\nLocation: /hello\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(head.as_bytes()).await.ok()
        }
        "body" => reply(stream, "", &vec![b'x'; number]).await,
        "headers" => reply(stream, &format!("x-long: {}\r\n", "x".repeat(number)), b"").await,
        "many" => reply(stream, &"x-many: 1\r\n".repeat(number), b"").await,
        "pair" => {
            shared.pair.wait().await;
            reply(stream, "", b"").await
        }
        // Without Content-Length: the body ends when the connection is closed.
        "until-closed" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
            stream.write_all(&vec![b'x'; number]).await.ok()?;
            None
        }
        "cut" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await.ok()?;
            None
        }
        "no-http" => stream.write_all(b"\x00\x01nonsense\r\n\r\n").await.ok(),
        "hang" => std::future::pending().await,
        "stall" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await.ok()?;
            std::future::pending().await
        }
        "endless" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
            loop {
                stream.write_all(&[b'x'; 4096]).await.ok()?;
            }
        }
        "slow-head" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nx-slow: ").await.ok()?;
            trickle(stream).await
        }
        "slow-body" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
            trickle(stream).await
        }
        _ => reply(stream, "", b"").await,
    }
}

async fn reply(stream: &mut (impl AsyncWrite + Unpin), headers: &str, body: &[u8]) -> Option<()> {
    let head = format!("HTTP/1.1 200 OK\r\n{headers}Connection: keep-alive\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.ok()?;
    stream.write_all(body).await.ok()
}

/// Sends one byte at a time, for ever.
async fn trickle(stream: &mut (impl AsyncWrite + Unpin)) -> Option<()> {
    loop {
        stream.write_all(b"x").await.ok()?;
        stream.flush().await.ok()?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
