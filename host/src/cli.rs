//! The command `gateway-worker`. What it prints goes through `output`, because the
//! macros of the standard library panic where a stream can't be written.

mod compile;
mod dead;
mod dev;
mod healthcheck;
mod http;
mod input;
mod topic_check;
mod messages;
mod plugin;
mod plugins;
mod output;
mod publish;
mod run;
mod show;
mod table;
mod topics;

use crate::app::StartError;
use crate::plugin::CompileLimits;
use crate::queue::{Connection, QueueError};
use crate::settings::{InvalidSettings, QueueSettings, RawQueue, RawRedis, RawSettings};
use crate::text::sanitize_lines;
use clap::{Args, CommandFactory, Parser, Subcommand};
use output::print_note;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;

/// The directory for the state of `dev`, in the working directory.
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
  gateway-worker dev                                 a worker with a private Redis, for development
  gateway-worker publish order.reminder --data '{\"order_id\":\"1\"}'
  gateway-worker run --plugins /plugins --redis-url redis://redis:6379

Exit codes: 0 ok, 1 failed, 2 usage, 69 Redis unavailable,
70 a part of the worker failed, 78 bad configuration";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the worker
    Run(RunArgs),
    /// Run a worker with a private Redis and publish the sample messages
    Dev(dev::DevArgs),
    /// Publish messages
    Publish(publish::PublishArgs),
    /// List, pause, resume and purge topics
    #[command(subcommand)]
    Topics(TopicsCommand),
    /// List, find and cancel messages
    #[command(subcommand)]
    Messages(MessagesCommand),
    /// List, show, replay, edit and purge dead letters
    #[command(subcommand)]
    Dead(DeadCommand),
    /// List, reload, roll back and unblock the plugins of a running worker
    #[command(subcommand)]
    Plugins(PluginsCommand),
    /// Inspect and check plugin files, without Redis or a worker
    #[command(subcommand)]
    Plugin(PluginCommand),
    #[command(skip)]
    CompileComponent(CompileLimits),
    /// Check whether the worker on this machine is alive
    Healthcheck(RunArgs),
}

#[derive(Debug, Subcommand)]
enum TopicsCommand {
    /// List the topics in Redis
    Ls(topics::LsArgs),
    /// Show the state and counts of one topic
    Show(show::ShowArgs),
    /// Pause a topic: no new messages are started; running ones finish
    Pause(topics::PauseArgs),
    /// Resume a paused topic
    Resume(topics::TopicArgs),
    /// Delete the waiting messages of a topic, but never those in flight
    Purge(topics::PurgeArgs),
}

#[derive(Debug, Subcommand)]
enum MessagesCommand {
    /// List waiting and delayed messages without consuming them
    Ls(messages::LsArgs),
    /// Find a message by its id in every location
    Find(messages::FindArgs),
    /// Remove a waiting or delayed message
    Cancel(messages::CancelArgs),
}

#[derive(Debug, Subcommand)]
enum DeadCommand {
    /// List dead letters, newest first
    Ls(dead::LsArgs),
    /// Show one dead letter with all its fields
    Show(dead::ShowArgs),
    /// Replay dead letters (attempts reset to zero)
    Replay(dead::ReplayArgs),
    /// Replace the data of a dead letter; prints its new entry
    Edit(dead::EditArgs),
    /// Delete dead letters permanently
    Purge(dead::PurgeArgs),
}

#[derive(Debug, Subcommand)]
enum PluginCommand {
    /// Show the exports, imports, grants and limits of a plugin, and whether the worker would load it
    Inspect(plugin::InspectArgs),
    /// Load plugins like the worker, with self-tests; exits with 1 if one would be refused
    Check(plugin::CheckArgs),
}

#[derive(Debug, Subcommand)]
enum PluginsCommand {
    /// List the plugins with their live versions, and why newer versions were refused
    Ls(plugins::LsArgs),
    /// Rescan the plugins directory and report the result
    Reload(plugins::ReloadArgs),
    /// Roll back to the previous version and block the current one
    Rollback(plugins::NameArgs),
    /// Unblock versions; release the topics of a removed plugin to the catch-all
    Unblock(plugins::NameArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Settings file [default: gateway-worker.toml, if it exists]
    #[arg(long, env = "GATEWAY_CONFIG", value_name = "FILE")]
    config: Option<OsString>,
    #[command(flatten)]
    settings: RawSettings,
}

/// The arguments of commands that connect to Redis.
#[derive(Debug, Args)]
struct RedisArgs {
    #[arg(long, env = "GATEWAY_CONFIG", value_name = "FILE", hide = true)]
    config: Option<OsString>,
    #[command(flatten)]
    redis: RawRedis,
    #[command(flatten)]
    queue: RawQueue,
}

/// The reason why a command failed, which defines the exit code.
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
    /// The log has its name and what happened.
    #[error("a part of the worker failed: {0}")]
    PartFailed(&'static str),
    /// An exit code with a meaning for one caller only.
    #[error("{1}")]
    WithCode(ExitCode, String),
}

impl From<InvalidSettings> for Failure {
    fn from(error: InvalidSettings) -> Self {
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
            StartError::Redis(_) | StartError::Mail(_) | StartError::Prefix(_) | StartError::UnknownName { .. } => {
                Self::BadConfiguration(error.to_string())
            }
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::WithCode(code, _) => return *code,
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::RedisUnavailable(_) => 69,
            Self::PartFailed(_) => 70,
            Self::BadConfiguration(_) => 78,
        })
    }
}

impl Cli {
    /// Parses the arguments of the process. Help and usage errors are printed, and
    /// are an error with their exit code.
    pub fn from_command_line() -> Result<Self, ExitCode> {
        let args: Vec<_> = std::env::args_os().collect();
        let parsed = match compile::limits(&args) {
            Some(limits) => limits.map(|limits| Self { command: Command::CompileComponent(limits) }),
            None => Self::try_parse_from(args),
        };
        parsed.map_err(|usage| {
            output::print_usage(&usage);
            let code = u8::try_from(usage.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
            exit_code(output::check_stdout(), code)
        })
    }

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
        exit_code(result.and_then(|()| output::check_stdout()), ExitCode::SUCCESS)
    }
}

/// The exit code of a failure, which is printed, or else this one.
fn exit_code(result: Result<(), Failure>, otherwise: ExitCode) -> ExitCode {
    match result {
        Ok(()) => otherwise,
        // Parts that are left may never end, and stderr may be a pipe that nobody reads:
        // nothing is waited for.
        Err(Failure::PartFailed(_)) => std::process::exit(70),
        Err(Failure::WithCode(code, message)) => {
            print_note!("{}", sanitize_lines(&message));
            code
        }
        Err(failure) => {
            print_note!("gateway-worker: {}", sanitize_lines(&failure.to_string()));
            failure.exit_code()
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
            Self::Unblock(args) => plugins::unblock(args).await,
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

/// The environment variables of every command.
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

/// Adds the settings of the file. Only the default file may be missing.
fn with_file(settings: RawSettings, named: Option<&OsStr>) -> Result<RawSettings, Failure> {
    let settings = settings.without_service_variables();
    // An empty variable counts as unset.
    let named = named.filter(|path| !path.to_string_lossy().trim().is_empty()).map(Path::new);
    let path = named.unwrap_or(Path::new(FILE));
    match fs::read_to_string(path) {
        Ok(text) => Ok(settings.or_file(&text, &path.display().to_string())?),
        Err(error) if error.kind() == ErrorKind::NotFound && named.is_none() => Ok(settings),
        Err(error) => Err(Failure::BadConfiguration(format!("{}: {error}", path.display()))),
    }
}

impl RedisArgs {
    /// Connects to the given Redis, or else to the one of a `dev` in the working
    /// directory.
    fn connect(self) -> Result<(Connection, QueueSettings), Failure> {
        let sources = self.redis.sources.clone();
        let settings = RawSettings { redis: self.redis, queue: self.queue, ..RawSettings::default() };
        let mut settings = with_file(settings, self.config.as_deref())?;
        if settings.redis.is_unset()
            && let Ok(url) = fs::read_to_string(Path::new(STATE).join(dev::URL_FILE))
        {
            settings.redis = RawRedis { redis_url: Some(url.trim().to_owned()), ..RawRedis::default() };
        }
        let mut errors = Vec::new();
        let (target, queue) = (settings.redis.check(&mut errors), settings.queue.check(&mut errors));
        if !errors.is_empty() {
            return Err(InvalidSettings::named(errors, &sources).into());
        }
        let connection = Connection::to(&target).map_err(|error| Failure::BadConfiguration(error.to_string()))?;
        Ok((connection, queue))
    }
}
