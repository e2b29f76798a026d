//! Tests of the parser. The golden samples were captured from GinForge's
//! publishers.

use super::*;

const REMINDER: &str = r#"{"id":"1795419923585502180-1795419923","topic":"order.reminder","data":{"amount":299.99,"message":"请及时完成支付","order_id":"12345","type":"payment_reminder","user_id":"67890"},"timestamp":"2026-11-23T07:45:23.585502861Z","retry":0,"max_retry":3}"#;
const NULL_DATA: &str = r#"{"id":"1795419923587085103-1795419923","topic":"user.notification","data":null,"timestamp":"2026-11-23T07:45:23.587086805Z","retry":0,"max_retry":3}"#;
const DELAYED: &str = r#"{"id":"1795419923587337439-1795419923","topic":"order.reminder","data":{"order_id":"D1","type":"order_timeout","user_id":"u"},"timestamp":"2026-11-23T07:45:26.5873382Z","retry":0,"max_retry":3}"#;
const RETRIED: &str =
    r#"{"id":"f1","topic":"t.fail","data":{"a":1},"timestamp":"2026-11-23T15:45:23.5+08:00","retry":2,"max_retry":3}"#;

fn topic() -> Topic {
    Topic::parse("order.reminder").unwrap()
}

fn read_message(body: &str) -> Result<Message, Undecodable> {
    read(&topic(), "1795419923585-7", &vec![(b"message".to_vec(), body.as_bytes().to_vec())])
}

fn data(message: &Message) -> &str {
    std::str::from_utf8(&message.data).unwrap()
}

#[test]
fn the_golden_samples_are_parsed() {
    let message = read_message(REMINDER).unwrap();
    assert_eq!(message.id, "1795419923585502180-1795419923");
    assert_eq!(
        data(&message),
        r#"{"amount":299.99,"message":"请及时完成支付","order_id":"12345","type":"payment_reminder","user_id":"67890"}"#
    );
    assert_eq!(rfc3339(message.published_at), "2026-11-23T07:45:23.585Z");
    assert_eq!((message.attempt, message.max_attempts), (1, Some(3)));

    let message = read_message(NULL_DATA).unwrap();
    assert_eq!((data(&message), message.id.as_str()), ("null", "1795419923587085103-1795419923"));

    let message = read_message(DELAYED).unwrap();
    assert_eq!(rfc3339(message.published_at), "2026-11-23T07:45:26.587Z");

    let message = read_message(RETRIED).unwrap();
    assert_eq!(rfc3339(message.published_at), "2026-11-23T07:45:23.500Z");
    assert_eq!((message.attempt, message.max_attempts), (3, Some(3)));
}

#[test]
fn data_is_handed_over_byte_for_byte() {
    for raw in [
        r#"{"n": 9007199254740993,  "b":1, "a":1.0, "a":1E2}"#,
        r#"[1,2,3]"#,
        r#""text""#,
        "-1e-400",
        r#"{"x":"\u003c\ud83d\ude00 <&>"}"#,
    ] {
        let message = read_message(&format!(r#"{{"id":"a","topic":"t","data":{raw},"retry":0}}"#)).unwrap();
        assert_eq!(data(&message), raw);
    }
}

#[test]
fn the_topic_comes_from_the_key_and_never_from_the_json() {
    assert_eq!(read_message(NULL_DATA).unwrap().topic, topic());
}

#[test]
fn keys_are_case_insensitive_and_unknown_ones_are_ignored() {
    let message = read_message(r#"{"ID":"x","Topic":"t","Data":{"k":1},"RETRY":1,"trace":[{}]}"#).unwrap();
    assert_eq!((message.id.as_str(), data(&message), message.attempt), ("x", r#"{"k":1}"#, 2));
    assert_eq!(message.max_attempts, None);
}

#[test]
fn attempts_are_clamped() {
    let attempts = |retry: &str, max: &str| {
        let body = format!(r#"{{"id":"a","topic":"t","data":{{}},"retry":{retry},"max_retry":{max}}}"#);
        read_message(&body).map(|message| (message.attempt, message.max_attempts))
    };
    assert_eq!(attempts("0", "0"), Ok((1, Some(1))));
    assert_eq!(attempts("-5", "-1"), Ok((1, Some(1))));
    assert_eq!(attempts("9223372036854775807", "9223372036854775807"), Ok((u32::MAX, Some(u32::MAX))));
    assert!(attempts("1.5", "3").is_err());
}

#[test]
fn numbers_are_read_from_strings_and_floats_too() {
    let attempts = |retry: &str, max: &str| {
        let body = format!(r#"{{"id":"a","topic":"t","data":{{}},"retry":{retry},"max_retry":{max}}}"#);
        read_message(&body).map(|message| (message.attempt, message.max_attempts))
    };
    for (retry, max) in [("\"1\"", "\"3\""), ("1.0", "3.0"), ("\" 1 \"", "\"3.0\""), ("1e0", "30e-1")] {
        assert_eq!(attempts(retry, max), Ok((2, Some(3))), "{retry} {max}");
    }
    assert_eq!(attempts("\"0\"", "1e300"), Ok((1, Some(u32::MAX))));
    for wrong in ["\"\"", "\"x\"", "\"1.5\"", "true", "[]", "\"NaN\"", "\"inf\"", "\"0x1\"", "{}"] {
        assert!(attempts(wrong, "3").unwrap_err().to_string().contains("retry: got "), "{wrong}");
        assert!(attempts("0", wrong).unwrap_err().to_string().contains("max_retry: got "), "{wrong}");
    }
}

#[test]
fn identifiers_may_be_numbers_whose_digits_stay_as_they_are() {
    for id in ["5", "0", "-7", "9007199254740993123", "1.50", "1e3"] {
        let body = format!(r#"{{"id":{id},"topic":"t","data":{{}},"dedup_key":{id}}}"#);
        let message = read_message(&body).unwrap();
        assert_eq!((message.id.as_str(), message.dedup_key.as_deref()), (id, Some(id)));
        assert!(message.has_own_id);
    }
    for wrong in ["true", "[5]", "{}"] {
        let error = read_message(&format!(r#"{{"id":{wrong},"topic":"t","data":{{}}}}"#)).unwrap_err().to_string();
        assert!(error.contains("id: got ") && error.contains("allowed: a string or a number"), "{error}");
    }
}

#[test]
fn times_may_be_numbers_of_seconds_or_milliseconds() {
    for (at, expected) in [
        ("1795419923", "2026-11-23T07:45:23.000Z"),
        ("1795419923.585", "2026-11-23T07:45:23.585Z"),
        ("1795419923585", "2026-11-23T07:45:23.585Z"),
        ("0", "1970-01-01T00:00:00.000Z"),
    ] {
        let body = format!(r#"{{"id":"a","topic":"t","data":1,"timestamp":{at},"expires_at":{at}}}"#);
        let message = read_message(&body).unwrap();
        assert_eq!(
            (rfc3339(message.published_at), message.expires_at.map(rfc3339)),
            (expected.into(), Some(expected.into()))
        );
    }
    // A number that is no time is no reason to lose the data, but nothing can expire then.
    let far = |key: &str| read_message(&format!(r#"{{"id":"a","topic":"t","data":1,"{key}":1e300}}"#));
    assert_eq!(rfc3339(far("timestamp").unwrap().published_at), "2026-11-23T07:45:23.585Z");
    assert!(far("expires_at").unwrap_err().to_string().contains("expires_at: got 1e300"));
}

#[test]
fn a_bare_value_is_the_data_and_the_entry_id_the_id() {
    for bare in ["[1, 2]", "\"text\"", "17", "null", r#"{"order": "12345"}"#, r#"{"data": 1}"#] {
        let message = read_message(bare).unwrap();
        assert_eq!((data(&message), message.id.as_str()), (bare, "1795419923585-7"));
        assert_eq!(rfc3339(message.published_at), "2026-11-23T07:45:23.585Z");
        assert!(!message.has_own_id);
    }
}

#[test]
fn an_entry_of_plain_fields_becomes_an_object_without_the_fields_of_the_host() {
    let fields = [("b", "2"), ("gw-attempt", "3"), ("a", "é\""), ("gw-id", "first-1")];
    let fields = fields.map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec())).to_vec();
    let message = read(&topic(), "5-0", &fields).unwrap();
    assert_eq!(data(&message), r#"{"a":"é\"","b":"2"}"#);
    assert_eq!((message.attempt, message.id.as_str()), (3, "first-1"));
}

#[test]
fn the_larger_of_envelope_and_entry_attempt_counts() {
    for (entry, expected) in [("2", 3), ("5", 5), ("x", 3)] {
        let fields = vec![
            (b"message".to_vec(), RETRIED.as_bytes().to_vec()),
            (b"gw-attempt".to_vec(), entry.as_bytes().to_vec()),
            (b"gw-id".to_vec(), b"not this".to_vec()),
        ];
        let message = read(&topic(), "5-0", &fields).unwrap();
        assert_eq!((message.attempt, message.id.as_str()), (expected, "f1"));
    }
}

#[test]
fn the_attributes_of_a_cloud_event_become_headers() {
    let message = read_message(
        r#"{"specversion":"1.0","id":"e-1","type":"order.made","source":"/shop","time":"2026-11-23T07:45:23Z","datacontenttype":"application/json","data":{"n": 1}}"#,
    )
    .unwrap();
    assert_eq!((message.id.as_str(), data(&message)), ("e-1", r#"{"n": 1}"#));
    assert_eq!(rfc3339(message.published_at), "2026-11-23T07:45:23.000Z");
    let header = |name: &str| message.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    assert_eq!(header("ce-type"), Some("order.made"));
    assert_eq!(header("ce-specversion"), Some("1.0"));
    assert_eq!(header("content-type"), Some("application/json"));

    let message = read_message(r#"{"specversion":"1.0","id":"e","data_base64":"AP8="}"#).unwrap();
    assert_eq!(message.data, [0, 255]);
}

#[test]
fn headers_are_lower_case_and_cannot_forge_those_of_the_host() {
    let message =
        read_message(r#"{"id":"a","topic":"t","data":1,"headers":{"TraceParent":"00-1","worker-attempt":"9"}}"#);
    assert_eq!(message.unwrap().headers, [("traceparent".to_owned(), "00-1".to_owned())]);
}

#[test]
fn an_undecodable_message_has_an_error_with_the_cause() {
    for (body, expected) in [
        ("{\"id\":", "bad JSON"),
        ("not json", "bad JSON"),
        ("", "bad JSON"),
        (r#"{"id":[5],"topic":"t","data":{}}"#, "id: got [5], allowed: a string or a number"),
        (r#"{"id":"a","topic":["t"],"data":{}}"#, "topic: got [\"t\"]"),
        (r#"{"id":"a","topic":"t","data":{},"headers":{"a":1}}"#, "headers: got"),
        (r#"{"id":"a","topic":"t","data":{},"expires_at":"soon"}"#, "expires_at: got \"soon\""),
    ] {
        let error = read_message(body).unwrap_err().to_string();
        assert!(error.contains(expected), "{body}: {error}");
    }
    let not_text = vec![(b"message".to_vec(), vec![0xff, 0xfe])];
    assert!(read(&topic(), "5-0", &not_text).unwrap_err().to_string().contains("not UTF-8"));
}

#[test]
fn an_invalid_timestamp_is_replaced_by_the_time_of_the_entry() {
    let message = read_message(r#"{"id":"a","topic":"t","data":1,"timestamp":"2026-11-23 07:45:23 o'clock"}"#).unwrap();
    assert_eq!(rfc3339(message.published_at), "2026-11-23T07:45:23.585Z");
}

#[test]
fn a_replayed_message_ignores_the_attempts_of_its_envelope() {
    let entry = |fields: &[(&str, &str)]| {
        let mut entry = vec![(b"message".to_vec(), RETRIED.as_bytes().to_vec())];
        entry.extend(fields.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())));
        read(&topic(), "1-1", &entry).unwrap()
    };
    assert_eq!(entry(&[]).attempt, 3);
    let fresh = entry(&[("gw-fresh", "1")]);
    assert_eq!((fresh.attempt, fresh.max_attempts), (1, Some(3)));
    assert_eq!(entry(&[("gw-attempt", "2"), ("gw-fresh", "1")]).attempt, 2);
    assert_eq!(entry(&[("gw-fresh", "0")]).attempt, 3);
}

#[test]
fn replacing_the_data_changes_no_other_byte() {
    let with = |body: &str| with_data(body.as_bytes(), " [9007199254740993] ").map(|it| String::from_utf8(it).unwrap());
    for (body, expected) in [
        (r#"{"id" : "ü","data":{"a": 1.0} ,"topic":"t" }"#, r#"{"id" : "ü","data":[9007199254740993] ,"topic":"t" }"#),
        (r#"{"id":"a","topic":"t","data":null}"#, r#"{"id":"a","topic":"t","data":[9007199254740993]}"#),
        // The last one counts, as in the parser.
        (r#"{"id":"a","data":1,"Data":2}"#, r#"{"id":"a","data":1,"Data":[9007199254740993]}"#),
        ("{\"id\":\"a\",\"topic\":\"t\"\n} ", "{\"id\":\"a\",\"topic\":\"t\",\"data\":[9007199254740993]} "),
        (r#"{"specversion":"1.0"}"#, r#"{"specversion":"1.0","data":[9007199254740993]}"#),
        (r#"{"data":1}"#, "[9007199254740993]"),
        ("7", "[9007199254740993]"),
        ("{not json", "[9007199254740993]"),
    ] {
        assert_eq!(with(body).unwrap(), expected, "{body}");
    }
    assert_eq!(with_data(b"\xff", "1").unwrap(), b"1");
    assert!(with_data(b"1", "{").unwrap_err().to_string().contains("bad JSON"));
    let binary = with(r#"{"specversion":"1.0","id":"a","data_base64":"AA=="}"#).unwrap_err();
    assert!(binary.to_string().contains("data_base64"), "{binary}");
}

#[test]
fn the_depth_of_a_chain_comes_from_a_header_and_a_replay_resets_it() {
    let body = r#"{"id":"a","topic":"t","data":1,"headers":{"worker-hops":"7","worker-other":"x","a":"b"}}"#;
    let entry = |fresh: &str| {
        let fields = [("message", body), (FRESH_FIELD, fresh)];
        let fields = fields.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        let message = read(&topic(), "1-1", &fields.to_vec()).unwrap();
        (message.hops, message.headers.into_iter().map(|(name, _)| name).collect::<Vec<_>>())
    };
    assert_eq!(entry("0"), (7, vec!["a".to_owned(), "worker-hops".to_owned()]));
    assert_eq!(entry("1"), (0, vec!["a".to_owned()]));
    let odd = body.replace("\"7\"", "\"-7\"");
    assert_eq!(read_message(&odd).unwrap().hops, 0);
}
