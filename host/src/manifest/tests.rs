//! Valid manifests, and every kind of fault.

use super::*;
use crate::verdict::Backoff;
use proptest::prelude::*;

fn parse(text: &str) -> Result<Manifest, String> {
    Manifest::parse(text, "order.reminder").map_err(|error| error.to_string())
}

#[test]
fn everything_has_a_default() {
    let topic = Topic::parse("order.reminder").unwrap();
    assert_eq!(parse("").unwrap(), Manifest::default_for(topic));
}

#[test]
fn every_key_is_parsed() {
    let manifest = parse(
        r#"
        topics = ["a.b", "c"]
        concurrency = 2
        global_concurrency = 5
        [rate]
        limit = 100
        per = "1s"
        [batch]
        size = 2
        wait = "50ms"
        [dedup]
        window = "24h"
        [limits]
        timeout = "5s"
        cpu = "200ms"
        memory = "1MiB"
        log = "1KiB/s"
        [retry]
        attempts = 7
        backoff = "linear"
        base = "2s"
        cap = "1m"
        [grants]
        publish = ["email.send"]
        [config]
        key = "value"
        "#,
    )
    .unwrap();
    assert_eq!(manifest.topics.iter().map(Topic::as_str).collect::<Vec<_>>(), ["a.b", "c"]);
    assert_eq!((manifest.concurrency, manifest.limits.cpu), (2, Duration::from_millis(200)));
    assert_eq!(manifest.global_concurrency, Some(5));
    assert_eq!(manifest.rate, Some(Rate { limit: 100, per: Duration::from_secs(1) }));
    assert_eq!(manifest.batch, Some(Batch { size: 2, wait: Duration::from_millis(50) }));
    assert_eq!(manifest.dedup, Some(Duration::from_secs(86_400)));
    assert_eq!(
        (manifest.limits.timeout, manifest.limits.memory, manifest.limits.log),
        (Duration::from_secs(5), MIB, 1024)
    );
    assert_eq!((manifest.retry.attempts, manifest.retry.backoff), (Some(7), Backoff::Linear));
    assert_eq!((manifest.retry.base, manifest.retry.cap), (Duration::from_secs(2), Duration::from_secs(60)));
    assert!(manifest.grants.publish.contains(&Topic::parse("email.send").unwrap()));
    assert_eq!(manifest.config["key"], "value");
}

#[test]
fn a_fault_has_its_position_and_what_is_allowed() {
    for (text, expected) in [
        ("[limits]\ncpuu = \"1s\"", &["line 2, column 1", "unknown key `cpuu` in [limits]", "`cpu`"][..]),
        ("topics = [\"{a}\"]", &["line 1, column 10", "invalid topic name"]),
        ("concurrency = 0", &["line 1, column 15", "1 to 10000"]),
        ("concurrency = 10001", &["1 to 10000"]),
        ("[limits]\n\ncpu = \"1x\"", &["line 3, column 7", "500ms"]),
        ("[limits]\ncpu = \"0s\"", &["1ms to 1h"]),
        ("[limits]\ntimeout = \"61m\"", &["1ms to 1h"]),
        ("[rate]\nlimit = 5", &["line 1, column 2", "[rate] requires `per`"]),
        ("[rate]\nlimit = 0\nper = \"1s\"", &["line 2, column 9", "1 to 1000000"]),
        ("[rate]\nlimit = 1\nper = \"99ms\"", &["line 3, column 7", "100ms to 1d"]),
        ("[batch]\nsize = 1001\nwait = \"1ms\"", &["line 2, column 8", "1 to 1000"]),
        ("[batch]\nsize = 9\nwait = \"61s\"", &["line 3, column 8", "0s to 1m"]),
        ("concurrency = 8\n[batch]\nsize = 9\nwait = \"1s\"", &["batch.size = 9 is more than concurrency = 8"]),
        (
            "global_concurrency = 8\n[batch]\nsize = 9\nwait = \"1s\"",
            &["line 1, column 22", "batch.size = 9 is more than global_concurrency = 8"],
        ),
        (
            "[batch]\nsize = 9\nwait = \"1s\"\n[rate]\nlimit = 4\nper = \"600ms\"",
            &["line 5, column 9", "batch.size = 9 is more than rate.limit = 4 lets start within batch.wait"],
        ),
        ("[retry]\nbase = \"2m\"\ncap = \"1m\"", &["line 2, column 8", "retry.base = 2m is more than retry.cap = 1m"]),
        ("[retry]\nbase = \"1h\"", &["line 2, column 8", "retry.cap = 10m"]),
        ("[dedup]\nwindow = \"999ms\"", &["1s to"]),
        ("global_concurrency = 0", &["1 to 1000000"]),
        ("[limits]\nmemory = \"64KB\"", &["64KiB to 4GiB"]),
        ("[limits]\nmemory = 64", &["line 2, column 10", "a string"]),
        ("[limits]\nlog = \"64KiB\"", &["64KiB/s"]),
        ("[retry]\nbackoff = \"random\"", &["`exponential`, `linear`", "line 2"]),
        ("[config]\nn = 5", &["line 2, column 5", "a string"]),
        ("topics = []", &["at least one"]),
        ("topics = [\"*:*\"]", &["line 1, column 10", "needs \"*\""]),
        ("topics = [\"*:*\", \"a\"]", &["line 1, column 10", "needs \"*\""]),
        ("topics = [\"*\", \"*\"]", &["line 1, column 16", "\"*\" is named twice"]),
        ("topics = [\"*\", \"*:*\", \"a\"]", &["line 1, column 10", "can't be mixed with topics"]),
        ("topics = [", &["line 1"]),
        ("topics = 5", &["line 1, column 10", "a list, not integer"]),
        ("topics = [\"a\", \"*\"]", &["line 1, column 10", "can't be mixed with topics"]),
        ("topics = [\"a\", \"b\", \"a\"]", &["line 1, column 21", "a is named twice"]),
        ("instances = \"shared\"", &["line 1, column 13", "\"per-message\"", "max_calls = 1000"]),
        ("instances = { idle_timeout = \"1s\" }", &["[instances] requires `max_calls`"]),
        ("instances = { max_calls = 0 }", &["line 1, column 27", "1 to 1000000"]),
        ("args = [\"a\\u0000\"]", &["zero byte"]),
        ("args = [1]", &["line 1, column 9", "a string"]),
        ("[grants]\nhttp = [\"api.example.com\"]", &["line 2, column 9", "https://api.example.com"]),
        ("[grants]\nhttp = \"https://a.example\"", &["line 2, column 8", "a list, not string"]),
        ("[grants]\nprivate_networks = [\"10.0.0.0\"]", &["line 2, column 21", "10.0.0.0/8"]),
        ("[grants]\nmail = \"yes\"", &["line 2, column 8", "a boolean"]),
        ("[grants]\nsecrets = [\"a/b\"]", &["line 2, column 12", "not a valid secret name"]),
        ("[grants]\npublish = [\"*\"]", &["line 2, column 12", "invalid topic name"]),
        ("[grants]\nread = { in = \"/data\" }", &["line 2, column 10", "absolute path"]),
        ("[grants]\nwrite = { \"/in\" = \"/data/../etc\" }", &["line 2, column 19", "absolute path"]),
        ("[grants]\nread = [\"/in\"]", &["`read` is a table, not array"]),
        ("[http_headers.\"https://a.example\"]\nx = \"y\"", &["line 1, column 15", "grants.http"]),
        (&header("Host", "a"), &["`host` is set by the host itself"]),
        (&header("a b", "a"), &["not a valid header name"]),
        (&header("A", "a\\nb"), &["printable ASCII"]),
        (&header("A", "${env:HOME}"), &["line 4, column 5", "only ${secret:NAME}"]),
        (&header("A", "${secret:KEY"), &["without `}`"]),
        (&header("A", "${secret:a b}"), &["not a valid secret name"]),
        ("[limits]\ntable_elements = 100001", &["1 to 100000"]),
        ("[limits]\nhost_call_bytes = \"1023B\"", &["1KiB to"]),
        ("wat = 1", &["line 1, column 1", "unknown key `wat` in the manifest", "`http_headers`"]),
    ] {
        let error = parse(text).unwrap_err();
        for part in expected {
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}

#[test]
fn keys_that_were_renamed_before_the_first_release_are_unknown() {
    for (text, expected) in [
        ("concurrency_total = 1", &["unknown key `concurrency_total`", "`global_concurrency`"]),
        ("instances = { max_calls = 1, idle = \"1s\" }", &["unknown key `idle` in [instances]", "`idle_timeout`"]),
        ("[limits]\nhandles = 1", &["unknown key `handles` in [limits]", "`resources`"]),
        ("[limits]\nhost_call = \"1KiB\"", &["unknown key `host_call` in [limits]", "`host_call_bytes`"]),
        ("[grants]\nnetworks = []", &["unknown key `networks` in [grants]", "`private_networks`"]),
    ] {
        let error = parse(text).unwrap_err();
        assert!(expected.iter().all(|part| error.contains(part)), "{text:?}: {error}");
    }
}

#[test]
fn values_that_only_seem_contradictory_are_accepted() {
    for text in [
        // Two rate windows fill the batch.
        "[batch]\nsize = 8\nwait = \"1s\"\n[rate]\nlimit = 4\nper = \"1s\"",
        "global_concurrency = 9\n[batch]\nsize = 9\nwait = \"1s\"",
        "[retry]\nbase = \"1m\"\ncap = \"1m\"",
        "[retry]\ncap = \"10ms\"",
        "[limits]\ncpu = \"1m\"\ntimeout = \"1s\"",
    ] {
        assert!(parse(text).is_ok(), "{text}");
    }
}

/// Anybody may read the log and the status pages, which quote faults.
#[test]
fn a_fault_never_quotes_what_may_be_a_secret() {
    let headers = "[grants]\nhttp = [\"https://a.example\"]\n[http_headers.\"https://a.example\"]\n";
    for text in [
        header("Authorization", "Bearer s3cr3t ${x"),
        header("Authorization", "Bearer ${s3cr3t}"),
        header("Authorization", "Bearer ${secret:s3cr3t!}"),
        header("Authorization", "s3cr3t\\u0007"),
        header("Bearer s3cr3t", "x"),
        format!("{headers}Authorization = [\"s3cr3t\"]"),
        format!("{headers}Authorization = \"s3cr3t"),
        format!("{headers}Authorization = s3cr3t"),
        "[http_headers.\"https://me:s3cr3t@a.example\"]\nx = \"y\"".to_owned(),
        "[http_headers]\n\"https://me:s3cr3t@a.example\" = \"y\"".to_owned(),
        "[http_headers]\n\"https://a.example\" = \"s3cr3t\"".to_owned(),
        "[grants]\nhttp = [\"https://me:s3cr3t@a.example\"]".to_owned(),
        "[grants]\nhttp = [\"me:s3cr3t@a.example\"]".to_owned(),
        "[grants]\nsecrets = [\"s3cr3t!\"]".to_owned(),
        "[config]\nP = 918273645".to_owned(),
        "[config]\nP = [\"s3cr3t\"]".to_owned(),
        "[config]\nP = { q = \"s3cr3t\" }".to_owned(),
        "[config]\nP = \"s3cr3t".to_owned(),
        "config = \"s3cr3t\"".to_owned(),
    ] {
        let error = parse(&text).unwrap_err();
        assert!(!error.contains("s3cr3t") && !error.contains("918273645"), "{text}: {error}");
    }
}

#[test]
fn a_fault_is_truncated_and_has_no_control_characters() {
    let error = parse(&format!("[limits]\n\"\\u001b[2J{}\" = 1", "x".repeat(100_000))).unwrap_err();
    assert!(error.len() < 2000 && error.contains("\\u{1b}[2J") && !error.contains('\u{1b}'), "{error}");
}

#[test]
fn the_arguments_of_a_command_are_limited_in_number_and_size() {
    let args =
        |count: usize, bytes: usize| parse(&format!("args = [\"{}\"]", vec!["x".repeat(bytes); count].join("\", \"")));
    assert_eq!(args(100, 655).unwrap().args.len(), 100);
    assert_eq!(args(1, 64 << 10).unwrap().args[0].len(), 64 << 10);
    for (count, bytes) in [(101, 1), (1, (64 << 10) + 1), (2, (32 << 10) + 1)] {
        assert!(args(count, bytes).unwrap_err().contains("more than 100 arguments or 65536 bytes"), "{count}");
    }
}

/// A manifest with one header for a granted origin.
fn header(name: &str, value: &str) -> String {
    format!("[grants]\nhttp = [\"https://a.example\"]\n[http_headers.\"https://a.example\"]\n\"{name}\"=\"{value}\"")
}

#[test]
fn all_faults_are_reported_in_the_order_of_the_text() {
    let text = "concurrency = 0\nnope = 1\n[limits]\ncpu = \"1x\"\nmem = 1\n[grants]\nhttp = [\"a\", \"https://b.example\", \"c\"]\n\
        [schedule]\ncron = \"60 * * * *\"\ntimezone = \"Mars\"\n[rate]\n";
    let InvalidManifest(faults) = Manifest::parse(text, "a b").unwrap_err();
    let positions: Vec<_> = faults.iter().map(|fault| (fault.line, fault.column)).collect();
    assert_eq!(
        positions,
        [(1, 1), (1, 15), (2, 1), (4, 7), (5, 1), (7, 9), (7, 35), (9, 8), (10, 12), (11, 2), (11, 2)]
    );
}

#[test]
fn grants_are_formatted_for_display() {
    assert_eq!(parse("").unwrap().grants.to_string(), "nothing");
    let manifest = parse(
        r#"
        topics = ["*"]
        instances = { max_calls = 10, idle_timeout = "1m" }
        args = ["--fast"]
        [grants]
        http = ["https://API.example.com:443", "http://10.0.0.5:81"]
        private_networks = ["10.0.0.0/8"]
        publish = ["b", "a"]
        mail = true
        keyvalue = false
        secrets = ["API_KEY"]
        read = { "/in" = "/data/in" }
        [http_headers."https://api.example.com"]
        Authorization = "Bearer ${secret:API_KEY}!"
        "#,
    )
    .unwrap();
    assert!(manifest.is_catch_all());
    assert_eq!(manifest.instances, Instances::Reused { max_calls: 10, idle_timeout: Duration::from_secs(60) });
    assert_eq!(manifest.args, ["--fast"]);
    assert_eq!(
        manifest.grants.to_string(),
        "http http://10.0.0.5:81, https://api.example.com; mail; private_networks 10.0.0.0/8; publish a, b; \
         read /in = /data/in; secrets API_KEY"
    );
    let origin = Origin::parse("https://api.example.com").unwrap();
    let secret = SecretName::parse("API_KEY").unwrap();
    let value =
        vec![HeaderPart::Text("Bearer ".to_owned()), HeaderPart::Secret(secret), HeaderPart::Text("!".to_owned())];
    assert_eq!(manifest.http_headers[&origin], [Header { name: "authorization".to_owned(), value }]);
}

#[test]
fn a_catch_all_asks_for_topics_with_colons() {
    for (topics, with_colons) in [("[\"*\"]", false), ("[\"*\", \"*:*\"]", true), ("[\"*:*\", \"*\"]", true)] {
        let manifest = parse(&format!("topics = {topics}")).unwrap();
        assert_eq!(manifest.catch_all, Some(CatchAll { with_colons }), "{topics}");
        assert!(manifest.is_catch_all() && manifest.topics.is_empty(), "{topics}");
    }
    assert_eq!(parse("topics = [\"*:*\", \"*\"]").unwrap().topic_patterns(), ["*", "*:*"]);
    let manifest = parse("topics = [\"a\", \"b\"]").unwrap();
    assert!(!manifest.is_catch_all());
    assert_eq!(manifest.topic_patterns(), ["a", "b"]);
}

#[test]
fn topics_with_colons_are_for_a_catch_all_that_asks_for_them() {
    for (topic, with_colons, is_included) in
        [("a.b", false, true), ("a.b", true, true), ("a:b", false, false), ("a:b", true, true)]
    {
        let topic = Topic::parse(topic).unwrap();
        assert_eq!(CatchAll { with_colons }.includes(&topic), is_included, "{topic} {with_colons}");
    }
}

#[test]
fn a_file_name_with_other_characters_is_no_topic() {
    for stem in ["order.reminder", "A-Z_0.9"] {
        assert_eq!(topic_from_stem(stem).unwrap().as_str(), stem);
        assert!(Manifest::parse("", stem).is_ok());
    }
    for stem in ["a b", "a:b", "\u{e9}", "a/b", ""] {
        assert!(topic_from_stem(stem).is_err(), "{stem}");
        let error = Manifest::parse("", stem).unwrap_err().to_string();
        assert!(error.starts_with("line 1, column 1") && error.contains("name the topic in `topics`"), "{error}");
        assert!(Manifest::parse("topics = [\"a\"]", stem).is_ok());
    }
}

#[test]
fn a_schedule_requires_one_topic() {
    let with = |topics| parse(&format!("topics = {topics}\n[schedule]\ncron = \"@daily\""));
    assert!(with("[\"a\"]").unwrap().schedule.is_some());
    assert!(with("[\"a\", \"b\"]").unwrap_err().contains("`topics` names 2"));
    assert!(parse("[schedule]\ncron = \"@daily\"").unwrap().schedule.is_some());
    let error = parse("\n[schedule]\ncron = \"0 0 30 2 *\"").unwrap_err();
    assert!(error.contains("line 3, column 8") && error.contains("never fires"), "{error}");
}

#[test]
fn limits_are_checked_at_both_ends() {
    for (text, is_legal) in [
        ("[limits]\nmemory = \"64KiB\"", true),
        ("[limits]\nmemory = \"65535B\"", false),
        ("[limits]\nmemory = \"4GiB\"", true),
        ("[limits]\nmemory = \"4097MiB\"", false),
        ("[limits]\ntimeout = \"0ms\"", false),
        ("[limits]\ntimeout = \"1ms\"", true),
        ("[limits]\ntimeout = \"1h\"", true),
        ("[limits]\ntimeout = \"3600001ms\"", false),
        ("[limits]\ncpu = \"0ms\"", false),
        ("[limits]\ncpu = \"1ms\"", true),
        ("[limits]\ncpu = \"1h\"", true),
        ("[limits]\ncpu = \"3600001ms\"", false),
        ("[limits]\ntable_elements = 0", false),
        ("[limits]\ntable_elements = 1", true),
        ("[limits]\ntable_elements = 100000", true),
        ("[limits]\ntable_elements = 100001", false),
        ("[limits]\nresources = 0", false),
        ("[limits]\nresources = 1", true),
        ("[limits]\nresources = 100000", true),
        ("[limits]\nresources = 100001", false),
        ("[limits]\nhost_call_bytes = \"1023B\"", false),
        ("[limits]\nhost_call_bytes = \"1KiB\"", true),
        ("[limits]\nhost_call_bytes = \"256MiB\"", true),
        ("[limits]\nhost_call_bytes = \"257MiB\"", false),
        ("[limits]\nlog = \"0B/s\"", false),
        ("[limits]\nlog = \"1B/s\"", true),
        ("[limits]\nlog = \"1GiB/s\"", true),
        ("[limits]\nlog = \"1025MiB/s\"", false),
        ("[limits]\nhttp_body = \"0B\"", true),
        ("[limits]\nhttp_body = \"1GiB\"", true),
        ("[limits]\nhttp_body = \"1025MiB\"", false),
        ("[limits]\nhttp_requests = 0", false),
        ("[limits]\nhttp_requests = 1", true),
        ("[limits]\nhttp_requests = 1000", true),
        ("[limits]\nhttp_requests = 1001", false),
        ("[limits]\nkeyvalue = \"1023B\"", false),
        ("[limits]\nkeyvalue = \"1KiB\"", true),
        ("[limits]\nkeyvalue = \"64GiB\"", true),
        ("[limits]\nkeyvalue = \"65GiB\"", false),
        ("[limits]\nkeyvalue_keys = 0", false),
        ("[limits]\nkeyvalue_keys = 1", true),
        ("[limits]\nkeyvalue_keys = 100000000", true),
        ("[limits]\nkeyvalue_keys = 100000001", false),
        ("instances = { max_calls = 0 }", false),
        ("instances = { max_calls = 1 }", true),
        ("instances = { max_calls = 1000000 }", true),
        ("instances = { max_calls = 1000001 }", false),
        ("instances = { max_calls = 1, idle_timeout = \"99ms\" }", false),
        ("instances = { max_calls = 1, idle_timeout = \"100ms\" }", true),
        ("instances = { max_calls = 1, idle_timeout = \"1h\" }", true),
        ("instances = { max_calls = 1, idle_timeout = \"3600001ms\" }", false),
        ("concurrency = 0", false),
        ("concurrency = 10000", true),
        ("concurrency = 10001", false),
        ("[batch]\nsize = 0\nwait = \"1s\"", false),
        ("[batch]\nsize = 1000\nwait = \"1m\"", true),
        ("[batch]\nsize = 1001\nwait = \"1m\"", false),
        ("[batch]\nsize = 1\nwait = \"60001ms\"", false),
        ("[retry]\nattempts = 0", false),
        ("[retry]\nattempts = 1000", true),
        ("[retry]\nattempts = 1001", false),
        ("[retry]\nattempts = -1", false),
    ] {
        assert_eq!(parse(text).is_ok(), is_legal, "{text}: {:?}", parse(text));
    }
}

/// Tokens of manifests in any order.
fn words() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        prop::sample::select(vec![
            "topics",
            "concurrency",
            "instances",
            "max_calls",
            "limits",
            "cpu",
            "grants",
            "http",
            "schedule",
            "cron",
            "batch",
            "=",
            "[",
            "]",
            "[[",
            "{",
            "}",
            ",",
            ".",
            "\n",
            "\"",
            "'",
            "\"*\"",
            "\"1s\"",
            "\"64MiB\"",
            "0",
            "-1",
            "1e99",
            "9223372036854775807",
            "true",
            "inf",
            "2026-11-23",
            "#",
        ])
        .prop_map(str::to_owned),
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(word, 0..40).prop_map(|words| words.join(" "))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_text_is_parsed_or_refused_with_positions(text in words()) {
        if let Err(error) = Manifest::parse(&text, "topic") {
            prop_assert!(!error.0.is_empty() && error.0.iter().all(|fault| fault.to_string().starts_with("line ")), "{error}");
        }
    }
}
