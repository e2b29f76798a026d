//! Uses every interface of the contract and publishes the results. A build of it
//! is stored in `tests/golden` and must run on every later release.

use gateway_plugin_sdk::{
    Failure, Fault, Message, Priority, PublishOptions, batch_handler, config, handler, publish_with,
};
use std::collections::BTreeMap;

#[allow(
    unsafe_code,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    reason = "generated from wit/gateway.wit; the boundary of a component is made of raw pointers"
)]
mod capability_bindings {
    wit_bindgen::generate!({
        path: "../../../wit",
        generate_all,
        inline: "
            package golden:golden;
            world golden {
                include gateway:worker/capabilities@1.0.0;
                include gateway:worker/self-tested@1.0.0;
            }
        ",
        with: { "gateway:worker/types@1.0.0": gateway_plugin_sdk::bindings::gateway::worker::types },
    });
}

use capability_bindings::gateway::worker::{key_value, mail, secrets};
use gateway_plugin_sdk::bindings::gateway::worker::{config as raw_config, logging};

/// Publishes what the host answered; a batch names the `parent`.
fn report(message: &Message, parent: Option<String>) -> Result<(), Failure> {
    let fields = [("topic".to_owned(), message.topic.clone()), ("attempt".to_owned(), message.attempt.to_string())];
    logging::log(logging::Level::Info, "golden");
    logging::log_with(logging::Level::Warn, "golden with fields", &fields);
    let part = mail::Part { content_type: "text/plain".to_owned(), name: None, data: b"hello".to_vec() };
    let results = BTreeMap::from([
        ("id", message.id.clone()),
        ("data", String::from_utf8_lossy(&message.data).into_owned()),
        ("published_at_bytes", message.published_at.len().to_string()),
        ("max_attempts", message.max_attempts.to_string()),
        ("header", message.header("color").unwrap_or_default().to_owned()),
        ("config", config("color").unwrap_or_default()),
        ("config_all", raw_config::get_all().len().to_string()),
        ("get", code(key_value::get("key"))),
        ("set", code(key_value::set("key", b"value", 60))),
        ("set_if_absent", code(key_value::set_if_absent("key", b"value", 60))),
        ("compare_and_swap", code(key_value::compare_and_swap("key", b"value", b"other", 60))),
        ("delete", code(key_value::delete("key"))),
        ("secret", code(secrets::get("NAME"))),
        ("mail", code(mail::send(&["a@example.com".to_owned()], &[], &[part]))),
    ]);
    let headers = vec![("color".to_owned(), "gold".to_owned())];
    let options = PublishOptions {
        id: None,
        parent,
        delay_seconds: 0,
        priority: Priority::Normal,
        headers,
        dedup_key: Some(format!("results/{}", message.id)),
        expires_seconds: 3600,
    };
    publish_with("results", &results, &options)?;
    match results["data"].as_str() {
        "\"retry\"" => Err(Failure::retry("requested by the message")),
        "\"postpone\"" => Err(Failure::postpone("requested by the message")),
        "\"reject\"" => Err(Failure::reject("requested", "by the message")),
        _ => Ok(()),
    }
}

/// The fault's code, or "ok".
fn code<T>(answer: Result<T, Fault>) -> String {
    answer.map_or_else(|fault| fault.code, |_| "ok".to_owned())
}

fn handle(message: Message) -> Result<(), Failure> {
    report(&message, None)
}

fn handle_batch(messages: Vec<Message>) -> Vec<Result<(), Failure>> {
    messages.iter().map(|message| report(message, Some(message.id.clone()))).collect()
}

handler!(handle);
batch_handler!(handle_batch);

struct Test;

impl capability_bindings::exports::gateway::worker::self_test::Guest for Test {
    fn check() -> Result<(), String> {
        // During a self-test the host denies everything outside the component.
        match key_value::get("key") {
            Err(fault) if fault.code == "denied" => Ok(()),
            _ => Err("the key-value store is not denied".to_owned()),
        }
    }
}

#[allow(unsafe_code, reason = "generated from wit/gateway.wit")]
const _: () = {
    capability_bindings::export!(Test with_types_in crate::capability_bindings);
};
