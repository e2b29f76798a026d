//! The Redis servers that the model runs on.

use crate::process::free_port;
use crate::support::{Redis, topic, until};
use crate::topic_client::TopicClient;
use gateway_worker::queue::{Connection, RedisTarget};
use redis::aio::MultiplexedConnection;

/// A single server, and a cluster of one node, where too no script may use keys of
/// two slots.
pub(super) struct Servers {
    single: Server,
    cluster: Server,
}

pub(super) struct Server {
    pub(super) is_cluster: bool,
    /// The connection of plain clients.
    pub(super) client: MultiplexedConnection,
    workers: Connection,
    _redis: Redis,
}

impl Servers {
    pub(super) async fn start() -> Self {
        let single = Redis::start_with(&["--appendonly", "no"]);
        let port = free_port().to_string();
        let options = ["--appendonly", "no", "--cluster-enabled", "yes", "--cluster-port", &port];
        let cluster = Redis::start_with(&options);
        cluster.run::<()>("CLUSTER ADDSLOTSRANGE 0 16383").await;
        until("the cluster is complete", async || {
            cluster.run::<String>("CLUSTER INFO").await.contains("cluster_state:ok").then_some(())
        })
        .await;
        Self { single: Server::of(single, false).await, cluster: Server::of(cluster, true).await }
    }

    pub(super) fn of(&self, is_cluster: bool) -> &Server {
        if is_cluster { &self.cluster } else { &self.single }
    }
}

impl Server {
    async fn of(redis: Redis, is_cluster: bool) -> Self {
        let url = if is_cluster { redis.url().replace("redis://", "redis+cluster://") } else { redis.url() };
        let workers = Connection::to(&RedisTarget::at(&url).unwrap()).unwrap();
        Self { is_cluster, client: redis.connection().await, workers, _redis: redis }
    }

    /// The client of a worker with this name.
    pub(super) fn queue(&self, me: &str) -> TopicClient {
        TopicClient::new(&self.workers, "mq:", "consumer-group-{topic}", me, &topic("t"))
    }
}
