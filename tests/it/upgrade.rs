//! Upgrades: data that one release has written is completed by the next one, and the
//! scripts of both releases can run concurrently.

use crate::support::{Gateway, Plugins, Redis, built, text, until};
use gateway_worker::capability::{KeyValue, NewValue, Only, Quota};
use gateway_worker::events;
use gateway_worker::publication::Draft;
use gateway_worker::queue::{KeyValueStore, RedisTarget};
use jiff::Timestamp;
use redis::Cmd;
use std::collections::BTreeMap;
use std::time::Duration;

const WRITTEN: &str = include_str!("../golden/queue-1.jsonl");

/// A command of the golden file: a list of words, each character a byte.
fn command(line: &str) -> Cmd {
    let words: Vec<String> = serde_json::from_str(line).unwrap();
    let bytes = |word: &String| word.chars().map(|char| u8::try_from(u32::from(char)).unwrap()).collect::<Vec<u8>>();
    let mut built = Cmd::new();
    words.iter().for_each(|word| {
        built.arg(bytes(word));
    });
    built
}

/// A Redis with the data of an earlier release, whose delayed messages are due.
async fn as_it_was_left() -> Redis {
    let redis = Redis::start();
    let mut connection = redis.connection().await;
    for line in WRITTEN.lines() {
        command(line)
            .query_async::<redis::Value>(&mut connection)
            .await
            .unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    // A marker counts within the window of its time: the message `finished` has finished now.
    let ([seconds, _], day): ([u64; 2], u64) = (redis.run("TIME").await, 86_400_000);
    let slice = seconds * 1000 / day;
    let marker = format!("HSET {{mq:t}}:dedup:{slice} 05343e9845302eb730fa9d18ac7b28d5 {}", seconds * 1000);
    redis.run::<()>(&marker).await;
    redis.run::<()>(&format!("HSET {{mq:t}}:state dedup-windows {day}:{}", (slice + 2) * day)).await;
    let tokens: Vec<String> = redis.run("ZRANGE {mq:t}:delayed 0 -1").await;
    assert_eq!(tokens.len(), 5);
    for token in tokens {
        redis.run::<i64>(&format!("ZADD {{mq:t}}:delayed XX CH 1 {token}")).await;
    }
    redis
}

/// The attempt of each handled message by its id; none is handled twice.
async fn seen(redis: &Redis) -> BTreeMap<String, u64> {
    let mut seen = BTreeMap::new();
    for envelope in redis.envelopes("mq:seen").await {
        let id = envelope["data"]["id"].as_str().unwrap().to_owned();
        let again = seen.insert(id.clone(), envelope["data"]["attempt"].as_u64().unwrap());
        assert_eq!(again, None, "{id} was handled twice");
    }
    seen
}

const T: &str = "[grants]\npublish = [\"seen\"]\n[retry]\nattempts = 3\nbase = \"1ms\"\n[dedup]\nwindow = \"24h\"\n\
    [rate]\nlimit = 1000\nper = \"1s\"\n\
    [schedule]\ncron = \"0 0 29 2 *\"\ncatch_up = \"one\"\ndata = { do = \"echo\", to = \"seen\" }\n";

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_an_earlier_release_are_completed() {
    let redis = as_it_was_left().await;
    let publish = "[grants]\npublish = [\"seen\"]\n";
    let plugins =
        Plugins::with("t", &built("puppet"), T).and("l", &built("puppet"), publish).and("p", &built("puppet"), publish);
    let gateway = Gateway::start_with(&redis.url(), &plugins, &["--queue-lease", "500ms"]);
    // It has crashed once in isolation.
    gateway.until_logged(events::RUNNING_ISOLATED, |line| line["isolated_crashes"] == 1).await;
    gateway.until_outcome("t", "put off", "postpone").await;
    let fires = |id: &String| id.starts_with("cron:t:20") && id.ends_with("-02-29T00:00:00Z");
    let all = until("all are handled", async || Some(seen(&redis).await).filter(|seen| seen.len() == 14)).await;
    assert_eq!(all.keys().filter(|id| fires(id)).count(), 1, "{all:?}");
    for (id, attempt) in [
        ("lost", 1),
        ("waits", 1),
        ("once", 1),
        ("high", 1),
        ("low", 1),
        ("delayed", 1),
        ("delayed high", 1),
        ("again", 2),
        ("1795615878533-0", 2),
        ("replayed", 1),
        ("listed", 1),
        ("put-aside", 1),
        ("in-hand", 1),
    ] {
        assert_eq!(all.get(id), Some(&attempt), "{id}: {all:?}");
    }
    // Earlier attempts are counted.
    assert!(!gateway.outcomes("t").iter().any(|(_, outcome)| outcome == "retry"));
    // A copy of a finished message has not run.
    gateway.until_logged(events::SETTLED, |line| line["outcome"] == "duplicate").await;
    for (key, count) in [("mq:t", 0), ("{mq:t}:high", 0), ("{mq:t}:low", 0), ("{mq:l}:work", 0), ("{mq:t}:outbox", 0)] {
        redis.is(key, &format!("XLEN {key}"), count).await;
    }
    redis.is("only the postponed message is delayed", "ZCARD {mq:t}:delayed", 1).await;
    redis.is("with its body", "HLEN {mq:t}:delayed:body", 1).await;
    redis.is("no isolation is recorded", "EXISTS {mq:t}:isolated", 0).await;
    // The follow-ups in the outbox were relayed.
    assert_eq!(redis.envelopes("mq:other").await[0]["id"], "f-1");
    assert_eq!(redis.envelopes("{mq:other}:high").await[0]["id"], "f-2");
    assert_eq!(redis.run::<i64>("HGET {mq:t}:state done").await, 12);
    // A paused topic keeps its message, and a list stays a list for publishers.
    assert_eq!((redis.run::<i64>("XLEN mq:p").await, redis.in_flight("p").await), (1, 0));
    redis.publish("l", "later", r#"{"do":"echo","to":"seen"}"#).await;
    until("it is handled", async || seen(&redis).await.contains_key("later").then_some(())).await;
    assert_eq!(redis.run::<i64>("EXISTS mq:l").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_data_of_an_earlier_release_is_readable() {
    let redis = as_it_was_left().await;
    let dead = redis.dead("t").await;
    assert_eq!(text(&dead, "gw-reason"), "reject");
    let url = redis.url();
    let run = |args: &[&str]| {
        let output = crate::support::command(&[args, &["--redis-url", &url]].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let shown = run(&["dead", "ls", "t"]);
    assert!(shown.contains("rejected") && shown.contains("no: not so"), "{shown}");
    run(&["dead", "replay", "t", "--all"]);
    assert_eq!(redis.run::<i64>("XLEN {mq:t}:dead").await, 0);
    let once = Draft::new("once".to_owned(), &crate::support::topic("t"), "{}").encode(Timestamp::now()).unwrap();
    assert!(!redis.queue("t", "p").publisher.publish_once(&once, Duration::from_secs(60)).await.unwrap());
    // The next token is not used yet.
    redis.publish_later("t", "another", "{}", Duration::from_secs(3600)).await;
    assert_eq!(redis.run::<i64>("HEXISTS {mq:t}:delayed:body p:3").await, 1);
    let store = KeyValueStore::new(&RedisTarget::at(&url).unwrap(), "mq:").unwrap();
    assert_eq!(store.get("keeper", "k").await.unwrap().as_deref(), Some(&b"kept"[..]));
    let quota = Quota { keys: 1, bytes: 1000 };
    let other = NewValue { key: "j", value: b"v", ttl: None, only: Only::Always };
    assert_eq!(store.set("keeper", quota, other).await.unwrap_err().code, "too-many");
}

// The effects of scripts on keys are a contract; their text is not.
const OLD_DONE: &str = include_str!("../golden/scripts-1/done.lua");
const OLD_SETTLE: &str = include_str!("../golden/scripts-1/settle.lua");
const OLD_RENEW: &str = include_str!("../golden/scripts-1/renew.lua");

/// Acts as a worker of that release: takes up to four messages and settles half of them
/// with a follow-up. Returns their number.
async fn old_worker_takes(redis: &Redis) -> usize {
    const GROUP: &str = "consumer-group-puppet";
    let mut connection = redis.connection().await;
    let read = format!("XREADGROUP GROUP {GROUP} old COUNT 4 STREAMS mq:puppet >");
    type Streams = Vec<(String, Vec<(String, BTreeMap<String, String>)>)>;
    let Some(mut streams) = redis.run::<Option<Streams>>(&read).await else { return 0 };
    let taken = streams.remove(0).1;
    let ids: Vec<&String> = taken.iter().map(|(id, _)| id).collect();
    let mut renew = redis::cmd("EVAL");
    renew.arg(OLD_RENEW).arg(1).arg("mq:puppet").arg(GROUP).arg("old").arg(&ids);
    assert!(renew.query_async::<Vec<String>>(&mut connection).await.unwrap().is_empty());
    for (at, (id, fields)) in taken.iter().enumerate() {
        let name = serde_json::from_str::<serde_json::Value>(&fields["message"]).unwrap()["id"].clone();
        let envelope = format!(r#"{{"id":"x","topic":"seen","data":{{"id":{name},"attempt":1}}}}"#);
        if at % 2 == 0 {
            let add = format!("XADD mq:seen * message {envelope}");
            redis.run::<String>(&add).await;
            let mut done = redis::cmd("EVAL");
            done.arg(OLD_DONE).arg(2).arg(&["mq:puppet", "{mq:puppet}:state"]).arg(GROUP).arg(1).arg(1);
            done.arg("done").arg(id).query_async::<i64>(&mut connection).await.unwrap();
            continue;
        }
        let own = ["state", "delayed", "delayed:body", "dead", "outbox"].map(|part| format!("{{mq:puppet}}:{part}"));
        let theirs =
            ["state", "work", "delayed", "delayed:body", "high", "low"].map(|part| format!("{{mq:seen}}:{part}"));
        let mut settle = redis::cmd("EVAL");
        settle.arg(OLD_SETTLE).arg(13).arg("mq:puppet").arg(&own[..]).arg("mq:seen").arg(&theirs[..]);
        settle.arg(GROUP).arg("old").arg(1).arg("").arg(1);
        settle.arg("done").arg(id).arg(0).arg(1).arg(7).arg(0).arg("").arg(2).arg("message").arg(envelope);
        let settled: Vec<String> = settle.query_async(&mut connection).await.unwrap();
        assert_eq!(settled, ["ok"]);
    }
    taken.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_of_two_releases_run_concurrently_and_survive_a_script_flush() {
    const COUNT: usize = 600;
    let redis = Redis::start();
    let plugins = Plugins::with("puppet", &built("puppet"), "[grants]\npublish = [\"seen\"]\n");
    redis.publish("puppet", "0", r#"{"do":"echo","to":"seen"}"#).await;
    redis.queue("puppet", "publisher").open().await.unwrap();
    assert_eq!(old_worker_takes(&redis).await, 1);
    let _gateways = [(); 2].map(|()| Gateway::start(&redis, &plugins));
    for number in 1..COUNT {
        redis.publish("puppet", &number.to_string(), r#"{"do":"echo","to":"seen"}"#).await;
        if number % 10 == 0 {
            old_worker_takes(&redis).await;
            redis.run::<()>("SCRIPT FLUSH").await;
        }
    }
    until("all are handled", async || (seen(&redis).await.len() == COUNT).then_some(())).await;
    redis.is("all are settled", "XLEN mq:puppet", 0).await;
    assert_eq!(redis.run::<i64>("HGET {mq:puppet}:state done").await, COUNT as i64);
}
