//! Uses what the manifest grants as its message's data says, and publishes the
//! result of each act to `seen`.

use gateway_plugin_sdk::__logging as logging;
use gateway_plugin_sdk::mail::Mail;
use gateway_plugin_sdk::{Failure, Fault, Message, PublishOptions, handler, kv, publish, publish_with, secret};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Deserialize)]
struct Acts {
    acts: Vec<Act>,
    /// How the run ends: `retry`, `postpone`, `reject`, `panic`, `fault` (the
    /// first fault of an act), or otherwise ok.
    #[serde(default)]
    end: String,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
enum Act {
    Get {
        key: String,
    },
    Set {
        key: String,
        value: String,
        #[serde(default)]
        ttl: u64,
    },
    /// Sets the keys `<key>0`, `<key>1`, ... to values of this many bytes.
    Fill {
        key: String,
        count: u32,
        bytes: usize,
        #[serde(default)]
        ttl: u64,
    },
    SetIfAbsent {
        key: String,
        value: String,
        #[serde(default)]
        ttl: u64,
    },
    CompareAndSwap {
        key: String,
        expected: String,
        value: String,
    },
    Delete {
        key: String,
    },
    /// Adds one to the number at the key, safely under concurrent calls.
    Increase {
        key: String,
    },
    Secret {
        name: String,
    },
    /// Replaces `{secret:NAME}` in the texts by the secret.
    Log {
        text: String,
        #[serde(default)]
        fields: Vec<(String, String)>,
    },
    Print {
        text: String,
    },
    Mail {
        to: Vec<String>,
        #[serde(default)]
        headers: Vec<(String, String)>,
        #[serde(default)]
        text: Option<String>,
        #[serde(default)]
        html: Option<String>,
        /// The names and sizes of attachments.
        #[serde(default)]
        files: Vec<(String, usize)>,
        #[serde(default = "one")]
        times: u32,
    },
    /// Publishes the message's own data again.
    Republish {
        to: String,
        #[serde(default)]
        delay: u32,
    },
    /// Publishes `{}` with these options.
    Publish {
        to: String,
        #[serde(default)]
        headers: Vec<(String, String)>,
        #[serde(default)]
        delay: u32,
        dedup_key: Option<String>,
        #[serde(default)]
        expires: u32,
    },
    /// Publishes a text of this size.
    Large {
        to: String,
        bytes: usize,
    },
}

fn one() -> u32 {
    1
}

fn act(message: Message) -> Result<(), Failure> {
    let acts: Acts = message.json()?;
    let mut results = Vec::new();
    for act in acts.acts {
        results.push(match play(&message, act) {
            Ok(value) => json!({ "ok": value }),
            Err(fault) => json!({ "fault": fault.code, "reason": fault.reason }),
        });
    }
    let reason = with_secrets(&acts.reason)?;
    match acts.end.as_str() {
        "retry" => Err(Failure::retry(reason)),
        "postpone" => Err(Failure::postpone(reason)),
        "reject" => Err(Failure::reject("requested", reason)),
        "panic" => panic!("{reason}"),
        "fault" => match results.iter().find(|result| result["fault"] != Value::Null) {
            Some(result) => Err(Fault {
                code: result["fault"].as_str().unwrap_or_default().to_owned(),
                reason: result["reason"].as_str().unwrap_or_default().to_owned(),
            }
            .into()),
            None => Ok(()),
        },
        _ => publish("seen", &json!({ "of": message.id, "headers": message.headers, "results": results }))
            .map(drop)
            .map_err(Failure::from),
    }
}

fn play(message: &Message, act: Act) -> Result<Value, Fault> {
    match act {
        Act::Get { key } => {
            kv::get(&key).map(|value| json!(value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())))
        }
        Act::Set { key, value, ttl } => kv::set(&key, value.as_bytes(), seconds(ttl)).map(|()| Value::Null),
        Act::Fill { key, count, bytes, ttl } => {
            let value = vec![b'x'; bytes];
            (0..count).try_for_each(|number| kv::set(&format!("{key}{number}"), &value, seconds(ttl)))?;
            Ok(Value::Null)
        }
        Act::SetIfAbsent { key, value, ttl } => {
            kv::set_if_absent(&key, value.as_bytes(), seconds(ttl)).map(Value::Bool)
        }
        Act::CompareAndSwap { key, expected, value } => {
            kv::compare_and_swap(&key, expected.as_bytes(), value.as_bytes(), None).map(Value::Bool)
        }
        Act::Delete { key } => kv::delete(&key).map(|()| Value::Null),
        Act::Increase { key } => loop {
            let Some(before) = kv::get_json::<u64>(&key)? else {
                if kv::set_if_absent(&key, b"1", None)? {
                    return Ok(json!(1));
                }
                continue;
            };
            let after = before + 1;
            if kv::compare_and_swap(&key, before.to_string().as_bytes(), after.to_string().as_bytes(), None)? {
                return Ok(json!(after));
            }
        },
        Act::Secret { name } => secret(&name).map(Value::String),
        Act::Log { text, fields } => {
            let fields = fields.into_iter().map(|(name, value)| Ok((name, with_secrets(&value)?)));
            logging::log_with(logging::Level::Info, &with_secrets(&text)?, &fields.collect::<Result<Vec<_>, Fault>>()?);
            Ok(Value::Null)
        }
        Act::Print { text } => {
            use std::io::Write;
            let _ = writeln!(std::io::stdout(), "{}", with_secrets(&text)?);
            Ok(Value::Null)
        }
        Act::Mail { to, headers, text, html, files, times } => {
            let mail = to.into_iter().fold(Mail::default(), Mail::and_to);
            let mail = headers.into_iter().fold(mail, |mail, (name, value)| mail.header(name, value));
            let mail = text.into_iter().fold(mail, Mail::text);
            let mail = html.into_iter().fold(mail, Mail::html);
            let mail = files
                .into_iter()
                .fold(mail, |mail, (name, bytes)| mail.attach(name, "application/octet-stream", vec![b'y'; bytes]));
            (0..times).try_for_each(|_| mail.send()).map(|()| Value::Null)
        }
        Act::Republish { to, delay } => {
            let options = PublishOptions { delay_seconds: delay, ..PublishOptions::default() };
            let data: Value = message.json().unwrap_or_default();
            publish_with(&to, &data, &options).map(Value::String)
        }
        Act::Publish { to, headers, delay, dedup_key, expires } => {
            let options = PublishOptions {
                headers,
                delay_seconds: delay,
                dedup_key,
                expires_seconds: expires,
                ..PublishOptions::default()
            };
            publish_with(&to, &json!({}), &options).map(Value::String)
        }
        Act::Large { to, bytes } => publish(&to, &"x".repeat(bytes.saturating_sub(2))).map(Value::String),
    }
}

fn seconds(ttl: u64) -> Option<Duration> {
    (ttl > 0).then(|| Duration::from_secs(ttl))
}

fn with_secrets(text: &str) -> Result<String, Fault> {
    let Some((before, remainder)) = text.split_once("{secret:") else { return Ok(text.to_owned()) };
    let (name, after) = remainder.split_once('}').unwrap_or((remainder, ""));
    Ok(format!("{before}{}{}", secret(name)?, with_secrets(after)?))
}

handler!(act);
