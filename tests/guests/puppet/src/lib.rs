//! Does what its message's data says, including what a handler should not do.

use gateway_plugin_sdk::{
    Failure, Message, PublishOptions, RetryOptions, config, handler, info, publish, publish_with,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
enum Act {
    /// Sleeps in a host call. It logs that first, unless `ms` is 0.
    Sleep {
        ms: u64,
    },
    /// Publishes all fields of the message, with `data` last and verbatim.
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
    /// Tries everything that is not granted, and rejects with the list of what
    /// it could reach.
    Reach,
    /// Performs the acts in order until one fails.
    All {
        of: Vec<Act>,
    },
    /// Asks for a retry on each of the first `times` attempts.
    Fail {
        times: u32,
    },
    /// Publishes this data.
    Send {
        to: String,
        data: serde_json::Value,
    },
    /// Performs the act of the config's `version`.
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
        Act::Fail { times } if message.attempt <= times => return Err(Failure::retry("an early attempt")),
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
            let mut fields = BTreeMap::new();
            fields.insert("id", raw(&message.id)?);
            fields.insert("topic", raw(&message.topic)?);
            fields.insert("attempt", raw(&message.attempt)?);
            fields.insert("max_attempts", raw(&message.max_attempts)?);
            fields.insert("published_at", raw(&message.published_at)?);
            fields.insert("headers", raw(&message.headers)?);
            fields.insert("version", raw(&config("version"))?);
            fields.insert("data", data);
            publish(&to, &fields)?;
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
            let options = PublishOptions { delay_seconds: seconds, headers, ..PublishOptions::default() };
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
            return Err(Failure::Retry(RetryOptions { reason, after_ms }));
        }
        Act::Postpone { reason, after_ms } => {
            return Err(Failure::Postpone(RetryOptions { reason, after_ms }));
        }
        Act::Reject { code, reason } => return Err(Failure::reject(code, reason)),
        Act::Reach => return Err(Failure::reject("reached", reached().join(","))),
    }
    Ok(())
}

fn reached() -> Vec<&'static str> {
    let mut reached = Vec::new();
    let mut note = |name, is_reached| {
        if is_reached {
            reached.push(name);
        }
    };
    note("environment", std::env::vars().next().is_some());
    note("arguments", std::env::args().next().is_some());
    note("files", ["/", ".", "/etc/passwd"].into_iter().any(|path| std::fs::metadata(path).is_ok()));
    note("network", std::net::TcpStream::connect("127.0.0.1:6379").is_ok());
    note("listening", std::net::TcpListener::bind("127.0.0.1:0").is_ok());
    note("datagrams", std::net::UdpSocket::bind("127.0.0.1:0").is_ok());
    note("names", std::net::ToSocketAddrs::to_socket_addrs("localhost:80").is_ok());
    reached
}

fn raw(value: &impl serde::Serialize) -> Result<Box<RawValue>, Failure> {
    serde_json::value::to_raw_value(value).map_err(|error| Failure::reject("bad-data", error.to_string()))
}

handler!(act);
