//! The connection that all callers share: cheap to clone, connected on first use
//! and dropped once it is broken or leads to a server that is no master any more.
//!
//! A command is never resent after a broken connection: it may have been
//! executed, and only its caller knows whether it may run twice. A command that a
//! cluster's node redirected was not executed, so it is sent to the other node.

use super::servers::{Live, Node, Servers};
use arc_swap::ArcSwapOption;
use redis::aio::ConnectionLike;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo};
use redis::{Arg, Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult, ServerErrorKind, Value};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// The shortest time between two attempts to connect, however many callers wait.
const RECONNECT_AFTER: Duration = Duration::from_millis(100);

/// Pauses before a command follows a redirection, 310 ms in all; after them the
/// error is returned and the caller's own retry applies.
const REDIRECTS_MS: [u64; 5] = [10, 20, 40, 80, 160];

#[derive(Clone)]
pub(crate) struct Shared(Arc<Inner>);

struct Inner {
    servers: Arc<Servers>,
    live: ArcSwapOption<Live>,
    /// The last failure; the caller that connects has it locked.
    connecting: Mutex<Option<(Instant, RedisError)>>,
}

impl Shared {
    pub(crate) fn new(servers: Arc<Servers>) -> Self {
        Self(Arc::new(Inner { servers, live: ArcSwapOption::empty(), connecting: Mutex::new(None) }))
    }

    /// Drops the connection if it leads to another server than this one.
    pub(crate) fn disconnect_unless_at(&self, node: &Node) {
        if let Some(live) = self.0.live.load_full()
            && let Live::Node { name, .. } = &*live
            && *name != node.name
        {
            self.disconnect(&live);
        }
    }

    pub(crate) fn is_at(&self, node: &Node) -> bool {
        matches!(self.0.live.load().as_deref(), Some(Live::Node { name, .. }) if *name == node.name)
    }

    /// Connects, unless it is connected.
    pub(crate) async fn connect(&self) -> RedisResult<()> {
        self.live().await.map(drop)
    }

    async fn live(&self) -> RedisResult<Arc<Live>> {
        if let Some(live) = self.0.live.load_full() {
            return Ok(live);
        }
        let mut failed = self.0.connecting.lock().await;
        if let Some(live) = self.0.live.load_full() {
            return Ok(live);
        }
        if let Some((at, error)) = &*failed
            && at.elapsed() < RECONNECT_AFTER
        {
            return Err(error.clone());
        }
        match self.0.servers.connect().await {
            Ok(live) => {
                let live = Arc::new(live);
                self.0.live.store(Some(live.clone()));
                *failed = None;
                Ok(live)
            }
            Err(error) => {
                *failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    fn disconnect(&self, live: &Arc<Live>) {
        // Another caller may have replaced it already.
        let current = self.0.live.load();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, live)) {
            self.0.live.compare_and_swap(&current, None);
        }
    }

    /// Drops the connection if this error shows that it is useless.
    fn check_connection(&self, live: &Arc<Live>, error: &RedisError) {
        let is_useless = match &**live {
            Live::Node { .. } => is_broken(error) || is_no_master(error),
            // The cluster client reconnects to its nodes by itself, but with the password
            // that it was made with.
            Live::Cluster(_) => is_stuck(error) || self.0.servers.password_may_change() && has_lost_nodes(error),
        };
        if is_useless {
            self.disconnect(live);
        }
    }

    async fn send(&self, command: &Cmd) -> RedisResult<Value> {
        let mut pauses = REDIRECTS_MS.into_iter().map(Duration::from_millis);
        loop {
            let live = self.live().await?;
            let answer = match &*live {
                Live::Node { connection, .. } => connection.clone().req_packed_command(command).await,
                Live::Cluster(cluster) => send_to_cluster(&mut cluster.clone(), command).await,
            };
            let Some(error) = error_in(&answer) else { return answer };
            self.check_connection(&live, &error);
            if !self.0.servers.is_cluster() {
                return Err(error);
            }
            let (ErrorKind::Server(kind), Some(pause)) = (error.kind(), pauses.next()) else { return Err(error) };
            match kind {
                ServerErrorKind::Ask => match self.ask(&error, command).await {
                    // Some keys have moved and some not: wait for the move to end.
                    Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::TryAgain) => {}
                    answer => return answer,
                },
                // The client reloads the slot map meanwhile.
                ServerErrorKind::Moved | ServerErrorKind::TryAgain => {}
                _ => return Err(error),
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Sends a command to the node that its slot is moving to.
    async fn ask(&self, error: &RedisError, command: &Cmd) -> RedisResult<Value> {
        let address = error.redirect_node().and_then(|(address, _)| address.rsplit_once(':'));
        let Some((host, port)) = address.and_then(|(host, port)| Some((host, port.parse().ok()?))) else {
            return Err(error.clone());
        };
        let mut connection = self.0.servers.node(Some(host).filter(|host| !host.is_empty()), port).connect().await?;
        let mut both = redis::pipe();
        both.cmd("ASKING").add_command(command.clone());
        let answers = connection.req_packed_commands(&both, 0, 2).await?;
        answers.into_iter().next_back().unwrap_or(Value::Nil).extract_error()
    }

    async fn send_all(&self, pipeline: &Pipeline, offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        let live = self.live().await?;
        let answers = match &*live {
            Live::Node { connection, .. } => connection.clone().req_packed_commands(pipeline, offset, count).await,
            Live::Cluster(cluster) => cluster.clone().req_packed_commands(pipeline, offset, count).await,
        };
        let found = match &answers {
            Ok(values) => values.iter().find_map(server_error),
            Err(error) => Some(error.clone()),
        };
        if let Some(error) = found {
            self.check_connection(&live, &error);
        }
        answers
    }
}

/// Sends `SCRIPT LOAD` to the masters only: the client would send it to replicas
/// too and fail if one of them is away.
async fn send_to_cluster(cluster: &mut ClusterConnection, command: &Cmd) -> RedisResult<Value> {
    if let Some(Arg::Simple(b"SCRIPT")) = command.args_iter().next() {
        let everywhere = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
        let answers = cluster.route_command(command.clone(), everywhere).await?;
        let Value::Map(answers) = answers else { return Ok(answers) };
        return answers.into_iter().map(|(_, answer)| answer).next().unwrap_or(Value::Nil).extract_error();
    }
    cluster.req_packed_command(command).await
}

fn error_in(answer: &RedisResult<Value>) -> Option<RedisError> {
    match answer {
        Ok(value) => server_error(value),
        Err(error) => Some(error.clone()),
    }
}

fn server_error(value: &Value) -> Option<RedisError> {
    match value {
        Value::ServerError(error) => Some(error.clone().into()),
        _ => None,
    }
}

/// The cluster client has ended.
fn is_stuck(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Io && error.is_connection_dropped() && error.to_string().contains("redis_cluster")
}

/// The cluster client has no connection to the nodes that it needs.
fn has_lost_nodes(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::ClusterConnectionNotFound | ErrorKind::AuthenticationFailed | ErrorKind::Io)
}

fn is_broken(error: &RedisError) -> bool {
    error.is_io_error() || error.is_unrecoverable_error()
}

/// The server is no master any more: the new master has to be found.
fn is_no_master(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown))
        || matches!(error.code(), Some("UNBLOCKED"))
}

impl ConnectionLike for Shared {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(self.send(command))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(self.send_all(pipeline, offset, count))
    }

    /// Never called here.
    fn get_db(&self) -> i64 {
        0
    }
}
