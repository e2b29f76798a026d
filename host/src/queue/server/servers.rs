//! Which servers the settings name, and how to connect to the right one. A client is
//! made for each connection, because a password in a file may have changed.

use super::diagnosis::named;
use crate::queue::error::QueueError;
use crate::settings::{ClientPem, Login, Password, RedisMode, RedisTarget};
use crate::tls;
use redis::aio::MultiplexedConnection;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
};
use redis::{RedisConnectionInfo, RedisError, RedisResult, TlsCertificates, TlsMode};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// An answer that takes longer counts as lost: no command sent here blocks.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

pub(crate) struct Servers {
    kind: Kind,
    name: String,
    /// How to log in to a node, whatever its address.
    login: Arc<NodeLogin>,
}

enum Kind {
    Single(Node),
    Sentinel(Sentinels),
    /// Some of its nodes.
    Cluster(Vec<(String, u16)>),
}

struct Sentinels {
    hosts: Vec<(String, u16)>,
    master: String,
    login: Login,
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
    address: ConnectionAddr,
    login: Arc<NodeLogin>,
}

struct NodeLogin {
    is_tls: bool,
    login: Login,
    db: i64,
    certificates: TlsCertificates,
}

impl Servers {
    /// An error means that the settings are invalid.
    pub(crate) fn new(target: &RedisTarget) -> Result<Self, QueueError> {
        choose_crypto();
        let place = &target.endpoint;
        let client_tls = target.tls_client.as_ref().map(client_tls).transpose()?;
        let certificates = TlsCertificates { client_tls, root_cert: target.tls_ca.clone() };
        let login = NodeLogin { is_tls: place.is_tls, login: place.login.clone(), db: place.db, certificates };
        let login = Arc::new(login);
        let kind = match &place.mode {
            RedisMode::Single => {
                let (host, port) = place.hosts.first().cloned().unwrap_or_default();
                let node = Node::new(&host, port, &login);
                node.client()?;
                Kind::Single(node)
            }
            RedisMode::Sentinel { master } => {
                let (hosts, master) = (place.hosts.clone(), master.clone());
                let sentinels = Sentinels { hosts, master, login: target.sentinel_login.clone() };
                sentinels.client(&login)?;
                Kind::Sentinel(sentinels)
            }
            RedisMode::Cluster => {
                login.cluster(&place.hosts)?;
                Kind::Cluster(place.hosts.clone())
            }
        };
        Ok(Self { kind, name: target.redacted_url(), login })
    }

    pub(crate) fn name(&self) -> String {
        self.name.clone()
    }

    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self.kind, Kind::Cluster(_))
    }

    /// Whether the next login may need another password than the last one.
    pub(crate) fn password_may_change(&self) -> bool {
        matches!(self.login.login.password, Some(Password::File { .. }))
    }

    /// The connection that all callers share.
    pub(crate) async fn connect(&self) -> RedisResult<Live> {
        match &self.kind {
            Kind::Cluster(seeds) => match in_time(self.login.cluster(seeds)?.get_async_connection()).await {
                Ok(connection) => Ok(Live::Cluster(connection)),
                Err(error) => Err(self.named(error, seeds).await),
            },
            Kind::Single(_) | Kind::Sentinel(_) => {
                let node = self.master().await?;
                Ok(Live::Node { connection: node.connect().await?, name: node.name })
            }
        }
    }

    /// The one master; an error for a cluster.
    pub(crate) async fn master(&self) -> RedisResult<Node> {
        match &self.kind {
            Kind::Single(node) => Ok(node.clone()),
            Kind::Sentinel(sentinels) => {
                let mut client = sentinels.client(&self.login)?;
                match in_time(client.async_get_client()).await {
                    Ok(client) => Ok(Node::at(client.get_connection_info().addr().clone(), &self.login)),
                    Err(error) => Err(self.named(error, &sentinels.hosts).await),
                }
            }
            Kind::Cluster(_) => Err((ErrorKind::Client, "a cluster has more than one master").into()),
        }
    }

    /// An error of the sentinels or of a cluster as a whole; the first one is asked why.
    async fn named(&self, error: RedisError, seeds: &[(String, u16)]) -> RedisError {
        let (host, port) = seeds.first().cloned().unwrap_or_default();
        named(error, &self.name, &address(&host, port, self.login.is_tls)).await
    }

    /// A node of the cluster. A node that does not know its own host has the host
    /// of the settings.
    pub(crate) fn node(&self, host: Option<&str>, port: u16) -> Node {
        let host = match (host, &self.kind) {
            (Some(host), _) => host,
            (None, Kind::Cluster(seeds)) => seeds.first().map(|(host, _)| host.as_str()).unwrap_or_default(),
            (None, _) => "",
        };
        Node::new(host, port, &self.login)
    }
}

impl From<Node> for Servers {
    fn from(node: Node) -> Self {
        Self { name: node.name.clone(), login: node.login.clone(), kind: Kind::Single(node) }
    }
}

impl Node {
    fn new(host: &str, port: u16, login: &Arc<NodeLogin>) -> Self {
        Self::at(address(host, port, login.is_tls), login)
    }

    fn at(address: ConnectionAddr, login: &Arc<NodeLogin>) -> Self {
        Self { name: address.to_string(), address, login: login.clone() }
    }

    fn client(&self) -> RedisResult<Client> {
        let (login, info) = (&self.login, self.login.info(self.address.clone())?);
        if login.is_tls { Client::build_with_tls(info, login.certificates.clone()) } else { Client::open(info) }
    }

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
        match self.client()?.get_multiplexed_async_connection_with_config(&config).await {
            Ok(connection) => Ok(connection),
            Err(error) => Err(self.login.explained(named(error, &self.name, &self.address).await)),
        }
    }
}

impl NodeLogin {
    /// Nobody would expect that a user without a password has the empty one.
    fn explained(&self, error: RedisError) -> RedisError {
        match (&self.login.username, &self.login.password) {
            (Some(user), None) if error.kind() == ErrorKind::AuthenticationFailed => {
                let advice = "set redis.password or redis.password_file, or let the user need none (nopass)";
                let error = error.detail().unwrap_or_default();
                let text = format!("{error}; no password is set for the user \"{user}\": {advice}");
                (ErrorKind::AuthenticationFailed, "login refused", text).into()
            }
            _ => error,
        }
    }

    fn info(&self, address: ConnectionAddr) -> RedisResult<ConnectionInfo> {
        let (username, password) = self.login.credentials().map_err(unreadable)?;
        let mut settings = RedisConnectionInfo::default().set_db(self.db);
        if let Some(username) = username {
            settings = settings.set_username(username);
        }
        if let Some(password) = password {
            settings = settings.set_password(password.reveal());
        }
        Ok(address.into_connection_info()?.set_redis_settings(settings).set_tcp_settings(tcp()))
    }

    fn cluster(&self, seeds: &[(String, u16)]) -> RedisResult<ClusterClient> {
        let info = |(host, port): &(String, u16)| self.info(address(host, *port, self.is_tls));
        let infos: Vec<ConnectionInfo> = seeds.iter().map(info).collect::<RedisResult<_>>()?;
        let mut builder = ClusterClientBuilder::new(infos)
            .connection_timeout(CONNECT_TIMEOUT)
            .response_timeout(RESPONSE_TIMEOUT)
            .overall_response_timeout(Some(RESPONSE_TIMEOUT))
            .tcp_settings(tcp())
            // The client would also resend commands that may have been executed, see `shared.rs`.
            .retries(0);
        if self.is_tls {
            builder = builder.tls(TlsMode::Secure).certs(self.certificates.clone());
        }
        builder.build()
    }
}

impl Sentinels {
    fn client(&self, servers: &NodeLogin) -> RedisResult<SentinelClient> {
        let hosts = self.hosts.iter().map(|(host, port)| address(host, *port, servers.is_tls));
        let mut builder = SentinelClientBuilder::new(hosts, &self.master, SentinelServerType::Master)?
            .set_client_to_redis_db(servers.db)
            .set_client_to_redis_tcp_settings(tcp())
            .set_client_to_sentinel_tcp_settings(tcp());
        if servers.is_tls {
            builder = builder
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_sentinel_tls_mode(TlsMode::Secure)
                .set_client_to_redis_certificates(servers.certificates.clone())
                .set_client_to_sentinel_certificates(servers.certificates.clone());
        }
        let (username, password) = servers.login.credentials().map_err(unreadable)?;
        if let Some(username) = username {
            builder = builder.set_client_to_redis_username(username);
        }
        if let Some(password) = password {
            builder = builder.set_client_to_redis_password(password.reveal());
        }
        let (username, password) = self.login.credentials().map_err(unreadable)?;
        if let Some(username) = username {
            builder = builder.set_client_to_sentinel_username(username);
        }
        if let Some(password) = password {
            builder = builder.set_client_to_sentinel_password(password.reveal());
        }
        builder.build()
    }
}

/// A certificate that the library refuses would fail at each connection.
fn client_tls(client: &ClientPem) -> Result<ClientTlsConfig, QueueError> {
    let (cert, key) = (client.cert.clone(), client.key.reveal().as_bytes().to_vec());
    tls::check_client_certificate(&cert, &key).map_err(|problem| {
        QueueError::InvalidSettings(format!("redis.tls_cert, .tls_key (REDIS_TLS_CERT, REDIS_TLS_KEY): {problem}"))
    })?;
    Ok(ClientTlsConfig { client_cert: cert, client_key: key })
}

/// A file with a password may be replaced in this moment; the next attempt reads it again.
fn unreadable(problem: String) -> RedisError {
    io::Error::other(problem).into()
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

/// rustls has two providers compiled in, so the process has to choose one.
fn choose_crypto() {
    // An error means that it was chosen before.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

async fn in_time<T>(answer: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    let late = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "no connection in time");
    tokio::time::timeout(CONNECT_TIMEOUT, answer).await.map_err(late)?
}
