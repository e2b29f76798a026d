//! `dead purge`: deletes dead letters permanently.

use super::queue;
use crate::cli::output::{print_line, print_note};
use crate::cli::table::format_cell;
use crate::cli::topic_check::ensure_topic_exists;
use crate::cli::{Failure, RedisArgs};
use crate::queue::TopicHandle;
use crate::queue::dead::{DeadLetterId, DeadLetterPurge, DeadLetters, Origin};
use crate::topic::Topic;
use clap::{ArgGroup, Args};
use std::io::{BufRead, IsTerminal};
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").args(["entries", "all", "older_than"]).required(true))]
pub(in crate::cli) struct PurgeArgs {
    topic: Topic,
    /// Entries of dead letters, as `dead ls` shows them
    #[arg(value_name = "ENTRY")]
    entries: Vec<DeadLetterId>,
    /// All current dead letters
    #[arg(long)]
    all: bool,
    /// Dead letters that are older than this, like 30d
    #[arg(long, value_name = "TIME")]
    older_than: Option<humantime::Duration>,
    /// Skip the confirmation prompt
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

pub(in crate::cli) async fn purge(args: PurgeArgs) -> Result<(), Failure> {
    if !args.yes && !std::io::stdin().is_terminal() {
        return Err(Failure::Usage("purged dead letters can't be restored: confirm with --yes".to_owned()));
    }
    let (connection, settings) = args.redis.connect()?;
    ensure_topic_exists(&connection, &settings, &args.topic).await?;
    let queue = queue(&connection, &settings, &args.topic);
    if !args.yes && !is_confirmed(&queue, &args.entries, args.older_than).await? {
        return Err(Failure::Failed("nothing was purged".to_owned()));
    }
    let mut purged = 0;
    let result = if args.entries.is_empty() {
        purge_all(&queue, args.older_than.map(Duration::from), &mut purged).await
    } else {
        purge_entries(&queue, &args.entries, &mut purged).await
    };
    print_line!("{purged} purged");
    result
}

async fn is_confirmed(
    queue: &TopicHandle,
    entries: &[DeadLetterId],
    older_than: Option<humantime::Duration>,
) -> Result<bool, Failure> {
    let which = match (entries.len(), older_than) {
        (0, Some(age)) => {
            format!("those of {} that are older than {age}", DeadLetters::new(queue.clone()).count().await?)
        }
        (0, None) => format!("all {}", DeadLetters::new(queue.clone()).count().await?),
        (count, _) => count.to_string(),
    };
    print_note!("Permanently delete dead letters of {}: {which}? [y/N]", format_cell(queue.topic().as_str()));
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| Failure::Failed(format!("stdin: {error}")))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

async fn purge_entries(queue: &TopicHandle, entries: &[DeadLetterId], purged: &mut u64) -> Result<(), Failure> {
    let mut missing = Vec::new();
    for id in entries {
        if DeadLetters::new(queue.clone()).delete(id).await? {
            *purged += 1;
        } else {
            missing.push(id.to_string());
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(super::not_found(queue.topic(), &missing.join(", "))) }
}

/// Deletes all dead letters, or those that are older than `age`.
pub(in crate::cli) async fn purge_all(
    queue: &TopicHandle,
    age: Option<Duration>,
    purged: &mut u64,
) -> Result<(), Failure> {
    let (purge, mut reported) = (DeadLetterPurge::new(queue.clone()), Instant::now());
    for origin in Origin::ALL {
        let mut newest = None;
        loop {
            let count = match age {
                Some(age) => purge.older_than(origin, age).await?,
                None => purge.all(origin, &mut newest).await?,
            };
            *purged += count;
            if count == 0 {
                break;
            }
            if reported.elapsed() > Duration::from_secs(1) {
                print_note!("{purged} purged");
                reported = Instant::now();
            }
        }
    }
    Ok(())
}
