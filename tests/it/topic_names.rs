//! Topics with every kind of legal name do all that a topic does; what has an illegal
//! name is named and never touched.

use crate::servers::{Mode, Server};
use crate::support::{Gateway, OK, Plugins, Redis, built, guest, is_control_or_bidi, run_command, until};
use gateway_worker::events;
use serde_json::{Value, json};

/// Longer than all other names, and as long as a name may be.
const LONGEST: &str = "x23456789/123456789/123456789/123456789/123456789/123456789/1234\
                       x23456789/123456789/123456789/123456789/123456789/123456789/1234";

const NAMES: [&str; 20] = [
    "\u{8ba2}\u{5355}.\u{63d0}\u{9192}",
    "a b",
    " ",
    "a/b",
    "/",
    "../../etc/passwd",
    "a:b",
    "a:high",
    "a:delay:b",
    "\u{5e9}\u{5dc}\u{5d5}\u{5dd}",
    "invoice\u{202e}fdp.exe",
    "\u{1f389}",
    "quote\"back\\slash'",
    "\\n",
    "%2F%00",
    "a*[b]?",
    "<script>&amp;",
    "--help",
    "$(id) `id` ; '%s",
    LONGEST,
];

/// The commands for one Redis.
struct Commands {
    url: String,
}

impl Commands {
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        // An equals sign and two dashes, because a name may begin with one.
        let split = args.iter().position(|arg| *arg == "--").unwrap_or(args.len());
        run_command(&[&args[..split], &["--redis-url", &self.url], &args[split..]].concat())
    }

    fn succeed(&self, args: &[&str]) -> String {
        let (code, out, error) = self.run(args);
        assert_eq!(code, 0, "{args:?}: {out}{error}");
        assert!(
            !(out.clone() + &error).contains(|char| char != '\n' && is_control_or_bidi(char)),
            "{args:?}: {out}{error}"
        );
        out
    }

    fn json(&self, args: &[&str]) -> Value {
        let split = args.iter().position(|arg| *arg == "--").unwrap_or(args.len());
        let out = self.succeed(&[&args[..split], &["--json"], &args[split..]].concat());
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}: {out}"))
    }

    fn publish(&self, topic: &str, id: &str, data: &Value, more: &[&str]) {
        let data = data.to_string();
        self.succeed(&[&["publish", "--id", id, "--data", &data], more, &["--", topic]].concat());
    }

    fn has_dead_letters(&self, topic: &str, count: usize) -> bool {
        self.json(&["dead", "ls", "--", topic]).as_array().unwrap().len() == count
    }
}

fn manifest(names: &[&str], more: &str) -> String {
    format!("topics = {}\n{more}\n[grants]\npublish = {}\n", json!(names), json!(names))
}

async fn every_name_does_all_that_a_topic_does(url: &str, names: &[&str], timer: &str) {
    let commands = Commands { url: url.to_owned() };
    let plugins = Plugins::with("puppet", &built("puppet"), &manifest(names, "[retry]\nbase = \"10ms\""));
    plugins.put("timer", &guest(OK), &manifest(&[timer], "[schedule]\ncron = \"* * * * * *\""));
    let gateway = Gateway::start_with(url, &plugins, &[]);
    gateway.until_loaded("puppet").await;
    let reject = json!({ "do": "reject", "code": "no", "reason": "as asked" });
    for (index, name) in names.iter().enumerate() {
        let next = names[(index + 1) % names.len()];
        // A follow-up, a retry, a delay, a priority and a dead letter.
        let follow = json!({ "do": "all", "of": [
            { "do": "fail", "times": 1 },
            { "do": "send", "to": next, "data": { "do": "sleep", "ms": 0 } }
        ] });
        commands.publish(name, "follow", &follow, &[]);
        commands.publish(name, "later", &json!({ "do": "sleep", "ms": 0 }), &["--delay", "50ms"]);
        commands.publish(name, "urgent", &json!({ "do": "sleep", "ms": 0 }), &["--priority", "high"]);
        commands.publish(name, "dies", &reject, &[]);
        commands.publish(name, "cancelled", &json!({ "do": "sleep", "ms": 0 }), &["--delay", "1h"]);
    }
    for name in names {
        for (id, outcome) in [("follow", "retry"), ("follow", "done"), ("later", "done"), ("urgent", "done")] {
            gateway.until_outcome(name, id, outcome).await;
        }
        let is_follow_up = |(id, outcome): &(String, String)| {
            outcome == "done" && !["follow", "later", "urgent"].contains(&id.as_str())
        };
        until(&format!("the follow-up of {name:?}"), async || {
            gateway.outcomes(name).iter().find(|one| is_follow_up(one)).map(drop)
        })
        .await;
        until("a dead letter", async || commands.has_dead_letters(name, 1).then_some(())).await;
        let letters = commands.json(&["dead", "ls", "--", name]);
        let entry = letters[0]["entry"].as_str().unwrap();
        assert_eq!((&letters[0]["topic"], &letters[0]["id"]), (&json!(name), &json!("dies")), "{letters}");
        assert_eq!(commands.json(&["dead", "show", "--", name, "dies"])["entry"], entry);
        assert_eq!(commands.succeed(&["dead", "replay", "--", name, entry]), "1 replayed\n");
        until("it has died again", async || {
            let letters = commands.json(&["dead", "ls", "--", name]);
            (letters.as_array().unwrap().len() == 1 && letters[0]["entry"] != entry).then_some(())
        })
        .await;
        assert_eq!(commands.succeed(&["dead", "purge", "--all", "--yes", "--", name]), "1 purged\n");
        assert!(commands.succeed(&["messages", "cancel", "--", name, "cancelled"]).starts_with("cancelled delayed"));
        assert_eq!(commands.json(&["messages", "ls", "--", name]), json!([]));
        assert_eq!(commands.json(&["topics", "show", "--", name])["topic"], *name);
        commands.succeed(&["topics", "pause", "--", name]);
        assert_eq!(commands.json(&["topics", "show", "--", name])["is_paused"], true);
        commands.succeed(&["topics", "resume", "--", name]);
    }
    gateway.until_logged(events::SETTLED, |line| line["topic"] == timer && line["outcome"] == "done").await;
    shows_names_everywhere(&commands, &gateway, names).await;
}

async fn shows_names_everywhere(commands: &Commands, gateway: &Gateway, names: &[&str]) {
    let listed = commands.json(&["topics", "ls"]);
    assert_eq!((&listed["unservable"], &listed["unservable_count"]), (&json!([]), &json!(0)));
    let listed: Vec<&str> =
        listed["topics"].as_array().unwrap().iter().map(|one| one["topic"].as_str().unwrap()).collect();
    let table = commands.succeed(&["topics", "ls"]);
    let (_, metrics) = gateway.json("/metrics").await;
    let (_, text) = gateway.get("/metrics/prometheus").await;
    for name in names {
        assert!(listed.contains(name), "{name:?}: {listed:?}");
        assert!(metrics["consumers"]["topics"].as_array().unwrap().contains(&json!(name)), "{name:?}: {metrics}");
        let label = name.replace('\\', "\\\\").replace('"', "\\\"");
        // One series for each name, on one line.
        let series = format!("gateway_messages_total{{topic=\"{label}\",outcome=\"done\"}} ");
        assert_eq!(text.lines().filter(|line| line.starts_with(&series)).count(), 1, "{series}");
    }
    for shown in ["\" \"", "invoice\\u{202e}fdp.exe", "\u{8ba2}\u{5355}.\u{63d0}\u{9192}", "--help"] {
        assert!(table.lines().any(|line| line.starts_with(&format!("{shown} "))), "{shown}: {table}");
    }
    assert_eq!(gateway.lines_with_control_characters(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_legal_name_does_all_that_a_topic_does() {
    let redis = Redis::start();
    every_name_does_all_that_a_topic_does(&redis.url(), &NAMES, "\u{6bcf}\u{79d2} a/b:c").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_legal_name_works_in_a_cluster() {
    let server = Server::start(Mode::Cluster).await;
    let names = ["\u{8ba2}\u{5355}", " ", "../a b", "a:high", "invoice\u{202e}fdp.exe", "--help"];
    every_name_does_all_that_a_topic_does(
        &server.url,
        &[&names[..], &["\u{8ba2}\u{5355}.\u{63d0}\u{9192}"]].concat(),
        "t \"",
    )
    .await;
}

/// Names that plain clients can choose and that no worker serves.
#[tokio::test(flavor = "multi_thread")]
async fn illegal_names_are_named_and_never_touched() {
    let redis = Redis::start();
    let commands = Commands { url: redis.url() };
    let too_long = format!("mq:{}", "x".repeat(129));
    let endless = format!("mq:{}", "x".repeat(100_000));
    let keys: [&[u8]; 14] = [
        b"mq:a{b}",
        b"mq:}",
        b"mq:*",
        b"mq:.",
        b"mq:..",
        b"mq:",
        b"mq:a\nb",
        b"mq:\x1b[2J",
        b"mq:\xff\xfe",
        b"mq:delay:",
        b"{mq:delay:x}:delayed",
        b"mq:dead-letter:{",
        too_long.as_bytes(),
        endless.as_bytes(),
    ];
    let mut connection = redis.connection().await;
    for key in keys {
        let mut push = redis::cmd("RPUSH");
        push.arg(key).arg("{}").query_async::<i64>(&mut connection).await.unwrap();
    }
    // Neither with a catch-all nor without.
    let plugins = Plugins::with("order", &guest(OK), "");
    let plain = Gateway::start(&redis, &plugins);
    let rest = Plugins::with("rest", &guest(OK), "topics = [\"*\", \"*:*\"]\n");
    let catching = Gateway::start(&redis, &rest);
    for gateway in [&plain, &catching] {
        until("each key is warned about", async || {
            (gateway.logged(events::UNSERVABLE_KEY).len() == keys.len()).then_some(())
        })
        .await;
        let warnings = gateway.logged(events::UNSERVABLE_KEY);
        for shown in ["mq:a{b}", "mq:*", "mq:", "mq:a\nb", "mq:\\xff\\xfe", "{mq:delay:x}:delayed", &too_long] {
            assert!(warnings.iter().any(|line| line["key"] == shown), "{shown:?}: {warnings:?}");
        }
        assert!(warnings.iter().all(|line| line["level"] == "WARN" && line.to_string().len() < 2000));
    }
    redis.publish("other", "a", "{}").await;
    catching.until_outcome("other", "a", "done").await;
    for key in keys {
        let mut length = redis::cmd("LLEN");
        assert_eq!(length.arg(key).query_async::<i64>(&mut connection).await.unwrap(), 1, "{key:?}");
    }
    let (code, out, error) = commands.run(&["topics", "ls"]);
    assert!(code == 0 && out.contains("other"), "{out}");
    for shown in ["mq:a{b}:", "mq:\\u{1b}[2J:", "mq:a\\u{a}b:", "mq:\\xff\\xfe:", "{mq:delay:x}:delayed:"] {
        assert!(error.contains(&format!("key of no legal topic: {shown}")), "{shown}: {error}");
    }
    assert!(error.lines().all(|line| line.chars().count() < 400), "{error}");
    assert_eq!(commands.json(&["topics", "ls"])["unservable_count"], keys.len());
    // Many are counted.
    for number in 0..500 {
        redis.run::<i64>(&format!("RPUSH mq:{{{number}}} x")).await;
    }
    let (_, _, error) = commands.run(&["topics", "ls"]);
    assert!(error.contains(&format!("and {} more keys of no legal topic", 500 + keys.len() - 100)), "{error}");
    let (code, _, error) = commands.run(&["topics", "show", "a{b}"]);
    assert!(code == 2 && error.contains("{ and } are not allowed"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catch_all_takes_names_with_colons_only_when_asked_to() {
    let redis = Redis::start();
    for name in ["eu:orders", "a:", "plain"] {
        redis.publish(name, "m", "{}").await;
    }
    let plugins = Plugins::with("rest", &guest(OK), "topics = [\"*\"]\n");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_outcome("plain", "m", "done").await;
    assert!(gateway.outcomes("eu:orders").is_empty());
    assert_eq!(redis.run::<i64>("XLEN mq:eu:orders").await, 1);
    plugins.put("rest", &guest(OK), "topics = [\"*\", \"*:*\"]\n");
    for name in ["eu:orders", "a:"] {
        gateway.until_outcome(name, "m", "done").await;
    }
}
