//! `dead show`: one dead letter with all its fields.

use super::queue;
use crate::cli::output::{print_json, print_line};
use crate::cli::table::format_cell;
use crate::cli::topic_check::ensure_topic_exists;
use crate::cli::{Failure, RedisArgs};
use crate::message;
use crate::queue::TopicHandle;
use crate::queue::dead::{DeadLetter, DeadLetterEntry, DeadLetterId, DeadLetters, Order, Origin};
use crate::text::{escape_bytes, is_control_or_bidi};
use crate::topic::Topic;
use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;

#[derive(Debug, Args)]
pub(in crate::cli) struct ShowArgs {
    topic: Topic,
    /// Entry of the dead letter, or id of its message
    #[arg(value_name = "ENTRY|ID")]
    id: String,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

#[derive(Serialize)]
struct Details {
    topic: String,
    #[serde(flatten)]
    letter: DeadLetter,
    /// All fields, in the order of the entry.
    fields: Vec<(String, String)>,
    /// The data for the handler. None where it is not JSON.
    data: Option<Box<RawValue>>,
}

pub(in crate::cli) async fn show(args: ShowArgs) -> Result<(), Failure> {
    let (connection, settings) = args.redis.connect()?;
    ensure_topic_exists(&connection, &settings, &args.topic).await?;
    let queue = queue(&connection, &settings, &args.topic);
    let letter = find(&queue, &args.id).await?.ok_or_else(|| super::not_found(&args.topic, &args.id))?;
    let details = Details {
        topic: args.topic.to_string(),
        letter: letter.summary(&args.topic),
        fields: letter.fields.iter().map(|(name, value)| (escape_bytes(name), escape_bytes(value))).collect(),
        data: data(&args.topic, &letter),
    };
    if args.json {
        return print_json(&details);
    }
    let letter = &details.letter;
    let topic = format_cell(&details.topic);
    print_line!("{topic}/{}{}", letter.entry, if letter.legacy { " (legacy)" } else { "" });
    for (name, value) in &details.fields {
        print_line!("{}: {}", format_cell(name), printable(value));
    }
    if let Some(data) = &details.data {
        let pretty =
            serde_json::from_str(data.get()).and_then(|data: serde_json::Value| serde_json::to_string_pretty(&data));
        print_line!("\ndata:\n{}", printable(&pretty.map_err(|error| Failure::Failed(error.to_string()))?));
    }
    Ok(())
}

/// Legacy ids of messages look like entries, so both are tried.
async fn find(queue: &TopicHandle, id: &str) -> Result<Option<DeadLetterEntry>, Failure> {
    if let Ok(entry) = id.parse::<DeadLetterId>()
        && let Some(letter) = DeadLetters::new(queue.clone()).get(&entry).await?
    {
        return Ok(Some(letter));
    }
    for origin in Origin::ALL {
        let mut walk = DeadLetters::new(queue.clone()).list(origin, Order::NewestFirst).await?;
        loop {
            let page = walk.next().await?;
            if page.is_empty() {
                break;
            }
            let has_id = |letter: &DeadLetterEntry| letter.summary(queue.topic()).id.as_deref() == Some(id);
            if let Some(letter) = page.into_iter().find(has_id) {
                return Ok(Some(letter));
            }
        }
    }
    Ok(None)
}

fn data(topic: &Topic, letter: &DeadLetterEntry) -> Option<Box<RawValue>> {
    let fields = match letter.body() {
        Some(body) => vec![(message::MESSAGE_FIELD.as_bytes().to_vec(), body.to_vec())],
        None => letter.fields.clone(),
    };
    let data = message::read(topic, "0-0", &fields).ok()?.data;
    RawValue::from_string(String::from_utf8(data).ok()?).ok()
}

/// The text with escapes for characters that could steer the terminal.
fn printable(text: &str) -> String {
    let escape = |char: char| match char {
        '\n' | '\t' => char.to_string(),
        char if is_control_or_bidi(char) => char.escape_default().to_string(),
        char => char.to_string(),
    };
    text.chars().map(escape).collect()
}
