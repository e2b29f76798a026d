//! Mails are sent unchanged to the configured relay, over TLS, and its replies are
//! returned to the handler.

use crate::certificates::Certificates;
use crate::key_value::{manifest, run_actions};
use crate::smtp::{ReceivedMail, Smtp, Tls};
use crate::support::{BINARY, Gateway, Plugins, Redis, built, command, text, until};
use gateway_worker::events;
use serde_json::{Value, json};
use std::process::Command;
use std::sync::atomic::Ordering;

/// A worker with a relay and a plugin that may send mail.
struct MailWorker {
    redis: Redis,
    gateway: Gateway,
    _plugins: Plugins,
}

impl MailWorker {
    fn start(relay: &str, more: &[&str]) -> Self {
        let redis = Redis::start();
        let plugins = Plugins::with("store", &built("store"), &manifest("mail = true", "")).and(
            "poor",
            &built("store"),
            &manifest("", ""),
        );
        let mut command = Command::new(BINARY);
        command.args(["run", "--listen", "127.0.0.1:0", "--log-level", "debug", "--redis-url", &redis.url()]);
        command.arg("--plugins").arg(plugins.path()).args(["--mail-from", "Shop <noreply@shop.example>"]).args(more);
        // As a variable: a flag is visible to every user of the machine.
        let gateway = Gateway::spawn(command.env("GATEWAY_MAIL_RELAY", relay));
        Self { redis, gateway, _plugins: plugins }
    }

    async fn send(&self, id: &str, mails: Value) -> Vec<Value> {
        run_actions(&self.redis, "store", id, mails).await
    }
}

fn mail(to: &str) -> Value {
    json!({ "do": "mail", "to": [to], "headers": [["subject", "hello"]], "text": "body" })
}

fn header<'a>(received: &'a ReceivedMail, name: &str) -> &'a str {
    let line = received.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("no {name} in {}", received.text))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_is_sent_over_tls_with_a_login_and_a_stable_message_id() {
    let certificates = Certificates::new("authority");
    for (scheme, tls) in [("smtp", Tls::OnRequest), ("smtps", Tls::FromTheStart)] {
        let smtp = Smtp::start(tls, &certificates, Some("worker:p@ss")).await;
        let relay = format!("{scheme}://worker:p%40ss@127.0.0.1:{}", smtp.port);
        let worker = MailWorker::start(&relay, &["--mail-tls-ca", &certificates.path("ca.crt")]);
        let mail = json!([{
            "do": "mail",
            "to": ["Ada <ada@a.example>"],
            "headers": [["subject", "Grüße"], ["cc", "b@b.example"], ["bcc", "c@c.example"]],
            "text": "plain\n.\nend",
            "html": "<p>html</p>",
            "files": [["a.bin", 1000]],
        }]);
        assert_eq!(worker.send("m-1", mail.clone()).await, [json!({ "ok": null })]);
        let first = smtp.received().remove(0);
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

        // The same message sends the same mail again, another message another one.
        worker.redis.run::<i64>("DEL mq:seen").await;
        worker.send("m-1", mail.clone()).await;
        worker.send("m-2", mail.clone()).await;
        let received = smtp.received();
        let ids: Vec<&str> = received.iter().map(|received| header(received, "Message-ID")).collect();
        assert!(ids[0] == ids[1] && ids[0] != ids[2], "{ids:?}");
        // Several mails to one recipient in one run are different.
        let run = json!([mail[0], mail[0]]);
        worker.send("m-3", run).await;
        let received = smtp.received();
        assert_ne!(header(&received[3], "Message-ID"), header(&received[4], "Message-ID"));
        // One connection serves them all.
        assert_eq!(smtp.connections.load(Ordering::SeqCst), 1);
        let log = worker.gateway.kill_and_read_log();
        assert!(!log.iter().any(|line| line.to_string().contains("p@ss") || line.to_string().contains("p%40ss")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_recipients_do_not_count_as_mails() {
    let smtp = Smtp::start(Tls::Never, &Certificates::new("authority"), None).await;
    let worker = MailWorker::start(&format!("smtp+insecure://127.0.0.1:{}", smtp.port), &[]);
    let long = mail(&"x".repeat(70_000));
    let answers = worker.send("m", json!([long, long, mail("ada@a.example")])).await;
    assert_eq!((&answers[0]["fault"], &answers[1]["fault"]), (&json!("too-large"), &json!("too-large")));
    assert_eq!(answers[2], json!({ "ok": null }));
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_errors_are_returned_to_the_handler() {
    let smtp = Smtp::start(Tls::Never, &Certificates::new("authority"), None).await;
    let relay = format!("smtp+insecure://127.0.0.1:{}", smtp.port);
    let worker = MailWorker::start(&relay, &["--mail-timeout", "500ms"]);
    let mails = ["ada@a.example", "unknown@a.example", "busy@a.example", "silent@a.example", "ada@a.example"].map(mail);
    let answers = worker.send("m", mails.into()).await;
    assert_eq!((&answers[0], &answers[4]), (&json!({ "ok": null }), &json!({ "ok": null })));
    let fault = |answer: &Value| (answer["fault"].to_string(), answer["reason"].as_str().unwrap().to_owned());
    let (code, reason) = fault(&answers[1]);
    assert!(
        code.contains("invalid")
            && reason.ends_with("refuses the recipient unknown@a.example: 550 5.1.1 nobody of this name"),
        "{reason}"
    );
    let (code, reason) = fault(&answers[2]);
    assert!(code.contains("unavailable") && reason.ends_with(": 451 4.3.0 come again"), "{reason}");
    let (code, reason) = fault(&answers[3]);
    assert!(code.contains("unavailable") && reason.contains("did not accept the email within 500ms"), "{reason}");
    assert_eq!(smtp.received().len(), 2);
    let port = smtp.port;
    drop(smtp);
    let away = until("the relay is closed", async || {
        worker.redis.run::<i64>("DEL mq:seen").await;
        let answer = worker.send("away", json!([mail("ada@a.example")])).await.remove(0);
        answer["reason"].as_str().filter(|reason| reason.contains("refused")).map(str::to_owned)
    })
    .await;
    assert!(away.contains(&format!("127.0.0.1:{port}")), "{away}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_recipient_does_not_stop_the_mail_for_the_others() {
    let smtp = Smtp::start(Tls::Never, &Certificates::new("authority"), None).await;
    let worker = MailWorker::start(&format!("smtp+insecure://127.0.0.1:{}", smtp.port), &[]);
    let mail = |to: &[&str]| json!({ "do": "mail", "to": to, "text": "x" });
    let ten: Vec<String> = (0..10).map(|number| format!("n{number}@a.example")).collect();
    let ten: Vec<&str> = ten.iter().map(String::as_str).collect();
    let mails = json!([
        mail(&["unknown@a.example", "ada@a.example", "bob@a.example"]),
        mail(&["ada@a.example", "busy@a.example", "unknown@a.example"]),
        mail(&["unknown@a.example", "unknown@b.example"]),
        // The relay takes four at a time.
        mail(&ten),
        mail(&["ada@a.example", "ada@a.example"]),
    ]);
    let answers = worker.send("m", mails).await;
    let is_answer = |answer: &Value, code: &str, parts: &[&str]| {
        assert_eq!(answer["fault"], code, "{answer}");
        let reason = answer["reason"].as_str().unwrap();
        assert!(parts.iter().all(|part| reason.contains(part)), "{reason}");
    };
    is_answer(&answers[0], "invalid", &["recipient unknown@a.example: 550 5.1.1", "sent to the other 2 recipients"]);
    is_answer(
        &answers[1],
        "unavailable",
        &["busy@a.example: 451 4.3.0", "unknown@a.example: 550", "sent to the other recipient"],
    );
    is_answer(&answers[2], "invalid", &["unknown@a.example: 550", "unknown@b.example: 550"]);
    assert!(!answers[2]["reason"].as_str().unwrap().contains("was sent"), "{}", answers[2]);
    assert_eq!(answers[3..], [json!({ "ok": null }), json!({ "ok": null })]);
    let received = smtp.received();
    assert_eq!(received[0].to, ["ada@a.example", "bob@a.example"]);
    assert_eq!(received[1].to, ["ada@a.example"]);
    let to: Vec<String> = received[2..5].iter().flat_map(|mail| mail.to.clone()).collect();
    assert_eq!(to, ten);
    assert_eq!(received[5].to, ["ada@a.example"]);
    assert_eq!(received.len(), 6);
    let refused = worker.gateway.until_logged(events::MAIL_RECIPIENTS_REFUSED, |_| true).await;
    assert_eq!((&refused["recipients"], &refused["plugin"]), (&json!("unknown@a.example"), &json!("store")));
}

#[tokio::test(flavor = "multi_thread")]
async fn domains_in_any_alphabet_are_sent_in_ascii_and_local_parts_if_the_relay_can() {
    let certificates = Certificates::new("authority");
    let ca = certificates.path("ca.crt");
    for (scheme, tls, can_utf8) in [("smtp+insecure", Tls::Never, false), ("smtp", Tls::OnRequest, true)] {
        let smtp = Smtp::start(tls, &certificates, None).await;
        let relay = format!("{scheme}://127.0.0.1:{}", smtp.port);
        let worker = MailWorker::start(&relay, &["--mail-tls-ca", &ca, "--mail-allow-from", "*@läden.example"]);
        let from = json!([["from", "Sam <sam@läden.example>"], ["cc", "Bo <bo@例え.example>"]]);
        let first = json!({ "do": "mail", "to": ["Ada <ada@bücher.example>"], "headers": from, "text": "x" });
        let answers = worker.send("m", json!([first, mail("käthe@a.example"), mail("a@b\u{ff1e}c.example")])).await;
        assert_eq!(answers[0], json!({ "ok": null }), "{answers:?}");
        let received = smtp.received();
        assert_eq!(received[0].from, "sam@xn--lden-loa.example");
        assert_eq!(received[0].to, ["ada@xn--bcher-kva.example", "bo@xn--r8jz45g.example"]);
        assert_eq!(header(&received[0], "To"), "Ada <ada@xn--bcher-kva.example>");
        if can_utf8 {
            assert_eq!(answers[1], json!({ "ok": null }), "{answers:?}");
            assert_eq!(received[1].to, ["käthe@a.example"]);
        } else {
            assert_eq!(answers[1]["fault"], "invalid");
            assert!(answers[1]["reason"].as_str().unwrap().contains("does not offer SMTPUTF8"), "{answers:?}");
        }
        assert_eq!(answers[2]["fault"], "invalid", "{answers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_greets_with_a_qualified_name() {
    let smtp = Smtp::start(Tls::Never, &Certificates::new("authority"), None).await;
    for (path, is_name) in [("", None), ("/worker.example", Some("worker.example"))] {
        let worker = MailWorker::start(&format!("smtp+insecure://127.0.0.1:{}{path}", smtp.port), &[]);
        assert_eq!(worker.send("m", json!([mail("ada@a.example")])).await, [json!({ "ok": null })]);
        let name = smtp.hellos().pop().unwrap();
        assert!(name.contains('.') && !name.starts_with('['), "{name}");
        assert!(is_name.is_none_or(|expected| expected == name), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn line_ends_of_a_text_go_out_as_cr_lf() {
    let smtp = Smtp::start(Tls::Never, &Certificates::new("authority"), None).await;
    let worker = MailWorker::start(&format!("smtp+insecure://127.0.0.1:{}", smtp.port), &[]);
    let mail = |text: &str| json!({ "do": "mail", "to": ["a@a.example"], "text": text });
    let mails = json!([mail("a\rb\nc\r\nd\n\r.\re"), mail("a\n.\r\nMAIL FROM:<eve@e.example>\r."), mail("a\0b")]);
    for answer in worker.send("m", mails).await {
        assert_eq!(answer, json!({ "ok": null }));
    }
    let received = smtp.received();
    assert_eq!(received.len(), 3);
    assert!(received[0].text.ends_with("\r\n\r\na\r\nb\r\nc\r\nd\r\n\r\n..\r\ne\r\n\r\n"), "{:?}", received[0].text);
    for mail in &received {
        let others = mail.text.replace("\r\n", "");
        assert!(!others.contains(['\r', '\n', '\0']), "{others:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_on_a_port_of_another_protocol_is_called_so() {
    let (certificates, ours) = (Certificates::new("authority"), Certificates::self_signed(true));
    let simple = Certificates::self_signed(false);
    for (scheme, tls, certificates, expected) in [
        ("smtp", Tls::FromTheStart, &certificates, Some("begin the URL with smtps://")),
        ("smtp+insecure", Tls::FromTheStart, &certificates, Some("begin the URL with smtps://")),
        ("smtps", Tls::OnRequest, &certificates, Some("does not begin with TLS")),
        ("smtps", Tls::FromTheStart, &ours, Some("basicConstraints=critical,CA:FALSE")),
        ("smtp", Tls::OnRequest, &ours, Some("basicConstraints=critical,CA:FALSE")),
        ("smtps", Tls::FromTheStart, &simple, None),
    ] {
        let smtp = Smtp::start(tls, certificates, None).await;
        let ca = certificates.path("ca.crt");
        let relay = format!("{scheme}://127.0.0.1:{}", smtp.port);
        let worker = MailWorker::start(&relay, &["--mail-tls-ca", &ca, "--mail-timeout", "2s"]);
        let answer = worker.send("m", json!([mail("ada@a.example")])).await.remove(0);
        match expected {
            None => assert_eq!(answer, json!({ "ok": null }), "{scheme}"),
            Some(expected) => {
                let reason = answer["reason"].as_str().unwrap_or_default();
                assert!(reason.contains(expected) && reason.contains(&smtp.port.to_string()), "{scheme}: {answer}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_valid_tls_and_login_nothing_is_sent() {
    let certificates = Certificates::new("authority");
    let ca = certificates.path("ca.crt");
    let others = Certificates::new("another authority");
    let other = others.path("ca.crt");
    for (url, tls, ca, fragment) in [
        ("smtp://u:p@", Tls::Never, &ca, "STARTTLS is not supported"),
        ("smtp://u:p@", Tls::OnRequest, &other, "certificate"),
        ("smtps://u:p@", Tls::FromTheStart, &other, "certificate"),
        ("smtp://u:wrong@", Tls::OnRequest, &ca, "535 5.7.8 who are you"),
        ("smtp://", Tls::OnRequest, &ca, "530 5.7.0 say who you are"),
    ] {
        let smtp = Smtp::start(tls, &certificates, Some("u:p")).await;
        let worker = MailWorker::start(&format!("{url}127.0.0.1:{}", smtp.port), &["--mail-tls-ca", ca]);
        let answer = worker.send("m", json!([mail("ada@a.example")])).await.remove(0);
        assert_eq!(answer["fault"], "unavailable", "{url} {fragment}: {answer}");
        assert!(answer["reason"].as_str().unwrap().contains(fragment), "{answer}");
        worker.gateway.until_logged(events::MAIL_RELAY_UNUSABLE, |_| true).await;
        assert!(smtp.received().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_needs_a_grant_and_an_allowed_sender_and_is_limited_per_run() {
    let smtp = Smtp::start(Tls::Never, &Certificates::new("authority"), None).await;
    let relay = format!("smtp+insecure://127.0.0.1:{}", smtp.port);
    let worker = MailWorker::start(&relay, &["--mail-allow-from", "*@sales.example, boss@shop.example"]);
    let from = |from: &str| json!({ "do": "mail", "to": ["a@a.example"], "headers": [["from", from]], "text": "x" });
    let answers =
        worker.send("m", json!([from("Sam <sam@sales.example>"), from("boss@shop.example"), from("eve@shop.example")]));
    let answers = answers.await;
    assert_eq!(answers[..2], [json!({ "ok": null }), json!({ "ok": null })]);
    assert_eq!(answers[2]["fault"], "denied");
    assert_eq!(smtp.received()[0].from, "sam@sales.example");

    let times = |times: u32| json!([{ "do": "mail", "to": ["a@a.example"], "text": "x", "times": times }]);
    assert_eq!(worker.send("ten", times(10)).await, [json!({ "ok": null })]);
    assert_eq!(worker.send("eleven", times(11)).await[0]["fault"], "too-many");
    assert_eq!(smtp.received().len(), 2 + 10 + 10);

    let answers = run_actions(&worker.redis, "poor", "p", times(1)).await;
    assert_eq!(answers[0]["fault"], "denied");
    assert!(answers[0]["reason"].as_str().unwrap().contains("write mail = true"), "{answers:?}");
    assert_eq!(smtp.received().len(), 22);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_relay_writes_mails_to_a_directory() {
    let folder = tempfile::tempdir().unwrap();
    let worker = MailWorker::start(&format!("file:{}/mail", folder.path().display()), &[]);
    assert_eq!(worker.send("m", json!([mail("ada@a.example")])).await, [json!({ "ok": null })]);
    let line = worker.gateway.until_logged(events::MAIL_WRITTEN, |line| line["plugin"] == "store").await;
    let file = line["file"].as_str().unwrap();
    assert!(file.ends_with(".eml"), "{file}");
    let written = std::fs::read_to_string(file).unwrap();
    assert!(written.contains("Subject: hello\r\n") && written.ends_with("\r\n\r\nbody\r\n"), "{written}");
    assert_eq!(line["recipients"], "ada@a.example");
    assert_eq!(std::fs::read_dir(folder.path().join("mail")).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_a_relay_reports_it() {
    let worker = MailWorker::start("", &[]);
    let act = json!({ "acts": [mail("ada@a.example")], "end": "fault" });
    worker.redis.publish("store", "m", &act.to_string()).await;
    let dead = worker.redis.dead("store").await;
    assert_eq!(text(&dead, "gw-reason"), "retry");
    assert!(text(&dead, "gw-error").contains("this host has no mail relay"), "{dead:?}");
}

#[test]
fn an_invalid_sender_is_a_settings_error() {
    for (relay, from, fragment) in [
        ("smtp://h", "", "mail.from: missing"),
        ("smtp://h", "nobody", "mail.from: \"nobody\""),
        ("ftp://h", "a@b.example", "--mail-relay (mail.relay): "),
    ] {
        let output = command(&["run", "--listen", "127.0.0.1:0", "--mail-relay", relay, "--mail-from", from]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{stderr}");
        assert!(stderr.contains(fragment), "{stderr}");
    }
}

#[test]
fn in_dev_mails_are_written_to_a_directory() {
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
