//! `dead ls`: what ended as a dead letter, and why.

use super::{Failure, RedisArgs, table};
use crate::queue::inspect::{self, DeadLetter};
use crate::topic::Topic;
use clap::Args;

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// Only this topic
    topic: Option<Topic>,
    /// At most so many of each topic
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// One JSON array, with the messages
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

#[derive(serde::Serialize)]
struct Listed {
    topic: String,
    #[serde(flatten)]
    letter: DeadLetter,
}

pub(super) async fn ls(args: LsArgs) -> Result<(), Failure> {
    let (connection, settings) = args.redis.connect()?;
    let topics = match args.topic {
        Some(topic) => vec![topic],
        None => {
            let all = inspect::topics(&connection, &settings.prefix, &settings.group).await?;
            all.iter().filter(|state| state.dead > 0).filter_map(|state| Topic::parse(&state.topic).ok()).collect()
        }
    };
    let mut listed = Vec::new();
    for topic in &topics {
        let letters = inspect::dead_letters(&connection, &settings.prefix, topic, args.limit as usize).await?;
        listed.extend(letters.into_iter().map(|letter| Listed { topic: topic.to_string(), letter }));
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&listed).map_err(|error| Failure::Failed(error.to_string()))?);
        return Ok(());
    }
    let row = |Listed { topic, letter }: &Listed| {
        let attempts = letter.attempts.map(|attempts| attempts.to_string()).unwrap_or_default();
        let error: String =
            letter.error.chars().map(|char| if char.is_control() { ' ' } else { char }).take(100).collect();
        let (id, died_at) = (letter.id.clone().unwrap_or_default(), letter.died_at.clone().unwrap_or_default());
        [topic.clone(), letter.entry.clone(), id, letter.reason.clone(), attempts, died_at, error]
    };
    let rows: Vec<_> = listed.iter().map(row).collect();
    table::print(["TOPIC", "ENTRY", "ID", "REASON", "ATTEMPTS", "DIED AT", "ERROR"], &rows);
    Ok(())
}
