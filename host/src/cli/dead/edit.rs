//! `dead edit`: replaces the data of a dead letter before a replay.

use super::queue;
use crate::cli::output::print_line;
use crate::cli::topic_check::ensure_topic_exists;
use crate::cli::{Failure, RedisArgs, input};
use crate::message;
use crate::queue::dead::{DeadLetterId, DeadLetters, Origin};
use crate::topic::Topic;
use clap::Args;

#[derive(Debug, Args)]
pub(in crate::cli) struct EditArgs {
    topic: Topic,
    /// Entry of the dead letter, as `dead ls` shows it
    entry: DeadLetterId,
    /// New data as JSON, @FILE, or - for stdin; replaces the whole message where it has no envelope
    #[arg(long, value_name = "JSON|@FILE|-")]
    data: String,
    #[command(flatten)]
    redis: RedisArgs,
}

pub(in crate::cli) async fn edit(args: EditArgs) -> Result<(), Failure> {
    let data = input::read(&args.data)?;
    let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&data);
    is_json.map_err(|error| Failure::Usage(format!("data is not JSON: {error}")))?;
    let (connection, settings) = args.redis.connect()?;
    ensure_topic_exists(&connection, &settings, &args.topic).await?;
    let letters = DeadLetters::new(queue(&connection, &settings, &args.topic));
    let missing = || super::not_found(&args.topic, &args.entry.to_string());
    let letter = letters.get(&args.entry).await?.ok_or_else(missing)?;
    if letter.origin == Origin::Legacy {
        let (topic, entry) = (&args.topic, &args.entry);
        return Err(Failure::Failed(format!(
            "{entry} is a legacy dead letter, which can't be edited: replace it with \
             `publish {topic} --id ID --data JSON` and `dead purge {topic} {entry}`, \
             or replay it unchanged with `dead replay {topic} {entry}`"
        )));
    }
    let body = message::with_data(letter.body().unwrap_or_default(), &data);
    let body = body.map_err(|error| Failure::Failed(format!("{}: {error}", args.entry)))?;
    let id = letters.edit(&args.entry, &body).await?.ok_or_else(missing)?;
    print_line!("{id}");
    Ok(())
}
