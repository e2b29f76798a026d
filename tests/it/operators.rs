//! Redis operations under load (failover, slot migration) and wrong configurations.

use crate::certificates::Certificates;
use crate::process::Process;
use crate::servers::{Mode, Server, parse_command};
use crate::support::{
    Gateway, OK, Plugins, TOKEN, built, command, connect_without_timeout, guest, try_connection, until,
};
use gateway_worker::events;
use gateway_worker::queue::{Connection, Health, OutboxRelay, RedisTarget};
use redis::FromRedisValue;
use std::collections::BTreeSet;

async fn run_on<T: FromRedisValue>(node: &Process, command: &str) -> T {
    let answer = parse_command(command).query_async(&mut connect_without_timeout(&node.url()).await).await;
    answer.unwrap_or_else(|error| panic!("{command}: {error}"))
}

fn ids(gateway: &Gateway, topic: &str) -> BTreeSet<String> {
    gateway.outcomes(topic).into_iter().map(|(id, _)| id).collect()
}

/// Publishes to the first node and waits until its replica has the message.
async fn publish_safely(server: &Server, id: &str, data: &str) {
    let mut connection = connect_without_timeout(&server.nodes[0].url()).await;
    let body = format!(r#"{{"id":"{id}","topic":"puppet","data":{data}}}"#);
    let mut add = redis::cmd("XADD");
    add.arg("mq:puppet").arg("*").arg("message").arg(body);
    add.query_async::<String>(&mut connection).await.unwrap();
    parse_command("WAIT 1 0").query_async::<i64>(&mut connection).await.unwrap();
}

/// None if the connection was cut, as sentinels do during a failover.
async fn role(node: &Process) -> Option<String> {
    let mut connection = try_connection(&node.url()).await.ok()?;
    let role: Vec<redis::Value> = parse_command("ROLE").query_async(&mut connection).await.ok()?;
    redis::from_redis_value(role.into_iter().next()?).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_master_dies_the_worker_continues_with_its_replica() {
    let mut server = Server::start_sentinel_with_fast_failover().await;
    let plugins = Plugins::with("puppet", &built("puppet"), "");
    let mut gateway = Gateway::start_with(&server.url, &plugins, &["--queue-lease", "2s"]);
    for number in 0..40 {
        publish_safely(&server, &format!("before-{number}"), r#"{"do":"sleep","ms":1}"#).await;
    }
    until("the first are done", async || (ids(&gateway, "puppet").len() == 40).then_some(())).await;
    // These are in flight when it dies.
    for number in 0..10 {
        publish_safely(&server, &format!("midst-{number}"), r#"{"do":"sleep","ms":5000}"#).await;
    }
    until("some are in flight", async || {
        (run_on::<Vec<redis::Value>>(&server.nodes[0], "XPENDING mq:puppet consumer-group-puppet - + 100").await.len()
            >= 5)
            .then_some(())
    })
    .await;
    server.nodes[0].kill();
    for number in 0..40 {
        server.publish("puppet", &format!("after-{number}"), r#"{"do":"sleep","ms":1}"#).await;
    }
    server.is("all are settled", "XLEN mq:puppet", 0).await;
    assert_eq!(ids(&gateway, "puppet").len(), 90);
    gateway.until_ready().await;
    assert!(gateway.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_the_worker_follows_the_new_master() {
    let server = Server::start_sentinel_with_fast_failover().await;
    let plugins = Plugins::with("puppet", &guest(OK), "");
    let gateway = Gateway::start_with(&server.url, &plugins, &[]);
    for number in 0..20 {
        publish_safely(&server, &format!("before-{number}"), "{}").await;
    }
    let fail_over = async || {
        let mut connection = connect_without_timeout(&server.sentinels[0].url()).await;
        parse_command("SENTINEL FAILOVER mymaster").query_async::<()>(&mut connection).await.ok()
    };
    until("the sentinels start the failover", fail_over).await;
    until("the roles have changed", async || {
        (role(&server.nodes[0]).await? == "slave" && role(&server.nodes[1]).await? == "master").then_some(())
    })
    .await;
    for number in 0..20 {
        server.publish("puppet", &format!("after-{number}"), "{}").await;
    }
    server.is("all are settled", "XLEN mq:puppet", 0).await;
    assert_eq!(ids(&gateway, "puppet").len(), 40);
    gateway.until_ready().await;
}

/// Without a failover by sentinels, which would cut the connections to the old master.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_master_is_replaced_by_the_one_that_the_sentinels_name() {
    let server = Server::start(Mode::Sentinel).await;
    let plugins = Plugins::with("puppet", &guest(OK), "");
    let gateway = Gateway::start_with(&server.url, &plugins, &[]);
    server.publish("puppet", "before", "{}").await;
    gateway.until_outcome("puppet", "before", "done").await;
    server.is("settled", "XLEN mq:puppet", 0).await;
    let (old, new) = (&server.nodes[0], &server.nodes[1]);
    for sentinel in &server.sentinels {
        run_on::<()>(sentinel, "SENTINEL REMOVE mymaster").await;
    }
    run_on::<()>(new, "REPLICAOF NO ONE").await;
    run_on::<()>(old, &format!("REPLICAOF 127.0.0.1 {}", new.port)).await;
    for sentinel in &server.sentinels {
        run_on::<()>(sentinel, &format!("SENTINEL MONITOR mymaster 127.0.0.1 {} 2", new.port)).await;
    }
    server.publish("puppet", "after", "{}").await;
    gateway.until_outcome("puppet", "after", "done").await;
    server.is("settled", "XLEN mq:puppet", 0).await;
}

/// A listener counts the connections and closes them.
#[tokio::test(flavor = "multi_thread")]
async fn reconnects_to_an_unreachable_redis_are_shared_and_rate_limited() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let connection = Connection::to(&RedisTarget::at(&url).unwrap()).unwrap();
    let counting = async {
        for _ in 0..500 {
            drop(listener.accept().await.unwrap());
        }
    };
    let asking = async {
        for _ in 0..1000 {
            assert!(matches!(connection.ping().await, Health::Away(_)));
        }
    };
    tokio::select! {
        () = counting => panic!("each call has opened a connection"),
        () = asking => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_migration_under_load_loses_no_message() {
    let server = Server::start(Mode::Cluster).await;
    let plugins = Plugins::with("puppet", &built("puppet"), "[retry]\nbase = \"1ms\"\n");
    let gateway = Gateway::start_with(&server.url, &plugins, &["--queue-lease", "2s"]);
    let slot: u16 = run_on(&server.nodes[0], "CLUSTER KEYSLOT mq:puppet").await;
    let from = usize::from(slot > 5460) + usize::from(slot > 10922);
    let (source, target) = (&server.nodes[from], &server.nodes[(from + 1) % 3]);
    let mut moved = 0;
    let moving = async {
        until("messages flow", async || (gateway.outcomes("puppet").len() > 20).then_some(())).await;
        moved = move_slot(&server, slot, source, target).await;
    };
    let publishing = async {
        for number in 0..150 {
            let act = if number % 3 == 0 { r#"{"do":"sleep","ms":300}"# } else { r#"{"do":"sleep","ms":1}"# };
            server.publish("puppet", &format!("m-{number}"), act).await;
        }
        // This one is delayed several times during the migration.
        server.publish("puppet", "again", r#"{"do":"retry","reason":"r","after_ms":200}"#).await;
    };
    tokio::join!(moving, publishing);
    assert!(moved > 0);
    server.publish("puppet", "last", r#"{"do":"sleep","ms":1}"#).await;
    gateway.until_outcome("puppet", "last", "done").await;
    server.dead("puppet").await;
    server.is("all are settled", "XLEN mq:puppet", 0).await;
    assert_eq!(ids(&gateway, "puppet").len(), 152);
    let keys: Vec<String> = run_on(target, "KEYS *mq:puppet*").await;
    let in_slot: usize = run_on(target, &format!("CLUSTER COUNTKEYSINSLOT {slot}")).await;
    assert_eq!(in_slot, keys.len(), "{keys:?}");
}

/// Migrates a slot as `redis-cli --cluster reshard` does. Returns the number of keys.
async fn move_slot(server: &Server, slot: u16, source: &Process, target: &Process) -> usize {
    let id = async |node: &Process| run_on::<String>(node, "CLUSTER MYID").await;
    let (source_id, target_id) = (id(source).await, id(target).await);
    run_on::<()>(target, &format!("CLUSTER SETSLOT {slot} IMPORTING {source_id}")).await;
    run_on::<()>(source, &format!("CLUSTER SETSLOT {slot} MIGRATING {target_id}")).await;
    let mut moved = 0;
    loop {
        let keys: Vec<String> = run_on(source, &format!("CLUSTER GETKEYSINSLOT {slot} 100")).await;
        if keys.is_empty() {
            break;
        }
        let mut migrate = redis::cmd("MIGRATE");
        migrate.arg("127.0.0.1").arg(target.port).arg("").arg(0).arg(5000).arg("KEYS").arg(&keys);
        migrate.query_async::<String>(&mut connect_without_timeout(&source.url()).await).await.unwrap();
        moved += keys.len();
    }
    for node in [target, source].into_iter().chain(&server.nodes) {
        run_on::<()>(node, &format!("CLUSTER SETSLOT {slot} NODE {target_id}")).await;
    }
    moved
}

/// A key of a migrating slot may already be on the target node.
#[tokio::test(flavor = "multi_thread")]
async fn an_ask_redirection_is_followed() {
    let server = Server::start(Mode::Cluster).await;
    let slot: u16 = run_on(&server.nodes[0], "CLUSTER KEYSLOT mq:t").await;
    let from = usize::from(slot > 5460) + usize::from(slot > 10922);
    let (source, target) = (&server.nodes[from], &server.nodes[(from + 1) % 3]);
    let queue = server.queue("t", "me");
    assert_eq!(OutboxRelay::new(queue.handle.clone()).len().await.unwrap(), 0);
    let id = async |node: &Process| run_on::<String>(node, "CLUSTER MYID").await;
    run_on::<()>(target, &format!("CLUSTER SETSLOT {slot} IMPORTING {}", id(source).await)).await;
    run_on::<()>(source, &format!("CLUSTER SETSLOT {slot} MIGRATING {}", id(target).await)).await;
    assert_eq!(OutboxRelay::new(queue.handle.clone()).len().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_cluster_master_blocks_no_topic_of_the_others() {
    let mut server = Server::start(Mode::Cluster).await;
    let topics: Vec<String> = (0..8).map(|number| format!("topic-{number}")).collect();
    let plugins = Plugins::with("many", &guest(OK), &format!("topics = {topics:?}\n"));
    let gateway = Gateway::start_with(&server.url, &plugins, &[]);
    let mut on_first = Vec::new();
    for topic in &topics {
        server.publish(topic, "before", "{}").await;
        gateway.until_outcome(topic, "before", "done").await;
        server.is("settled", &format!("XLEN mq:{topic}"), 0).await;
        let slot: u16 = run_on(&server.nodes[1], &format!("CLUSTER KEYSLOT mq:{topic}")).await;
        on_first.push(slot <= 5460);
    }
    assert!(on_first.contains(&true) && on_first.contains(&false), "{on_first:?}");
    server.nodes[0].kill();
    until("the worker is not ready", async || (gateway.get("/ready").await.0 == 503).then_some(())).await;
    for (topic, _) in topics.iter().zip(&on_first).filter(|(_, is_on_first)| !**is_on_first) {
        server.publish(topic, "midst", "{}").await;
        gateway.until_outcome(topic, "midst", "done").await;
    }
    server.nodes[0].restart();
    for topic in &topics {
        server.publish(topic, "after", "{}").await;
        gateway.until_outcome(topic, "after", "done").await;
    }
    gateway.until_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_a_plain_url_is_reported_with_the_scheme_to_use() {
    let server = Server::start(Mode::Cluster).await;
    let url = format!("redis://127.0.0.1:{}", server.nodes[0].port);
    let plugins = Plugins::with("topic", &guest(OK), "");
    let gateway = Gateway::start_with(&url, &plugins, &[]);
    gateway.until_logged("write redis+cluster://", |line| line["level"] == "WARN").await;
    let topics = (0..6).map(|number| command(&["publish", &format!("topic-{number}"), "--redis-url", &url]));
    let refused: Vec<_> = topics.filter(|output| !output.status.success()).collect();
    let stderr = String::from_utf8(refused[0].stderr.clone()).unwrap();
    assert!(stderr.contains("redis+cluster://"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_an_unknown_authority_is_rejected_and_the_worker_keeps_running() {
    let server = Server::start(Mode::Tls).await;
    let unknown = Certificates::new("somebody else");
    let path = |name: &str| unknown.path(name);
    let plugins = Plugins::with("topic", &guest(OK), "");
    let unknown_ca = ["--redis-tls-ca", &path("ca.crt")];
    let gateway = Gateway::start_with(&server.url, &plugins, &unknown_ca);
    until_not_ready(&gateway, &["refuses", "certificate", "redis.tls_ca"]).await;
    drop(gateway);
    // A client without a certificate, or with one of an unknown authority.
    let known = &server.flags()[..2];
    for client in [
        vec![],
        vec!["--redis-tls-cert".to_owned(), path("client.crt"), "--redis-tls-key".to_owned(), path("client.key")],
    ] {
        let client: Vec<&str> = client.iter().map(String::as_str).collect();
        let gateway = Gateway::start_with(&server.url, &plugins, &[known, &client].concat());
        until_not_ready(&gateway, &["Redis"]).await;
        assert!(gateway.logged("Redis answers").is_empty());
    }
}

/// Waits until the worker is live, but not ready for a reason with these words.
async fn until_not_ready(gateway: &Gateway, words: &[&str]) {
    until(&format!("not ready: {words:?}"), async || {
        let token = format!("Authorization: Bearer {TOKEN}\r\n");
        let (status, body) = gateway.request("GET", "/ready", &token).await;
        (status == 503 && body.contains("not_ready") && words.iter().all(|word| body.contains(word))).then_some(())
    })
    .await;
    assert_eq!(gateway.get("/healthz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_or_missing_acl_rights_are_reported() {
    let server = Server::start(Mode::Tls).await;
    let plugins = Plugins::with("topic", &guest(OK), "");
    let wrong = server.url.replace("s3cret", "wrong");
    let gateway = Gateway::start_with(&wrong, &plugins, &server.flags());
    until_not_ready(&gateway, &["refuses", "authentication failed"]).await;
    let started = gateway.until_logged("gateway-worker starting", |_| true).await;
    assert!(!started.to_string().contains("wrong"), "{started}");
    drop(gateway);
    let cluster = wrong.replace("rediss://", "rediss+cluster://");
    let gateway = Gateway::start_with(&cluster, &plugins, &server.flags());
    until_not_ready(&gateway, &["refuses", "authentication failed"]).await;
    drop(gateway);
    let cluster = server.url.replace("rediss://", "rediss+cluster://");
    let gateway = Gateway::start_with(&cluster, &plugins, &server.flags());
    until_not_ready(&gateway, &["refuses", "cluster support disabled", "redis://"]).await;
    drop(gateway);

    server.run::<()>("ACL SETUSER gateway -xreadgroup").await;
    let gateway = Gateway::start_with(&server.url, &plugins, &server.flags());
    server.publish("topic", "a", "{}").await;
    let line = gateway
        .until_logged(events::NOT_CONSUMING, |line| line["error"].as_str().unwrap().contains("no permissions"))
        .await;
    assert!(line["error"].as_str().unwrap().contains("xreadgroup"), "{line}");
    server.run::<()>("ACL SETUSER gateway +xreadgroup").await;
    gateway.until_outcome("topic", "a", "done").await;
}

#[test]
fn invalid_redis_settings_are_reported_at_startup() {
    let stderr_of = |args: &[&str]| {
        let output = command(&[&["run"], args].concat());
        assert_eq!(output.status.code(), Some(78), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let all = stderr_of(&[
        "--redis-url",
        "redis+sentinel://u:hidden@h:1",
        "--redis-tls-ca",
        "/missing",
        "--redis-tls-cert",
        "/dev/null",
    ]);
    for word in
        ["redis.url", "master's name", "(redis.tls_ca): /missing", "(redis.tls_cert): /dev/null", "set both or neither"]
    {
        assert!(all.contains(word), "{word}: {all}");
    }
    assert!(!all.contains("hidden"), "{all}");
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.crt").display().to_string();
    std::fs::write(&ca, "-----BEGIN CERTIFICATE-----\nbm90IG9uZQ==\n-----END CERTIFICATE-----\n").unwrap();
    assert!(stderr_of(&["--redis-url", "rediss://h", "--redis-tls-ca", &ca]).contains("redis"));
}
