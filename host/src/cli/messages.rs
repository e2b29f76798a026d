//! `messages`: what waits, where one is, and taking one back.

use super::known::known;
use super::print::print_json;
use super::{Failure, RedisArgs, table};
use crate::queue::{Found, MessageLocation, MessageSearch, TopicHandle, inspect};
use crate::topic::Topic;
use clap::Args;
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    topic: Topic,
    /// At most so many of each place
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// One JSON array, with the messages
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

#[derive(Debug, Args)]
pub(super) struct FindArgs {
    /// The message's id
    #[arg(value_parser = id)]
    id: String,
    /// Only in this topic
    #[arg(long)]
    topic: Option<Topic>,
    /// One JSON array, with the messages
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

#[derive(Debug, Args)]
pub(super) struct CancelArgs {
    topic: Topic,
    /// The message's id
    #[arg(value_parser = id)]
    id: String,
    #[command(flatten)]
    redis: RedisArgs,
}

fn id(text: &str) -> Result<String, &'static str> {
    if text.is_empty() { Err("an id is not empty") } else { Ok(text.to_owned()) }
}

/// Says each second how far long work is.
pub(super) struct Progress {
    what: &'static str,
    count: u64,
    told: Instant,
}

impl Progress {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, count: 0, told: Instant::now() }
    }

    pub(super) fn add(&mut self, count: u64) {
        self.count += count;
        if self.told.elapsed() > Duration::from_secs(1) {
            eprintln!("{} messages {}", self.count, self.what);
            self.told = Instant::now();
        }
    }
}

pub(super) async fn ls(args: LsArgs) -> Result<(), Failure> {
    let (connection, settings) = args.redis.connect()?;
    known(&connection, &settings, &args.topic).await?;
    let handle = TopicHandle::new(&connection, &settings.prefix, &settings.group, "", &args.topic);
    let found = MessageSearch::new(handle).peek(args.limit as usize).await?;
    if args.json {
        return print_json(&found);
    }
    let row = |one: &Found| {
        let (place, at, detail) = words(&one.location);
        let id = one.id.clone().unwrap_or_default();
        let text = one.message.as_deref().unwrap_or_default().chars().take(80).collect();
        [place.to_owned(), id, at, detail, text]
    };
    let rows: Vec<_> = found.iter().map(row).collect();
    table::print(["PLACE", "ID", "AT", "", "MESSAGE"], &rows);
    Ok(())
}

pub(super) async fn find(args: FindArgs) -> Result<(), Failure> {
    let (connection, settings) = args.redis.connect()?;
    let topics = match args.topic {
        Some(topic) => {
            known(&connection, &settings, &topic).await?;
            vec![topic]
        }
        None => inspect::names(&connection, &settings.prefix).await?.topics.into_iter().collect(),
    };
    let (mut found, mut progress) = (Vec::new(), Progress::new("looked at"));
    for topic in &topics {
        let handle = TopicHandle::new(&connection, &settings.prefix, &settings.group, "", topic);
        found.extend(MessageSearch::new(handle).find(&args.id, &mut |count| progress.add(count)).await?);
    }
    if args.json {
        print_json(&found)?;
    } else if !found.is_empty() {
        let row = |one: &Found| {
            let (place, at, detail) = words(&one.location);
            [one.topic.clone(), place.to_owned(), at, detail]
        };
        let rows: Vec<_> = found.iter().map(row).collect();
        table::print(["TOPIC", "PLACE", "AT", ""], &rows);
    }
    if found.is_empty() {
        return Err(Failure::Failed(format!(
            "no message {} is anywhere: it has run and is forgotten, was removed, or never came",
            table::shown(&args.id)
        )));
    }
    Ok(())
}

pub(super) async fn cancel(args: CancelArgs) -> Result<(), Failure> {
    let (connection, settings) = args.redis.connect()?;
    known(&connection, &settings, &args.topic).await?;
    let handle = TopicHandle::new(&connection, &settings.prefix, &settings.group, "", &args.topic);
    let mut progress = Progress::new("looked at");
    let cancelled = MessageSearch::new(handle).cancel(&args.id, &mut |count| progress.add(count)).await?;
    for (place, count) in &cancelled.removed {
        let (place, at, detail) = words(place);
        let copies = if *count > 1 { format!("{count} copies ") } else { String::new() };
        println!(
            "{}",
            format!("cancelled {copies}{place} {at} {detail}").split_whitespace().collect::<Vec<_>>().join(" ")
        );
    }
    let id = table::shown(&args.id);
    for one in &cancelled.in_flight {
        let (_, at, detail) = words(&one.location);
        eprintln!("{id} is in flight as {at} ({detail}), which can't be cancelled");
    }
    if let Some(one) = cancelled.unread.first() {
        let (_, at, _) = words(&one.location);
        return Err(Failure::Failed(format!(
            "{id} waits as {at} in a stream that other groups have still to read there: it stays and will run \
             (`topics pause {}` keeps it waiting)",
            args.topic
        )));
    }
    match (cancelled.removed.is_empty(), cancelled.in_flight.is_empty()) {
        (false, _) => Ok(()),
        (true, false) => Err(Failure::Failed(format!("{id} is only in flight: nothing is cancelled"))),
        (true, true) => Err(Failure::Failed(format!(
            "no message {id} waits in {}: nothing is cancelled (`messages find` looks everywhere)",
            args.topic
        ))),
    }
}

/// A place in words: what it is, where in it, and what more is known.
fn words(place: &MessageLocation) -> (&'static str, String, String) {
    let idle = |ms: u64| humantime::format_duration(Duration::from_millis(ms)).to_string();
    match place {
        MessageLocation::Waiting { stream, entry } => ("waiting", stream.at(entry), String::new()),
        MessageLocation::List { position } => ("waiting", format!("list:{position}"), String::new()),
        MessageLocation::ListOut { position } => ("waiting", format!("in:{position}"), String::new()),
        MessageLocation::Delayed { token, due } => ("delayed", token.clone(), format!("due {due}")),
        MessageLocation::LegacyDelayed { due } => ("delayed", "the original's".to_owned(), format!("due {due}")),
        MessageLocation::InFlight { stream, entry, consumer, idle_ms, delivery_count } => {
            let detail = format!("{consumer}, idle {}, deliveries {delivery_count}", idle(*idle_ms));
            ("in flight", stream.at(entry), detail)
        }
        MessageLocation::Dead { entry, reason } => ("dead", entry.clone(), reason.clone()),
        MessageLocation::LegacyDead { entry, .. } => ("dead", entry.clone(), "the original's".to_owned()),
        MessageLocation::Outbox { entry, to } => ("outgoing", entry.clone(), format!("to {to}")),
        MessageLocation::Finished => ("finished", String::new(), String::new()),
    }
}
