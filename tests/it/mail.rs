//! Mails reach the operator's relay as they were meant, over TLS, and what the
//! relay says comes back to the handler.

use crate::certificates::Certificates;
use crate::key_value::{acts, manifest};
use crate::smtp::{Smtp, Taken, Tls};
use crate::support::{BINARY, Gateway, Plugins, Redis, built, command, text, until};
use gateway_worker::events;
use serde_json::{Value, json};
use std::process::Command;
use std::sync::atomic::Ordering;

/// A worker with this relay and a plugin that may send mail.
struct Office {
    redis: Redis,
    gateway: Gateway,
    _plugins: Plugins,
}

impl Office {
    fn open(relay: &str, more: &[&str]) -> Self {
        let redis = Redis::start();
        let plugins = Plugins::with("store", &built("store"), &manifest("mail = true", "")).and(
            "poor",
            &built("store"),
            &manifest("", ""),
        );
        let mut command = Command::new(BINARY);
        command.args(["run", "--listen", "127.0.0.1:0", "--log-level", "debug", "--redis-url", &redis.url()]);
        command.arg("--plugins").arg(plugins.path()).args(["--mail-from", "Shop <noreply@shop.example>"]).args(more);
        // Not as a flag, which everybody on the machine can read.
        let gateway = Gateway::spawn(command.env("GATEWAY_MAIL_RELAY", relay));
        Self { redis, gateway, _plugins: plugins }
    }

    async fn send(&self, id: &str, mails: Value) -> Vec<Value> {
        acts(&self.redis, "store", id, mails).await
    }
}

fn mail(to: &str) -> Value {
    json!({ "do": "mail", "to": [to], "headers": [["subject", "hello"]], "text": "body" })
}

fn header<'a>(taken: &'a Taken, name: &str) -> &'a str {
    let line = taken.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("no {name} in {}", taken.text))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_arrives_over_tls_with_a_login_and_is_recognised_when_it_comes_again() {
    let certificates = Certificates::new("authority");
    for (scheme, tls) in [("smtp", Tls::OnRequest), ("smtps", Tls::FromTheStart)] {
        let smtp = Smtp::start(tls, &certificates, Some("worker:p@ss")).await;
        let relay = format!("{scheme}://worker:p%40ss@127.0.0.1:{}", smtp.port);
        let office = Office::open(&relay, &["--mail-tls-ca", &certificates.path("ca.crt")]);
        let mail = json!([{
            "do": "mail",
            "to": ["Ada <ada@a.example>"],
            "headers": [["subject", "Grüße"], ["cc", "b@b.example"], ["bcc", "c@c.example"]],
            "text": "plain\n.\nend",
            "html": "<p>html</p>",
            "files": [["a.bin", 1000]],
        }]);
        assert_eq!(office.send("m-1", mail.clone()).await, [json!({ "ok": null })]);
        let first = smtp.taken().remove(0);
        assert_eq!((first.is_encrypted, first.user.as_str()), (true, "worker"));
        assert_eq!(first.from, "noreply@shop.example");
        assert_eq!(first.to, ["ada@a.example", "b@b.example", "c@c.example"]);
        assert_eq!((header(&first, "From"), header(&first, "Cc")), ("Shop <noreply@shop.example>", "b@b.example"));
        assert!(!first.text.contains("c.example"), "{}", first.text);
        assert!(
            first.text.contains("\r\nplain\r\n..\r\nend\r\n") && first.text.contains("<p>html</p>"),
            "{}",
            first.text
        );

        // The same message again sends the same mail again; another does not.
        office.redis.run::<i64>("DEL mq:seen").await;
        office.send("m-1", mail.clone()).await;
        office.send("m-2", mail.clone()).await;
        let taken = smtp.taken();
        let ids: Vec<&str> = taken.iter().map(|taken| header(taken, "Message-ID")).collect();
        assert!(ids[0] == ids[1] && ids[0] != ids[2], "{ids:?}");
        // Several mails to the same in one run are several.
        let run = json!([mail[0], mail[0]]);
        office.send("m-3", run).await;
        let taken = smtp.taken();
        assert_ne!(header(&taken[3], "Message-ID"), header(&taken[4], "Message-ID"));
        // One connection serves them all.
        assert_eq!(smtp.connections.load(Ordering::SeqCst), 1);
        let log = office.gateway.last_words();
        assert!(!log.iter().any(|line| line.to_string().contains("p@ss") || line.to_string().contains("p%40ss")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recipients_that_are_no_mails_are_not_even_kept() {
    let smtp = Smtp::start(Tls::Never, &Certificates::new("authority"), None).await;
    let office = Office::open(&format!("smtp+insecure://127.0.0.1:{}", smtp.port), &[]);
    let long = mail(&"x".repeat(70_000));
    let answers = office.send("m", json!([long, long, mail("ada@a.example")])).await;
    assert_eq!((&answers[0]["fault"], &answers[1]["fault"]), (&json!("too-large"), &json!("too-large")));
    assert_eq!(answers[2], json!({ "ok": null }));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_relay_says_comes_back() {
    let smtp = Smtp::start(Tls::Never, &Certificates::new("authority"), None).await;
    let relay = format!("smtp+insecure://127.0.0.1:{}", smtp.port);
    let office = Office::open(&relay, &["--mail-timeout", "500ms"]);
    let mails = ["ada@a.example", "unknown@a.example", "busy@a.example", "silent@a.example", "ada@a.example"].map(mail);
    let answers = office.send("m", mails.into()).await;
    assert_eq!((&answers[0], &answers[4]), (&json!({ "ok": null }), &json!({ "ok": null })));
    let told = |answer: &Value| (answer["fault"].to_string(), answer["reason"].as_str().unwrap().to_owned());
    let (code, reason) = told(&answers[1]);
    assert!(
        code.contains("invalid") && reason.ends_with("refuses the mail: 550 5.1.1 nobody of this name"),
        "{reason}"
    );
    let (code, reason) = told(&answers[2]);
    assert!(code.contains("unavailable") && reason.ends_with(": 451 4.3.0 come again"), "{reason}");
    let (code, reason) = told(&answers[3]);
    assert!(code.contains("unavailable") && reason.contains("not taken the mail within 500ms"), "{reason}");
    assert_eq!(smtp.taken().len(), 2);
    let port = smtp.port;
    drop(smtp);
    let away = until("nobody listens", async || {
        office.redis.run::<i64>("DEL mq:seen").await;
        let answer = office.send("away", json!([mail("ada@a.example")])).await.remove(0);
        answer["reason"].as_str().filter(|reason| reason.contains("refused")).map(str::to_owned)
    })
    .await;
    assert!(away.contains(&format!("127.0.0.1:{port}")), "{away}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tls_and_a_login_that_counts_nothing_is_sent() {
    let certificates = Certificates::new("authority");
    let ca = certificates.path("ca.crt");
    let others = Certificates::new("another authority");
    let other = others.path("ca.crt");
    for (url, tls, ca, told) in [
        ("smtp://u:p@", Tls::Never, &ca, "STARTTLS is not supported"),
        ("smtp://u:p@", Tls::OnRequest, &other, "certificate"),
        ("smtps://u:p@", Tls::FromTheStart, &other, "certificate"),
        ("smtp://u:wrong@", Tls::OnRequest, &ca, "535 5.7.8 who are you"),
        ("smtp://", Tls::OnRequest, &ca, "530 5.7.0 say who you are"),
    ] {
        let smtp = Smtp::start(tls, &certificates, Some("u:p")).await;
        let office = Office::open(&format!("{url}127.0.0.1:{}", smtp.port), &["--mail-tls-ca", ca]);
        let answer = office.send("m", json!([mail("ada@a.example")])).await.remove(0);
        assert_eq!(answer["fault"], "unavailable", "{url} {told}: {answer}");
        assert!(answer["reason"].as_str().unwrap().contains(told), "{answer}");
        office.gateway.until_logged(events::MAIL_RELAY_UNUSABLE, |_| true).await;
        assert!(smtp.taken().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_has_a_grant_a_sender_and_a_number() {
    let smtp = Smtp::start(Tls::Never, &Certificates::new("authority"), None).await;
    let relay = format!("smtp+insecure://127.0.0.1:{}", smtp.port);
    let office = Office::open(&relay, &["--mail-allow-from", "*@sales.example, boss@shop.example"]);
    let from = |from: &str| json!({ "do": "mail", "to": ["a@a.example"], "headers": [["from", from]], "text": "x" });
    let answers =
        office.send("m", json!([from("Sam <sam@sales.example>"), from("boss@shop.example"), from("eve@shop.example")]));
    let answers = answers.await;
    assert_eq!(answers[..2], [json!({ "ok": null }), json!({ "ok": null })]);
    assert_eq!(answers[2]["fault"], "denied");
    assert_eq!(smtp.taken()[0].from, "sam@sales.example");

    let times = |times: u32| json!([{ "do": "mail", "to": ["a@a.example"], "text": "x", "times": times }]);
    assert_eq!(office.send("ten", times(10)).await, [json!({ "ok": null })]);
    assert_eq!(office.send("eleven", times(11)).await[0]["fault"], "too-many");
    assert_eq!(smtp.taken().len(), 2 + 10 + 10);

    let answers = acts(&office.redis, "poor", "p", times(1)).await;
    assert_eq!(answers[0]["fault"], "denied");
    assert!(answers[0]["reason"].as_str().unwrap().contains("write mail = true"), "{answers:?}");
    assert_eq!(smtp.taken().len(), 22);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_shows_mails_that_nobody_sends() {
    let folder = tempfile::tempdir().unwrap();
    let office = Office::open(&format!("file:{}/mail", folder.path().display()), &[]);
    assert_eq!(office.send("m", json!([mail("ada@a.example")])).await, [json!({ "ok": null })]);
    let line = office.gateway.until_logged(events::MAIL_WRITTEN, |line| line["plugin"] == "store").await;
    let file = line["file"].as_str().unwrap();
    assert!(file.ends_with(".eml"), "{file}");
    let written = std::fs::read_to_string(file).unwrap();
    assert!(written.contains("Subject: hello\r\n") && written.ends_with("\r\n\r\nbody\r\n"), "{written}");
    assert_eq!(line["recipients"], "ada@a.example");
    assert_eq!(std::fs::read_dir(folder.path().join("mail")).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_mail_says_so() {
    let office = Office::open("", &[]);
    let act = json!({ "acts": [mail("ada@a.example")], "end": "fault" });
    office.redis.publish("store", "m", &act.to_string()).await;
    let dead = office.redis.dead("store").await;
    assert_eq!(text(&dead, "gw-reason"), "retry");
    assert!(text(&dead, "gw-error").contains("mail.relay would name one"), "{dead:?}");
}

#[test]
fn a_sender_that_is_none_is_a_fault_of_the_settings() {
    for (relay, from, told) in [
        ("smtp://h", "", "mail.from: needed"),
        ("smtp://h", "nobody", "mail.from: \"nobody\""),
        ("ftp://h", "a@b.example", "mail.relay: "),
    ] {
        let output = command(&["run", "--listen", "127.0.0.1:0", "--mail-relay", relay, "--mail-from", from]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{stderr}");
        assert!(stderr.contains(told), "{stderr}");
    }
}

#[test]
fn where_one_develops_a_mail_ends_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let plugins = Plugins::with("store", &built("store"), &manifest("mail = true", ""));
    plugins
        .write("store.sample.json", json!({ "acts": [mail("ada@a.example")], "end": "fault" }).to_string().as_bytes());
    let state = folder.path().join(".gateway-worker");
    std::fs::create_dir(&state).unwrap();
    let redis = crate::support::state().join("redis");
    if redis.exists() {
        std::os::unix::fs::symlink(redis, state.join("redis")).unwrap();
    }
    let mut command = Command::new(BINARY);
    command.args(["dev", "--listen", "127.0.0.1:0", "--plugins"]).arg(plugins.path()).current_dir(folder.path());
    let output = command.stdin(std::process::Stdio::null()).output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && out.contains(".gateway-worker/mail/"), "{out}");
    let mails: Vec<_> = std::fs::read_dir(state.join("mail")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(mails.len(), 1);
    assert!(std::fs::read_to_string(&mails[0]).unwrap().contains("From: gateway-worker@localhost\r\n"));
}
