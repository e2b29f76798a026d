//! Many topics over few connections: a worker opens as many connections to Redis as it
//! may, whatever the number of its topics, and serves them all.

use crate::support::{Gateway, OK, Plugins, Redis, guest, until};
use gateway_worker::events;

/// One plugin for so many topics.
fn plugin_for(topics: usize) -> Plugins {
    let names: Vec<String> = (0..topics).map(|number| format!("\"t{number}\"")).collect();
    Plugins::with("many", &guest(OK), &format!("topics = [{}]\n", names.join(", ")))
}

/// The worker has no more connections, besides the one that asks here. Those that the
/// test had before may need a moment to be closed.
async fn until_at_most(redis: &Redis, limit: usize) {
    until(&format!("at most {limit} connections"), async || {
        (redis.run::<String>("CLIENT LIST TYPE normal").await.lines().count() <= limit + 1).then_some(())
    })
    .await;
}

async fn until_all_done(gateway: &Gateway, topics: usize, id: &str) {
    for number in 0..topics {
        gateway.until_outcome(&format!("t{number}"), id, "done").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_serves_more_topics_than_it_has_connections() {
    for (limit, topics) in [(3, 30), (5, 60)] {
        let redis = Redis::start();
        let plugins = plugin_for(topics);
        let gateway = Gateway::start_with(&redis.url(), &plugins, &["--redis-connections", &limit.to_string()]);
        for id in ["first", "second"] {
            for number in 0..topics {
                redis.publish(&format!("t{number}"), id, "{}").await;
            }
            until_all_done(&gateway, topics, id).await;
            until_at_most(&redis, limit).await;
        }
        let (_, metrics) = gateway.json("/metrics").await;
        assert_eq!(metrics["consumers"]["active"], topics);
        assert!(gateway.stop().await.success());
    }
}

/// Lists, priorities, delays, pauses and limits over all workers need no connection of
/// their own either.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_topic_is_served_without_a_seat() {
    let redis = Redis::start();
    let plugins = Plugins::with("plain", &guest(OK), "topics = [\"plain\", \"list\", \"paused\"]\n").and(
        "limited",
        &guest(OK),
        "global_concurrency = 1\n[rate]\nlimit = 100\nper = \"1s\"\n",
    );
    redis.run::<i64>("HSET {mq:paused}:state paused 1").await;
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--redis-connections", "3"]);
    gateway.until_ready().await;
    redis.publish("paused", "waits", "{}").await;
    redis.run::<i64>(r#"LPUSH mq:list {"id":"in-a-list","topic":"list","data":{}}"#).await;
    gateway.until_outcome("list", "in-a-list", "done").await;
    redis.run::<i64>(r#"RPUSH mq:list {"id":"again","topic":"list","data":{}}"#).await;
    gateway.until_outcome("list", "again", "done").await;
    redis.publish_later("plain", "later", "{}", std::time::Duration::from_millis(300)).await;
    gateway.until_outcome("plain", "later", "done").await;
    for topic in ["plain", "limited"] {
        for priority in ["high", "low", "normal"] {
            let arguments = [
                "publish",
                topic,
                "--redis-url",
                &redis.url(),
                "--id",
                priority,
                "--priority",
                priority,
                "--data",
                "{}",
            ];
            assert_eq!(crate::support::run_command(&arguments).0, 0);
            gateway.until_outcome(topic, priority, "done").await;
        }
    }
    assert!(gateway.outcomes("paused").is_empty());
    redis.run::<i64>("HDEL {mq:paused}:state paused").await;
    gateway.until_outcome("paused", "waits", "done").await;
    until_at_most(&redis, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_topic_takes_the_seat_of_an_idle_one() {
    let redis = Redis::start();
    let plugins = plugin_for(2);
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--redis-connections", "4"]);
    let seated = |topic: &str| gateway.logged(events::SEAT_TAKEN).iter().filter(|line| line["topic"] == topic).count();
    until("a topic has the seat", async || (seated("t0") + seated("t1") == 1).then_some(())).await;
    let busy = if seated("t0") == 1 { "t1" } else { "t0" };
    until("the busy topic has the seat", async || {
        redis.publish(busy, "x", "{}").await;
        (seated(busy) > 0).then_some(())
    })
    .await;
    redis.is("everything is settled", &format!("XLEN mq:{busy}"), 0).await;
    until_at_most(&redis, 4).await;
}

/// Another program may use up the connections that the server has.
#[tokio::test(flavor = "multi_thread")]
async fn topics_are_served_though_the_server_has_no_connection_for_their_seats() {
    let redis = Redis::start();
    // One is the test's, which leaves five for the worker, which wants sixteen.
    let mut connection = redis.connection().await;
    let limit = redis::cmd("CONFIG").arg("SET").arg("maxclients").arg(6).to_owned();
    limit.query_async::<()>(&mut connection).await.unwrap();
    let plugins = plugin_for(30);
    let gateway = Gateway::start_with(&redis.url(), &plugins, &[]);
    gateway.until_ready().await;
    until("all are consumed", async || (gateway.json("/metrics").await.1["consumers"]["active"] == 30).then_some(()))
        .await;
    let add = (0..30).map(|number| {
        format!(
            "redis.call('XADD','mq:t{number}','*','message','{{\"id\":\"m\",\"topic\":\"t{number}\",\"data\":{{}}}}')"
        )
    });
    let script = add.collect::<Vec<_>>().join(" ");
    redis::cmd("EVAL").arg(script).arg(0).query_async::<redis::Value>(&mut connection).await.unwrap();
    until_all_done(&gateway, 30, "m").await;
}

/// The descriptors of the worker's process do not run out with its topics.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_many_topics_and_few_descriptors_answers_http() {
    let redis = Redis::start();
    let plugins = plugin_for(1100);
    let worker = Gateway::command(&redis.url(), &plugins, &[]);
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "ulimit -n 256 && exec \"$0\" \"$@\""]).arg(worker.get_program()).args(worker.get_args());
    for (name, value) in worker.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let gateway = Gateway::spawn(&mut limited);
    gateway.until_ready().await;
    redis.publish("t1099", "last", "{}").await;
    gateway.until_outcome("t1099", "last", "done").await;
    assert_eq!(gateway.get("/healthz").await.0, 200);
    until_at_most(&redis, 16).await;
}
