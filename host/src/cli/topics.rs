//! `topics`: lists, pauses, resumes and purges topics.

use super::dead::purge_all;
use super::messages::Progress;
use super::output::{print_json, print_line, print_note};
use super::table::{self, Column, format_cell, format_name};
use super::topic_check::ensure_topic_exists;
use super::{Failure, RedisArgs};
use crate::queue::{Connection, Probes, Purge, TopicHandle, handled_topics, inspect, set_paused as set_topic_paused};
use crate::settings::QueueSettings;
use crate::topic::Topic;
use clap::Args;
use std::io::{IsTerminal, stderr, stdin};

/// A longer key is truncated, because it fills the terminal.
const KEY_WIDTH_MAX: usize = 200;

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// Print a JSON object with the lists `topics` and `unservable`
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
    /// Pause the topic even if it is unknown
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct PurgeArgs {
    topic: Topic,
    /// Skip the confirmation prompt
    #[arg(long)]
    yes: bool,
    /// Also delete delayed messages, including those that wait for a retry
    #[arg(long)]
    delayed: bool,
    /// Also delete the dead letters
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
    let (table, notes) = table_of_all(&connection, &settings).await?;
    print_line!("{table}");
    notes.into_iter().for_each(|note| print_note!("{note}"));
    Ok(())
}

/// The topics as a table, and what there is to say of keys that are no topic.
pub(super) async fn table_of_all(
    connection: &Connection,
    settings: &QueueSettings,
) -> Result<(String, Vec<String>), Failure> {
    let inspect::TopicList { topics, unservable, unservable_count } =
        inspect::topics(connection, &settings.prefix, &settings.group).await?;
    let row = |topic: &inspect::TopicState| {
        let state = match (topic.has_handler, topic.kind.as_str()) {
            (_, kind) if !matches!(kind, "stream" | "list" | "none") => format!("its key has the wrong type {kind}"),
            _ if !topic.misused.is_empty() => format!("wrong type: {}", topic.misused.join(", ")),
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
    let columns = ["WAITING", "IN FLIGHT", "DELAYED", "DEAD", "DONE"].map(Column::Fixed);
    let [waiting, in_flight, delayed, dead, done] = columns;
    let columns = [Column::Name("TOPIC"), waiting, in_flight, delayed, dead, done, Column::Text("STATE")];
    Ok((table::format(columns, &rows), warnings_of_unservable(&unservable, unservable_count)))
}

/// No worker acts upon these keys, so their messages wait until somebody does.
fn warnings_of_unservable(keys: &[String], count: u64) -> Vec<String> {
    let warning = |key: &String| {
        let key = table::truncate(&format_name(key), KEY_WIDTH_MAX);
        format!("key of no legal topic: {key}: its messages are not run; rename or delete it")
    };
    let mut warnings: Vec<_> = keys.iter().map(warning).collect();
    let more = count.saturating_sub(keys.len() as u64);
    if more > 0 {
        warnings.push(format!("and {more} more keys of no legal topic"));
    }
    warnings
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
        ensure_topic_exists(&connection, &settings, &args.topic).await?;
    }
    let handle = TopicHandle::new(&connection, &settings.prefix, &settings.group, "", &args.topic);
    let has_changed = set_topic_paused(&handle, is_paused).await?;
    let topic = format_cell(args.topic.as_str());
    match (is_paused, has_changed) {
        (true, true) => print_line!("{topic} paused: workers start no messages of it until it is resumed"),
        (true, false) => print_line!("{topic} was already paused"),
        (false, true) => print_line!("{topic} resumed"),
        (false, false) => print_line!("{topic} was not paused"),
    }
    Ok(())
}

pub(super) async fn purge(args: PurgeArgs) -> Result<(), Failure> {
    // Usage errors are reported before connection errors.
    let topic = format_cell(args.topic.as_str());
    let can_ask = stdin().is_terminal() && stderr().is_terminal();
    if !args.yes && !can_ask {
        return Err(Failure::Usage(format!("this deletes the messages of {topic}: confirm with --yes")));
    }
    let question = question(&args, &topic);
    let (connection, settings) = args.redis.connect()?;
    ensure_topic_exists(&connection, &settings, &args.topic).await?;
    let handle = TopicHandle::new(&connection, &settings.prefix, &settings.group, "", &args.topic);
    let is_handled = handled_topics(&connection, &settings.prefix).await?.contains(&args.topic);
    if is_handled && !Probes::new(handle.clone()).flags().await?.is_paused {
        print_note!(
            "{topic} has active workers: messages that they fetch first will still run (`topics pause {topic}` prevents that)"
        );
    }
    let purge = Purge::new(handle.clone());
    let others = purge.other_groups().await?;
    if others > 0 {
        print_note!("{topic} has other consumer groups ({others}): the messages are deleted for them too");
    }
    if !args.yes && !is_confirmed(&question)? {
        return Err(Failure::Failed("nothing was deleted".to_owned()));
    }
    let mut progress = Progress::new("deleted");
    let purged = purge.purge(args.delayed, &mut |count| progress.add(count)).await?;
    if args.delayed {
        print_line!("{} waiting and {} delayed messages deleted", purged.waiting, purged.delayed);
    } else {
        print_line!("{} waiting messages deleted", purged.waiting);
    }
    if args.dead {
        let mut letters = 0;
        let result = purge_all(&handle, None, &mut letters).await;
        print_line!("{letters} dead letters deleted");
        result?;
    }
    Ok(())
}

fn question(args: &PurgeArgs, topic: &str) -> String {
    let messages = if args.delayed { "waiting and delayed messages" } else { "waiting messages" };
    let letters = if args.dead { " and the dead letters" } else { "" };
    format!("Delete the {messages}{letters} of {topic}? [y/N]")
}

fn is_confirmed(question: &str) -> Result<bool, Failure> {
    let failure = |error: std::io::Error| Failure::Failed(error.to_string());
    print_note!("{question}");
    let mut answer = String::new();
    stdin().read_line(&mut answer).map_err(failure)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
