//! The predefined handlers, by table: accepted data with its follow-up, and rejected
//! data with the reason.

use crate::support::{Gateway, Plugins, Redis, predefined, text, until};
use serde_json::{Value, json};

const TOPICS: [&str; 5] = ["order.reminder", "user.notification", "payment.retry", "inventory.alert", "system.cleanup"];

fn all() -> Plugins {
    TOPICS.iter().fold(Plugins::empty(), |plugins, topic| {
        let (wasm, manifest) = predefined(topic);
        plugins.and(topic, &wasm, &manifest)
    })
}

/// Topic and data of messages, and topic and data of their follow-ups.
fn accepted() -> Vec<(&'static str, Value, &'static str, Value)> {
    let order = json!({"order_id": "007", "user_id": "u-1", "type": "order_timeout", "amount": 1});
    let reminder = json!({"order_id": "o\"1", "user_id": "ü", "type": "payment_reminder", "message": "pay"});
    let user = |more: Value| {
        let mut data = json!({"user_id": "u-1", "type": "order_shipped", "content": "on its way"});
        data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        data
    };
    vec![
        (
            "order.reminder",
            order,
            "push.notification",
            json!({"user_id": "u-1", "title": "Order timed out", "body": "Order 007 was not paid in time.", "order_id": "007", "type": "order_timeout"}),
        ),
        (
            "order.reminder",
            reminder,
            "push.notification",
            json!({"user_id": "ü", "title": "Payment reminder", "body": "pay", "order_id": "o\"1", "type": "payment_reminder"}),
        ),
        (
            "user.notification",
            user(json!({})),
            "push.notification",
            json!({"user_id": "u-1", "title": "order_shipped", "body": "on its way"}),
        ),
        (
            "user.notification",
            user(json!({"email": "a@b.example", "phone": "1", "title": "T"})),
            "email.send",
            json!({"to": "a@b.example", "subject": "T", "content": "on its way", "user_id": "u-1"}),
        ),
        (
            "user.notification",
            user(json!({"phone": "+49 1", "email": null})),
            "sms.send",
            json!({"phone": "+49 1", "content": "on its way", "user_id": "u-1"}),
        ),
        (
            "payment.retry",
            json!({"payment_id": "p", "order_id": "o", "retry_count": 0}),
            "payment.execute",
            json!({"payment_id": "p", "order_id": "o", "attempt": 1}),
        ),
        (
            "payment.retry",
            json!({"payment_id": "p", "order_id": "o", "retry_count": 4}),
            "payment.execute",
            json!({"payment_id": "p", "order_id": "o", "attempt": 5}),
        ),
        (
            "inventory.alert",
            json!({"product_id": "s", "current_stock": 2.5, "threshold": 3}),
            "email.send",
            json!({"to": "purchasing@example.com", "subject": "Low stock: s", "content": "2.5 left of s, below the threshold of 3.", "product_id": "s", "current_stock": 2.5, "threshold": 3}),
        ),
        (
            "system.cleanup",
            json!({"type": "sessions", "params": {"b": [1], "a": null}}),
            "data.sync",
            json!({"sync_type": "cleanup", "source": "sessions", "target": "archive", "params": {"b": [1], "a": null}}),
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table of cases")]
/// Topic and data of rejected messages, and the exact reason.
fn rejected() -> Vec<(&'static str, Value, &'static str)> {
    let user = |key: &str, value: Value| {
        let mut data = json!({"user_id": "u", "type": "t", "content": "c"});
        data[key] = value;
        data
    };
    vec![
        (
            "order.reminder",
            json!({"order_id": "1", "user_id": "2"}),
            "bad-data: data.type: got nothing, allowed: \"payment_reminder\" or \"order_timeout\"",
        ),
        (
            "order.reminder",
            json!({"order_id": "1", "user_id": "2", "type": "other"}),
            "bad-data: data.type: got \"other\", allowed: \"payment_reminder\" or \"order_timeout\"",
        ),
        (
            "order.reminder",
            json!({"order_id": 1, "user_id": "2", "type": "order_timeout"}),
            "bad-data: data.order_id: got 1, allowed: a non-empty string",
        ),
        (
            "order.reminder",
            json!({"order_id": "1", "user_id": "", "type": "order_timeout"}),
            "bad-data: data.user_id: got \"\", allowed: a non-empty string",
        ),
        (
            "order.reminder",
            json!({"order_id": "1", "user_id": "2", "type": "order_timeout", "message": 5}),
            "bad-data: data.message: got 5, allowed: a non-empty string",
        ),
        ("order.reminder", json!(null), "bad-data: data: got null, allowed: a JSON object"),
        (
            "user.notification",
            json!({"user_id": "1", "message": "as the quick start has it"}),
            "bad-data: data.type: got nothing, allowed: a non-empty string",
        ),
        (
            "user.notification",
            user("content", json!(null)),
            "bad-data: data.content: got nothing, allowed: a non-empty string",
        ),
        (
            "user.notification",
            user("email", json!("nobody")),
            "bad-data: data.email: got \"nobody\", allowed: an address with an @",
        ),
        (
            "user.notification",
            user("phone", json!({"n": 1})),
            "bad-data: data.phone: got {\"n\":1}, allowed: a non-empty string",
        ),
        (
            "payment.retry",
            json!({"payment_id": "p", "order_id": "o", "retry_count": 5}),
            "retries-exhausted: data.retry_count: got 5, allowed: below 5",
        ),
        (
            "payment.retry",
            json!({"payment_id": "p", "order_id": "o", "retry_count": -1}),
            "bad-data: data.retry_count: got -1, allowed: a whole number from 0 to 4294967295",
        ),
        (
            "payment.retry",
            json!({"payment_id": "p", "order_id": "o", "retry_count": "1"}),
            "bad-data: data.retry_count: got \"1\", allowed: a whole number from 0 to 4294967295",
        ),
        (
            "inventory.alert",
            json!({"product_id": "s", "current_stock": "2", "threshold": 3}),
            "bad-data: data.current_stock: got \"2\", allowed: a number",
        ),
        (
            "inventory.alert",
            json!({"product_id": "s", "current_stock": 2}),
            "bad-data: data.threshold: got nothing, allowed: a number",
        ),
        ("system.cleanup", json!({"type": "x", "params": [1]}), "bad-data: data.params: got [1], allowed: an object"),
        ("system.cleanup", json!({"params": {}}), "bad-data: data.type: got nothing, allowed: a non-empty string"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_accepted_message_leads_to_exactly_one_follow_up() {
    let redis = Redis::start();
    let plugins = all();
    let gateway = Gateway::start(&redis, &plugins);
    for (number, (topic, data, to, expected)) in accepted().into_iter().enumerate() {
        let id = format!("m-{number}");
        redis.publish(topic, &id, &data.to_string()).await;
        gateway.until_outcome(topic, &id, "done").await;
        let key = format!("mq:{to}");
        let sent = until("the follow-up", async || redis.envelopes(&key).await.pop()).await;
        assert_eq!(sent["data"], expected, "{topic} {data}");
        for other in ["push.notification", "email.send", "sms.send", "payment.execute", "data.sync"] {
            let expected = i64::from(other == to);
            assert_eq!(redis.run::<i64>(&format!("XLEN mq:{other}")).await, expected, "{topic} {data}: {other}");
        }
        redis.run::<i64>(&format!("DEL {key}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_data_is_rejected_with_key_value_and_expectation() {
    let redis = Redis::start();
    let plugins = all();
    let _gateway = Gateway::start(&redis, &plugins);
    for (number, (topic, data, expected)) in rejected().into_iter().enumerate() {
        redis.publish(topic, &format!("m-{number}"), &data.to_string()).await;
        let dead = redis.dead(topic).await;
        assert_eq!(
            (text(&dead, "gw-reason"), text(&dead, "gw-error")),
            ("reject".to_owned(), expected.to_owned()),
            "{data}"
        );
        redis.run::<i64>(&format!("DEL {{mq:{topic}}}:dead")).await;
    }
    for follow_up in ["push.notification", "email.send", "sms.send", "payment.execute", "data.sync"] {
        assert_eq!(redis.run::<i64>(&format!("EXISTS mq:{follow_up}")).await, 0, "{follow_up}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sufficient_stock_sends_no_alert() {
    let redis = Redis::start();
    let plugins = all();
    let gateway = Gateway::start(&redis, &plugins);
    for (id, stock) in [("at", 10), ("above", 11)] {
        let data = json!({"product_id": "s", "current_stock": stock, "threshold": 10});
        redis.publish("inventory.alert", id, &data.to_string()).await;
        gateway.until_outcome("inventory.alert", id, "done").await;
    }
    redis.is("both are settled", "XLEN mq:inventory.alert", 0).await;
    assert_eq!(redis.run::<i64>("EXISTS mq:email.send").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_without_a_configured_recipient_is_postponed() {
    let redis = Redis::start();
    let (wasm, _) = predefined("inventory.alert");
    let plugins = Plugins::with("inventory.alert", &wasm, "[grants]\npublish = [\"email.send\"]\n");
    let gateway = Gateway::start(&redis, &plugins);
    redis.publish("inventory.alert", "a", r#"{"product_id":"s","current_stock":1,"threshold":2}"#).await;
    gateway.until_outcome("inventory.alert", "a", "postpone").await;
    plugins.put(
        "inventory.alert",
        &wasm,
        "[grants]\npublish = [\"email.send\"]\n[config]\nalert_to = \"me@x.example\"\n",
    );
    gateway.until_outcome("inventory.alert", "a", "done").await;
    redis.is("the alert is sent", "XLEN mq:email.send", 1).await;
    assert_eq!(redis.envelopes("mq:email.send").await[0]["data"]["to"], "me@x.example");
}
