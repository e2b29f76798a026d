//! Which servers there are, and how a connection to the right one is made.

use super::shared::{Live, Shared};
use super::slots;
use crate::capability::Secret;
use crate::queue::QueueError;
use crate::settings::{Login, RedisMode, RedisTarget};
use redis::aio::MultiplexedConnection;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use redis::{RedisConnectionInfo, RedisResult, TlsCertificates, TlsMode};
use std::time::Duration;
use tokio::sync::Mutex;

/// An answer that takes longer is none: nothing sent here blocks.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Servers {
    kind: Kind,
    name: String,
    /// How a node is entered, whatever its address.
    entry: Entry,
}

enum Kind {
    Single(Node),
    Sentinel(Mutex<SentinelClient>),
    Cluster { client: ClusterClient, seeds: Vec<(String, u16)> },
}

/// One server.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) name: String,
    client: Client,
}

struct Entry {
    is_tls: bool,
    login: Login,
    db: i64,
    certificates: TlsCertificates,
}

impl Servers {
    pub(super) fn new(target: &RedisTarget) -> RedisResult<Self> {
        choose_crypto();
        let place = &target.endpoint;
        let client_tls = target.tls_client.as_ref().map(|client| ClientTlsConfig {
            client_cert: client.cert.clone(),
            client_key: client.key.reveal().as_bytes().to_vec(),
        });
        let certificates = TlsCertificates { client_tls, root_cert: target.tls_ca.clone() };
        let entry = Entry { is_tls: place.is_tls, login: place.login.clone(), db: place.db, certificates };
        let kind = match &place.mode {
            RedisMode::Single => {
                let (host, port) = place.hosts.first().cloned().unwrap_or_default();
                Kind::Single(entry.node(&host, port)?)
            }
            RedisMode::Sentinel { master } => Kind::Sentinel(Mutex::new(sentinel(target, master, &entry)?)),
            RedisMode::Cluster => Kind::Cluster { client: cluster(target, &entry)?, seeds: place.hosts.clone() },
        };
        Ok(Self { kind, name: target.redacted_url(), entry })
    }

    pub(super) fn name(&self) -> String {
        self.name.clone()
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.kind, Kind::Cluster { .. })
    }

    /// A connection for everybody.
    pub(super) async fn connect(&self) -> RedisResult<Live> {
        match &self.kind {
            Kind::Cluster { client, .. } => Ok(Live::Cluster(in_time(client.get_async_connection()).await?)),
            Kind::Single(_) | Kind::Sentinel(_) => {
                let node = self.master().await?;
                Ok(Live::Node { connection: node.connect().await?, name: node.name })
            }
        }
    }

    /// The server that owns a key now.
    pub(super) async fn owner_of(&self, key: &str, shared: &mut Shared) -> Result<Node, QueueError> {
        match &self.kind {
            Kind::Cluster { .. } => slots::owner(self, key, shared).await,
            Kind::Single(_) | Kind::Sentinel(_) => Ok(self.master().await?),
        }
    }

    async fn master(&self) -> RedisResult<Node> {
        match &self.kind {
            Kind::Single(node) => Ok(node.clone()),
            Kind::Sentinel(sentinel) => {
                let mut sentinel = in_time(async { Ok(sentinel.lock().await) }).await?;
                let client = in_time(sentinel.async_get_client()).await?;
                Ok(Node { name: client.get_connection_info().addr().to_string(), client })
            }
            Kind::Cluster { .. } => Err((redis::ErrorKind::Client, "a cluster has more than one master").into()),
        }
    }

    /// A node of the cluster. Where it does not tell its host, it is the one
    /// that we were told.
    pub(super) fn node(&self, host: Option<&str>, port: u16) -> RedisResult<Node> {
        let host = match (host, &self.kind) {
            (Some(host), _) => host,
            (None, Kind::Cluster { seeds, .. }) => seeds.first().map(|(host, _)| host.as_str()).unwrap_or_default(),
            (None, _) => "",
        };
        self.entry.node(host, port)
    }
}

impl From<Node> for Servers {
    fn from(node: Node) -> Self {
        let entry = Entry {
            is_tls: false,
            login: Login::default(),
            db: 0,
            certificates: TlsCertificates { client_tls: None, root_cert: None },
        };
        Self { name: node.name.clone(), kind: Kind::Single(node), entry }
    }
}

impl Node {
    pub(super) async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        self.connect_with(Some(RESPONSE_TIMEOUT)).await
    }

    /// Answers are waited for as long as they take.
    pub(super) async fn connect_patiently(&self) -> RedisResult<MultiplexedConnection> {
        self.connect_with(None).await
    }

    async fn connect_with(&self, timeout: Option<Duration>) -> RedisResult<MultiplexedConnection> {
        let config =
            AsyncConnectionConfig::new().set_response_timeout(timeout).set_connection_timeout(Some(CONNECT_TIMEOUT));
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }
}

impl Entry {
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

fn sentinel(target: &RedisTarget, master: &str, entry: &Entry) -> RedisResult<SentinelClient> {
    let hosts = target.endpoint.hosts.iter().map(|(host, port)| address(host, *port, entry.is_tls));
    let mut builder = SentinelClientBuilder::new(hosts, master, SentinelServerType::Master)?
        .set_client_to_redis_db(entry.db)
        .set_client_to_redis_tcp_settings(tcp())
        .set_client_to_sentinel_tcp_settings(tcp());
    if entry.is_tls {
        builder = builder
            .set_client_to_redis_tls_mode(TlsMode::Secure)
            .set_client_to_sentinel_tls_mode(TlsMode::Secure)
            .set_client_to_redis_certificates(entry.certificates.clone())
            .set_client_to_sentinel_certificates(entry.certificates.clone());
    }
    if let Some(username) = &entry.login.username {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = &entry.login.password {
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

fn cluster(target: &RedisTarget, entry: &Entry) -> RedisResult<ClusterClient> {
    let infos: Vec<ConnectionInfo> =
        target.endpoint.hosts.iter().map(|(host, port)| entry.info(host, *port)).collect::<RedisResult<_>>()?;
    let mut builder = ClusterClientBuilder::new(infos)
        .connection_timeout(CONNECT_TIMEOUT)
        .response_timeout(RESPONSE_TIMEOUT)
        .overall_response_timeout(Some(RESPONSE_TIMEOUT))
        .tcp_settings(tcp())
        // The crate would also send again what may have been done: see `shared.rs`.
        .retries(0);
    if entry.is_tls {
        builder = builder.tls(TlsMode::Secure).certs(entry.certificates.clone());
    }
    builder.build()
}

/// Everything else of the crates' choice has two providers to choose from.
fn choose_crypto() {
    // An error means that it has been chosen before.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

async fn in_time<T>(answer: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    let late = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "no connection in time");
    tokio::time::timeout(CONNECT_TIMEOUT, answer).await.map_err(late)?
}
