//! `dead show`: all of one dead letter.

use super::queue;
use crate::cli::known::known;
use crate::cli::print::print_json;
use crate::cli::{Failure, RedisArgs, table};
use crate::message;
use crate::queue::TopicQueue;
use crate::queue::dead::{DeadLetter, Letter, LetterId, Order, Origin};
use crate::text::is_control_or_bidi;
use crate::topic::Topic;
use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;

#[derive(Debug, Args)]
pub(in crate::cli) struct ShowArgs {
    topic: Topic,
    /// The entry of the dead letter, or the id of its message
    #[arg(value_name = "ENTRY|ID")]
    id: String,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

#[derive(Serialize)]
struct Shown {
    topic: String,
    #[serde(flatten)]
    letter: DeadLetter,
    /// As the entry has them, in its order.
    fields: Vec<(String, String)>,
    /// What the handler was given, as far as it is JSON.
    data: Option<Box<RawValue>>,
}

pub(in crate::cli) async fn show(args: ShowArgs) -> Result<(), Failure> {
    let (connection, settings) = args.redis.connect()?;
    known(&connection, &settings, &args.topic).await?;
    let queue = queue(&connection, &settings, &args.topic);
    let letter = find(&queue, &args.id).await?.ok_or_else(|| super::unknown(&args.topic, &args.id))?;
    let shown = Shown {
        topic: args.topic.to_string(),
        letter: letter.told(&args.topic),
        fields: letter.fields.iter().map(|(name, value)| (escaped(name), escaped(value))).collect(),
        data: data(&args.topic, &letter),
    };
    if args.json {
        return print_json(&shown);
    }
    let letter = &shown.letter;
    println!("{}/{}{}", shown.topic, letter.entry, if letter.legacy { ", of the original" } else { "" });
    for (name, value) in &shown.fields {
        println!("{}: {}", table::shown(name), printable(value));
    }
    if let Some(data) = &shown.data {
        let pretty =
            serde_json::from_str(data.get()).and_then(|data: serde_json::Value| serde_json::to_string_pretty(&data));
        println!("\ndata:\n{}", printable(&pretty.map_err(|error| Failure::Failed(error.to_string()))?));
    }
    Ok(())
}

/// An id of the original's looks like an entry's, so both are tried.
async fn find(queue: &TopicQueue, id: &str) -> Result<Option<Letter>, Failure> {
    if let Ok(entry) = id.parse::<LetterId>()
        && let Some(letter) = queue.dead_letter(&entry).await?
    {
        return Ok(Some(letter));
    }
    for origin in Origin::ALL {
        let mut walk = queue.dead_letters(origin, Order::NewestFirst).await?;
        loop {
            let piece = walk.next().await?;
            if piece.is_empty() {
                break;
            }
            let is_it = |letter: &Letter| letter.told(queue.topic()).id.as_deref() == Some(id);
            if let Some(letter) = piece.into_iter().find(is_it) {
                return Ok(Some(letter));
            }
        }
    }
    Ok(None)
}

fn data(topic: &Topic, letter: &Letter) -> Option<Box<RawValue>> {
    let fields = match letter.body() {
        Some(body) => vec![(message::MESSAGE_FIELD.as_bytes().to_vec(), body.to_vec())],
        None => letter.fields.clone(),
    };
    let data = message::read(topic, "0-0", &fields).ok()?.data;
    RawValue::from_string(String::from_utf8(data).ok()?).ok()
}

/// The text, with each byte that is none written as `\xff`.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

/// A message must not steer the terminal.
fn printable(text: &str) -> String {
    let shown = |char: char| match char {
        '\n' | '\t' => char.to_string(),
        char if is_control_or_bidi(char) => char.escape_default().to_string(),
        char => char.to_string(),
    };
    text.chars().map(shown).collect()
}
