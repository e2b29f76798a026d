//! Sends requests and opens files as its message's data says, and publishes the
//! results to `results`.

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
    /// Starts all of them, and waits for them in reverse order.
    Together {
        of: Vec<Send>,
    },
    /// Sends a body without a content length, and finishes it or not.
    Upload {
        authority: String,
        path: String,
        bytes: usize,
        is_finished: bool,
    },
    /// Like `send`, and logs the reply's body.
    Show(Send),
    /// Keeps a reply open without reading it.
    Leave {
        authority: String,
        path: String,
    },
    /// Publishes how many messages this instance has handled.
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
    /// Opens the path up to this many times and keeps the files open: publishes
    /// how often that succeeded, and the first error.
    OpenMany {
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
    /// The size of a generated body.
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
    let result = match message.json::<Act>()? {
        Act::Send(send) => reply_json(send.start().and_then(Pending::wait)),
        Act::Together { of } => {
            let started: Vec<_> = of.into_iter().map(Send::start).collect();
            let mut results: Vec<Value> =
                started.into_iter().rev().map(|pending| reply_json(pending.and_then(Pending::wait))).collect();
            results.reverse();
            results.into()
        }
        Act::Upload { authority, path, bytes, is_finished } => {
            raw::upload(&authority, &path, bytes, is_finished).into()
        }
        Act::Show(send) => {
            let reply = send.start().and_then(Pending::wait);
            if let Ok(reply) = &reply {
                info!("the server replied {}", reply.text());
            }
            reply_json(reply)
        }
        Act::Leave { authority, path } => raw::leave(&authority, &path).into(),
        Act::Count => count.into(),
        Act::Read { path } => file_json(fs::read_to_string(path)),
        Act::Write { path, text } => file_json(fs::write(path, text).map(|()| String::new())),
        Act::List { path } => file_json(fs::read_dir(path).map(|found| {
            let mut names: Vec<_> =
                found.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names.join(",")
        })),
        Act::OpenMany { path, times } => {
            let mut open_files = Vec::new();
            let error = (0..times).find_map(|_| fs::File::open(&path).map(|file| open_files.push(file)).err());
            json!({ "count": open_files.len(), "error": error.map(|error| error.to_string()) })
        }
    };
    publish("results", &json!({ "of": message.id, "result": result }))?;
    Ok(())
}

fn reply_json(reply: Result<Response, Error>) -> Value {
    match reply {
        Ok(reply) => {
            let headers: Vec<_> =
                reply.headers.iter().map(|(name, value)| json!([name, String::from_utf8_lossy(value)])).collect();
            let excerpt: String = reply.text().chars().take(1000).collect();
            json!({ "status": reply.status, "headers": headers, "length": reply.body.len(), "body": excerpt })
        }
        Err(error) => json!({ "error": error.code(), "reason": error.reason() }),
    }
}

fn file_json(result: std::io::Result<String>) -> Value {
    match result {
        Ok(text) => json!({ "text": text }),
        Err(error) => json!({ "error": error.to_string() }),
    }
}

handler!(act);

#[allow(unreachable_pub, unsafe_code, clippy::allow_attributes_without_reason, reason = "generated from the WIT")]
mod self_test {
    wit_bindgen::generate!({ path: "../../../wit", world: "self-tested" });

    struct Test;

    impl exports::gateway::worker::self_test::Guest for Test {
        fn check() -> Result<(), String> {
            super::check()
        }
    }

    export!(Test);
}

/// Fails with the result of a request if the config names a URL.
fn check() -> Result<(), String> {
    match config("check") {
        Some(url) => Err(http::get(&url).map_or_else(|error| error.to_string(), |reply| reply.status.to_string())),
        None => Ok(()),
    }
}
