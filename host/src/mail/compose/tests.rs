//! Emails as handlers request them, and the formatted result.

use super::*;

fn email(headers: &[(&str, &str)]) -> Email {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Email { id: "t/m-1".to_owned(), to: vec!["ada@a.example".to_owned()], headers, parts: vec![text("hello")] }
}

fn text(body: &str) -> EmailPart {
    EmailPart { content_type: "text/plain".to_owned(), name: None, data: body.as_bytes().to_vec() }
}

fn file(name: &str, data: &[u8]) -> EmailPart {
    EmailPart { content_type: "application/pdf".to_owned(), name: Some(name.to_owned()), data: data.to_vec() }
}

fn senders() -> Senders {
    let allowed = ["*@shop.example".to_owned(), "one@other.example".to_owned()];
    Senders::new("Shop <noreply@shop.example>", &allowed).unwrap()
}

fn written(email: Email) -> Result<String, Fault> {
    compose(email, &senders()).map(|mail| String::from_utf8(mail.bytes).unwrap())
}

fn code(email: Email) -> &'static str {
    match compose(email, &senders()) {
        Ok(mail) => panic!("{}", String::from_utf8_lossy(&mail.bytes)),
        Err(fault) => fault.code,
    }
}

#[test]
fn an_email_has_all_required_headers() {
    let mail = compose(email(&[("Subject", "Grüße"), ("X-Mine", "a b")]), &senders()).unwrap();
    let text = String::from_utf8(mail.bytes).unwrap();
    for line in [
        "From: Shop <noreply@shop.example>\r\n".to_owned(),
        "To: ada@a.example\r\n".to_owned(),
        "Subject: =?utf-8?b?R3LDvMOfZQ==?=\r\n".to_owned(),
        "X-Mine: a b\r\n".to_owned(),
        format!("Message-ID: <{}>\r\n", mail.id),
        "Date: ".to_owned(),
        "MIME-Version: 1.0\r\n".to_owned(),
        "Content-Type: text/plain; charset=utf-8\r\n".to_owned(),
        "\r\n\r\nhello".to_owned(),
    ] {
        assert!(text.contains(&line), "{line:?}: {text}");
    }
    assert!(mail.id.ends_with("@shop.example") && mail.id.len() == 32 + 13, "{}", mail.id);
    assert_eq!(mail.envelope.from().unwrap().to_string(), "noreply@shop.example");
    let again = compose(email(&[]), &senders()).unwrap();
    assert_eq!(again.id, mail.id);
    let other = Email { id: "t/m-2".to_owned(), ..email(&[]) };
    assert_ne!(compose(other, &senders()).unwrap().id, mail.id);
}

#[test]
fn a_header_value_can_not_add_a_header() {
    for (name, value) in [
        ("subject", "hello\r\nBcc: eve@e.example"),
        ("subject", "hello\nBcc: eve@e.example"),
        ("subject", "hello\rBcc: eve@e.example"),
        ("subject", "hello\0"),
        ("cc", "b@b.example\r\nBcc: eve@e.example"),
        ("reply-to", "Bob\r\nX: y <b@b.example>"),
        ("from", "one@other.example\r\nX: y"),
        ("x\r\ny", "z"),
        ("x: y", "z"),
        ("x y", "z"),
        ("", "z"),
        ("ä", "z"),
    ] {
        assert_eq!(code(email(&[(name, value)])), "invalid", "{name:?}: {value:?}");
    }
    for to in [
        "a@a.example\r\nRCPT TO:<eve@e.example>",
        "a@a.example>\r\n",
        "a@a.example, b@b.example",
        "a",
        "",
        "a@a.example junk",
    ] {
        assert_eq!(code(Email { to: vec![to.to_owned()], ..email(&[]) }), "invalid", "{to:?}");
    }
    for name in ["a\r\nb.pdf", ""] {
        assert_eq!(code(Email { parts: vec![file(name, b"x")], ..email(&[]) }), "invalid", "{name:?}");
    }
    for kind in ["text/plain\r\nX: y", "nothing", "multipart/mixed; boundary=x", ""] {
        let part = EmailPart { content_type: kind.to_owned(), ..text("hello") };
        assert_eq!(code(Email { parts: vec![part], ..email(&[]) }), "invalid", "{kind:?}");
    }
    let odd = written(Email { parts: vec![file("a\"; x=\"y.pdf", b"x")], ..email(&[]) }).unwrap();
    assert!(!odd.contains("; x=\"y"), "{odd}");
}

#[test]
fn control_characters_are_refused_in_addresses_and_types() {
    let to = |to: &str| Email { to: vec![to.to_owned()], ..email(&[]) };
    let kind = |kind: &str| {
        let part = EmailPart { content_type: kind.to_owned(), ..text("hello") };
        Email { parts: vec![part], ..email(&[]) }
    };
    let long = "x".repeat(901);
    for (email, expected) in [
        (to("\"Ada\r\n Bcc: eve\" <ada@a.example>"), "control character"),
        (to("\"Ada\u{85}\" <ada@a.example>"), "control character"),
        (email(&[("cc", "\"Bob\r\n X: y\" <b@b.example>")]), "control character"),
        (to(&format!("{long} <ada@a.example>")), "too long"),
        (kind("text/plain; name=\"a\r\n b\""), "printable ASCII"),
        (kind("text/plain; name=\"\u{e4}\""), "printable ASCII"),
        (kind(&format!("text/plain; name={long}")), "printable ASCII"),
        (Email { to: Vec::new(), ..email(&[]) }, "needs at least one recipient"),
    ] {
        let fault = compose(email, &senders()).err().unwrap();
        assert!(fault.code == "invalid" && fault.reason.contains(expected), "{fault}");
    }
}

#[test]
fn reserved_headers_can_not_be_set() {
    for name in
        ["Message-ID", "sender", "Return-Path", "content-type", "MIME-Version", "Resent-To", "DKIM-Signature", "to"]
    {
        assert_eq!(code(email(&[(name, "x@shop.example")])), "invalid", "{name}");
    }
    assert_eq!(code(email(&[("subject", "a"), ("Subject", "b")])), "invalid");
    assert_eq!(code(email(&[("date", "tomorrow")])), "invalid");
    let date = "Tue, 24 Nov 2026 03:53:14 +0000";
    assert_eq!(written(email(&[("date", date)])).unwrap().matches("Date: ").count(), 1);
}

#[test]
fn only_allowed_senders_are_accepted() {
    for from in ["Sales <sales@shop.example>", "SALES@SHOP.example", "one@other.example", "noreply@shop.example"] {
        assert!(written(email(&[("from", from)])).is_ok(), "{from}");
    }
    for from in ["two@other.example", "a@evilshop.example", "a@shop.example.evil.example"] {
        assert_eq!(code(email(&[("from", from)])), "denied", "{from}");
    }
    let strict = Senders::new("noreply@shop.example", &[]).unwrap();
    let fault = compose(email(&[("from", "sales@shop.example")]), &strict).err().unwrap();
    assert!(fault.reason.contains("mail.allow_from"), "{fault}");
    assert!(Senders::new("nobody", &[]).err().unwrap().starts_with("mail.from: "));
}

#[test]
fn cc_and_bcc_receive_the_email_and_bcc_is_not_in_its_headers() {
    let headers = [("cc", "Bob <b@b.example>, c@c.example"), ("bcc", "d@d.example"), ("reply-to", "r@r.example")];
    let mail = compose(email(&headers), &senders()).unwrap();
    let to: Vec<String> = mail.envelope.to().iter().map(ToString::to_string).collect();
    assert_eq!(to, ["ada@a.example", "b@b.example", "c@c.example", "d@d.example"]);
    let text = String::from_utf8(mail.bytes).unwrap();
    assert!(text.contains("Cc: Bob <b@b.example>, c@c.example") && text.contains("Reply-To: r@r.example"), "{text}");
    assert!(!text.contains("d@d.example") && !text.to_lowercase().contains("bcc"), "{text}");
    assert_eq!(code(Email { to: Vec::new(), ..email(&[]) }), "invalid");
    assert!(written(Email { to: Vec::new(), ..email(&[("bcc", "d@d.example")]) }).is_ok());
}

#[test]
fn bodies_are_alternatives_and_files_are_attached() {
    let html = EmailPart { content_type: "text/html".to_owned(), ..text("<p>hello</p>") };
    let several = |parts: Vec<EmailPart>| written(Email { parts, ..email(&[]) });
    let both = several(vec![text("hello"), html.clone()]).unwrap();
    assert!(both.contains("multipart/alternative") && !both.contains("multipart/mixed"), "{both}");
    assert!(both.find("text/plain").unwrap() < both.find("text/html").unwrap());
    let all = several(vec![text("hello"), html, file("rechnung-ä.pdf", b"%PDF\x00\xff")]).unwrap();
    assert!(all.find("multipart/mixed").unwrap() < all.find("multipart/alternative").unwrap(), "{all}");
    assert!(all.contains("Content-Disposition: attachment;") && all.contains("JVBERgD/"), "{all}");
    assert!(several(vec![file("a.pdf", b"x")]).unwrap().contains("multipart/mixed"));
    assert_eq!(code(Email { parts: Vec::new(), ..email(&[]) }), "invalid");
    let latin = |kind: &str| EmailPart { content_type: kind.to_owned(), name: None, data: b"gr\xfc\xdfe".to_vec() };
    assert_eq!(code(Email { parts: vec![latin("text/plain")], ..email(&[]) }), "invalid");
    assert!(several(vec![latin("text/plain; charset=iso-8859-1")]).is_ok());
}

#[test]
fn the_sizes_of_an_email_are_limited() {
    let many = |count: usize| Email { to: vec!["ada@a.example".to_owned(); count], ..email(&[("cc", "b@b.example")]) };
    assert!(written(many(99)).is_ok());
    assert_eq!(code(many(100)), "too-many");
    assert_eq!(code(many(101)), "too-many");
    let overhead = "ada@a.example".len() + "a.pdf".len() + "application/pdf".len();
    let large = |bytes: usize| Email { parts: vec![file("a.pdf", &vec![b'x'; bytes])], ..email(&[]) };
    assert!(written(large((10 << 20) - overhead)).is_ok());
    assert_eq!(code(large((10 << 20) - overhead + 1)), "too-large");
    let headers = |count: usize| (0..count).fold(email(&[]), |email, number| email.with(&format!("x-{number}"), "y"));
    assert!(written(headers(100)).is_ok());
    assert_eq!(code(headers(101)), "too-many");
    let parts = |count: usize| Email { parts: vec![text("hello"); count], ..email(&[]) };
    assert!(written(parts(100)).is_ok());
    assert_eq!(code(parts(101)), "too-many");
    let word = |bytes: usize| email(&[]).with("subject", &"x".repeat(bytes));
    assert!(written(word(900)).unwrap().lines().all(|line| line.len() <= 998));
    assert_eq!(code(word(901)), "invalid");
}

impl Email {
    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

#[test]
fn bytes_of_other_charsets_are_not_changed() {
    let utf16: Vec<u8> = "a\r\nb\rc\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let part = EmailPart { content_type: "text/plain; charset=utf-16le".to_owned(), name: None, data: utf16 };
    let written = written(Email { parts: vec![part], ..email(&[]) }).unwrap();
    assert!(written.contains("YQANAAoAYgANAGMACgA="), "{written}");
}

#[test]
fn a_body_of_line_ends_only_takes_no_longer_than_another() {
    let lines = "\n".repeat(4 << 20);
    let written = written(Email { parts: vec![text(&lines)], ..email(&[]) }).unwrap();
    assert!(written.len() > 2 * lines.len());
}

#[test]
fn long_lines_and_other_bytes_are_encoded() {
    for body in ["x".repeat(2000), "ü".to_owned(), "a\0b".to_owned(), "a\u{b}\u{7f}".to_owned()] {
        let written = written(Email { parts: vec![text(&body)], ..email(&[]) }).unwrap();
        assert!(written.is_ascii() && written.lines().all(|line| line.len() <= 998), "{written}");
        assert!(!written.contains(['\0', '\u{b}', '\u{7f}']), "{written:?}");
    }
}
