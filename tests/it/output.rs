//! What commands print: to readers that go away, to a full disk, and to a terminal of any
//! width; and what they read.

use crate::support::{BINARY, Gateway, OK, Plugins, Redis, guest, run_command, until};
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Exit code, stdout, stderr.
fn run(redis: &Redis, args: &[&str]) -> (i32, String, String) {
    run_command(&[args, &["--redis-url", &redis.url()]].concat())
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(args).current_dir("/").env_clear().stdin(Stdio::null());
    command
}

async fn dead_letters(redis: &Redis, topic: &str, count: usize, id: &str) {
    let mut pipe = redis::pipe();
    for number in 0..count {
        let body = serde_json::json!({ "id": format!("{id}{number}"), "topic": topic, "data": {} }).to_string();
        pipe.cmd("XADD").arg(format!("{{mq:{topic}}}:dead")).arg("*").arg("message").arg(body);
        pipe.arg("gw-reason").arg("trap").arg("gw-error").arg("boom ".repeat(100)).arg("gw-attempts").arg(3);
        pipe.arg("gw-died-at").arg("2026-11-23T07:46:17.000Z").arg("gw-source").arg(format!("{topic}/1-0")).ignore();
    }
    pipe.query_async::<()>(&mut redis.connection().await).await.unwrap();
}

/// Every command that prints, where each succeeds.
fn printing(redis: &Redis, worker: &str, plugins: &Plugins) -> Vec<Vec<String>> {
    let plugin = plugins.path().join("order.wasm").to_str().unwrap().to_owned();
    let cache = crate::support::state().canonicalize().unwrap().join("test-cache").to_str().unwrap().to_owned();
    let to_redis = ["--redis-url".to_owned(), redis.url()];
    let mut all = Vec::new();
    let mut add = |args: &[&str], more: &[String]| {
        all.push(args.iter().map(ToString::to_string).chain(more.iter().cloned()).collect());
    };
    for args in [
        &["topics", "ls"][..],
        &["topics", "ls", "--json"],
        &["topics", "show", "t"],
        &["topics", "show", "t", "--json"],
        &["topics", "pause", "t"],
        &["topics", "resume", "t"],
        &["topics", "purge", "empty", "--yes", "--dead"],
        &["messages", "ls", "t"],
        &["messages", "ls", "t", "--json"],
        &["messages", "find", "m0"],
        &["messages", "find", "m0", "--json"],
        &["dead", "ls"],
        &["dead", "ls", "t", "--limit", "1000"],
        &["dead", "ls", "--json"],
        &["dead", "show", "t", "dead0"],
        &["dead", "replay", "t", "--reason", "none"],
        &["dead", "purge", "t", "--older-than", "30d", "--yes"],
        &["publish", "t"],
    ] {
        add(args, &to_redis);
    }
    for args in [&["plugins", "ls"][..], &["plugins", "ls", "--json"], &["plugins", "reload"]] {
        add(
            args,
            &["--url".to_owned(), worker.to_owned(), "--admin-token".to_owned(), crate::support::TOKEN.to_owned()],
        );
    }
    for args in [
        &["plugin", "inspect"][..],
        &["plugin", "inspect", "--json"],
        &["plugin", "check"],
        &["plugin", "check", "--json"],
    ] {
        add(args, &[plugin.clone(), "--plugins-cache".to_owned(), cache.clone()]);
    }
    add(&["healthcheck", "--listen", worker.trim_start_matches("http://")], &[]);
    for args in [&["--help"][..], &["--version"], &["help", "publish"], &["dead", "ls", "--help"]] {
        add(args, &[]);
    }
    all
}

async fn filled(redis: &Redis) {
    for number in 0..40 {
        redis.publish("t", &format!("m{number}"), "{}").await;
    }
    dead_letters(redis, "t", 40, "dead").await;
    redis.run::<i64>("HSET {mq:empty}:state done 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_or_closed_stdout_ends_no_command_with_a_panic() {
    let redis = Redis::start();
    filled(&redis).await;
    let plugins = Plugins::with("order", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_ready().await;
    let worker = format!("http://{}", gateway.address().await);
    for args in printing(&redis, &worker, &plugins) {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = command(&args).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!output.stdout.is_empty(), "{args:?}");
        // A full disk: the command says so.
        let output = command(&args).stdout(File::create("/dev/full").unwrap()).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
        assert!(
            error.contains("written to stdout: No space left on device") && !error.contains("panic"),
            "{args:?}: {error}"
        );
        // A reader that went away: nothing to say.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(&args).stdout(writer).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {error}");
        assert!(!error.contains("panic") && !error.contains("pipe"), "{args:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_or_closed_stderr_changes_no_result() {
    let redis = Redis::start();
    filled(&redis).await;
    redis.run::<i64>("RPUSH mq:{a} x").await;
    let url = redis.url();
    for (args, code) in [
        (&["topics", "ls", "--redis-url", &url][..], 0),
        (&["publish", "unhandled", "--redis-url", &url], 0),
        (&["messages", "find", "none", "--redis-url", &url], 1),
        (&["publsh"], 2),
        (&["topics", "ls", "--redis-url", "redis://127.0.0.1:1"], 69),
        (&["run", "--queue-lease", "1ms"], 78),
    ] {
        let output = command(args).stderr(File::create("/dev/full").unwrap()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(args).stderr(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}");
    }
}

/// `dead replay | head -1` must not stop in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_reader_goes_away_does_its_work() {
    let redis = Redis::start();
    dead_letters(&redis, "t", 1000, "d").await;
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let url = redis.url();
    let args = ["dead", "replay", "t", "--all", "--redis-url", &url];
    assert!(command(&args).stdout(writer).status().unwrap().success());
    assert_eq!(
        redis.run::<(i64, i64)>("EVAL return{redis.call('XLEN','mq:t'),redis.call('XLEN','{mq:t}:dead')} 0").await,
        (1000, 0)
    );
}

/// What the command prints to a terminal of this width.
fn on_terminal(columns: usize, redis: &Redis, args: &[&str]) -> String {
    let quoted: Vec<String> = args.iter().map(|arg| format!("'{arg}'")).collect();
    let script =
        format!("stty cols {columns} rows 50; exec '{BINARY}' {} --redis-url {}", quoted.join(" "), redis.url());
    let mut terminal = Command::new("script");
    let output = terminal.args(["-qec", &script, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).unwrap().replace('\r', "")
}

/// Chinese characters take two cells; a mark that turns the direction none.
fn cells(line: &str) -> usize {
    let width = |char: char| match char {
        '\u{200e}' => 0,
        '\u{2e80}'..='\u{9fff}' => 2,
        _ => 1,
    };
    line.chars().map(width).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_table_fits_its_terminal() {
    let redis = Redis::start();
    let long = "x".repeat(5000);
    let topic = "\u{8ba2}\u{5355}".repeat(20);
    dead_letters(&redis, "t", 3, &long).await;
    dead_letters(&redis, &topic, 3, &"\u{8ba2}".repeat(3000)).await;
    dead_letters(&redis, "\u{5d0}\u{5d1}", 1, "r").await;
    redis.publish_later("t", &long[..256], "{}", Duration::from_secs(3600)).await;
    redis.add("t", format!(r#"{{"id":"{long}","topic":"t","data":{{"text":"{long}"}}}}"#).as_bytes()).await;
    redis.run::<()>("XGROUP CREATE mq:t consumer-group-t 0").await;
    redis.add("t", format!(r#"{{"id":"held{long}","topic":"t","data":1}}"#).as_bytes()).await;
    redis.run::<redis::Value>(&format!("XREADGROUP GROUP consumer-group-t {long} COUNT 1 STREAMS mq:t >")).await;
    for columns in [40, 80, 120] {
        for args in [
            &["dead", "ls"][..],
            &["dead", "ls", "--limit", "1"],
            &["messages", "ls", "t"],
            &["messages", "find", &long],
            &["topics", "ls"],
            &["topics", "show", "t"],
        ] {
            let shown = on_terminal(columns, &redis, args);
            let rows = shown.lines().filter(|line| !line.contains("dead letters") && !line.contains("messages"));
            for line in rows {
                assert!(cells(line) <= columns, "{columns} {args:?}: {} {line}", cells(line));
            }
        }
    }
    let shown = on_terminal(80, &redis, &["dead", "ls", "t"]);
    assert!(shown.contains("-0  xxxxxxx\u{2026}  trap"), "{shown}");
    // A file has no width, and gets no hostile lengths either; JSON has all.
    let (_, out, _) = run(&redis, &["dead", "ls", "t"]);
    assert!(out.lines().all(|line| cells(line) < 700) && out.contains(&"x".repeat(255)), "{out}");
    assert!(run(&redis, &["dead", "ls", "t", "--json"]).1.contains(&long));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_say_how_many_there_are_and_how_to_see_more() {
    let redis = Redis::start();
    let ends_with = |args: &[&str], expected: &str| {
        let (code, out, error) = run(&redis, args);
        assert_eq!(code, 0, "{error}");
        assert_eq!(out.lines().last(), Some(expected), "{args:?}: {out}");
    };
    ends_with(&["dead", "ls"], "0 dead letters");
    filled(&redis).await;
    dead_letters(&redis, "u", 5, "other").await;
    ends_with(&["dead", "ls"], "the newest 25 of 45 dead letters: --limit 40 lists all");
    ends_with(&["dead", "ls", "--limit", "40"], "45 dead letters");
    ends_with(&["dead", "ls", "u"], "5 dead letters");
    ends_with(&["dead", "ls", "t", "--search", "dead3"], "11 of 40 dead letters match");
    ends_with(
        &["dead", "ls", "t", "--reason", "trap"],
        "the newest 20 of 40 dead letters that match: --limit 40 lists all",
    );
    ends_with(&["messages", "ls", "t"], "20 of 40 messages that wait or are delayed: --limit 40 lists all");
    ends_with(&["messages", "ls", "t", "--limit", "40"], "40 messages wait or are delayed");
    redis.run::<()>("XGROUP CREATE mq:t consumer-group-t 0").await;
    redis.run::<redis::Value>("XREADGROUP GROUP consumer-group-t c COUNT 3 STREAMS mq:t >").await;
    ends_with(&["messages", "ls", "t", "--limit", "40"], "37 messages wait or are delayed; 3 in flight are not listed");
    // JSON is for programs: the same goes to stderr, where something is missing.
    for (args, said) in [
        (&["dead", "ls", "t", "--json"][..], "the newest 20 of 40 dead letters: --limit 40 lists all\n"),
        (&["dead", "ls", "u", "--json"], ""),
        (
            &["messages", "ls", "t", "--json"],
            "20 of 37 messages that wait or are delayed: --limit 37 lists all; 3 in flight are not listed\n",
        ),
    ] {
        let (_, out, error) = run(&redis, args);
        assert!(serde_json::from_str::<serde_json::Value>(&out).is_ok(), "{out}");
        assert_eq!(error, said, "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_expired_is_said_to_have_expired() {
    let redis = Redis::start();
    let url = redis.url();
    let publish = |topic: &str, id: &str, more: &[&str]| {
        let (code, _, error) = run_command(&[&["publish", topic, "--id", id, "--redis-url", &url], more].concat());
        assert_eq!(code, 0, "{error}");
    };
    publish("t", "short", &["--expires-in", "50ms"]);
    publish("t", "long", &["--expires-in", "1h"]);
    publish("t", "both", &["--expires-in", "50ms", "--delay", "1h"]);
    // It still waits, and will not run.
    for id in ["short", "both"] {
        until("it has expired", async || {
            let (_, out, _) = run(&redis, &["messages", "find", id]);
            (out.contains(" expired 2") && out.contains(": not run")).then_some(())
        })
        .await;
    }
    let (_, out, _) = run(&redis, &["messages", "ls", "t"]);
    assert_eq!(out.matches(": not run").count(), 2, "{out}");
    assert!(!run(&redis, &["messages", "find", "long"]).1.contains("expired"));
    let found: serde_json::Value =
        serde_json::from_str(&run(&redis, &["messages", "find", "short", "--json"]).1).unwrap();
    assert!(found[0]["is_expired"] == true && found[0]["expires_at"].is_string(), "{found}");
    let (_, _, error) = run(&redis, &["messages", "find", "never"]);
    assert!(error.ends_with("or it was never published\n"), "{error}");
    // A worker drops it, and only the number of such messages is kept.
    run(&redis, &["messages", "cancel", "t", "both"]);
    let plugins = Plugins::with("t", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    gateway.until_outcome("t", "short", "expired").await;
    redis.is("it is counted", "HGET {mq:t}:state expired", 1).await;
    for args in [&["messages", "find", "short"][..], &["messages", "find", "short", "--topic", "t"]] {
        let (code, _, error) = run(&redis, args);
        assert!(code == 1 && error.contains("ended without a run so far: 1 expired, 1 cancelled in t"), "{error}");
    }
}

/// The command with a pipe as its stdin.
fn piped(redis: &Redis, args: &[&str]) -> Child {
    let url = redis.url();
    let mut command = command(&[args, &["--redis-url", &url]].concat());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn with_input(redis: &Redis, args: &[&str], input: &str) -> (i32, String) {
    let mut child = piped(redis, args);
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_reads_what_is_piped_into_it() {
    let redis = Redis::start();
    let data = async || redis.envelopes("mq:t").await.last().unwrap()["data"].clone();
    assert_eq!(with_input(&redis, &["publish", "t"], "{\"n\":1}\n").0, 0);
    assert_eq!(data().await, serde_json::json!({ "n": 1 }));
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("data.json");
    std::fs::write(&path, "[2]").unwrap();
    let url = redis.url();
    let mut from_file = command(&["publish", "t", "--redis-url", &url]);
    assert!(from_file.stdin(File::open(&path).unwrap()).status().unwrap().success());
    assert_eq!(data().await, serde_json::json!([2]));
    // An argument wins, and nobody has piped anything where stdin is /dev/null.
    assert_eq!(with_input(&redis, &["publish", "t", "--data", "3"], "").0, 0);
    assert_eq!(data().await, 3);
    assert_eq!(run(&redis, &["publish", "t"]).0, 0);
    assert_eq!(data().await, serde_json::Value::Null);
    let count: i64 = redis.run("XLEN mq:t").await;
    for (args, input, said) in [
        (&["publish", "t"][..], "", "stdin is empty: write --data null"),
        (&["publish", "t"], " \n", "stdin is empty"),
        (&["publish", "t", "--data", "-"], "", "stdin is empty"),
        (&["dead", "edit", "t", "1-0", "--data", "-"], "", "stdin is empty"),
        (&["publish", "t"], "{", "not JSON"),
    ] {
        let (code, error) = with_input(&redis, args, input);
        assert!(code == 2 && error.contains(said), "{args:?}: {code} {error}");
    }
    assert_eq!(redis.run::<i64>("XLEN mq:t").await, count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_waits_for_stdin_says_so() {
    let redis = Redis::start();
    let mut child = piped(&redis, &["publish", "t"]);
    let mut said = [0; 27];
    child.stderr.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"reading the data from stdin");
    child.stdin.take().unwrap().write_all(b"7").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(redis.envelopes("mq:t").await[0]["data"], 7);
}

#[test]
fn the_command_that_only_the_worker_uses_is_never_suggested() {
    for typed in ["compile", "compile-componen", "complie-component", "compile-components", "component"] {
        let (code, out, error) = run_command(&[typed]);
        assert_eq!(code, 2, "{error}");
        assert!(!(out + &error).contains("'compile-component'"), "{error}");
    }
    for args in [&["--help"][..], &["help"], &["help", "compile-component"]] {
        let (_, out, error) = run_command(args);
        assert!(!out.contains("compile-component") && !error.contains("similar"), "{args:?}: {out}{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_topic_is_a_failure_of_every_command() {
    let redis = Redis::start();
    redis.publish("order.reminder", "a", "{}").await;
    for args in [
        &["topics", "show", "order.remimder"][..],
        &["topics", "show", "order.remimder", "--json"],
        &["topics", "pause", "order.remimder"],
        &["topics", "resume", "order.remimder"],
        &["topics", "purge", "order.remimder", "--yes"],
        &["messages", "ls", "order.remimder"],
        &["messages", "find", "a", "--topic", "order.remimder"],
        &["messages", "cancel", "order.remimder", "a"],
        &["dead", "ls", "order.remimder"],
        &["dead", "show", "order.remimder", "1-0"],
        &["dead", "replay", "order.remimder", "--all"],
        &["dead", "purge", "order.remimder", "--all", "--yes"],
        &["dead", "edit", "order.remimder", "1-0", "--data", "1"],
    ] {
        let (code, out, error) = run(&redis, args);
        assert!(code == 1 && out.is_empty(), "{args:?}: {code} {out}");
        assert!(
            error.contains("unknown topic order.remimder") && error.contains("did you mean order.reminder?"),
            "{error}"
        );
    }
    assert!(run(&redis, &["topics", "show", "order.reminder"]).1.contains("order.reminder"));
}
