//! Write a message handler for Gateway Worker: one function and one macro.
//!
//! ```
//! use gateway_plugin_sdk::{Failure, Message, handler};
//! use serde::Deserialize;
//!
//! #[derive(Deserialize)]
//! struct Greeting {
//!     name: String,
//! }
//!
//! fn greet(message: Message) -> Result<(), Failure> {
//!     let greeting: Greeting = message.json()?;
//!     gateway_plugin_sdk::info!("hello, {}", greeting.name);
//!     Ok(())
//! }
//!
//! handler!(greet);
//! ```
//!
//! Build it with `cargo build --release --target wasm32-wasip2` as a `cdylib`
//! and drop the `.wasm` into the worker's plugins directory. The contract is
//! `wit/gateway.wit`, which also says what each outcome means.

#![deny(missing_docs)]

mod data;
#[cfg(feature = "http")]
pub mod http;
pub mod kv;
pub mod mail;

pub use data::Object;

use serde::Serialize;
use serde::de::DeserializeOwned;

#[allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    clippy::allow_attributes_without_reason,
    reason = "generated from wit/gateway.wit; the boundary of a component is made of raw pointers"
)]
#[doc(hidden)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../wit",
        world: "message-handler",
        pub_export_macro: true,
        default_bindings_module: "gateway_plugin_sdk::bindings",
    });
}

#[allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    clippy::allow_attributes_without_reason,
    reason = "generated from wit/gateway.wit; the boundary of a component is made of raw pointers"
)]
#[doc(hidden)]
pub mod batch_bindings {
    wit_bindgen::generate!({
        path: "../wit",
        world: "batch-message-handler",
        with: {
            "gateway:worker/types@1.0.0": super::bindings::gateway::worker::types,
            "gateway:worker/logging@1.0.0": super::bindings::gateway::worker::logging,
            "gateway:worker/config@1.0.0": super::bindings::gateway::worker::config,
            "gateway:worker/publisher@1.0.0": super::bindings::gateway::worker::publisher,
        },
        pub_export_macro: true,
        default_bindings_module: "gateway_plugin_sdk::batch_bindings",
    });
}

#[allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    clippy::allow_attributes_without_reason,
    reason = "generated from wit/gateway.wit; the boundary of a component is made of raw pointers"
)]
mod capability_bindings {
    wit_bindgen::generate!({
        path: "../wit",
        world: "capabilities",
        with: { "gateway:worker/types@1.0.0": super::bindings::gateway::worker::types },
    });
}

pub use bindings::gateway::worker::publisher::{Options as PublishOptions, Priority};
pub use bindings::gateway::worker::types::{Failure, Fault, Message, RetryOptions};

/// The value of `key` in the manifest's `[config]`, if it is there.
pub fn config(key: &str) -> Option<String> {
    bindings::gateway::worker::config::get(key)
}

/// The secret of this name, which the operator gave to the worker. The manifest
/// grants it by name: `secrets = ["API_KEY"]` under `[grants]`. The worker
/// redacts exact matches of its value from the log and from the reasons of
/// failures, if the value has at least 4 bytes.
///
/// # Errors
///
/// `denied` if the manifest does not grant it, `unavailable` if the worker does
/// not have it.
pub fn secret(name: &str) -> Result<String, Fault> {
    capability_bindings::gateway::worker::secrets::get(name)
}

/// Publishes `data` to `topic` when this run returns ok, and returns the new
/// message's id.
///
/// # Errors
///
/// `denied` if the manifest does not grant the topic; `too-large` and
/// `too-many` beyond the host's limits. The 101st message of a chain in which
/// each message was published without a delay by the handler of the previous
/// one is `too-many` as well.
pub fn publish(topic: &str, data: &impl Serialize) -> Result<String, Fault> {
    bindings::gateway::worker::publisher::publish(topic, &json(data)?)
}

/// Like [`publish`], with an id, a delay, an expiry, a priority, headers or a
/// deduplication key.
///
/// ```no_run
/// # use gateway_plugin_sdk::{Failure, PublishOptions, publish_with};
/// # fn publish_later(order_id: &str) -> Result<(), Failure> {
/// let options = PublishOptions { delay_seconds: 60, expires_seconds: 3600, ..PublishOptions::default() };
/// publish_with("order.check", &order_id, &options)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// Those of [`publish`], and `invalid` for an option that is out of range.
pub fn publish_with(topic: &str, data: &impl Serialize, options: &PublishOptions) -> Result<String, Fault> {
    bindings::gateway::worker::publisher::publish_with(topic, &json(data)?, options)
}

/// A message without a delay or an expiry, with normal priority.
impl Default for PublishOptions {
    fn default() -> Self {
        Self {
            id: None,
            parent: None,
            delay_seconds: 0,
            priority: Priority::Normal,
            headers: Vec::new(),
            dedup_key: None,
            expires_seconds: 0,
        }
    }
}

fn json(data: &impl Serialize) -> Result<Vec<u8>, Fault> {
    serde_json::to_vec(data).map_err(|error| Fault { code: "invalid".to_owned(), reason: error.to_string() })
}

impl Message {
    /// Reads `data` as JSON.
    ///
    /// # Errors
    ///
    /// [`Failure::Reject`] with code `bad-data` and the position of the fault:
    /// a retry would find the same wrong data.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.data).map_err(|error| bad_data(error.to_string()))
    }

    /// The header of this lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

impl Failure {
    /// The run failed and is retried after the topic's backoff. Costs an attempt.
    pub fn retry(reason: impl Into<String>) -> Self {
        Self::Retry(RetryOptions { reason: reason.into(), after_ms: None })
    }

    /// The message can't be handled yet and is run again after the topic's
    /// backoff. Costs no attempt.
    pub fn postpone(reason: impl Into<String>) -> Self {
        Self::Postpone(RetryOptions { reason: reason.into(), after_ms: None })
    }

    /// The message can never be handled and becomes a dead letter at once.
    /// `code` matches `[a-z0-9-]{1,64}`.
    pub fn reject(code: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Reject(Fault { code: code.into(), reason: reason.into() })
    }
}

/// The rejection that the predefined handlers use for data of the wrong shape.
pub fn bad_data(reason: impl Into<String>) -> Failure {
    Failure::reject("bad-data", reason)
}

/// `?` on a fault rejects the message with the host's code, since the same call
/// would fail again; only the fault `unavailable` becomes a retry.
impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        if fault.code == "unavailable" { Self::retry(fault.reason) } else { Self::Reject(fault) }
    }
}

/// Exports a function `fn(Message) -> Result<(), Failure>` as the component's
/// handler.
#[macro_export]
macro_rules! handler {
    ($handle:path) => {
        const _: () = {
            struct Handler;

            impl $crate::bindings::exports::gateway::worker::handler::Guest for Handler {
                fn handle(message: $crate::Message) -> ::core::result::Result<(), $crate::Failure> {
                    $handle(message)
                }
            }

    $crate::bindings::export!(Handler with_types_in $crate::bindings);
        };
    };
}

/// Exports a function `fn(Vec<Message>) -> Vec<Result<(), Failure>>` as the
/// component's batch handler. Its manifest needs a `[batch]`. The results are in
/// the order of the messages.
#[macro_export]
macro_rules! batch_handler {
    ($handle:path) => {
        const _: () = {
            struct Handler;

            impl $crate::batch_bindings::exports::gateway::worker::batch_handler::Guest for Handler {
                fn handle_batch(
                    messages: ::std::vec::Vec<$crate::Message>,
                ) -> ::std::vec::Vec<::core::result::Result<(), $crate::Failure>> {
                    $handle(messages)
                }
            }

    $crate::batch_bindings::export!(Handler with_types_in $crate::batch_bindings);
        };
    };
}

#[doc(hidden)]
pub use bindings::gateway::worker::logging as __logging;

/// Writes a debug line to the worker's log.
#[macro_export]
macro_rules! debug { ($($text:tt)*) => { $crate::__logging::log($crate::__logging::Level::Debug, &::std::format!($($text)*)) } }
/// Writes an info line to the worker's log.
#[macro_export]
macro_rules! info { ($($text:tt)*) => { $crate::__logging::log($crate::__logging::Level::Info, &::std::format!($($text)*)) } }
/// Writes a warning to the worker's log.
#[macro_export]
macro_rules! warn { ($($text:tt)*) => { $crate::__logging::log($crate::__logging::Level::Warn, &::std::format!($($text)*)) } }
/// Writes an error to the worker's log.
#[macro_export]
macro_rules! error { ($($text:tt)*) => { $crate::__logging::log($crate::__logging::Level::Error, &::std::format!($($text)*)) } }
