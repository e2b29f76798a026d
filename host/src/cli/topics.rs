//! `topics`: what lies where, whether anybody handles it, and setting a topic
//! aside or emptying it.

use super::messages::Progress;
use super::{Failure, RedisArgs, table};
use crate::queue::{Connection, TopicQueue, inspect};
use crate::settings::QueueSettings;
use crate::topic::Topic;
use clap::Args;
use std::io::{IsTerminal, Write, stderr, stdin};

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// One JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

#[derive(Debug, Args)]
pub(super) struct TopicArgs {
    topic: Topic,
    #[command(flatten)]
    redis: RedisArgs,
}

#[derive(Debug, Args)]
pub(super) struct PurgeArgs {
    topic: Topic,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// The delayed messages too, and those that wait for another run
    #[arg(long)]
    delayed: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

pub(super) async fn ls(args: LsArgs) -> Result<(), Failure> {
    let (connection, settings) = args.redis.connect()?;
    if args.json {
        let topics = inspect::topics(&connection, &settings.prefix, &settings.group).await?;
        println!("{}", serde_json::to_string_pretty(&topics).map_err(|error| Failure::Failed(error.to_string()))?);
        return Ok(());
    }
    print(&connection, &settings).await
}

pub(super) async fn print(connection: &Connection, settings: &QueueSettings) -> Result<(), Failure> {
    let topics = inspect::topics(connection, &settings.prefix, &settings.group).await?;
    let row = |topic: &inspect::TopicState| {
        let state = match (topic.has_handler, topic.kind.as_str()) {
            (_, kind) if !matches!(kind, "stream" | "list" | "none") => format!("its key holds a {kind}"),
            _ if topic.is_paused => "paused".to_owned(),
            (true, _) => "handled".to_owned(),
            (false, _) => "no handler: waits".to_owned(),
        };
        let counts =
            [topic.waiting, topic.in_flight, topic.delayed, topic.dead, topic.done].map(|count| count.to_string());
        let [waiting, in_flight, delayed, dead, done] = counts;
        [topic.topic.clone(), waiting, in_flight, delayed, dead, done, state]
    };
    let rows: Vec<_> = topics.iter().map(row).collect();
    table::print(["TOPIC", "WAITING", "IN FLIGHT", "DELAYED", "DEAD", "DONE", "STATE"], &rows);
    Ok(())
}

pub(super) async fn set_paused(args: TopicArgs, is_paused: bool) -> Result<(), Failure> {
    let (connection, settings) = args.redis.connect()?;
    let queue = TopicQueue::new(&connection, &settings.prefix, &settings.group, "", &args.topic);
    let is_new = queue.set_paused(is_paused).await?;
    match (is_paused, is_new) {
        (true, true) => println!("{} is paused: no worker takes from it until it is resumed", args.topic),
        (true, false) => println!("{} was paused already", args.topic),
        (false, true) => println!("{} goes on", args.topic),
        (false, false) => println!("{} was not paused", args.topic),
    }
    Ok(())
}

pub(super) async fn purge(args: PurgeArgs) -> Result<(), Failure> {
    // What was typed comes before the connection.
    let can_ask = stdin().is_terminal() && stderr().is_terminal();
    if !args.yes && !can_ask {
        return Err(Failure::Usage(format!("this deletes the messages of {}: say so with --yes", args.topic)));
    }
    let (connection, settings) = args.redis.connect()?;
    let queue = TopicQueue::new(&connection, &settings.prefix, &settings.group, "", &args.topic);
    let is_handled = inspect::handled(&connection, &settings.prefix).await?.contains(&args.topic);
    if is_handled && !queue.flags().await?.is_paused {
        eprintln!("workers take from {0}: what they are quicker with is run (`topics pause {0}` first)", args.topic);
    }
    let others = queue.other_groups().await?;
    if others > 0 {
        eprintln!("other groups read {} too ({others}): what is deleted, they lose", args.topic);
    }
    if !args.yes && !is_confirmed(&args.topic, args.delayed)? {
        return Err(Failure::Failed("nothing is deleted".to_owned()));
    }
    let mut progress = Progress::new("deleted");
    let purged = queue.purge(args.delayed, &mut |count| progress.add(count)).await?;
    if args.delayed {
        println!("{} waiting and {} delayed messages deleted", purged.waiting, purged.delayed);
    } else {
        println!("{} waiting messages deleted", purged.waiting);
    }
    Ok(())
}

fn is_confirmed(topic: &Topic, delayed: bool) -> Result<bool, Failure> {
    let told = |error: std::io::Error| Failure::Failed(error.to_string());
    let what = if delayed { "waiting and delayed" } else { "waiting" };
    eprint!("Delete the {what} messages of {topic}? [y/N] ");
    stderr().flush().map_err(told)?;
    let mut answer = String::new();
    stdin().read_line(&mut answer).map_err(told)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
