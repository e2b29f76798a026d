//! A TCP proxy between workers and Redis that injects network faults: it cuts, stalls,
//! delays and blackholes connections, refuses new ones, and drops a reply after Redis has
//! run the command.

use crate::support::Redis;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// The direction of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    ToRedis,
    ToWorker,
}

/// Which reply is dropped: half of it arrives, and then its connection is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DropReply {
    /// The one after this many others, on any connection.
    After(usize),
    /// The first that contains these bytes.
    With(Vec<u8>),
}

pub(crate) struct Proxy {
    port: u16,
    state: Arc<State>,
    task: JoinHandle<()>,
}

struct State {
    /// The port of Redis, which is the same after a restart.
    redis: u16,
    /// Incremented with each cut.
    cuts: watch::Sender<usize>,
    /// Incremented when the open connections are blackholed.
    blackholes: watch::Sender<usize>,
    to_redis_stalled: watch::Sender<bool>,
    to_worker_stalled: watch::Sender<bool>,
    refuses: AtomicBool,
    /// The delay of bytes to Redis, in ms.
    latency_ms: AtomicU64,
    to_drop: Mutex<Option<DropReply>>,
    dropped: AtomicUsize,
}

impl Proxy {
    pub(crate) async fn start(redis: &Redis) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            redis: redis.url().rsplit(':').next().unwrap().parse().unwrap(),
            cuts: watch::Sender::new(0),
            blackholes: watch::Sender::new(0),
            to_redis_stalled: watch::Sender::new(false),
            to_worker_stalled: watch::Sender::new(false),
            refuses: AtomicBool::new(false),
            latency_ms: AtomicU64::new(0),
            to_drop: Mutex::new(None),
            dropped: AtomicUsize::new(0),
        });
        let task = tokio::spawn(accept(listener, state.clone()));
        Self { port, state, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Cuts every open connection.
    pub(crate) fn cut(&self) {
        self.state.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Blackholes the open connections: nothing arrives any more, and neither end gets an
    /// error.
    pub(crate) fn blackhole(&self) {
        self.state.blackholes.send_modify(|blackholes| *blackholes += 1);
    }

    /// Delays bytes in this direction until the stall ends, even if the sender has given
    /// up by then.
    pub(crate) fn stall(&self, direction: Direction, is_stalled: bool) {
        self.state.stalled(direction).send_replace(is_stalled);
    }

    pub(crate) fn set_latency(&self, ms: u64) {
        self.state.latency_ms.store(ms, Ordering::SeqCst);
    }

    pub(crate) fn refuse(&self, refuses: bool) {
        self.state.refuses.store(refuses, Ordering::SeqCst);
    }

    pub(crate) fn drop_next_reply(&self, which: DropReply) {
        *self.state.to_drop.lock().unwrap() = Some(which);
    }

    /// The number of dropped replies.
    pub(crate) fn dropped_replies(&self) -> usize {
        self.state.dropped.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    fn stalled(&self, direction: Direction) -> &watch::Sender<bool> {
        match direction {
            Direction::ToRedis => &self.to_redis_stalled,
            Direction::ToWorker => &self.to_worker_stalled,
        }
    }

    fn should_drop(&self, reply: &[u8]) -> bool {
        let mut to_drop = self.to_drop.lock().unwrap();
        let matches = match &mut *to_drop {
            None => false,
            Some(DropReply::With(bytes)) => reply.windows(bytes.len()).any(|window| window == bytes),
            Some(DropReply::After(0)) => true,
            Some(DropReply::After(left)) => {
                *left -= 1;
                false
            }
        };
        if matches {
            *to_drop = None;
            self.dropped.fetch_add(1, Ordering::SeqCst);
        }
        matches
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    // Dropping this task closes all connections.
    let mut connections = JoinSet::new();
    while let Ok((worker, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        if !state.refuses.load(Ordering::SeqCst) {
            connections.spawn(forward(worker, state.clone()));
        }
    }
}

async fn forward(worker: TcpStream, state: Arc<State>) {
    let Ok(redis) = TcpStream::connect(("127.0.0.1", state.redis)).await else { return };
    let _ = (worker.set_nodelay(true), redis.set_nodelay(true));
    let mut cuts = state.cuts.subscribe();
    let (from_worker, to_worker) = worker.into_split();
    let (from_redis, to_redis) = redis.into_split();
    tokio::select! {
        _ = copy(from_worker, to_redis, Direction::ToRedis, &state) => {}
        _ = copy(from_redis, to_worker, Direction::ToWorker, &state) => {}
        _ = cuts.changed() => {}
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, direction: Direction, state: &State) -> io::Result<()> {
    let (mut stalled, blackholes) = (state.stalled(direction).subscribe(), state.blackholes.subscribe());
    let mut bytes = vec![0; 64 << 10];
    loop {
        let length = from.read(&mut bytes).await?;
        if length == 0 {
            return Ok(());
        }
        if blackholes.has_changed().unwrap_or(true) {
            std::future::pending::<()>().await;
        }
        if direction == Direction::ToWorker && state.should_drop(&bytes[..length]) {
            return to.write_all(&bytes[..length / 2]).await;
        }
        let _ = stalled.wait_for(|is_stalled| !is_stalled).await;
        if direction == Direction::ToRedis {
            tokio::time::sleep(Duration::from_millis(state.latency_ms.load(Ordering::SeqCst))).await;
        }
        to.write_all(&bytes[..length]).await?;
    }
}
