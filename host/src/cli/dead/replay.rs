//! `dead replay`: lets dead letters live again.

use super::{Filter, queue};
use crate::cli::known::known;
use crate::cli::{Failure, RedisArgs};
use crate::queue::dead::{DeadLetterEntry, DeadLetterId, DeadLetters, Order, Origin, Replay, Replayed};
use crate::queue::{TopicHandle, handled_topics};
use crate::topic::Topic;
use clap::Args;
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
pub(in crate::cli) struct ReplayArgs {
    topic: Topic,
    /// These; `dead ls` shows them
    #[arg(value_name = "ENTRY", conflicts_with_all = ["all", "reason", "search"])]
    entries: Vec<DeadLetterId>,
    /// All that are dead now, or of these all that --reason and --search leave
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    redis: RedisArgs,
}

/// How far it has come.
struct Progress {
    replayed: u64,
    /// How many stay dead, and why the last one does.
    left: u64,
    why: String,
    told: Instant,
}

pub(in crate::cli) async fn replay(args: ReplayArgs) -> Result<(), Failure> {
    let has_filter = args.filter.reason.is_some() || args.filter.search.is_some();
    if args.entries.is_empty() && !args.all && !has_filter {
        return Err(Failure::Usage("which ones? Name entries, or --all, --reason or --search".to_owned()));
    }
    let (connection, settings) = args.redis.connect()?;
    known(&connection, &settings, &args.topic).await?;
    let queue = queue(&connection, &settings, &args.topic);
    let mut progress = Progress { replayed: 0, left: 0, why: String::new(), told: Instant::now() };
    let result = if args.entries.is_empty() {
        replay_all(&queue, &args.filter, &mut progress).await
    } else {
        replay_these(&queue, &args.entries, &mut progress).await
    };
    println!("{} replayed", progress.replayed);
    result?;
    if progress.replayed > 0 && !handled_topics(&connection, &settings.prefix).await?.contains(&args.topic) {
        eprintln!("no worker seen in the last 30 s has a handler for {}: what was replayed waits", args.topic);
    }
    match progress.left {
        0 => Ok(()),
        left => Err(Failure::Failed(format!("{left} stay dead; the last: {}", progress.why))),
    }
}

async fn replay_these(queue: &TopicHandle, entries: &[DeadLetterId], progress: &mut Progress) -> Result<(), Failure> {
    for id in entries {
        match DeadLetters::new(queue.clone()).get(id).await? {
            Some(letter) => progress.replay(queue, &[letter]).await?,
            None => progress.stays(id, "there is no such dead letter"),
        }
    }
    Ok(())
}

async fn replay_all(queue: &TopicHandle, filter: &Filter, progress: &mut Progress) -> Result<(), Failure> {
    // Both begin now: what dies again meanwhile is not replayed for ever.
    let mut walks = Vec::new();
    for origin in Origin::ALL {
        walks.push(DeadLetters::new(queue.clone()).list(origin, Order::OldestFirst).await?);
    }
    for mut walk in walks {
        loop {
            let mut piece = walk.next().await?;
            if piece.is_empty() {
                break;
            }
            piece.retain(|letter| filter.passes(letter, &letter.summary(queue.topic())));
            progress.replay(queue, &piece).await?;
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
                // Somebody else was quicker.
                Replayed::Gone => {}
                Replayed::Not(why) => self.stays(&letter.id(), &why),
            }
        }
        if self.told.elapsed() > Duration::from_secs(1) {
            eprintln!("{} replayed", self.replayed);
            self.told = Instant::now();
        }
        Ok(())
    }

    fn stays(&mut self, id: &DeadLetterId, why: &str) {
        self.left += 1;
        self.why = format!("{id}: {why}");
    }
}
