//! `publish`: puts messages into a topic.

use super::{Failure, RedisArgs};
use crate::publication::{DELAY_MAX, Draft, Priority};
use crate::queue::{Publisher, TopicHandle, handled_topics};
use crate::topic::Topic;
use clap::Args;
use jiff::Timestamp;
use std::io::Read;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Messages in one round trip.
const BATCH: u64 = 500;

#[derive(Debug, Args)]
pub(super) struct PublishArgs {
    topic: Topic,
    /// JSON, or @FILE, or - for stdin
    #[arg(long, default_value = "null", value_name = "JSON|@FILE|-")]
    data: String,
    /// Not before this long from now, like 30s or 24h
    #[arg(long, default_value = "0s", value_name = "TIME")]
    delay: humantime::Duration,
    /// The message's id [default: made]
    #[arg(long, conflicts_with = "count")]
    id: Option<String>,
    /// High goes before normal, and that before low, where all wait
    #[arg(long, value_enum, default_value_t)]
    priority: Priority,
    /// Not to be run after this long from now, like 1h
    #[arg(long, value_name = "TIME")]
    expires_in: Option<humantime::Duration>,
    /// What copies are known by where the topic drops them [default: the id]
    #[arg(long, value_name = "KEY")]
    dedup_key: Option<String>,
    /// Publish nothing if a message of this --id was published so within this time
    #[arg(long, value_name = "TIME", requires = "id")]
    once: Option<humantime::Duration>,
    /// A header; may be given more than once
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Publish it so many times, each with an id of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    count: u64,
    #[command(flatten)]
    redis: RedisArgs,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a header is written NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(super) async fn publish(args: PublishArgs) -> Result<(), Failure> {
    let data = read(&args.data)?;
    let delay: Duration = args.delay.into();
    if delay > DELAY_MAX {
        return Err(Failure::Usage("--delay is at most 366d".to_owned()));
    }
    let now = Timestamp::now();
    let expires_at = match args.expires_in {
        Some(span) => Some(now.checked_add(*span).map_err(|_| Failure::Usage("--expires-in is too far".to_owned()))?),
        None => None,
    };
    let seal = |id: Option<String>| {
        let id = id.unwrap_or_else(|| Uuid::now_v7().to_string());
        let (priority, dedup_key) = (args.priority, args.dedup_key.as_deref());
        let draft = Draft::new(id, &args.topic, &data);
        let draft = Draft { headers: &args.headers, priority, delay, dedup_key, expires_at, ..draft };
        draft.seal(Timestamp::now()).map_err(|error| Failure::Usage(error.to_string()))
    };
    // Faults in what was typed come before those of the connection.
    let first = seal(args.id.clone())?;
    let (connection, settings) = args.redis.connect()?;
    let queue = Publisher::new(TopicHandle::new(&connection, &settings.prefix, &settings.group, "", &args.topic));

    let mut published = 0;
    let mut told = Instant::now();
    let mut id = first.id.clone();
    if let Some(window) = args.once {
        if !queue.publish_once(&first, window.into()).await? {
            eprintln!("a message of this id was published within {window}: nothing is published");
        }
    } else {
        queue.publish(&first).await?;
    }
    published += 1;
    while published < args.count {
        let batch: Vec<_> = (0..BATCH.min(args.count - published)).map(|_| seal(None)).collect::<Result<_, _>>()?;
        queue.publish_all(&batch).await?;
        published += batch.len() as u64;
        id = batch.last().map_or(id, |last| last.id.clone());
        if told.elapsed() > Duration::from_secs(1) {
            eprintln!("{published} of {} published", args.count);
            told = Instant::now();
        }
    }
    println!("{id}");
    if args.count > 1 {
        eprintln!("{published} messages published to {}; the id is that of the last", args.topic);
    }
    if !handled_topics(&connection, &settings.prefix).await?.contains(&args.topic) {
        eprintln!("no worker seen in the last 30 s has a handler for {}: the message waits", args.topic);
    }
    Ok(())
}

pub(super) fn read(data: &str) -> Result<String, Failure> {
    let told = |name: &str, error: std::io::Error| Failure::Usage(format!("--data {name}: {error}"));
    match data {
        "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|error| told("-", error))?;
            Ok(text)
        }
        _ => match data.strip_prefix('@') {
            Some(path) => std::fs::read_to_string(path).map_err(|error| told(data, error)),
            None => Ok(data.to_owned()),
        },
    }
}
