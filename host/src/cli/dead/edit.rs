//! `dead edit`: puts other data into a dead letter, to be replayed then.

use super::queue;
use crate::cli::known::known;
use crate::cli::{Failure, RedisArgs, publish};
use crate::message;
use crate::queue::dead::{DeadLetterId, DeadLetters, Origin};
use crate::topic::Topic;
use clap::Args;

#[derive(Debug, Args)]
pub(in crate::cli) struct EditArgs {
    topic: Topic,
    /// `dead ls` shows it
    entry: DeadLetterId,
    /// The new data; where there is no envelope, the whole message: JSON, or @FILE, or - for stdin
    #[arg(long, value_name = "JSON|@FILE|-")]
    data: String,
    #[command(flatten)]
    redis: RedisArgs,
}

pub(in crate::cli) async fn edit(args: EditArgs) -> Result<(), Failure> {
    let data = publish::read(&args.data)?;
    let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&data);
    is_json.map_err(|error| Failure::Usage(format!("data is not JSON: {error}")))?;
    let (connection, settings) = args.redis.connect()?;
    known(&connection, &settings, &args.topic).await?;
    let letters = DeadLetters::new(queue(&connection, &settings, &args.topic));
    let missing = || super::unknown(&args.topic, &args.entry.to_string());
    let letter = letters.get(&args.entry).await?.ok_or_else(missing)?;
    if letter.origin == Origin::Legacy {
        let (topic, entry) = (&args.topic, &args.entry);
        return Err(Failure::Failed(format!(
            "{entry} was written by the original, whose dead letters are read and deleted but never changed; \
             for other data `publish {topic} --id ID --data JSON` and then `dead purge {topic} {entry}`, \
             as it is `dead replay {topic} {entry}`"
        )));
    }
    let body = message::with_data(letter.body().unwrap_or_default(), &data);
    let body = body.map_err(|error| Failure::Failed(format!("{}: {error}", args.entry)))?;
    let id = letters.edit(&args.entry, &body).await?.ok_or_else(missing)?;
    println!("{id}");
    Ok(())
}
