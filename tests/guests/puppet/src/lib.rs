//! Does what its message's data says, well-behaved or not.

use gateway_plugin_sdk::{Failure, Message, Options, Priority, config, handler, info, publish, publish_with};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
enum Act {
    /// Waits in a host call, and says so where that takes time.
    Sleep {
        ms: u64,
    },
    /// Publishes everything it was handed, data last and verbatim.
    Echo {
        to: String,
    },
    Publish {
        to: String,
        times: u32,
        then: Option<String>,
    },
    Delay {
        to: String,
        seconds: u32,
    },
    Log {
        text: String,
        times: u32,
    },
    Print {
        text: String,
    },
    Panic {
        text: String,
    },
    Exit {
        code: i32,
    },
    Retry {
        reason: String,
        after_ms: Option<u32>,
    },
    Postpone {
        reason: String,
        after_ms: Option<u32>,
    },
    Reject {
        code: String,
        reason: String,
    },
    /// Tries everything that was not granted; tells what it got hold of.
    Reach,
    /// One after the other, until one fails.
    All {
        of: Vec<Act>,
    },
    /// Fails with a retry on so many first attempts.
    Fail {
        times: u32,
    },
    /// Publishes this data.
    Send {
        to: String,
        data: serde_json::Value,
    },
    /// What the `version` of the plugin's config is to do.
    ByVersion {
        of: BTreeMap<String, Act>,
    },
}

fn act(message: Message) -> Result<(), Failure> {
    let first = message.json::<Act>()?;
    play(&message, first)
}

fn play(message: &Message, act: Act) -> Result<(), Failure> {
    match act {
        Act::All { of } => of.into_iter().try_for_each(|act| play(message, act))?,
        Act::Fail { times } if message.attempt <= times => return Err(Failure::retry("fails for now")),
        Act::Fail { .. } => {}
        Act::Send { to, data } => drop(publish(&to, &data)?),
        Act::ByVersion { mut of } => {
            let version = config("version").unwrap_or_default();
            let act = of.remove(&version).ok_or_else(|| Failure::reject("no-act", version))?;
            play(message, act)?;
        }
        Act::Sleep { ms } => {
            if ms > 0 {
                info!("asleep");
            }
            std::thread::sleep(Duration::from_millis(ms));
        }
        Act::Echo { to } => {
            let data: Box<RawValue> = message.json()?;
            let mut seen = BTreeMap::new();
            seen.insert("id", raw(&message.id)?);
            seen.insert("topic", raw(&message.topic)?);
            seen.insert("attempt", raw(&message.attempt)?);
            seen.insert("max_attempts", raw(&message.max_attempts)?);
            seen.insert("published_at", raw(&message.published_at)?);
            seen.insert("headers", raw(&message.headers)?);
            seen.insert("version", raw(&config("version"))?);
            seen.insert("data", data);
            publish(&to, &seen)?;
        }
        Act::Publish { to, times, then } => {
            for number in 0..times {
                publish(&to, &number)?;
            }
            match then.as_deref() {
                Some("retry") => return Err(Failure::retry("after publishing")),
                Some("trap") => panic!("after publishing"),
                _ => {}
            }
        }
        Act::Delay { to, seconds } => {
            let headers = vec![("traceparent".to_owned(), "00-1-2-3".to_owned())];
            let options =
                Options { id: None, parent: None, delay_seconds: seconds, priority: Priority::Normal, headers };
            publish_with(&to, &"later", &options)?;
        }
        Act::Log { text, times } => (0..times).for_each(|_| info!("{text}")),
        Act::Print { text } => {
            use std::io::Write;
            let _ = writeln!(std::io::stdout(), "{text}");
        }
        Act::Panic { text } => panic!("{text}"),
        Act::Exit { code } => std::process::exit(code),
        Act::Retry { reason, after_ms } => {
            return Err(Failure::Retry(gateway_plugin_sdk::Again { reason, after_ms }));
        }
        Act::Postpone { reason, after_ms } => {
            return Err(Failure::Postpone(gateway_plugin_sdk::Again { reason, after_ms }));
        }
        Act::Reject { code, reason } => return Err(Failure::reject(code, reason)),
        Act::Reach => return Err(Failure::reject("reached", reached().join(","))),
    }
    Ok(())
}

fn reached() -> Vec<&'static str> {
    let mut got = Vec::new();
    let mut note = |what, is_reached| {
        if is_reached {
            got.push(what);
        }
    };
    note("environment", std::env::vars().next().is_some());
    note("arguments", std::env::args().next().is_some());
    note("files", ["/", ".", "/etc/passwd"].into_iter().any(|path| std::fs::metadata(path).is_ok()));
    note("network", std::net::TcpStream::connect("127.0.0.1:6379").is_ok());
    note("listening", std::net::TcpListener::bind("127.0.0.1:0").is_ok());
    note("datagrams", std::net::UdpSocket::bind("127.0.0.1:0").is_ok());
    note("names", std::net::ToSocketAddrs::to_socket_addrs("localhost:80").is_ok());
    got
}

fn raw(value: &impl serde::Serialize) -> Result<Box<RawValue>, Failure> {
    serde_json::value::to_raw_value(value).map_err(|error| Failure::reject("bad-data", error.to_string()))
}

handler!(act);
