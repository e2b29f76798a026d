//! `messages`: lists, finds and cancels messages.

use super::output::{print_json, print_line, print_note};
use super::table::{self, Column, format_cell};
use super::topic_check::ensure_topic_exists;
use super::{Failure, RedisArgs};
use crate::queue::{Connection, Found, MessageLocation, MessageSearch, TopicHandle, ended_unrun, inspect};
use crate::settings::QueueSettings;
use crate::text::truncate;
use crate::topic::Topic;
use clap::Args;
use std::time::{Duration, Instant};

/// So many messages fit into memory, whatever their size.
const LIMIT_MAX: i64 = 10_000;
/// The rest of a message is in `--json`.
const MESSAGE_WIDTH_MAX: usize = 80;
/// The rest of an id in an error, which the user has typed, is not repeated.
const ID_BYTES_MAX: usize = 256;
/// A longer name of a consumer is truncated.
const LINE_WIDTH_MAX: usize = 200;
/// The topics whose ended messages are counted in an error.
const TOPICS_NAMED_MAX: usize = 5;

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    topic: Topic,
    /// Maximum messages per location
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
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
            print_note!("{} messages {}", self.count, self.action);
            self.reported = Instant::now();
        }
    }
}

pub(super) async fn ls(args: LsArgs) -> Result<(), Failure> {
    let (connection, settings) = args.redis.connect()?;
    ensure_topic_exists(&connection, &settings, &args.topic).await?;
    let handle = TopicHandle::new(&connection, &settings.prefix, &settings.group, "", &args.topic);
    let found = MessageSearch::new(handle).peek(args.limit as usize).await?;
    let state = inspect::topic_state(&connection, &settings.prefix, &settings.group, &args.topic, false).await?;
    let total = (state.waiting + state.delayed).max(found.len() as u64);
    if args.json {
        if total > found.len() as u64 {
            print_note!("{}", describe(found.len(), total, state.in_flight));
        }
        return print_json(&found);
    }
    let row = |one: &Found| {
        let (kind, at, detail) = format_location(&one.location);
        let id = one.id.clone().unwrap_or_default();
        let text = table::truncate(&format_cell(one.message.as_deref().unwrap_or_default()), MESSAGE_WIDTH_MAX);
        let detail = with_expiry(detail, one);
        [kind.to_owned(), id, at, detail, text]
    };
    let rows: Vec<_> = found.iter().map(row).collect();
    let (location, at) = (Column::Fixed("LOCATION"), Column::Fixed("AT"));
    table::print([location, Column::Name("ID"), at, Column::Name(""), Column::Text("MESSAGE")], &rows);
    print_line!("{}", describe(found.len(), total, state.in_flight));
    Ok(())
}

/// How many messages there are besides those that are listed.
fn describe(listed: usize, total: u64, in_flight: u64) -> String {
    let mut text = match total.saturating_sub(listed as u64) {
        0 => format!("{listed} messages wait or are delayed"),
        _ if total <= LIMIT_MAX.unsigned_abs() => {
            format!("{listed} of {total} messages that wait or are delayed: --limit {total} lists all")
        }
        _ => format!("{listed} of {total} messages that wait or are delayed: --limit {LIMIT_MAX} lists more"),
    };
    if in_flight > 0 {
        text.push_str(&format!("; {in_flight} in flight are not listed"));
    }
    text
}

/// The details with a word about a message that no worker will run.
fn with_expiry(detail: String, one: &Found) -> String {
    match &one.expires_at {
        Some(at) if one.is_expired => format!("{detail} expired {at}: not run").trim_start().to_owned(),
        _ => detail,
    }
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
            [one.topic.clone(), kind.to_owned(), at, with_expiry(detail, one)]
        };
        let rows: Vec<_> = found.iter().map(row).collect();
        let (location, at) = (Column::Fixed("LOCATION"), Column::Fixed("AT"));
        table::print([Column::Name("TOPIC"), location, at, Column::Name("")], &rows);
    }
    if found.is_empty() {
        let ended = describe_ended(&connection, &settings, &topics).await?;
        return Err(Failure::Failed(format!(
            "no message {} found: it has finished or was deleted, or it was never published{ended}",
            short_id(&args.id)
        )));
    }
    Ok(())
}

/// Of messages that ended without a run only numbers are kept in Redis, so it can't
/// say which they were.
async fn describe_ended(
    connection: &Connection,
    settings: &QueueSettings,
    topics: &[Topic],
) -> Result<String, Failure> {
    let mut described = Vec::new();
    for topic in topics {
        let handle = TopicHandle::new(connection, &settings.prefix, &settings.group, "", topic);
        let counts: Vec<_> =
            ended_unrun(&handle).await?.iter().map(|(name, count)| format!("{count} {name}")).collect();
        if !counts.is_empty() {
            described.push(format!("{} {}", counts.join(", "), format_cell(&format!("in {topic}"))));
        }
        if described.len() == TOPICS_NAMED_MAX {
            break;
        }
    }
    if described.is_empty() {
        return Ok(String::new());
    }
    Ok(format!("; ended without a run so far: {} (their ids are in the workers' logs)", described.join("; ")))
}

fn short_id(id: &str) -> String {
    format_cell(&truncate(id, ID_BYTES_MAX))
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
        let line = table::truncate(&format_cell(&format!("cancelled {copies}{kind} {at} {detail}")), LINE_WIDTH_MAX);
        print_line!("{}", line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    let (id, topic) = (short_id(&args.id), format_cell(args.topic.as_str()));
    for one in &cancelled.in_flight {
        let (_, at, detail) = format_location(&one.location);
        let detail = table::truncate(&format_cell(&detail), LINE_WIDTH_MAX);
        print_note!("{id} is in flight as {at} ({detail}) and can't be cancelled");
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
