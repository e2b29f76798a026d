//! `topics`: what lies where, whether anybody handles it, and setting a topic
//! aside or emptying it.

use super::dead::purge_pieces;
use super::known::known;
use super::messages::Progress;
use super::print::print_json;
use super::{Failure, RedisArgs, table};
use crate::queue::{Connection, Probes, Purge, TopicHandle, handled_topics, inspect, set_paused as set_topic_paused};
use crate::settings::QueueSettings;
use crate::topic::Topic;
use clap::Args;
use std::io::{IsTerminal, Write, stderr, stdin};

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// One JSON object with the lists `topics` and `unservable`
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
pub(super) struct PauseArgs {
    #[command(flatten)]
    topic: TopicArgs,
    /// Also a topic that has no messages yet and that no worker handles
    #[arg(long)]
    force: bool,
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
    /// The dead letters too
    #[arg(long)]
    dead: bool,
    #[command(flatten)]
    redis: RedisArgs,
}

pub(super) async fn ls(args: LsArgs) -> Result<(), Failure> {
    let (connection, settings) = args.redis.connect()?;
    if args.json {
        let topics = inspect::topics(&connection, &settings.prefix, &settings.group).await?;
        return print_json(&topics);
    }
    print(&connection, &settings).await
}

pub(super) async fn print(connection: &Connection, settings: &QueueSettings) -> Result<(), Failure> {
    let inspect::TopicList { topics, unservable } =
        inspect::topics(connection, &settings.prefix, &settings.group).await?;
    let row = |topic: &inspect::TopicState| {
        let state = match (topic.has_handler, topic.kind.as_str()) {
            (_, kind) if !matches!(kind, "stream" | "list" | "none") => format!("its key holds a {kind}"),
            _ if !topic.misused.is_empty() => format!("{} holds something else", topic.misused.join(" and ")),
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
    if !unservable.is_empty() {
        let keys: Vec<_> = unservable.iter().map(|key| table::shown(key)).collect();
        eprintln!("keys that are no legal topic: {}", keys.join(", "));
    }
    Ok(())
}

pub(super) async fn pause(args: PauseArgs) -> Result<(), Failure> {
    set_paused(args.topic, true, args.force).await
}

pub(super) async fn resume(args: TopicArgs) -> Result<(), Failure> {
    set_paused(args, false, false).await
}

async fn set_paused(args: TopicArgs, is_paused: bool, force: bool) -> Result<(), Failure> {
    let (connection, settings) = args.redis.connect()?;
    if !force {
        known(&connection, &settings, &args.topic).await?;
    }
    let handle = TopicHandle::new(&connection, &settings.prefix, &settings.group, "", &args.topic);
    let is_new = set_topic_paused(&handle, is_paused).await?;
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
    let question = question(&args);
    let (connection, settings) = args.redis.connect()?;
    known(&connection, &settings, &args.topic).await?;
    let handle = TopicHandle::new(&connection, &settings.prefix, &settings.group, "", &args.topic);
    let is_handled = handled_topics(&connection, &settings.prefix).await?.contains(&args.topic);
    if is_handled && !Probes::new(handle.clone()).flags().await?.is_paused {
        eprintln!("workers take from {0}: what they are quicker with is run (`topics pause {0}` first)", args.topic);
    }
    let purge = Purge::new(handle.clone());
    let others = purge.other_groups().await?;
    if others > 0 {
        eprintln!("other groups read {} too ({others}): what is deleted, they lose", args.topic);
    }
    if !args.yes && !is_confirmed(&question)? {
        return Err(Failure::Failed("nothing is deleted".to_owned()));
    }
    let mut progress = Progress::new("deleted");
    let purged = purge.purge(args.delayed, &mut |count| progress.add(count)).await?;
    if args.delayed {
        println!("{} waiting and {} delayed messages deleted", purged.waiting, purged.delayed);
    } else {
        println!("{} waiting messages deleted", purged.waiting);
    }
    if args.dead {
        let mut letters = 0;
        let result = purge_pieces(&handle, None, &mut letters).await;
        println!("{letters} dead letters deleted");
        result?;
    }
    Ok(())
}

fn question(args: &PurgeArgs) -> String {
    let messages = if args.delayed { "waiting and delayed messages" } else { "waiting messages" };
    let letters = if args.dead { " and the dead letters" } else { "" };
    format!("Delete the {messages}{letters} of {}? [y/N] ", args.topic)
}

fn is_confirmed(question: &str) -> Result<bool, Failure> {
    let told = |error: std::io::Error| Failure::Failed(error.to_string());
    eprint!("{question}");
    stderr().flush().map_err(told)?;
    let mut answer = String::new();
    stdin().read_line(&mut answer).map_err(told)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
