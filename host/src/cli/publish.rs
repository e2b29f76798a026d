//! `publish`: publishes messages to a topic.

use super::input::read_data;
use super::output::{print_line, print_note};
use super::table::format_cell;
use super::{Failure, RedisArgs};
use crate::publication::{DELAY_MAX, Draft, Priority};
use crate::queue::{Publisher, TopicHandle, handled_topics};
use crate::topic::Topic;
use clap::Args;
use jiff::Timestamp;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Messages per round trip to Redis.
const BATCH: u64 = 500;

#[derive(Debug, Args)]
pub(super) struct PublishArgs {
    topic: Topic,
    /// Data of the message as JSON, @FILE, or - for stdin [default: what is piped into the command, else null]
    #[arg(long, value_name = "JSON|@FILE|-")]
    data: Option<String>,
    /// Delay before the message is run, like 30s or 24h
    #[arg(long, default_value = "0s", value_name = "TIME")]
    delay: humantime::Duration,
    /// Id of the message [default: generated]
    #[arg(long, conflicts_with = "count")]
    id: Option<String>,
    /// Priority among waiting messages
    #[arg(long, value_enum, default_value_t)]
    priority: Priority,
    /// Time after which the message is not run any more, like 1h
    #[arg(long, value_name = "TIME")]
    expires_in: Option<humantime::Duration>,
    /// Deduplication key [default: the message id]
    #[arg(long, value_name = "KEY")]
    dedup_key: Option<String>,
    /// Publish at most once per --id within this window
    #[arg(long, value_name = "TIME", requires = "id")]
    once: Option<humantime::Duration>,
    /// Header of the message; can be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Number of copies to publish, each with its own id
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    count: u64,
    #[command(flatten)]
    redis: RedisArgs,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a header must have the form NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(super) async fn publish(args: PublishArgs) -> Result<(), Failure> {
    let data = read_data(args.data.as_deref())?.unwrap_or_else(|| "null".to_owned());
    let delay: Duration = args.delay.into();
    if delay > DELAY_MAX {
        return Err(Failure::Usage("--delay must be at most 366d".to_owned()));
    }
    let encode = |id: Option<String>, now: Timestamp| {
        let id = id.unwrap_or_else(|| new_id(now));
        let expires_at = match args.expires_in {
            Some(span) => {
                let at = now.checked_add(*span).map_err(|_| Failure::Usage("--expires-in is too long".to_owned()))?;
                Some(at)
            }
            None => None,
        };
        let (priority, dedup_key) = (args.priority, args.dedup_key.as_deref());
        let draft = Draft::new(id, &args.topic, &data);
        let draft = Draft { headers: &args.headers, priority, delay, dedup_key, expires_at, ..draft };
        draft.encode(now).map_err(|error| Failure::Usage(error.to_string()))
    };
    // Usage errors are reported before connection errors.
    encode(args.id.clone(), Timestamp::now())?;
    let (connection, settings) = args.redis.connect()?;
    // Workers compare the times in a message with Redis' clock.
    let first = encode(args.id.clone(), connection.read_clock().await?)?;
    let queue = Publisher::new(TopicHandle::new(&connection, &settings.prefix, &settings.group, "", &args.topic));

    let mut published = 0;
    let mut reported = Instant::now();
    let mut id = first.id.clone();
    if let Some(window) = args.once {
        if !queue.publish_once(&first, window.into()).await? {
            print_note!("not published: a message with this id was published within {window}");
        }
    } else {
        queue.publish(&first).await?;
    }
    published += 1;
    while published < args.count {
        let batch: Vec<_> =
            (0..BATCH.min(args.count - published)).map(|_| encode(None, connection.now())).collect::<Result<_, _>>()?;
        queue.publish_all(&batch).await?;
        published += batch.len() as u64;
        id = batch.last().map_or(id, |last| last.id.clone());
        if reported.elapsed() > Duration::from_secs(1) {
            print_note!("{published} of {} published", args.count);
            reported = Instant::now();
        }
    }
    print_line!("{id}");
    let topic = format_cell(args.topic.as_str());
    if args.count > 1 {
        print_note!("{published} messages published to {topic}; the id is that of the last one");
    }
    if !handled_topics(&connection, &settings.prefix).await?.contains(&args.topic) {
        print_note!("no active worker has a handler for {topic}: the message waits");
    }
    Ok(())
}

/// An id that sorts by Redis' time.
fn new_id(now: Timestamp) -> String {
    let seconds = u64::try_from(now.as_second()).unwrap_or(0);
    let nanos = u32::try_from(now.subsec_nanosecond()).unwrap_or(0);
    Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, nanos)).to_string()
}
