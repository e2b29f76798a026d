//! `dead replay`: moves dead letters back into their topic.

use super::{Filter, queue};
use crate::cli::output::{print_line, print_note};
use crate::cli::table::format_cell;
use crate::cli::topic_check::ensure_topic_exists;
use crate::cli::{Failure, RedisArgs};
use crate::queue::dead::{DeadLetterEntry, DeadLetterId, DeadLetters, Order, Origin, Replay, Replayed};
use crate::queue::{TopicHandle, handled_topics};
use crate::topic::Topic;
use clap::Args;
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
pub(in crate::cli) struct ReplayArgs {
    topic: Topic,
    /// Entries of dead letters, as `dead ls` shows them
    #[arg(value_name = "ENTRY", conflicts_with_all = ["all", "reason", "search"])]
    entries: Vec<DeadLetterId>,
    /// All current dead letters, or those of them that --reason and --search select
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    redis: RedisArgs,
}

struct Progress {
    replayed: u64,
    duplicates: u64,
    not_replayed: u64,
    last_error: String,
    reported: Instant,
}

pub(in crate::cli) async fn replay(args: ReplayArgs) -> Result<(), Failure> {
    let has_filter = !args.filter.is_empty();
    if args.entries.is_empty() && !args.all && !has_filter {
        return Err(Failure::Usage(
            "no dead letters are selected: name entries, or use --all, --reason or --search".to_owned(),
        ));
    }
    let (connection, settings) = args.redis.connect()?;
    ensure_topic_exists(&connection, &settings, &args.topic).await?;
    let queue = queue(&connection, &settings, &args.topic);
    let mut progress =
        Progress { replayed: 0, duplicates: 0, not_replayed: 0, last_error: String::new(), reported: Instant::now() };
    let result = if args.entries.is_empty() {
        replay_all(&queue, &args.filter, &mut progress).await
    } else {
        replay_entries(&queue, &args.entries, &mut progress).await
    };
    print_line!("{} replayed", progress.replayed);
    if progress.duplicates > 0 {
        print_note!(
            "{} of them are duplicates: a message with the same deduplication key has finished, so they are not run \
             within the window of [dedup]",
            progress.duplicates
        );
    }
    result?;
    if progress.replayed > 0 && !handled_topics(&connection, &settings.prefix).await?.contains(&args.topic) {
        let topic = format_cell(args.topic.as_str());
        print_note!("no active worker has a handler for {topic}: the replayed messages wait");
    }
    match progress.not_replayed {
        0 => Ok(()),
        count => {
            Err(Failure::Failed(format!("{count} dead letters were not replayed; last error: {}", progress.last_error)))
        }
    }
}

async fn replay_entries(queue: &TopicHandle, entries: &[DeadLetterId], progress: &mut Progress) -> Result<(), Failure> {
    for id in entries {
        match DeadLetters::new(queue.clone()).get(id).await? {
            Some(letter) => progress.replay(queue, &[letter]).await?,
            None => progress.failed(id, "no such dead letter"),
        }
    }
    Ok(())
}

async fn replay_all(queue: &TopicHandle, filter: &Filter, progress: &mut Progress) -> Result<(), Failure> {
    // Both lists are opened first, so that a message that dies again during the
    // replay is not replayed again.
    let mut walks = Vec::new();
    for origin in Origin::ALL {
        walks.push(DeadLetters::new(queue.clone()).list(origin, Order::OldestFirst).await?);
    }
    for mut walk in walks {
        loop {
            let mut page = walk.next().await?;
            if page.is_empty() {
                break;
            }
            page.retain(|letter| filter.matches(letter, &letter.summary(queue.topic())));
            progress.replay(queue, &page).await?;
        }
    }
    Ok(())
}

impl Progress {
    async fn replay(&mut self, queue: &TopicHandle, letters: &[DeadLetterEntry]) -> Result<(), Failure> {
        let results = Replay::new(queue.clone()).replay(letters).await?;
        for (letter, result) in letters.iter().zip(results) {
            match result {
                Replayed::Ok => self.replayed += 1,
                Replayed::AsDuplicate => {
                    self.replayed += 1;
                    self.duplicates += 1;
                }
                // Another command replayed or deleted it first.
                Replayed::Gone => {}
                Replayed::Not(error) => self.failed(&letter.id(), &error),
            }
        }
        if self.reported.elapsed() > Duration::from_secs(1) {
            print_note!("{} replayed", self.replayed);
            self.reported = Instant::now();
        }
        Ok(())
    }

    fn failed(&mut self, id: &DeadLetterId, error: &str) {
        self.not_replayed += 1;
        self.last_error = format!("{id}: {error}");
    }
}
