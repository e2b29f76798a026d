//! Uses every interface of the contract, and tells what came of it. As it was
//! built once it is kept in `tests/golden`, and must run for ever.

use gateway_plugin_sdk::{Failure, Fault, Message, Options, Priority, batch_handler, config, handler, publish_with};
use std::collections::BTreeMap;

#[allow(
    unsafe_code,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    reason = "generated from wit/gateway.wit; the boundary of a component is made of raw pointers"
)]
mod more {
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

use gateway_plugin_sdk::bindings::gateway::worker::{config as raw_config, logging};
use more::gateway::worker::{key_value, mail, secrets};

/// What it says about one message; `parent` where there are several.
fn tell(message: &Message, parent: Option<String>) -> Result<(), Failure> {
    let fields = [("topic".to_owned(), message.topic.clone()), ("attempt".to_owned(), message.attempt.to_string())];
    logging::log(logging::Level::Info, "golden");
    logging::log_with(logging::Level::Warn, "golden with fields", &fields);
    let part = mail::Part { content_type: "text/plain".to_owned(), name: None, data: b"hello".to_vec() };
    let said = BTreeMap::from([
        ("id", message.id.clone()),
        ("data", String::from_utf8_lossy(&message.data).into_owned()),
        ("published_at_bytes", message.published_at.len().to_string()),
        ("max_attempts", message.max_attempts.to_string()),
        ("header", message.header("color").unwrap_or_default().to_owned()),
        ("config", config("color").unwrap_or_default()),
        ("config_all", raw_config::get_all().len().to_string()),
        ("get", said(key_value::get("key"))),
        ("set", said(key_value::set("key", b"value", 60))),
        ("add", said(key_value::add("key", b"value", 60))),
        ("swap", said(key_value::swap("key", b"value", b"other", 60))),
        ("delete", said(key_value::delete("key"))),
        ("secret", said(secrets::get("NAME"))),
        ("mail", said(mail::send(&["a@example.com".to_owned()], &[], &[part]))),
    ]);
    let headers = vec![("color".to_owned(), "gold".to_owned())];
    let options = Options { id: None, parent, delay_seconds: 0, priority: Priority::Normal, headers };
    publish_with("told", &said, &options)?;
    match said["data"].as_str() {
        "\"retry\"" => Err(Failure::retry("as told")),
        "\"postpone\"" => Err(Failure::postpone("as told")),
        "\"reject\"" => Err(Failure::reject("told", "as told")),
        _ => Ok(()),
    }
}

/// The fault's code, or that there is none.
fn said<T>(answer: Result<T, Fault>) -> String {
    answer.map_or_else(|fault| fault.code, |_| "ok".to_owned())
}

fn handle(message: Message) -> Result<(), Failure> {
    tell(&message, None)
}

fn handle_batch(messages: Vec<Message>) -> Vec<Result<(), Failure>> {
    messages.iter().map(|message| tell(message, Some(message.id.clone()))).collect()
}

handler!(handle);
batch_handler!(handle_batch);

struct Test;

impl more::exports::gateway::worker::self_test::Guest for Test {
    fn check() -> Result<(), String> {
        // Nothing outside answers while it is tried out.
        match key_value::get("key") {
            Err(fault) if fault.code == "denied" => Ok(()),
            _ => Err("the key-value store answers".to_owned()),
        }
    }
}

#[allow(unsafe_code, reason = "generated likewise")]
const _: () = {
    more::export!(Test with_types_in crate::more);
};
