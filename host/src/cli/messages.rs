//! `messages`: lists, finds and cancels messages.

use super::output::print_json;
use super::table::{self, format_cell};
use super::topic_check::ensure_topic_exists;
use super::{Failure, RedisArgs};
use crate::queue::{Found, MessageLocation, MessageSearch, TopicHandle, inspect};
use crate::topic::Topic;
use clap::Args;
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    topic: Topic,
    /// Maximum messages per location
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Print a JSON array that includes the messages
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

#[derive(Debug, Args)]
pub(super) struct FindArgs {
    /// Id of the message
    #[arg(value_parser = id)]
    id: String,
    /// Only in this topic
    #[arg(long)]
    topic: Option<Topic>,
    /// Print a JSON array that includes the messages
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

#[derive(Debug, Args)]
pub(super) struct CancelArgs {
    topic: Topic,
    /// Id of the message
    #[arg(value_parser = id)]
    id: String,
    #[command(flatten)]
    redis: RedisArgs,
}

fn id(text: &str) -> Result<String, &'static str> {
    if text.is_empty() { Err("the id must not be empty") } else { Ok(text.to_owned()) }
}

/// Reports the progress of a long operation once per second.
pub(super) struct Progress {
    action: &'static str,
    count: u64,
    reported: Instant,
}

impl Progress {
    pub(super) fn new(action: &'static str) -> Self {
        Self { action, count: 0, reported: Instant::now() }
    }

    pub(super) fn add(&mut self, count: u64) {
        self.count += count;
        if self.reported.elapsed() > Duration::from_secs(1) {
            eprintln!("{} messages {}", self.count, self.action);
            self.reported = Instant::now();
        }
    }
}

pub(super) async fn ls(args: LsArgs) -> Result<(), Failure> {
    let (connection, settings) = args.redis.connect()?;
    ensure_topic_exists(&connection, &settings, &args.topic).await?;
    let handle = TopicHandle::new(&connection, &settings.prefix, &settings.group, "", &args.topic);
    let found = MessageSearch::new(handle).peek(args.limit as usize).await?;
    if args.json {
        return print_json(&found);
    }
    let row = |one: &Found| {
        let (kind, at, detail) = format_location(&one.location);
        let id = one.id.clone().unwrap_or_default();
        let text = one.message.as_deref().unwrap_or_default().chars().take(80).collect();
        [kind.to_owned(), id, at, detail, text]
    };
    let rows: Vec<_> = found.iter().map(row).collect();
    table::print(["LOCATION", "ID", "AT", "", "MESSAGE"], &rows);
    Ok(())
}

pub(super) async fn find(args: FindArgs) -> Result<(), Failure> {
    let (connection, settings) = args.redis.connect()?;
    let topics = match args.topic {
        Some(topic) => {
            ensure_topic_exists(&connection, &settings, &topic).await?;
            vec![topic]
        }
        None => inspect::names(&connection, &settings.prefix).await?.topics.into_iter().collect(),
    };
    let (mut found, mut progress) = (Vec::new(), Progress::new("searched"));
    for topic in &topics {
        let handle = TopicHandle::new(&connection, &settings.prefix, &settings.group, "", topic);
        found.extend(MessageSearch::new(handle).find(&args.id, &mut |count| progress.add(count)).await?);
    }
    if args.json {
        print_json(&found)?;
    } else if !found.is_empty() {
        let row = |one: &Found| {
            let (kind, at, detail) = format_location(&one.location);
            [one.topic.clone(), kind.to_owned(), at, detail]
        };
        let rows: Vec<_> = found.iter().map(row).collect();
        table::print(["TOPIC", "LOCATION", "AT", ""], &rows);
    }
    if found.is_empty() {
        return Err(Failure::Failed(format!(
            "no message {} found: it has finished or was deleted, or it was never published",
            format_cell(&args.id)
        )));
    }
    Ok(())
}

pub(super) async fn cancel(args: CancelArgs) -> Result<(), Failure> {
    let (connection, settings) = args.redis.connect()?;
    ensure_topic_exists(&connection, &settings, &args.topic).await?;
    let handle = TopicHandle::new(&connection, &settings.prefix, &settings.group, "", &args.topic);
    let mut progress = Progress::new("searched");
    let cancelled = MessageSearch::new(handle).cancel(&args.id, &mut |count| progress.add(count)).await?;
    for (location, count) in &cancelled.removed {
        let (kind, at, detail) = format_location(location);
        let copies = if *count > 1 { format!("{count} copies ") } else { String::new() };
        let line = format_cell(&format!("cancelled {copies}{kind} {at} {detail}"));
        println!("{}", line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    let (id, topic) = (format_cell(&args.id), format_cell(args.topic.as_str()));
    for one in &cancelled.in_flight {
        let (_, at, detail) = format_location(&one.location);
        eprintln!("{id} is in flight as {at} ({}) and can't be cancelled", format_cell(&detail));
    }
    if let Some(one) = cancelled.unread.first() {
        let (_, at, _) = format_location(&one.location);
        return Err(Failure::Failed(format!(
            "{id} waits as {at}, where other consumer groups have not read it yet: it was not cancelled and will run \
             (`topics pause {topic}` prevents that)"
        )));
    }
    match (cancelled.removed.is_empty(), cancelled.in_flight.is_empty()) {
        (false, _) => Ok(()),
        (true, false) => Err(Failure::Failed(format!("{id} is only in flight: nothing was cancelled"))),
        (true, true) => Err(Failure::Failed(format!(
            "no message {id} waits in {topic}: nothing was cancelled (`messages find` searches every location)"
        ))),
    }
}

/// The kind of a location, the position in it, and details.
fn format_location(location: &MessageLocation) -> (&'static str, String, String) {
    let idle = |ms: u64| humantime::format_duration(Duration::from_millis(ms)).to_string();
    match location {
        MessageLocation::Waiting { stream, entry } => ("waiting", stream.at(entry), String::new()),
        MessageLocation::List { position } => ("waiting", format!("list:{position}"), String::new()),
        MessageLocation::ListOut { position } => ("waiting", format!("in:{position}"), String::new()),
        MessageLocation::Delayed { token, due } => ("delayed", token.clone(), format!("due {due}")),
        MessageLocation::LegacyDelayed { due } => ("delayed", "legacy".to_owned(), format!("due {due}")),
        MessageLocation::InFlight { stream, entry, consumer, idle_ms, delivery_count } => {
            let detail = format!("{consumer}, idle {}, deliveries {delivery_count}", idle(*idle_ms));
            ("in flight", stream.at(entry), detail)
        }
        MessageLocation::Dead { entry, reason } => ("dead", entry.clone(), reason.clone()),
        MessageLocation::LegacyDead { entry, .. } => ("dead", entry.clone(), "legacy".to_owned()),
        MessageLocation::Outbox { entry, to } => ("outgoing", entry.clone(), format!("to {to}")),
        MessageLocation::Finished => ("finished", String::new(), String::new()),
    }
}
