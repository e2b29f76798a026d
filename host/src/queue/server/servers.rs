//! Which servers the settings name, and how to connect to the right one.

use super::diagnosis::named;
use crate::capability::Secret;
use crate::settings::{Login, RedisMode, RedisTarget};
use redis::aio::MultiplexedConnection;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use redis::{RedisConnectionInfo, RedisError, RedisResult, TlsCertificates, TlsMode};
use std::time::Duration;
use tokio::sync::Mutex;

/// An answer that takes longer counts as lost: no command sent here blocks.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

pub(crate) struct Servers {
    kind: Kind,
    name: String,
    /// How to log in to a node, whatever its address.
    login: NodeLogin,
}

enum Kind {
    Single(Node),
    Sentinel { client: Mutex<SentinelClient>, seeds: Vec<(String, u16)> },
    Cluster { client: ClusterClient, seeds: Vec<(String, u16)> },
}

/// An established connection that all callers share.
pub(crate) enum Live {
    Node { connection: MultiplexedConnection, name: String },
    Cluster(ClusterConnection),
}

/// One server.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) name: String,
    client: Client,
}

struct NodeLogin {
    is_tls: bool,
    login: Login,
    db: i64,
    certificates: TlsCertificates,
}

impl Servers {
    pub(crate) fn new(target: &RedisTarget) -> RedisResult<Self> {
        choose_crypto();
        let place = &target.endpoint;
        let client_tls = target.tls_client.as_ref().map(|client| ClientTlsConfig {
            client_cert: client.cert.clone(),
            client_key: client.key.reveal().as_bytes().to_vec(),
        });
        let certificates = TlsCertificates { client_tls, root_cert: target.tls_ca.clone() };
        let node_login = NodeLogin { is_tls: place.is_tls, login: place.login.clone(), db: place.db, certificates };
        let kind = match &place.mode {
            RedisMode::Single => {
                let (host, port) = place.hosts.first().cloned().unwrap_or_default();
                Kind::Single(node_login.node(&host, port)?)
            }
            RedisMode::Sentinel { master } => {
                let client = Mutex::new(sentinel(target, master, &node_login)?);
                Kind::Sentinel { client, seeds: place.hosts.clone() }
            }
            RedisMode::Cluster => Kind::Cluster { client: cluster(target, &node_login)?, seeds: place.hosts.clone() },
        };
        Ok(Self { kind, name: target.redacted_url(), login: node_login })
    }

    pub(crate) fn name(&self) -> String {
        self.name.clone()
    }

    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self.kind, Kind::Cluster { .. })
    }

    /// The connection that all callers share.
    pub(crate) async fn connect(&self) -> RedisResult<Live> {
        match &self.kind {
            Kind::Cluster { client, seeds } => match in_time(client.get_async_connection()).await {
                Ok(connection) => Ok(Live::Cluster(connection)),
                Err(error) => Err(self.named(error, seeds).await),
            },
            Kind::Single(_) | Kind::Sentinel { .. } => {
                let node = self.master().await?;
                Ok(Live::Node { connection: node.connect().await?, name: node.name })
            }
        }
    }

    /// The one master; an error for a cluster.
    pub(crate) async fn master(&self) -> RedisResult<Node> {
        match &self.kind {
            Kind::Single(node) => Ok(node.clone()),
            Kind::Sentinel { client, seeds } => {
                let mut sentinel = in_time(async { Ok(client.lock().await) }).await?;
                let client = match in_time(sentinel.async_get_client()).await {
                    Ok(client) => client,
                    Err(error) => return Err(self.named(error, seeds).await),
                };
                Ok(Node { name: client.get_connection_info().addr().to_string(), client })
            }
            Kind::Cluster { .. } => Err((redis::ErrorKind::Client, "a cluster has more than one master").into()),
        }
    }

    /// An error of the sentinels or of a cluster as a whole; the first one is asked why.
    async fn named(&self, error: RedisError, seeds: &[(String, u16)]) -> RedisError {
        let (host, port) = seeds.first().cloned().unwrap_or_default();
        named(error, &self.name, &address(&host, port, self.login.is_tls)).await
    }

    /// A node of the cluster. A node that does not know its own host has the host
    /// of the settings.
    pub(crate) fn node(&self, host: Option<&str>, port: u16) -> RedisResult<Node> {
        let host = match (host, &self.kind) {
            (Some(host), _) => host,
            (None, Kind::Cluster { seeds, .. }) => seeds.first().map(|(host, _)| host.as_str()).unwrap_or_default(),
            (None, _) => "",
        };
        self.login.node(host, port)
    }
}

impl From<Node> for Servers {
    fn from(node: Node) -> Self {
        let login = NodeLogin {
            is_tls: false,
            login: Login::default(),
            db: 0,
            certificates: TlsCertificates { client_tls: None, root_cert: None },
        };
        Self { name: node.name.clone(), kind: Kind::Single(node), login }
    }
}

impl Node {
    pub(crate) async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        self.connect_with(Some(RESPONSE_TIMEOUT)).await
    }

    /// For blocking reads, whose answers take as long as the read blocks.
    pub(crate) async fn connect_without_timeout(&self) -> RedisResult<MultiplexedConnection> {
        self.connect_with(None).await
    }

    async fn connect_with(&self, timeout: Option<Duration>) -> RedisResult<MultiplexedConnection> {
        let config =
            AsyncConnectionConfig::new().set_response_timeout(timeout).set_connection_timeout(Some(CONNECT_TIMEOUT));
        match self.client.get_multiplexed_async_connection_with_config(&config).await {
            Ok(connection) => Ok(connection),
            Err(error) => Err(named(error, &self.name, self.client.get_connection_info().addr()).await),
        }
    }
}

impl NodeLogin {
    fn node(&self, host: &str, port: u16) -> RedisResult<Node> {
        let info = self.info(host, port)?;
        let name = info.addr().to_string();
        let client =
            if self.is_tls { Client::build_with_tls(info, self.certificates.clone())? } else { Client::open(info)? };
        Ok(Node { name, client })
    }

    fn info(&self, host: &str, port: u16) -> RedisResult<ConnectionInfo> {
        let mut settings = RedisConnectionInfo::default().set_db(self.db);
        if let Some(username) = &self.login.username {
            settings = settings.set_username(username);
        }
        if let Some(password) = &self.login.password {
            settings = settings.set_password(password.reveal());
        }
        let info = address(host, port, self.is_tls).into_connection_info()?;
        Ok(info.set_redis_settings(settings).set_tcp_settings(tcp()))
    }
}

fn address(host: &str, port: u16, is_tls: bool) -> ConnectionAddr {
    if is_tls {
        ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host.to_owned(), port)
    }
}

fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn sentinel(target: &RedisTarget, master: &str, login: &NodeLogin) -> RedisResult<SentinelClient> {
    let hosts = target.endpoint.hosts.iter().map(|(host, port)| address(host, *port, login.is_tls));
    let mut builder = SentinelClientBuilder::new(hosts, master, SentinelServerType::Master)?
        .set_client_to_redis_db(login.db)
        .set_client_to_redis_tcp_settings(tcp())
        .set_client_to_sentinel_tcp_settings(tcp());
    if login.is_tls {
        builder = builder
            .set_client_to_redis_tls_mode(TlsMode::Secure)
            .set_client_to_sentinel_tls_mode(TlsMode::Secure)
            .set_client_to_redis_certificates(login.certificates.clone())
            .set_client_to_sentinel_certificates(login.certificates.clone());
    }
    if let Some(username) = &login.login.username {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = &login.login.password {
        builder = builder.set_client_to_redis_password(password.reveal());
    }
    if let Some(username) = &target.sentinel_login.username {
        builder = builder.set_client_to_sentinel_username(username);
    }
    if let Some(password) = target.sentinel_login.password.as_ref().map(Secret::reveal) {
        builder = builder.set_client_to_sentinel_password(password);
    }
    builder.build()
}

fn cluster(target: &RedisTarget, login: &NodeLogin) -> RedisResult<ClusterClient> {
    let infos: Vec<ConnectionInfo> =
        target.endpoint.hosts.iter().map(|(host, port)| login.info(host, *port)).collect::<RedisResult<_>>()?;
    let mut builder = ClusterClientBuilder::new(infos)
        .connection_timeout(CONNECT_TIMEOUT)
        .response_timeout(RESPONSE_TIMEOUT)
        .overall_response_timeout(Some(RESPONSE_TIMEOUT))
        .tcp_settings(tcp())
        // The client would also resend commands that may have been executed, see `shared.rs`.
        .retries(0);
    if login.is_tls {
        builder = builder.tls(TlsMode::Secure).certs(login.certificates.clone());
    }
    builder.build()
}

/// rustls has two providers compiled in, so the process has to choose one.
fn choose_crypto() {
    // An error means that it was chosen before.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

async fn in_time<T>(answer: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    let late = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "no connection in time");
    tokio::time::timeout(CONNECT_TIMEOUT, answer).await.map_err(late)?
}
