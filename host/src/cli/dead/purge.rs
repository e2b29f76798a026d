//! `dead purge`: deletes dead letters for good.

use super::queue;
use crate::cli::known::known;
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
    /// These; `dead ls` shows them
    #[arg(value_name = "ENTRY")]
    entries: Vec<DeadLetterId>,
    /// All that are dead now
    #[arg(long)]
    all: bool,
    /// Those that died longer ago than this, like 30d
    #[arg(long, value_name = "TIME")]
    older_than: Option<humantime::Duration>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

pub(in crate::cli) async fn purge(args: PurgeArgs) -> Result<(), Failure> {
    if !args.yes && !std::io::stdin().is_terminal() {
        return Err(Failure::Usage("what is purged is gone for good: say --yes".to_owned()));
    }
    let (connection, settings) = args.redis.connect()?;
    known(&connection, &settings, &args.topic).await?;
    let queue = queue(&connection, &settings, &args.topic);
    if !args.yes && !agreed(&queue, &args.entries, args.older_than).await? {
        return Err(Failure::Failed("nothing is purged".to_owned()));
    }
    let mut purged = 0;
    let result = if args.entries.is_empty() {
        purge_pieces(&queue, args.older_than.map(Duration::from), &mut purged).await
    } else {
        purge_these(&queue, &args.entries, &mut purged).await
    };
    println!("{purged} purged");
    result
}

async fn agreed(
    queue: &TopicHandle,
    entries: &[DeadLetterId],
    older_than: Option<humantime::Duration>,
) -> Result<bool, Failure> {
    let which = match (entries.len(), older_than) {
        (0, Some(age)) => {
            format!("every one of the {} that is older than {age}", DeadLetters::new(queue.clone()).count().await?)
        }
        (0, None) => format!("all {}", DeadLetters::new(queue.clone()).count().await?),
        (count, _) => count.to_string(),
    };
    eprintln!("dead letters of {} to be deleted for good: {which}. Go on? [y/N]", queue.topic());
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| Failure::Failed(format!("stdin: {error}")))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

async fn purge_these(queue: &TopicHandle, entries: &[DeadLetterId], purged: &mut u64) -> Result<(), Failure> {
    let mut missing = Vec::new();
    for id in entries {
        if DeadLetters::new(queue.clone()).delete(id).await? {
            *purged += 1;
        } else {
            missing.push(id.to_string());
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(super::unknown(queue.topic(), &missing.join(", "))) }
}

pub(in crate::cli) async fn purge_pieces(
    queue: &TopicHandle,
    age: Option<Duration>,
    purged: &mut u64,
) -> Result<(), Failure> {
    let (purge, mut told) = (DeadLetterPurge::new(queue.clone()), Instant::now());
    for origin in Origin::ALL {
        let mut newest = None;
        loop {
            let piece = match age {
                Some(age) => purge.older_than(origin, age).await?,
                None => purge.all(origin, &mut newest).await?,
            };
            *purged += piece;
            if piece == 0 {
                break;
            }
            if told.elapsed() > Duration::from_secs(1) {
                eprintln!("{purged} purged");
                told = Instant::now();
            }
        }
    }
    Ok(())
}
