//! The commands for dead letters, and `dead ls`.

mod edit;
mod purge;
mod replay;
mod show;

pub(super) use edit::{EditArgs, edit};
pub(super) use purge::{PurgeArgs, purge, purge_all};
pub(super) use replay::{ReplayArgs, replay};
pub(super) use show::{ShowArgs, show};

use super::output::{print_json, print_line, print_note};
use super::table::{self, Column};
use super::topic_check::ensure_topic_exists;
use super::{Failure, RedisArgs};
use crate::queue::dead::{DeadLetter, DeadLetterEntry, DeadLetters, Order, Origin};
use crate::queue::{Connection, TopicHandle, inspect};
use crate::settings::QueueSettings;
use crate::topic::Topic;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;

/// So many dead letters fit into memory, whatever their size.
const LIMIT_MAX: i64 = 10_000;

/// The rest of an error is in `dead show`.
const ERROR_WIDTH_MAX: usize = 100;

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// Only this topic
    topic: Option<Topic>,
    /// Maximum dead letters per topic
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
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
    fn is_empty(&self) -> bool {
        self.reason.is_none() && self.search.is_none()
    }

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
    let (mut listed, mut extent) = (Vec::new(), Extent { is_filtered: !args.filter.is_empty(), ..Extent::default() });
    for topic in &topics {
        let queue = queue(&connection, &settings, topic);
        let letters = newest(&queue, &args.filter, args.limit as usize + 1).await?;
        extent.add(DeadLetters::new(queue).count().await?, letters.len() > args.limit as usize);
        let letters = letters.into_iter().take(args.limit as usize);
        listed.extend(letters.map(|letter| Listed { topic: topic.to_string(), letter }));
    }
    if args.json {
        if extent.has_more {
            print_note!("{}", extent.describe(listed.len()));
        }
        return print_json(&listed);
    }
    let row = |Listed { topic, letter }: &Listed| {
        let attempts = letter.attempts.map(|attempts| attempts.to_string()).unwrap_or_default();
        let error = table::truncate(&letter.error, ERROR_WIDTH_MAX);
        let (id, died_at) = (letter.id.clone().unwrap_or_default(), letter.died_at.clone().unwrap_or_default());
        [topic.clone(), letter.entry.clone(), id, letter.reason.clone(), attempts, died_at, error]
    };
    let rows: Vec<_> = listed.iter().map(row).collect();
    let (topic, id, error) = (Column::Name("TOPIC"), Column::Name("ID"), Column::Text("ERROR"));
    let [entry, reason, attempts, died_at] = ["ENTRY", "REASON", "ATTEMPTS", "DIED AT"].map(Column::Fixed);
    table::print([topic, entry, id, reason, attempts, died_at, error], &rows);
    print_line!("{}", extent.describe(listed.len()));
    Ok(())
}

/// How much there is besides what is listed.
#[derive(Debug, Default)]
struct Extent {
    is_filtered: bool,
    /// All dead letters of the topics, and of the topic that has most of them.
    total: u64,
    most: u64,
    /// Whether letters that match are not listed.
    has_more: bool,
}

impl Extent {
    fn add(&mut self, count: u64, has_more: bool) {
        self.total += count;
        self.most = self.most.max(count);
        self.has_more |= has_more;
    }

    fn describe(&self, listed: usize) -> String {
        let Self { is_filtered, total, most, has_more } = *self;
        // Letters that died meanwhile may be listed and not counted.
        let total = total.max(listed as u64);
        let match_ = if is_filtered { " that match" } else { "" };
        match has_more {
            false if is_filtered => format!("{listed} of {total} dead letters match"),
            false => format!("{listed} dead letters"),
            true if most <= LIMIT_MAX.unsigned_abs() => {
                format!("the newest {listed} of {total} dead letters{match_}: --limit {most} lists all")
            }
            true => format!(
                "the newest {listed} of {total} dead letters{match_}: --limit {LIMIT_MAX} lists more, and \
                 --reason and --search select"
            ),
        }
    }
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
