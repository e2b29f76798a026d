//! The command `gateway-worker`. What it prints is its output, so printing is
//! allowed in these files and nowhere else.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command's output goes to the terminal")]

mod compile;
mod dead;
mod dev;
mod healthcheck;
mod http;
mod json_log;
mod known;
mod messages;
mod plugin;
mod plugins;
mod print;
mod publish;
mod run;
mod show;
mod table;
mod topics;

use crate::app::StartError;
use crate::plugin::CompileLimits;
use crate::queue::{Connection, QueueError};
use crate::settings::{BadSettings, QueueSettings, Typed, TypedQueue, TypedRedis};
use crate::text::sanitize_lines;
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Where `dev` keeps its state, below the directory that it is started in.
const STATE: &str = ".gateway-worker";
const FILE: &str = "gateway-worker.toml";

/// Consumes Redis queues and runs a sandboxed WebAssembly component for each message
#[derive(Debug, Parser)]
#[command(name = "gateway-worker", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  gateway-worker dev                                 a private Redis and a worker, to try things out
  gateway-worker publish order.reminder --data '{\"order_id\":\"1\"}'
  gateway-worker run --plugins /plugins --redis-url redis://redis:6379

Exit codes: 0 ok, 1 failed, 2 usage, 69 Redis unavailable, 78 bad configuration";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the worker
    Run(RunArgs),
    /// Run a worker with a Redis of its own, and publish the sample messages
    Dev(dev::DevArgs),
    /// Publish messages
    Publish(publish::PublishArgs),
    /// Look at topics, set them aside, empty them
    #[command(subcommand)]
    Topics(TopicsCommand),
    /// Look at messages, find one by its id, cancel one
    #[command(subcommand)]
    Messages(MessagesCommand),
    /// Look at dead letters, and replay, edit or purge them
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Look at a worker's plugins, reload them, go back to an earlier version
    #[command(subcommand)]
    Plugins(PluginsCommand),
    /// Look at a plugin, and see whether the worker would load it; no Redis needed
    #[command(subcommand)]
    Plugin(PluginCommand),
    #[command(hide = true)]
    CompileComponent(CompileLimits),
    /// Ask the worker on this machine whether it is alive
    Healthcheck(RunArgs),
}

#[derive(Debug, Subcommand)]
enum TopicsCommand {
    /// List the topics that Redis knows of
    Ls(topics::LsArgs),
    /// Show one topic in numbers
    Show(show::ShowArgs),
    /// Set a topic aside: its messages wait, and what runs ends
    Pause(topics::PauseArgs),
    /// Go on with a topic that was set aside
    Resume(topics::TopicArgs),
    /// Delete the messages that wait, never those in flight
    Purge(topics::PurgeArgs),
}

#[derive(Debug, Subcommand)]
enum MessagesCommand {
    /// Show what waits and is delayed, without taking it
    Ls(messages::LsArgs),
    /// Find a message by its id, wherever it is
    Find(messages::FindArgs),
    /// Remove a message that waits or is delayed
    Cancel(messages::CancelArgs),
}

#[derive(Debug, Subcommand)]
enum DeadCommand {
    /// List dead letters, newest first
    Ls(dead::LsArgs),
    /// Show all of one dead letter
    Show(dead::ShowArgs),
    /// Let dead letters live again, with their attempts counted anew
    Replay(dead::ReplayArgs),
    /// Put other data into a dead letter; prints its new entry
    Edit(dead::EditArgs),
    /// Delete dead letters for good
    Purge(dead::PurgeArgs),
}

#[derive(Debug, Subcommand)]
enum PluginCommand {
    /// Show what a plugin exports, imports and may, and whether it would load
    Inspect(plugin::InspectArgs),
    /// Load plugins as the worker does, self-test and all; 1 where one is refused
    Check(plugin::CheckArgs),
}

#[derive(Debug, Subcommand)]
enum PluginsCommand {
    /// List the plugins, with what runs and why another version does not
    Ls(plugins::LsArgs),
    /// Look at the plugins directory now, and tell what became of it
    Reload(plugins::ReloadArgs),
    /// Go back to the version before, and keep this one out
    Rollback(plugins::NameArgs),
    /// Let versions that are kept out load again, and a topic that its plugin left fall to "*"
    Release(plugins::NameArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The settings file [default: gateway-worker.toml, if there is one]
    #[arg(long, env = "GATEWAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    typed: Typed,
}

/// What a command that looks at Redis and ends again takes.
#[derive(Debug, Args)]
struct RedisArgs {
    #[arg(long, env = "GATEWAY_CONFIG", value_name = "FILE", hide = true)]
    config: Option<PathBuf>,
    #[command(flatten)]
    redis: TypedRedis,
    #[command(flatten)]
    queue: TypedQueue,
}

/// Why a command ends without success.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Failed(String),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    RedisUnavailable(String),
    #[error("{0}")]
    BadConfiguration(String),
    /// With a meaning that only its caller knows.
    #[error("{1}")]
    Ended(ExitCode, String),
}

impl From<BadSettings> for Failure {
    fn from(error: BadSettings) -> Self {
        Self::BadConfiguration(error.to_string())
    }
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Away(_) | QueueError::Refused(_) => Self::RedisUnavailable(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Redis(_) | StartError::Mail(_) => Self::BadConfiguration(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Ended(code, _) => return *code,
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::RedisUnavailable(_) => 69,
            Self::BadConfiguration(_) => 78,
        })
    }
}

impl Cli {
    pub async fn execute(self) -> ExitCode {
        let result = match self.command {
            Command::Run(args) => run::run(args).await,
            Command::Dev(args) => dev::dev(args).await,
            Command::Publish(args) => publish::publish(args).await,
            Command::Topics(command) => command.execute().await,
            Command::Messages(command) => command.execute().await,
            Command::Dead(DeadCommand::Ls(args)) => dead::ls(args).await,
            Command::Dead(DeadCommand::Show(args)) => dead::show(args).await,
            Command::Dead(DeadCommand::Replay(args)) => dead::replay(args).await,
            Command::Dead(DeadCommand::Edit(args)) => dead::edit(args).await,
            Command::Dead(DeadCommand::Purge(args)) => dead::purge(args).await,
            Command::Plugin(PluginCommand::Inspect(args)) => plugin::inspect(args).await,
            Command::Plugin(PluginCommand::Check(args)) => plugin::check(args).await,
            Command::Plugins(command) => command.execute().await,
            Command::CompileComponent(limits) => compile::compile(&limits),
            Command::Healthcheck(args) => healthcheck::healthcheck(args).await,
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(Failure::Ended(code, told)) => {
                eprintln!("{}", sanitize_lines(&told));
                code
            }
            Err(failure) => {
                eprintln!("gateway-worker: {}", sanitize_lines(&failure.to_string()));
                failure.exit_code()
            }
        }
    }
}

impl TopicsCommand {
    async fn execute(self) -> Result<(), Failure> {
        match self {
            Self::Ls(args) => topics::ls(args).await,
            Self::Show(args) => show::show(args).await,
            Self::Pause(args) => topics::pause(args).await,
            Self::Resume(args) => topics::resume(args).await,
            Self::Purge(args) => topics::purge(args).await,
        }
    }
}

impl PluginsCommand {
    async fn execute(self) -> Result<(), Failure> {
        match self {
            Self::Ls(args) => plugins::ls(args).await,
            Self::Reload(args) => plugins::reload(args).await,
            Self::Rollback(args) => plugins::roll_back(args).await,
            Self::Release(args) => plugins::release(args).await,
        }
    }
}

impl MessagesCommand {
    async fn execute(self) -> Result<(), Failure> {
        match self {
            Self::Ls(args) => messages::ls(args).await,
            Self::Find(args) => messages::find(args).await,
            Self::Cancel(args) => messages::cancel(args).await,
        }
    }
}

/// Every variable that some command knows.
fn variables() -> BTreeSet<String> {
    fn collect(command: &clap::Command, found: &mut BTreeSet<String>) {
        let names = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str());
        found.extend(names.map(ToOwned::to_owned));
        command.get_subcommands().for_each(|command| collect(command, found));
    }
    let mut found = BTreeSet::new();
    collect(&Cli::command(), &mut found);
    found
}

/// The settings with the file's. A file that was named must be there.
fn with_file(typed: Typed, named: Option<&Path>) -> Result<Typed, Failure> {
    let path = named.unwrap_or(Path::new(FILE));
    match fs::read_to_string(path) {
        Ok(text) => Ok(typed.or_file(&text, &path.display().to_string())?),
        Err(error) if error.kind() == ErrorKind::NotFound && named.is_none() => Ok(typed),
        Err(error) => Err(Failure::BadConfiguration(format!("{}: {error}", path.display()))),
    }
}

impl RedisArgs {
    /// The Redis that is named, or else that of the `dev` started here.
    fn connect(self) -> Result<(Connection, QueueSettings), Failure> {
        let typed = Typed { redis: self.redis, queue: self.queue, ..Typed::default() };
        let mut typed = with_file(typed, self.config.as_deref())?;
        if typed.redis.is_unset()
            && let Ok(url) = fs::read_to_string(Path::new(STATE).join(dev::URL_FILE))
        {
            typed.redis = TypedRedis { redis_url: Some(url.trim().to_owned()), ..TypedRedis::default() };
        }
        let mut faults = Vec::new();
        let (target, queue) = (typed.redis.check(&mut faults), typed.queue.check(&mut faults));
        if !faults.is_empty() {
            return Err(BadSettings(faults).into());
        }
        let connection = Connection::to(&target).map_err(|error| Failure::BadConfiguration(error.to_string()))?;
        Ok((connection, queue))
    }
}
