//! `topics ls`: what lies where, and whether anybody handles it.

use super::{Failure, RedisArgs, table};
use crate::queue::{Connection, inspect};
use crate::settings::QueueSettings;
use clap::Args;

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// One JSON array
    #[arg(long)]
    json: bool,
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
