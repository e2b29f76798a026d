//! The command line: output and exit codes.

use crate::support::{BINARY, Gateway, OK, Plugins, Redis, command, command_in, guest, until};
use gateway_worker::events;
use serde_json::Value;
use std::net::TcpListener;
use std::process::{Command, Stdio};

/// Exit code, stdout, stderr.
fn run(args: &[&str]) -> (i32, String, String) {
    let output = command(args);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_adds_to_the_topic_and_warns_when_no_worker_handles_it() {
    let redis = Redis::start();
    let url = redis.url();
    let publish = |more: &[&str]| run(&[&["publish", "topic", "--redis-url", &url], more].concat());

    let (code, id, stderr) = publish(&["--data", r#"{"a": 9007199254740993}"#]);
    assert_eq!(code, 0);
    assert!(stderr.contains("no active worker") && stderr.contains("waits"), "{stderr}");
    let envelope = &redis.envelopes("mq:topic").await[0];
    assert_eq!(envelope["id"], id.trim());

    let (code, id, _) = publish(&["--id", "mine", "--header", "traceparent=00-1", "--delay", "24h"]);
    assert_eq!((code, id.as_str()), (0, "mine\n"));
    redis.is("delayed", "ZCARD {mq:topic}:delayed", 1).await;

    assert_eq!(publish(&["--count", "1234"]).0, 0);
    redis.is("all are published", "XLEN mq:topic", 1235).await;

    let plugins = Plugins::with("topic", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    redis.is("handled", "XLEN mq:topic", 0).await;
    until("the worker is known", async || publish(&[]).2.is_empty().then_some(())).await;
    drop(gateway);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_can_come_from_a_file_or_stdin() {
    let redis = Redis::start();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("data.json"), "[1, 2]").unwrap();
    let output = command_in(folder.path(), &["publish", "t", "--redis-url", &redis.url(), "--data", "@data.json"]);
    assert!(output.status.success());
    let mut child = Command::new(BINARY)
        .args(["publish", "t", "--redis-url", &redis.url(), "--data", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"\"in\"").unwrap();
    assert!(child.wait().unwrap().success());
    let data: Vec<Value> = redis.envelopes("mq:t").await.into_iter().map(|one| one["data"].clone()).collect();
    assert_eq!(data, [serde_json::json!([1, 2]), Value::from("in")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_may_have_spaces_slashes_and_non_ascii_letters() {
    let redis = Redis::start();
    let (url, topic) = (redis.url(), "a b/\u{fc}:c");
    let plugins = Plugins::with("spaced", &guest(OK), &format!("topics = [\"{topic}\"]\n"));
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_loaded("spaced").await;
    let (code, id, error) = run(&["publish", topic, "--redis-url", &url]);
    assert_eq!(code, 0, "{error}");
    gateway.until_outcome(topic, id.trim(), "done").await;
    let (code, table, error) = run(&["topics", "ls", "--redis-url", &url]);
    assert!(code == 0 && table.contains(topic), "{table}{error}");
    assert_eq!(
        run(&["topics", "pause", topic, "--redis-url", &url]).1,
        format!("{topic} paused: workers start no messages of it until it is resumed\n")
    );
    assert_eq!(run(&["topics", "resume", topic, "--redis-url", &url]).1, format!("{topic} resumed\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_arguments_are_usage_errors_that_say_what_is_allowed() {
    for (args, fragment) in [
        (&["publish", "delay:x"][..], "invalid topic name"),
        (&["publish", "{a}"], "{ and }"),
        (&["publish", "t", "--data", "{"], "not JSON"),
        (&["publish", "t", "--data", "@/no/such"], "/no/such"),
        (&["publish", "t", "--delay", "soon"], "--delay"),
        (&["publish", "t", "--delay", "400d"], "366d"),
        (&["publish", "t", "--header", "x"], "NAME=VALUE"),
        (&["publish", "t", "--header", "worker-x=1"], "worker-"),
        (&["publish", "t", "--count", "0"], "--count"),
        (&["publish", "t", "--id", "a", "--count", "2"], "--count"),
        (&["publsh"], "publish"),
        (&[], "Usage"),
    ] {
        let (code, _, error) = run(args);
        assert_eq!(code, 2, "{args:?}: {error}");
        assert!(error.contains(fragment), "{args:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_distinguish_the_causes() {
    let closed = { TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
    let url = format!("redis://{closed}");
    for args in [&["publish", "t"][..], &["topics", "ls"], &["dead", "ls"]] {
        let (code, _, error) = run(&[args, &["--redis-url", &url]].concat());
        assert_eq!(code, 69, "{args:?}: {error}");
        assert!(error.contains("Redis is away"), "{error}");
    }
    let (code, _, error) = run(&["run", "--queue-lease", "1ms", "--log-format", "xml"]);
    assert_eq!(code, 78);
    assert!(error.contains("queue.lease") && error.contains("log.format"), "{error}");
    let (code, _, error) = run(&["run", "--config", "/no/such.toml"]);
    assert_eq!(code, 78, "{error}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, _, error) = run(&["run", "--listen", &address, "--redis-url", &url]);
    assert_eq!(code, 1);
    assert!(error.contains(&address), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_and_dead_letters_are_listed() {
    let redis = Redis::start();
    let plugins = Plugins::with("traps", &guest("(unreachable)"), "[retry]\nattempts = 1\n");
    let _gateway = Gateway::start(&redis, &plugins);
    redis.publish("traps", "x", r#"{"n":1}"#).await;
    redis.dead("traps").await;
    redis.publish("waits", "w", "{}").await;
    redis.run::<i64>("ZADD mq:delay:waits 4102444800 {\"id\":\"d\"}").await;
    let dead_letter =
        r#"{"error":"boom","failed_at":"2026-11-23T07:46:17Z","original_message":{"id":"old","retry":3}}"#;
    redis.run::<String>(&format!("XADD mq:dead-letter:waits * message {dead_letter}")).await;
    let url = redis.url();
    let topics = until("the worker is known", async || {
        let (code, out, error) = run(&["topics", "ls", "--json", "--redis-url", &url]);
        assert_eq!(code, 0, "{error}");
        let topics: Value = serde_json::from_str(&out).unwrap();
        (topics["topics"][0]["has_handler"] == true).then(|| topics["topics"].clone())
    })
    .await;
    let counts = |topic: &Value| ["waiting", "in_flight", "delayed", "dead"].map(|key| topic[key].as_u64().unwrap());
    assert_eq!((topics[0]["topic"].as_str(), counts(&topics[0])), (Some("traps"), [0, 0, 0, 1]));
    assert_eq!((topics[1]["topic"].as_str(), counts(&topics[1])), (Some("waits"), [1, 0, 1, 1]));
    assert_eq!(topics[1]["has_handler"], false);

    let (_, table, _) = run(&["topics", "ls", "--redis-url", &url]);
    assert!(table.contains("no handler: waits"), "{table}");
    let (_, table, _) = run(&["dead", "ls", "--redis-url", &url]);
    assert!(table.contains("trap") && table.contains("boom"), "{table}");
    let (_, json, _) = run(&["dead", "ls", "traps", "--json", "--redis-url", &url]);
    let letters: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((letters[0]["id"].as_str(), letters[0]["reason"].as_str()), (Some("x"), Some("trap")));
    assert!(letters[0]["message"].as_str().unwrap().contains(r#"{"n":1}"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn healthcheck_asks_the_worker_on_its_port() {
    let redis = Redis::start();
    let plugins = Plugins::empty();
    let gateway = Gateway::start(&redis, &plugins);
    let address = gateway.address().await;
    assert_eq!(run(&["healthcheck", "--listen", &address]).0, 0);
    let port = address.rsplit(':').next().unwrap();
    let output = Command::new(BINARY).arg("healthcheck").env_clear().env("APP_PORT", port).output().unwrap();
    assert!(output.status.success());
    gateway.kill();
    let (code, _, error) = run(&["healthcheck", "--listen", &address]);
    assert_eq!(code, 1);
    assert!(error.contains(&address), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_variables_of_a_ginforge_deployment_start_the_worker() {
    let redis = Redis::start_with(&["--requirepass", "p@ss:/"]);
    let plugins = Plugins::with("topic", &guest(OK), "");
    let (host, port) =
        redis.url().trim_start_matches("redis://").split_once(':').map(|(h, p)| (h.to_owned(), p.to_owned())).unwrap();
    let free = { TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string() };
    let mut command = Command::new(BINARY);
    command.arg("run").env_clear().env("REDIS_HOST", host).env("REDIS_PORT", port).env("REDIS_PASSWORD", "p@ss:/");
    command.env("APP_PORT", &free).env("GATEWAY_PLUGINS", plugins.path());
    let gateway = Gateway::spawn(&mut command);
    gateway.until_ready().await;
    assert_eq!(gateway.address().await, format!("0.0.0.0:{free}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flag_wins_and_contradicting_variables_are_errors() {
    let redis = Redis::start();
    let with = |variables: &[(&str, &str)], args: &[&str]| {
        let mut command = Command::new(BINARY);
        let output = command.args(args).current_dir("/").env_clear().envs(variables.iter().copied()).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let url = redis.url();
    let host = url.trim_start_matches("redis://");
    let elsewhere = "redis://nowhere.invalid:1";
    for (variables, args) in [
        (&[("REDIS_HOST", "nowhere.invalid")][..], &["topics", "ls", "--redis-url", &url][..]),
        (&[("REDIS_URL", elsewhere)], &["topics", "ls", "--redis-host", host]),
        (&[("REDIS_URL", &url), ("REDIS_HOST", host)], &["topics", "ls"]),
    ] {
        assert_eq!(with(variables, args), (0, String::new()), "{variables:?} {args:?}");
    }
    for (variables, args, fragment) in [
        (
            &[("REDIS_URL", elsewhere), ("REDIS_HOST", host)][..],
            &["topics", "ls"][..],
            "but REDIS_HOST (redis.host) differs",
        ),
        (&[("REDIS_URL", &url)], &["topics", "ls", "--redis-port", "1"], "but --redis-port (redis.port) differs"),
        (&[("GATEWAY_LISTEN", "127.0.0.1:1"), ("APP_PORT", "2")], &["run"], "but APP_PORT is 2"),
    ] {
        let (code, error) = with(variables, args);
        assert!(code == 78 && error.contains(fragment), "{variables:?} {args:?}: {code} {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_variable_is_warned_about_with_a_suggestion() {
    let redis = Redis::start();
    let plugins = Plugins::empty();
    let mut command = Command::new(BINARY);
    command.args(["run", "--listen", "127.0.0.1:0", "--redis-url", &redis.url(), "--plugins"]).arg(plugins.path());
    command.env_clear().env("GATEWAY_QUEUE_LEESE", "1s").env("GATEWAY_CONFIGG", "x").env("GATEWAY_SECRET_X", "long");
    command.env("GATEWAY_URL", "http://x").env("GATEWAY_PORT_8084_TCP", "tcp://10.0.0.1:8084");
    let gateway = Gateway::spawn(&mut command);
    gateway.until_ready().await;
    let warnings: Vec<_> =
        gateway.logged(events::UNKNOWN_SETTING).iter().map(|line| line["message"].to_string()).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings[0].contains("GATEWAY_CONFIGG") && warnings[0].contains("did you mean GATEWAY_CONFIG?"),
        "{warnings:?}"
    );
    assert!(
        warnings[1].contains("GATEWAY_QUEUE_LEESE") && warnings[1].contains("did you mean GATEWAY_QUEUE_LEASE?"),
        "{warnings:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_needs_no_redis_and_reports_its_handled_samples() {
    let folder = tempfile::tempdir().unwrap();
    let plugins = Plugins::with("greet", &guest(OK), "");
    plugins.write("greet.sample.json", br#"{"name":"you"}"#);
    let state = crate::support::state().join("redis");
    std::fs::create_dir(folder.path().join(".gateway-worker")).unwrap();
    if state.exists() {
        std::os::unix::fs::symlink(state, folder.path().join(".gateway-worker/redis")).unwrap();
    }
    let dev = |plugins: &str| {
        let mut command = Command::new(BINARY);
        command.args(["dev", "--listen", "127.0.0.1:0", "--plugins", plugins]).current_dir(folder.path());
        command.stdin(Stdio::null()).output().unwrap()
    };
    let output = dev(plugins.path().to_str().unwrap());
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{out}");
    assert!(out.contains("handled    greet") && out.contains("1 of 1 sample messages handled"), "{out}");
    assert!(out.contains("the input is no terminal, so dev ends here"), "{out}");
    let output = dev("no-such-folder");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("no-such-folder"));
}
