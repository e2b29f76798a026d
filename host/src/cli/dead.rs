//! The commands for dead letters, and `dead ls`.

mod edit;
mod purge;
mod replay;
mod show;

pub(super) use edit::{EditArgs, edit};
pub(super) use purge::{PurgeArgs, purge, purge_all};
pub(super) use replay::{ReplayArgs, replay};
pub(super) use show::{ShowArgs, show};

use super::output::print_json;
use super::topic_check::ensure_topic_exists;
use super::{Failure, RedisArgs, table};
use crate::queue::dead::{DeadLetter, DeadLetterEntry, DeadLetters, Order, Origin};
use crate::queue::{Connection, TopicHandle, inspect};
use crate::settings::QueueSettings;
use crate::topic::Topic;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// Only this topic
    topic: Option<Topic>,
    /// Maximum dead letters per topic
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    #[command(flatten)]
    filter: Filter,
    /// Print a JSON array that includes the messages
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

/// Selects dead letters.
#[derive(Debug, Args)]
struct Filter {
    /// Only dead letters with this reason, like trap or decode
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    reason: Option<String>,
    /// Only dead letters with this text in a field, for example in the message, its error or its id
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    search: Option<String>,
}

impl Filter {
    fn matches(&self, letter: &DeadLetterEntry, details: &DeadLetter) -> bool {
        self.reason.as_ref().is_none_or(|reason| *reason == details.reason)
            && self.search.as_ref().is_none_or(|text| letter.contains(text))
    }
}

#[derive(serde::Serialize)]
struct Listed {
    topic: String,
    #[serde(flatten)]
    letter: DeadLetter,
}

fn queue(connection: &Connection, settings: &QueueSettings, topic: &Topic) -> TopicHandle {
    TopicHandle::new(connection, &settings.prefix, &settings.group, "", topic)
}

pub(super) async fn ls(args: LsArgs) -> Result<(), Failure> {
    let (connection, settings) = args.redis.connect()?;
    let topics = match args.topic {
        Some(topic) => {
            ensure_topic_exists(&connection, &settings, &topic).await?;
            vec![topic]
        }
        None => {
            let all = inspect::topics(&connection, &settings.prefix, &settings.group).await?;
            all.topics
                .iter()
                .filter(|state| state.dead > 0)
                .filter_map(|state| Topic::parse(&state.topic).ok())
                .collect()
        }
    };
    let mut listed = Vec::new();
    for topic in &topics {
        let letters = newest(&queue(&connection, &settings, topic), &args.filter, args.limit as usize).await?;
        listed.extend(letters.into_iter().map(|letter| Listed { topic: topic.to_string(), letter }));
    }
    if args.json {
        return print_json(&listed);
    }
    let row = |Listed { topic, letter }: &Listed| {
        let attempts = letter.attempts.map(|attempts| attempts.to_string()).unwrap_or_default();
        let error = letter.error.chars().take(100).collect();
        let (id, died_at) = (letter.id.clone().unwrap_or_default(), letter.died_at.clone().unwrap_or_default());
        [topic.clone(), letter.entry.clone(), id, letter.reason.clone(), attempts, died_at, error]
    };
    let rows: Vec<_> = listed.iter().map(row).collect();
    table::print(["TOPIC", "ENTRY", "ID", "REASON", "ATTEMPTS", "DIED AT", "ERROR"], &rows);
    Ok(())
}

/// The newest dead letters that match, native ones before legacy ones.
async fn newest(queue: &TopicHandle, filter: &Filter, limit: usize) -> Result<Vec<DeadLetter>, Failure> {
    let mut found = Vec::new();
    for origin in Origin::ALL {
        let mut walk = DeadLetters::new(queue.clone()).list(origin, Order::NewestFirst).await?;
        loop {
            let page = walk.next().await?;
            if page.is_empty() || found.len() == limit {
                break;
            }
            for letter in &page {
                let details = letter.summary(queue.topic());
                if found.len() < limit && filter.matches(letter, &details) {
                    found.push(details);
                }
            }
        }
    }
    Ok(found)
}

fn not_found(topic: &Topic, id: &str) -> Failure {
    Failure::Failed(format!("{topic} has no dead letter {id}"))
}
