//! The way to Redis: one shared connection that finds its own way back, and a
//! fresh one for each blocking reader, which must not hold up anybody else.

use super::QueueError;
use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo};
use std::time::Duration;

/// An answer that takes longer is none: nothing sent here blocks.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where Redis is, in the words of the settings.
#[derive(Debug, Clone)]
pub struct RedisTarget {
    /// `redis://[user:password@]host:port[/db]`
    pub url: String,
}

impl RedisTarget {
    /// The address without its secrets, for logs.
    pub fn shown(&self) -> String {
        match self.url.rsplit_once('@') {
            Some((_, address)) => format!("redis://{address}"),
            None => self.url.clone(),
        }
    }
}

#[derive(Clone)]
pub struct Connection {
    client: Client,
    shared: ConnectionManager,
}

/// What a ping found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Connected,
    Away(String),
}

impl Connection {
    /// Makes the connection known; it is made when it is first used, so that a
    /// Redis which is away keeps nobody from starting. Must be called within a
    /// tokio runtime. An error means that the address is none.
    pub fn to(target: &RedisTarget) -> Result<Self, QueueError> {
        let info = target.url.as_str().into_connection_info()?;
        let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
        let client = Client::open(info.set_tcp_settings(tcp))?;
        let config = ConnectionManagerConfig::new()
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            // Who calls has a backoff of its own and says what is the matter.
            .set_number_of_retries(0)
            .set_max_delay(Duration::from_secs(1));
        let shared = ConnectionManager::new_lazy_with_config(client.clone(), config)?;
        Ok(Self { client, shared })
    }

    pub(super) fn shared(&self) -> ConnectionManager {
        self.shared.clone()
    }

    /// A connection of its own for blocking reads of this key. It has no
    /// response timeout: with one, the crate gives up on a read that Redis goes
    /// on with, and the message that it then delivers is lost on the way.
    pub(super) async fn blocking(&self, _key: &str) -> Result<MultiplexedConnection, QueueError> {
        let config =
            AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(Some(CONNECT_TIMEOUT));
        Ok(self.client.get_multiplexed_async_connection_with_config(&config).await?)
    }

    /// Ends the blocking read that a client of this id has under way for this
    /// key. It then finds nothing.
    pub(super) async fn unblock(&self, _key: &str, client_id: i64) -> Result<(), QueueError> {
        Ok(redis::cmd("CLIENT").arg("UNBLOCK").arg(client_id).query_async(&mut self.shared()).await?)
    }

    /// Whether one script may use both keys.
    pub(super) fn share_slot(&self, _one: &str, _other: &str) -> bool {
        true
    }

    pub async fn ping(&self) -> Health {
        match redis::cmd("PING").query_async::<redis::Value>(&mut self.shared()).await {
            Ok(_) => Health::Connected,
            Err(error) => Health::Away(QueueError::from(error).to_string()),
        }
    }
}

/// What the server may do to a queue behind our back, in words, if anything.
pub async fn check_policy(connection: &Connection) -> Option<String> {
    let info: String = redis::cmd("INFO").arg("memory").query_async(&mut connection.shared()).await.ok()?;
    let policy = info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:"))?;
    (policy != "noeviction").then(|| {
        format!(
            "maxmemory-policy is {policy}: Redis may evict whole queues when its memory is full; set it to noeviction"
        )
    })
}
