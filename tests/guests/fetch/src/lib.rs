//! Goes outside as its message's data says, and publishes what came of it.

mod raw;

use gateway_plugin_sdk::http::{self, Error, Pending, Request, Response};
use gateway_plugin_sdk::{Failure, Message, config, handler, info, publish};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
enum Act {
    Send(Send),
    /// All of them at once, the first of which are waited for last.
    Together {
        of: Vec<Send>,
    },
    /// A body of a length that is not said before, ended or not.
    Upload {
        authority: String,
        path: String,
        bytes: usize,
        is_ended: bool,
    },
    /// The same as `send`, and logs the reply's body.
    Show(Send),
    /// Goes away from a reply that has begun.
    Leave {
        authority: String,
        path: String,
    },
    /// How many messages this instance has had.
    Count,
    Read {
        path: String,
    },
    Write {
        path: String,
        text: String,
    },
    List {
        path: String,
    },
    /// Opens it so many times and keeps it open: how often that went well, and
    /// why no longer.
    Hold {
        path: String,
        times: u32,
    },
}

#[derive(Deserialize)]
struct Send {
    #[serde(default = "get")]
    method: String,
    url: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
    body: Option<String>,
    /// A body of so many bytes.
    bytes: Option<usize>,
    timeout_ms: Option<u64>,
}

fn get() -> String {
    "GET".to_owned()
}

impl Send {
    fn start(self) -> Result<Pending, Error> {
        let mut request = Request::new(&self.method, &self.url);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if let Some(body) = self.body.map(String::into_bytes).or_else(|| self.bytes.map(|bytes| vec![b'x'; bytes])) {
            request = request.body(body);
        }
        if let Some(timeout) = self.timeout_ms {
            request = request.timeout(Duration::from_millis(timeout));
        }
        request.start()
    }
}

static MESSAGES: AtomicU32 = AtomicU32::new(0);

fn act(message: Message) -> Result<(), Failure> {
    let count = MESSAGES.fetch_add(1, Ordering::Relaxed) + 1;
    let told = match message.json::<Act>()? {
        Act::Send(send) => told(send.start().and_then(Pending::wait)),
        Act::Together { of } => {
            let started: Vec<_> = of.into_iter().map(Send::start).collect();
            let mut told: Vec<Value> =
                started.into_iter().rev().map(|pending| told(pending.and_then(Pending::wait))).collect();
            told.reverse();
            told.into()
        }
        Act::Upload { authority, path, bytes, is_ended } => raw::upload(&authority, &path, bytes, is_ended).into(),
        Act::Show(send) => {
            let reply = send.start().and_then(Pending::wait);
            if let Ok(reply) = &reply {
                info!("the server says {}", reply.text());
            }
            told(reply)
        }
        Act::Leave { authority, path } => raw::leave(&authority, &path).into(),
        Act::Count => count.into(),
        Act::Read { path } => told_file(fs::read_to_string(path)),
        Act::Write { path, text } => told_file(fs::write(path, text).map(|()| String::new())),
        Act::List { path } => told_file(fs::read_dir(path).map(|found| {
            let mut names: Vec<_> =
                found.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names.join(",")
        })),
        Act::Hold { path, times } => {
            let mut held = Vec::new();
            let error = (0..times).find_map(|_| fs::File::open(&path).map(|file| held.push(file)).err());
            json!({ "count": held.len(), "error": error.map(|error| error.to_string()) })
        }
    };
    publish("told", &json!({ "of": message.id, "told": told }))?;
    Ok(())
}

fn told(reply: Result<Response, Error>) -> Value {
    match reply {
        Ok(reply) => {
            let headers: Vec<_> =
                reply.headers.iter().map(|(name, value)| json!([name, String::from_utf8_lossy(value)])).collect();
            let shown: String = reply.text().chars().take(1000).collect();
            json!({ "status": reply.status, "headers": headers, "length": reply.body.len(), "body": shown })
        }
        Err(error) => json!({ "error": error.code(), "reason": error.reason() }),
    }
}

fn told_file(done: std::io::Result<String>) -> Value {
    match done {
        Ok(text) => json!({ "text": text }),
        Err(error) => json!({ "error": error.to_string() }),
    }
}

handler!(act);

#[allow(unreachable_pub, unsafe_code, clippy::allow_attributes_without_reason, reason = "generated from the WIT")]
mod tested {
    wit_bindgen::generate!({ path: "../../../wit", world: "self-tested" });

    struct Test;

    impl exports::gateway::worker::self_test::Guest for Test {
        fn check() -> Result<(), String> {
            super::check()
        }
    }

    export!(Test);
}

/// Says what came of a request, where the config asks for one.
fn check() -> Result<(), String> {
    match config("check") {
        Some(url) => Err(http::get(&url).map_or_else(|error| error.to_string(), |reply| reply.status.to_string())),
        None => Ok(()),
    }
}
