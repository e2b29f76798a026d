//! Publishers that connect to Redis directly and record what it acknowledged.

use super::redis_setup::{PublisherTarget, REPLY_TIMEOUT};
use crate::support::{topic, try_connection};
use crate::topic_client::TopicClient;
use fastrand::Rng;
use gateway_worker::publication::{Draft, Priority};
use gateway_worker::queue::{Connection, QueueError, RedisTarget};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The topics with a publisher each; `child` only gets follow-ups.
pub(super) const TOPICS: [&str; 8] = ["plain", "prio", "dedup", "list", "retries", "parent", "delayed", "slow"];
pub(super) const CHILD: &str = "child";
/// The maximum attempts of a message.
pub(super) const ATTEMPTS: u32 = 3;

/// What is recorded of the messages of one key.
#[derive(Debug, Clone, Default)]
pub(super) struct Published {
    /// Acknowledged by Redis.
    pub(super) acknowledged: usize,
    /// The reply was lost: the message may exist.
    pub(super) unknown: usize,
    /// Every run fails.
    pub(super) is_doomed: bool,
    /// It publishes a follow-up.
    pub(super) has_child: bool,
    /// Copies of finished messages are dropped.
    pub(super) is_deduplicated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PublishResult {
    Acknowledged,
    Refused,
    Unknown,
}

#[derive(Default)]
pub(super) struct Ledger {
    published: Mutex<BTreeMap<String, Published>>,
}

impl Ledger {
    pub(super) fn read(&self) -> BTreeMap<String, Published> {
        self.published.lock().unwrap().clone()
    }

    fn note(&self, key: &str, result: PublishResult, about: Published) {
        let mut published = self.published.lock().unwrap();
        let one = published.entry(key.to_owned()).or_insert(about);
        match result {
            PublishResult::Acknowledged => one.acknowledged += 1,
            PublishResult::Unknown => one.unknown += 1,
            PublishResult::Refused => {}
        }
    }
}

/// The key of the follow-up of a message.
pub(super) fn child_of(parent: &str) -> String {
    format!("child-of-{parent}")
}

/// One publisher for each topic, which runs until it is stopped.
pub(super) struct Publishers {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Publishers {
    /// `stage` distinguishes the ids of several sets of publishers.
    pub(super) fn start(target: &PublisherTarget, ledger: &Arc<Ledger>, stage: &str, seed: u64) -> Self {
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        for (number, name) in TOPICS.into_iter().enumerate() {
            let publisher = Publisher {
                name,
                stage: stage.to_owned(),
                queue: queue(&target.url, name),
                target: target.clone(),
                ledger: ledger.clone(),
                rng: Rng::with_seed(seed.wrapping_add(1 + number as u64)),
            };
            tasks.spawn(publisher.run(stop.clone()));
        }
        Self { stop, tasks }
    }

    pub(super) async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

fn queue(url: &str, name: &str) -> TopicClient {
    let connection = Connection::to(&RedisTarget::at(url).unwrap()).unwrap();
    TopicClient::new(&connection, "mq:", "consumer-group-{topic}", "publisher", &topic(name))
}

struct Publisher {
    name: &'static str,
    stage: String,
    queue: TopicClient,
    target: PublisherTarget,
    ledger: Arc<Ledger>,
    rng: Rng,
}

impl Publisher {
    async fn run(mut self, stop: CancellationToken) {
        let mut number = 0;
        while !stop.is_cancelled() {
            let key = format!("{}-{}-{number}", self.name, self.stage);
            number += 1;
            self.publish(&key).await;
            tokio::time::sleep(Duration::from_millis(self.rng.u64(30..130))).await;
        }
    }

    async fn publish(&mut self, key: &str) {
        let mut about = Published::default();
        let echo = json!({"do": "echo", "to": "seen"});
        let act = |of: Vec<Value>| json!({"do": "all", "key": key, "of": of}).to_string();
        let result = match self.name {
            "prio" => {
                let priority = [Priority::High, Priority::Normal, Priority::Low][self.rng.usize(..3)];
                self.send(key, &act(vec![echo]), Duration::ZERO, priority).await
            }
            "dedup" => {
                about.is_deduplicated = true;
                let data = act(vec![json!({"do": "sleep", "ms": self.rng.u64(..100)}), echo]);
                for _ in 0..self.rng.u32(..3) {
                    let result = self.send(key, &data, Duration::ZERO, Priority::Normal).await;
                    self.ledger.note(key, result, about.clone());
                    tokio::time::sleep(Duration::from_millis(self.rng.u64(..300))).await;
                }
                self.send(key, &data, Duration::ZERO, Priority::Normal).await
            }
            "list" => {
                let push = if self.rng.bool() { "LPUSH" } else { "RPUSH" };
                self.command(redis::cmd(push).arg("mq:list").arg(envelope(key, "list", &act(vec![echo])))).await
            }
            "retries" => {
                let times = self.rng.u32(..=ATTEMPTS);
                about.is_doomed = times >= ATTEMPTS;
                let data = act(vec![json!({"do": "fail", "times": times}), echo]);
                self.send(key, &data, Duration::ZERO, Priority::Normal).await
            }
            "parent" => {
                about.has_child = true;
                let child = json!({"do": "all", "key": child_of(key), "of": [&echo]});
                let data = act(vec![json!({"do": "send", "to": CHILD, "data": child}), echo]);
                self.send(key, &data, Duration::ZERO, Priority::Normal).await
            }
            "delayed" if self.rng.bool() => {
                let due = Timestamp::now().as_second() + self.rng.i64(..3);
                let envelope = envelope(key, "delayed", &act(vec![echo]));
                self.command(redis::cmd("ZADD").arg("mq:delay:delayed").arg(due).arg(envelope)).await
            }
            "delayed" => {
                let delay = Duration::from_millis(self.rng.u64(1..3000));
                self.send(key, &act(vec![echo]), delay, Priority::Normal).await
            }
            "slow" => {
                let data = act(vec![json!({"do": "sleep", "ms": self.rng.u64(100..1500)}), echo]);
                self.send(key, &data, Duration::ZERO, Priority::Normal).await
            }
            _ => self.send(key, &act(vec![echo]), Duration::ZERO, Priority::Normal).await,
        };
        self.ledger.note(key, result, about);
    }

    async fn send(&self, id: &str, data: &str, delay: Duration, priority: Priority) -> PublishResult {
        if self.target.nodes.is_empty() {
            return send(&self.queue, self.name, id, data, (delay, priority)).await;
        }
        // The library does not wait for replicas, so this sends the commands itself.
        let (name, message) = (self.name, envelope(id, self.name, data));
        let class = match priority {
            Priority::High => "high",
            Priority::Normal => "",
            Priority::Low => "low",
        };
        let mut pipe = redis::pipe();
        if delay > Duration::ZERO {
            let due = Timestamp::now().as_second() + 1;
            pipe.cmd("ZADD").arg(format!("mq:delay:{name}")).arg(due).arg(message);
        } else if class.is_empty() {
            pipe.cmd("XADD").arg(format!("mq:{name}")).arg("*").arg("message").arg(message);
        } else {
            pipe.cmd("HSETNX").arg(format!("{{mq:{name}}}:state")).arg(class).arg(1).ignore();
            pipe.cmd("XADD").arg(format!("{{mq:{name}}}:{class}")).arg("*").arg("message").arg(message);
        }
        self.send_with_plain_client(pipe).await
    }

    /// Publishes as plain clients do, with a new connection each time.
    async fn command(&self, command: &redis::Cmd) -> PublishResult {
        let mut pipe = redis::pipe();
        self.send_with_plain_client(pipe.add_command(command.clone()).to_owned()).await
    }

    /// With a replica, a message counts as acknowledged once the replica has it.
    async fn send_with_plain_client(&self, mut pipe: redis::Pipeline) -> PublishResult {
        let (target, is_watched) = (&self.target, !self.target.nodes.is_empty());
        pipe.ignore();
        pipe.cmd("WAIT").arg(u8::from(is_watched)).arg(300);
        let urls = if is_watched { &target.nodes[..] } else { std::slice::from_ref(&target.url) };
        for url in urls {
            // Nothing was sent to a node that is unreachable.
            let Ok(Ok(mut connection)) = tokio::time::timeout(REPLY_TIMEOUT, try_connection(url)).await else {
                continue;
            };
            match tokio::time::timeout(REPLY_TIMEOUT, pipe.query_async::<(u32,)>(&mut connection)).await {
                Ok(Ok((replicas,))) if replicas > 0 || !is_watched => return PublishResult::Acknowledged,
                // A replica accepts no writes.
                Ok(Err(error)) if error.to_string().contains("read only replica") => {}
                Ok(Err(error)) => return publish_result(&error.to_string()),
                _ => return PublishResult::Unknown,
            }
        }
        PublishResult::Refused
    }
}

async fn send(queue: &TopicClient, name: &str, id: &str, data: &str, how: (Duration, Priority)) -> PublishResult {
    let topic = topic(name);
    let draft = Draft { delay: how.0, priority: how.1, ..Draft::new(id.to_owned(), &topic, data) };
    let sent: Result<(), QueueError> = queue.publisher.publish(&draft.encode(Timestamp::now()).unwrap()).await;
    sent.map_or_else(|error| publish_result(&error.to_string()), |()| PublishResult::Acknowledged)
}

/// Only these errors prove that Redis did nothing.
fn publish_result(error: &str) -> PublishResult {
    if error.contains("OOM") || error.contains("LOADING") { PublishResult::Refused } else { PublishResult::Unknown }
}

fn envelope(id: &str, topic: &str, data: &str) -> String {
    format!(
        r#"{{"id":"{id}","topic":"{topic}","data":{data},"timestamp":"{}","retry":0,"max_retry":3}}"#,
        Timestamp::now()
    )
}

/// Publishes another copy of each of these finished messages. Returns their number.
pub(super) async fn copies(target: &PublisherTarget, keys: impl Iterator<Item = &String>) -> usize {
    let (queue, mut sent) = (queue(&target.url, "dedup"), 0);
    for key in keys {
        let data = json!({"do": "all", "key": key, "of": [{"do": "echo", "to": "seen"}]}).to_string();
        let result = send(&queue, "dedup", key, &data, (Duration::ZERO, Priority::Normal)).await;
        assert_eq!(result, PublishResult::Acknowledged, "a healthy Redis accepts {key}");
        sent += 1;
    }
    sent
}
