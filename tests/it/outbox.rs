//! The outbox: follow-ups to topics that no script can reach together with their parent.

use crate::proxy::Proxy;
use crate::servers::{Mode, Server};
use crate::support::{Gateway, OK, Plugins, Redis, built, connect_without_timeout, guest, topic, until};
use crate::topic_client::TopicClient;
use gateway_worker::events;
use gateway_worker::queue::{Connection, OutboxRelay, RedisTarget};
use std::time::Duration;

const OPTIONS: [&str; 2] = ["--queue-lease", "500ms"];

fn entry(topic: &str, due: i64, priority: &str, id: &str) -> redis::Cmd {
    let mut add = redis::cmd("XADD");
    add.arg("{mq:t}:outbox").arg("*").arg("topic").arg(topic).arg("due").arg(due).arg("priority").arg(priority);
    add.arg("message").arg(format!(r#"{{"id":"{id}","topic":"{topic}","data":1}}"#));
    add
}

async fn add_to_outbox(redis: &Redis, topic: &str, due: i64, priority: &str, id: &str) {
    entry(topic, due, priority, id).query_async::<String>(&mut redis.connection().await).await.unwrap();
}

/// Adds `count` follow-ups for one topic.
async fn add_to_outbox_many(redis: &Redis, topic: &str, count: usize) {
    let mut all = redis::pipe();
    for number in 0..count {
        all.add_command(entry(topic, 0, "", &number.to_string()));
    }
    all.query_async::<Vec<String>>(&mut redis.connection().await).await.unwrap();
}

async fn ids(redis: &Redis, key: &str) -> Vec<String> {
    redis.envelopes(key).await.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outbox_of_a_lost_worker_is_relayed() {
    let redis = Redis::start();
    let hour = jiff::Timestamp::now().as_millisecond() + 3_600_000;
    add_to_outbox(&redis, "one", 0, "", "taken by the dead").await;
    add_to_outbox(&redis, "one", 0, "high", "urgent").await;
    redis.run::<()>("XGROUP CREATE {mq:t}:outbox relay 0").await;
    redis.run::<redis::Value>("XREADGROUP GROUP relay dead COUNT 2 STREAMS {mq:t}:outbox >").await;
    add_to_outbox(&redis, "two", 0, "", "at once").await;
    add_to_outbox(&redis, "two", hour, "low", "later").await;
    let plugins = Plugins::with("t", &guest(OK), "");
    let _gateway = Gateway::start_with(&redis.url(), &plugins, &OPTIONS);
    redis.publish("t", "wakes the lane", "{}").await;
    redis.is("the outbox is empty", "XLEN {mq:t}:outbox", 0).await;
    assert_eq!(ids(&redis, "mq:one").await, ["taken by the dead"]);
    assert_eq!(ids(&redis, "{mq:one}:high").await, ["urgent"]);
    assert_eq!(ids(&redis, "mq:two").await, ["at once"]);
    let later: Vec<(String, i64)> = redis.run("ZRANGE {mq:two}:delayed 0 -1 WITHSCORES").await;
    assert_eq!(later, [("p:low:1".to_owned(), hour)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undeliverable_follow_up_blocks_no_other_and_is_not_lost() {
    let redis = Redis::start();
    redis.run::<()>("SET mq:broken text").await;
    add_to_outbox(&redis, "broken", 0, "", "waits").await;
    add_to_outbox(&redis, "fine", 0, "", "goes").await;
    redis.publish("t", "wakes the lane", "{}").await;
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = Gateway::start_with(&redis.url(), &plugins, &OPTIONS);
    redis.is("the other follow-up has arrived", "XLEN mq:fine", 1).await;
    gateway.until_logged(events::FOLLOW_UP_REFUSED, |_| true).await;
    redis.run::<i64>("DEL mq:broken").await;
    until("this one arrives too", async || {
        (redis.run::<i64>("XLEN mq:broken").await == 1 && redis.run::<i64>("XLEN {mq:t}:outbox").await == 0)
            .then_some(())
    })
    .await;
    assert_eq!(redis.run::<i64>("XLEN mq:fine").await, 1);
}

/// A topic on each master of a cluster, in order.
async fn topics_apart(server: &Server) -> [String; 3] {
    let mut topics = [const { None }; 3];
    for number in 0.. {
        let name = format!("t{number}");
        let slot: usize = server.run(&format!("CLUSTER KEYSLOT mq:{name}")).await;
        topics[slot / 5461].get_or_insert(name);
        if topics.iter().all(Option::is_some) {
            break;
        }
    }
    topics.map(Option::unwrap)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_cluster_node_duplicates_and_delays_no_other_follow_up() {
    let server = Server::start(Mode::Cluster).await;
    let [parent, fine, full] = topics_apart(&server).await;
    let manifest = format!("topics = [\"{parent}\"]\n[grants]\npublish = [\"{fine}\", \"{full}\"]\n");
    let plugins = Plugins::with("puppet", &built("puppet"), &manifest);
    let gateway = Gateway::start_with(&server.url, &plugins, &OPTIONS);
    let node = connect_without_timeout(&server.nodes[2].url()).await;
    let set_memory = async |bytes: u64| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("maxmemory").arg(bytes).query_async::<()>(&mut node.clone()).await.unwrap();
    };
    set_memory(1).await;
    let send = |to: &str| format!(r#"{{"do":"publish","to":"{to}","times":1,"then":null}}"#);
    let all = [&fine, &full, &fine, &full].map(|to| send(to)).join(",");
    server.publish(&parent, "first", &format!(r#"{{"do":"all","of":[{all}]}}"#)).await;
    server.is("the others have arrived", &format!("XLEN mq:{fine}"), 2).await;
    // The others are retried.
    let out = format!("{{mq:{parent}}}:outbox");
    until("tried often", async || {
        let rows: Vec<(String, String, u64, u64)> = server.run(&format!("XPENDING {out} relay - + 10")).await;
        (rows.len() == 2 && rows.iter().all(|(.., deliveries)| *deliveries > 4)).then_some(())
    })
    .await;
    server.publish(&parent, "second", &send(&fine)).await;
    server.is("later ones arrive too", &format!("XLEN mq:{fine}"), 3).await;
    let warnings = gateway.logged(events::FOLLOW_UP_REFUSED);
    assert!(warnings.len() == 1 && warnings[0]["level"] == "WARN" && warnings[0]["to"] == full, "{warnings:?}");
    set_memory(0).await;
    server.is("the outbox is empty", &format!("XLEN {out}"), 0).await;
    for (topic, expected) in [(&fine, 3), (&full, 2)] {
        assert_eq!(server.run::<i64>(&format!("XLEN mq:{topic}")).await, expected, "{topic}");
    }
    gateway.until_logged(events::FOLLOW_UPS_ACCEPTED, |line| line["to"] == full).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn follow_ups_relayed_by_a_slow_worker_are_not_relayed_twice() {
    const LEASE: Duration = Duration::from_secs(2);
    let redis = Redis::start();
    add_to_outbox_many(&redis, "one", 100).await;
    let proxy = Proxy::start(&redis).await;
    proxy.set_latency(60);
    let connection = Connection::to(&RedisTarget::at(&proxy.url()).unwrap()).unwrap();
    let slow = TopicClient::new(&connection, "mq:", "consumer-group-{topic}", "slow", &topic("t"));
    let relaying = tokio::spawn(async move { OutboxRelay::new(slow.handle).relay(LEASE).await.unwrap() });
    redis.is("the relay has begun", "XLEN mq:one", 1).await;
    let mut other = OutboxRelay::new(redis.queue("t", "other").handle);
    let mut relayed = 0;
    until("all are relayed", async || {
        relayed += other.relay(LEASE).await.unwrap().arrived;
        (redis.run::<i64>("XLEN {mq:t}:outbox").await == 0).then_some(())
    })
    .await;
    assert_eq!((relayed, relaying.await.unwrap().arrived), (0, 100));
    assert_eq!(redis.run::<i64>("XLEN mq:one").await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn follow_ups_behind_many_undeliverable_ones_are_relayed() {
    let redis = Redis::start();
    redis.run::<()>("SET mq:broken text").await;
    add_to_outbox_many(&redis, "broken", 1500).await;
    add_to_outbox_many(&redis, "fine", 1).await;
    redis.run::<()>("XGROUP CREATE {mq:t}:outbox relay 0").await;
    redis.run::<redis::Value>("XREADGROUP GROUP relay dead COUNT 2000 STREAMS {mq:t}:outbox >").await;
    redis.publish("t", "wakes the lane", "{}").await;
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = Gateway::start_with(&redis.url(), &plugins, &OPTIONS);
    redis.is("the last one has arrived", "XLEN mq:fine", 1).await;
    redis.is("it is acknowledged", "XLEN {mq:t}:outbox", 1500).await;
    assert_eq!(gateway.logged(events::FOLLOW_UP_REFUSED).len(), 1);
    redis.run::<i64>("DEL mq:broken").await;
    redis.is("all others have arrived", "XLEN {mq:t}:outbox", 0).await;
    assert_eq!(redis.run::<i64>("XLEN mq:broken").await, 1500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relayed_follow_up_that_could_not_be_acknowledged_is_not_sent_twice() {
    const LEASE: Duration = Duration::from_millis(100);
    let redis = Redis::start();
    add_to_outbox(&redis, "one", 0, "", "once").await;
    let mut outbox = OutboxRelay::new(redis.queue("t", "me").handle);
    redis.run::<()>("ACL SETUSER default -xack").await;
    assert!(outbox.relay(LEASE).await.is_err());
    redis.is("it has arrived", "XLEN mq:one", 1).await;
    let free = "XPENDING {mq:t}:outbox relay IDLE 100 - + 10";
    until("its lease has expired", async || (redis.run::<Vec<redis::Value>>(free).await.len() == 1).then_some(()))
        .await;
    redis.run::<()>("ACL SETUSER default +xack").await;
    outbox.relay(LEASE).await.unwrap();
    assert_eq!(redis.run::<i64>("XLEN {mq:t}:outbox").await, 0);
    assert_eq!(redis.run::<i64>("XLEN mq:one").await, 1);
}
