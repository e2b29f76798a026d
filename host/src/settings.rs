//! The settings of a worker: unparsed ([`RawSettings`]) and checked
//! ([`Settings`]). The check reports every error at once, so that an operator
//! needs one restart, not five. Flags override the environment, which overrides
//! the file `gateway-worker.toml`, which overrides the defaults.

mod admin;
mod file;
mod listen;
mod log_level;
mod mail;
mod password;
mod plugins;
mod redis_target;
mod redis_url;
mod secrets;
mod sources;
mod variables;

pub use admin::{AdminSettings, RawAdmin};
pub use listen::ListenAddress;
pub use mail::{MailSettings, MailTransport, RawMail, Security, SmtpRelay};
pub use password::Password;
pub use plugins::{FilePermissionPolicy, PluginSettings, RawPlugins};
pub use redis_target::{ClientPem, Login, RawRedis, RedisTarget};
pub use redis_url::{RedisEndpoint, RedisMode};
pub use secrets::{RawSecrets, SecretsSettings};
pub use sources::{Source, Sources};
pub use variables::{service_variables, unknown_variables};

use crate::text::{size, span};
use clap::Args;
use serde::Deserialize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

const DEFAULT_PORT: u16 = 8084;

#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub listen: ListenAddress,
    pub plugins: PathBuf,
    /// The directory of the compilation cache. None disables the cache.
    pub cache: Option<PathBuf>,
    pub file_permissions: FilePermissionPolicy,
    pub admin: AdminSettings,
    pub redis: RedisTarget,
    /// How many connections to each Redis server the worker may have.
    pub redis_connections: usize,
    pub queue: QueueSettings,
    pub secrets: SecretsSettings,
    pub mail: MailSettings,
    pub log: LogSettings,
    /// How long a whole shutdown may take.
    pub shutdown_timeout: Duration,
    /// The number of threads that run handlers.
    pub handler_threads: usize,
    /// The memory limit of all handlers together, in bytes. None: derived from
    /// the memory of the machine.
    pub handler_memory: Option<u64>,
}

impl Settings {
    /// The worker's own directories, which no grant may include.
    pub fn protected_dirs(&self) -> Vec<PathBuf> {
        plugins::protected_dirs(&self.plugins, self.cache.as_deref(), self.secrets.dir.as_deref())
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct QueueSettings {
    pub prefix: String,
    /// May contain `{topic}`.
    pub group: String,
    pub lease: Duration,
    /// A larger entry becomes a dead letter with the reason `too-large`.
    pub message_bytes_max: usize,
    pub list_pop_side: PopSide,
    /// The idle time after which a pending message of a legacy consumer is
    /// reclaimed. Legacy consumers don't renew leases.
    pub legacy_reclaim_after: Duration,
    pub dead_letter_caps: DeadLetterCaps,
}

/// Limits for the dead letters of one topic. Dead letters over a limit are
/// evicted, oldest first. Without limits none is ever evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeadLetterCaps {
    pub age: Option<Duration>,
    /// Memory of the stream as Redis reports it.
    pub bytes: Option<u64>,
}

/// The end of a list to pop messages from: right where publishers `LPUSH`, left
/// where they `RPUSH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PopSide {
    Left,
    Right,
    /// Alternates between the ends, so that neither starves.
    Both,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LogSettings {
    /// Directives, of which the simplest is a level.
    pub filter: String,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Pretty,
}

/// The settings as text from flags, environment and file, before they are
/// parsed. An empty value counts as unset, because compose files pass unset
/// variables as empty ones.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RawSettings {
    #[command(flatten)]
    pub sources: Sources,
    /// Directory of the plugins [default: plugins]
    #[arg(long, env = "GATEWAY_PLUGINS", value_name = "DIR")]
    pub plugins: Option<String>,
    #[command(flatten)]
    pub plugin_files: RawPlugins,
    /// Address of the HTTP server for health, metrics and the admin API; :PORT means all addresses [default: 0.0.0.0:8084]
    #[arg(long, env = "GATEWAY_LISTEN", value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Only the port of the HTTP server, under its legacy name
    #[arg(long, env = "APP_PORT", value_name = "PORT", hide = true)]
    pub app_port: Option<String>,
    #[command(flatten)]
    pub admin: RawAdmin,
    #[command(flatten)]
    pub redis: RawRedis,
    /// Number of connections to each Redis server, whatever the number of topics [default: 16]
    #[arg(long, env = "GATEWAY_REDIS_CONNECTIONS", value_name = "N")]
    pub redis_connections: Option<String>,
    #[command(flatten)]
    pub queue: RawQueue,
    #[command(flatten)]
    pub secrets: RawSecrets,
    #[command(flatten)]
    pub mail: RawMail,
    /// Log level: trace, debug, info, notice, warn, error, critical, fatal, off, or a filter like info,handler=debug [default: info]
    #[arg(long, env = "LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Log format: json or pretty [default: json]
    #[arg(long, env = "LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// How long a shutdown may take: messages in flight can end until shortly before [default: 25s]
    #[arg(long, env = "GATEWAY_SHUTDOWN_TIMEOUT", value_name = "TIME")]
    pub shutdown_timeout: Option<String>,
    /// Number of threads that run handlers [default: one per core]
    #[arg(long, env = "GATEWAY_HANDLER_THREADS", value_name = "N")]
    pub handler_threads: Option<String>,
    /// Memory limit of all handlers together [default: half of the worker's available memory]
    #[arg(long, env = "GATEWAY_HANDLER_MEMORY", value_name = "SIZE")]
    pub handler_memory: Option<String>,
}

/// Names and limits of the queues.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RawQueue {
    /// Prefix of every Redis key [default: mq:]
    #[arg(long, env = "GATEWAY_QUEUE_PREFIX", value_name = "PREFIX")]
    pub queue_prefix: Option<String>,
    /// Name of the consumer group [default: consumer-group-{topic}]
    #[arg(long, env = "GATEWAY_QUEUE_GROUP", value_name = "NAME")]
    pub queue_group: Option<String>,
    /// Lease (visibility timeout): messages of a worker that was silent for this long run elsewhere [default: 10s]
    #[arg(long, env = "GATEWAY_QUEUE_LEASE", value_name = "TIME")]
    pub queue_lease: Option<String>,
    /// Maximum message size; a larger message becomes a dead letter [default: 16MiB]
    #[arg(long, env = "GATEWAY_QUEUE_MAX_MESSAGE", value_name = "SIZE")]
    pub queue_max_message: Option<String>,
    /// Idle time after which messages that legacy workers left pending are reclaimed [default: 60s]
    #[arg(long, env = "GATEWAY_LEGACY_RECLAIM_AFTER", value_name = "TIME")]
    pub legacy_reclaim_after: Option<String>,
    /// End of a Redis list to pop messages from: left, right or both [default: both]
    #[arg(long, env = "GATEWAY_QUEUE_LIST_POP_SIDE", value_name = "SIDE")]
    pub queue_list_pop_side: Option<String>,
    /// Maximum age of dead letters; older ones are evicted [default: unlimited]
    #[arg(long, env = "GATEWAY_QUEUE_DEAD_MAX_AGE", value_name = "TIME")]
    pub queue_dead_max_age: Option<String>,
    /// Maximum size of a topic's dead letters; the oldest over it are evicted [default: unlimited]
    #[arg(long, env = "GATEWAY_QUEUE_DEAD_MAX_BYTES", value_name = "SIZE")]
    pub queue_dead_max_bytes: Option<String>,
}

/// The settings file. Its tables are named like the prefixes of the flags.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    plugins: plugins::FilePlugins,
    listen: Option<String>,
    shutdown_timeout: Option<String>,
    handler_threads: Option<usize>,
    handler_memory: Option<String>,
    admin: admin::FileAdmin,
    redis: redis_target::FileRedis,
    queue: FileQueue,
    legacy: FileLegacy,
    secrets: secrets::FileSecrets,
    mail: mail::FileMail,
    log: FileLog,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileQueue {
    prefix: Option<String>,
    group: Option<String>,
    lease: Option<String>,
    max_message: Option<String>,
    list_pop_side: Option<String>,
    dead_max_age: Option<String>,
    dead_max_bytes: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileLegacy {
    reclaim_after: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileLog {
    level: Option<String>,
    format: Option<String>,
}

/// Every error in the settings, one per line.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("{}", .0.join("\n"))]
pub struct InvalidSettings(pub Vec<String>);

impl InvalidSettings {
    /// Errors begin with the name of a setting; one that a flag or a variable has set
    /// gets that name too, because it is what has to be changed.
    pub fn named(errors: Vec<String>, sources: &Sources) -> Self {
        let named = |error: String| match error.split_once(": ") {
            Some((setting, problem)) => format!("{}: {problem}", label(setting, sources)),
            None => error,
        };
        Self(errors.into_iter().map(named).collect())
    }
}

/// The name of a setting, behind that of the flag or variable that has set it.
fn label(setting: &str, sources: &Sources) -> String {
    let field = setting.replace('.', "_").to_lowercase();
    let command = RawSettings::augment_args(clap::Command::new("settings"));
    let argument = command.get_arguments().find(|argument| argument.get_id().as_str() == field);
    let name = argument.and_then(|argument| match sources.of(&field) {
        Source::CommandLine => Some(format!("--{}", argument.get_long()?)),
        Source::Environment => Some(argument.get_env()?.to_str()?.to_owned()),
        Source::File => None,
    });
    match name {
        Some(name) if name != setting => format!("{name} ({setting})"),
        _ => setting.to_owned(),
    }
}

impl RawSettings {
    /// Fills unset values from the text of the file. Errors show `name`.
    pub fn or_file(self, text: &str, name: &str) -> Result<Self, InvalidSettings> {
        let file: File = file::read(text, name)?;
        let admin = self.admin.or_file(file.admin);
        let file_connections = file.redis.connections.map(|connections| connections.to_string());
        let redis = self.redis.or_file(file.redis);
        Ok(Self {
            sources: self.sources,
            plugins: set(&self.plugins).or_else(|| file.plugins.dir.clone()),
            plugin_files: self.plugin_files.or_file(file.plugins),
            listen: set(&self.listen).or(file.listen),
            app_port: self.app_port,
            admin,
            redis,
            redis_connections: set(&self.redis_connections).or(file_connections),
            queue: RawQueue {
                queue_prefix: set(&self.queue.queue_prefix).or(file.queue.prefix),
                queue_group: set(&self.queue.queue_group).or(file.queue.group),
                queue_lease: set(&self.queue.queue_lease).or(file.queue.lease),
                queue_max_message: set(&self.queue.queue_max_message).or(file.queue.max_message),
                legacy_reclaim_after: set(&self.queue.legacy_reclaim_after).or(file.legacy.reclaim_after),
                queue_list_pop_side: set(&self.queue.queue_list_pop_side).or(file.queue.list_pop_side),
                queue_dead_max_age: set(&self.queue.queue_dead_max_age).or(file.queue.dead_max_age),
                queue_dead_max_bytes: set(&self.queue.queue_dead_max_bytes).or(file.queue.dead_max_bytes),
            },
            secrets: self.secrets.or_file(file.secrets),
            mail: self.mail.or_file(file.mail),
            log_level: set(&self.log_level).or(file.log.level),
            log_format: set(&self.log_format).or(file.log.format),
            shutdown_timeout: set(&self.shutdown_timeout).or(file.shutdown_timeout),
            handler_threads: set(&self.handler_threads).or(file.handler_threads.map(|threads| threads.to_string())),
            handler_memory: set(&self.handler_memory).or(file.handler_memory),
        })
    }

    pub fn check(&self) -> Result<Settings, InvalidSettings> {
        let mut errors = Vec::new();
        let listen = self.listen(&mut errors);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let handler_threads = parse("handler_threads", &self.handler_threads, cores, "a number", &mut errors);
        if !(1..=1024).contains(&handler_threads) {
            errors.push(format!("handler_threads: {handler_threads} is out of range: 1 to 1024"));
        }
        let redis_connections = parse("redis.connections", &self.redis_connections, 16, "a number", &mut errors);
        if !(3..=1000).contains(&redis_connections) {
            errors.push(format!("redis.connections: {redis_connections} is out of range: 3 to 1000"));
        }
        let settings = Settings {
            listen,
            plugins: self.plugins(),
            cache: self.plugin_files.cache(),
            file_permissions: self.plugin_files.file_permissions(&mut errors),
            admin: self.admin.check(&mut errors),
            redis: self.redis.check(&mut errors),
            redis_connections,
            queue: self.queue.check(&mut errors),
            secrets: self.secrets.check(&mut errors),
            mail: self.mail.check(&mut errors),
            log: LogSettings {
                filter: self.log_filter(&mut errors),
                format: parse("log.format", &self.log_format, LogFormat::Json, "json or pretty", &mut errors),
            },
            shutdown_timeout: parse_duration(
                "shutdown_timeout",
                &self.shutdown_timeout,
                25_000,
                (0, 3_600_000),
                &mut errors,
            ),
            handler_threads,
            handler_memory: self.handler_memory(&mut errors),
        };
        if errors.is_empty() { Ok(settings) } else { Err(InvalidSettings::named(errors, &self.sources)) }
    }

    /// Checks the plugin settings only, for `plugin inspect` and `plugin check`,
    /// which also work where the directory of secrets does not exist.
    pub fn check_plugins(&self) -> Result<PluginSettings, InvalidSettings> {
        let mut errors = Vec::new();
        let settings = PluginSettings {
            dir: self.plugins(),
            cache: self.plugin_files.cache(),
            file_permissions: self.plugin_files.file_permissions(&mut errors),
            secrets: self.secrets.check(&mut Vec::new()),
        };
        if errors.is_empty() { Ok(settings) } else { Err(InvalidSettings::named(errors, &self.sources)) }
    }

    fn plugins(&self) -> PathBuf {
        set(&self.plugins).unwrap_or_else(|| "plugins".to_owned()).into()
    }

    fn handler_memory(&self, errors: &mut Vec<String>) -> Option<u64> {
        let min = bytesize::ByteSize::mib(64);
        set(&self.handler_memory)?;
        let bytes = parse("handler_memory", &self.handler_memory, min, "a size like 2GiB", errors);
        if bytes < min {
            let got = size(bytes.as_u64());
            errors.push(format!("handler_memory: {got} is out of range: {} or more", size(min.as_u64())));
        }
        Some(bytes.as_u64())
    }
}

impl RawSettings {
    /// Leaves out the variables that Kubernetes sets for a Service whose name makes
    /// them look like settings. `service_variables` names them.
    pub fn without_service_variables(mut self) -> Self {
        let fields = [("app_port", &mut self.app_port), ("redis_port", &mut self.redis.redis_port)];
        for (field, raw) in fields {
            let is_variable = self.sources.of(field).max(self.redis.sources.of(field)) == Source::Environment;
            if is_variable && raw.as_deref().is_some_and(variables::is_service_address) {
                *raw = None;
                self.sources.forget(field);
                self.redis.sources.forget(field);
            }
        }
        self
    }

    fn log_filter(&self, errors: &mut Vec<String>) -> String {
        let filter = log_level::directives(&set(&self.log_level).unwrap_or_else(|| "info".to_owned()));
        filter.unwrap_or_else(|error| {
            errors.push(format!("log.level: {error}"));
            String::new()
        })
    }

    /// `listen`, or the port of `APP_PORT` on all addresses, whichever comes from the
    /// stronger source.
    fn listen(&self, errors: &mut Vec<String>) -> ListenAddress {
        let (listen, port) = (set(&self.listen), set(&self.app_port));
        let (listen_source, port_source) = (self.sources.of("listen"), self.sources.of("app_port"));
        let listen = listen.filter(|_| port.is_none() || listen_source >= port_source).and_then(|text| {
            let error = |error| {
                errors.push(format!("listen: got \"{}\": {error}; allowed: {}", text.escape_debug(), listen::ALLOWED))
            };
            text.trim().parse::<ListenAddress>().map_err(error).ok()
        });
        let port = port.filter(|_| set(&self.listen).is_none() || port_source >= listen_source);
        let port = port.map(|text| parse("APP_PORT", &Some(text), DEFAULT_PORT, "a port", errors));
        if let (Some(listen), Some(port)) = (&listen, port)
            && listen.port != port
        {
            let [listen_name, port_name] = ["listen", "APP_PORT"].map(|setting| label(setting, &self.sources));
            errors.push(format!("{listen_name} is {listen}, but {port_name} is {port}: set only one of them"));
        }
        listen.unwrap_or_else(|| ListenAddress::everywhere(port.unwrap_or(DEFAULT_PORT)))
    }
}

impl RawQueue {
    pub fn check(&self, errors: &mut Vec<String>) -> QueueSettings {
        let prefix = set(&self.queue_prefix).unwrap_or_else(|| "mq:".to_owned());
        let group = set(&self.queue_group).unwrap_or_else(|| "consumer-group-{topic}".to_owned());
        for (setting, text) in [("queue.prefix", &prefix), ("queue.group", &group)] {
            if text.contains(char::is_control) {
                errors.push(format!("{setting}: \"{}\" must not contain control characters", text.escape_debug()));
            }
        }
        if prefix.contains(['{', '}', '*', '?', '[', '\\']) {
            errors.push(format!("queue.prefix: \"{prefix}\" must not contain braces or any of * ? [ \\"));
        }
        let bytes = parse(
            "queue.max_message",
            &self.queue_max_message,
            bytesize::ByteSize::mib(16),
            "a size like 16MiB",
            errors,
        );
        if !(1 << 10..=256 << 20).contains(&bytes.as_u64()) {
            errors.push(format!("queue.max_message: {} is out of range: 1KiB to 256MiB", size(bytes.as_u64())));
        }
        QueueSettings {
            prefix,
            group,
            lease: parse_duration("queue.lease", &self.queue_lease, 10_000, (500, 3_600_000), errors),
            message_bytes_max: usize::try_from(bytes.as_u64()).unwrap_or(usize::MAX),
            list_pop_side: parse(
                "queue.list_pop_side",
                &self.queue_list_pop_side,
                PopSide::Both,
                "left, right or both",
                errors,
            ),
            legacy_reclaim_after: parse_duration(
                "legacy.reclaim_after",
                &self.legacy_reclaim_after,
                60_000,
                (500, 86_400_000),
                errors,
            ),
            dead_letter_caps: self.dead_letter_caps(errors),
        }
    }

    fn dead_letter_caps(&self, errors: &mut Vec<String>) -> DeadLetterCaps {
        let (name, raw) = ("queue.dead_max_age", &self.queue_dead_max_age);
        let age = set(raw).map(|_| parse_duration(name, raw, 1000, (1000, 100 * 365 * 86_400_000), errors));
        let (name, raw, min) = ("queue.dead_max_bytes", &self.queue_dead_max_bytes, bytesize::ByteSize::kib(64));
        let bytes = set(raw).map(|_| parse(name, raw, min, "a size like 512MiB", errors));
        if let Some(bytes) = bytes.filter(|bytes| *bytes < min) {
            let [got, min] = [bytes, min].map(|bytes| size(bytes.as_u64()));
            errors.push(format!("{name}: {got} is out of range: {min} or more"));
        }
        DeadLetterCaps { age, bytes: bytes.map(|bytes| bytes.as_u64()) }
    }
}

impl FromStr for PopSide {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "left" => Ok(Self::Left),
            "right" => Ok(Self::Right),
            "both" => Ok(Self::Both),
            _ => Err(()),
        }
    }
}

impl FromStr for LogFormat {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "json" => Ok(Self::Json),
            "pretty" => Ok(Self::Pretty),
            _ => Err(()),
        }
    }
}

/// The text without a line end behind it, unless it is blank.
fn set(raw: &Option<String>) -> Option<String> {
    let text = password::without_line_end(raw.as_deref()?);
    (!text.trim().is_empty()).then(|| text.to_owned())
}

/// Sets what is not set, or blank.
pub fn set_default(raw: &mut Option<String>, default: impl FnOnce() -> String) {
    if set(raw).is_none() {
        *raw = Some(default());
    }
}

fn parse<T: FromStr>(name: &str, raw: &Option<String>, default: T, allowed: &str, errors: &mut Vec<String>) -> T {
    match set(raw).map(|text| text.trim().parse().map_err(|_| text)) {
        None => default,
        Some(Ok(value)) => value,
        Some(Err(text)) => {
            errors.push(format!("{name}: got \"{}\", allowed: {allowed}", text.escape_debug()));
            default
        }
    }
}

/// Parses a duration that must be within bounds. Default and bounds are in
/// milliseconds.
fn parse_duration(
    name: &str,
    raw: &Option<String>,
    default_ms: u64,
    bounds_ms: (u64, u64),
    errors: &mut Vec<String>,
) -> Duration {
    let default = humantime::Duration::from(Duration::from_millis(default_ms));
    let duration = Duration::from(parse(name, raw, default, "a time like 500ms, 30s or 5m", errors));
    let (min, max) = (Duration::from_millis(bounds_ms.0), Duration::from_millis(bounds_ms.1));
    if !(min..=max).contains(&duration) {
        let [got, min, max] = [duration, min, max].map(span);
        errors.push(format!("{name}: {got} is out of range: {min} to {max}"));
    }
    duration
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(change: impl FnOnce(&mut RawSettings)) -> RawSettings {
        let mut raw = RawSettings::default();
        change(&mut raw);
        raw
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn every_setting_has_a_default() {
        let settings = RawSettings::default().check().unwrap();
        assert_eq!(settings.listen.to_string(), "0.0.0.0:8084");
        assert_eq!(settings.redis.redacted_url(), "redis://localhost:6379/0");
        assert_eq!((settings.queue.prefix.as_str(), settings.queue.lease), ("mq:", Duration::from_secs(10)));
        assert_eq!(settings.queue.group, "consumer-group-{topic}");
        assert_eq!(settings.queue.message_bytes_max, 16 << 20);
        assert_eq!(settings.queue.dead_letter_caps, DeadLetterCaps { age: None, bytes: None });
        assert_eq!(settings.queue.legacy_reclaim_after, Duration::from_secs(60));
        assert_eq!(settings.shutdown_timeout, Duration::from_secs(25));
        assert_eq!(settings.handler_memory, None);
    }

    #[test]
    fn legacy_variables_are_read_and_empty_ones_are_unset() {
        let settings = raw(|raw| {
            raw.app_port = some("9000");
            raw.redis.redis_host = some("redis.internal");
            raw.redis.redis_port = some("");
            raw.redis.redis_password = some("p@ss:/word");
            raw.redis.redis_db = some("2");
        });
        let settings = settings.check().unwrap();
        assert_eq!(settings.listen.port, 9000);
        assert_eq!(settings.redis.redacted_url(), "redis://redis.internal:6379/2");
        assert_eq!(
            settings.redis.endpoint.login.password.map(|password| password.read().unwrap().reveal().to_owned()),
            Some("p@ss:/word".to_owned())
        );
    }

    #[test]
    fn the_file_fills_unset_values() {
        let text = "listen = \"127.0.0.1:1\"\nhandler_memory = \"1GiB\"\nplugins = \"p\"\n[redis]\nhost = \"h\"\nport = 5\n[queue]\nlease = \"2s\"\ndead_max_age = \"30d\"\ndead_max_bytes = \"1GiB\"\n[legacy]\nreclaim_after = \"5s\"\n[log]\nformat = \"pretty\"";
        let settings = RawSettings::default().or_file(text, "f").unwrap().check().unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:1");
        assert_eq!(
            (settings.redis.redacted_url().as_str(), settings.queue.lease),
            ("redis://h:5/0", Duration::from_secs(2))
        );
        assert_eq!((settings.log.format, settings.handler_memory), (LogFormat::Pretty, Some(1 << 30)));
        assert_eq!(settings.queue.legacy_reclaim_after, Duration::from_secs(5));
        let caps = DeadLetterCaps { age: Some(Duration::from_secs(30 * 86_400)), bytes: Some(1 << 30) };
        assert_eq!(settings.queue.dead_letter_caps, caps);

        let flags = raw(|raw| {
            raw.sources = Sources::from(Source::CommandLine, &["app_port"]);
            raw.app_port = some("2");
            raw.redis.redis_host = some("mine");
            raw.queue.queue_lease = some("3s");
        });
        let settings = flags.or_file(text, "f").unwrap().check().unwrap();
        assert_eq!(settings.listen.port, 2);
        assert_eq!(
            (settings.redis.redacted_url().as_str(), settings.queue.lease),
            ("redis://mine:6379/0", Duration::from_secs(3))
        );
    }

    #[test]
    fn the_files_plugins_are_a_directory_or_a_table() {
        let settings = |text| RawSettings::default().or_file(text, "f").map(|raw| raw.check().unwrap());
        assert_eq!(settings("plugins = \"p\"").unwrap().plugins, PathBuf::from("p"));
        let table = settings("[plugins]\ndir = \"p\"\ncache = \"/c\"\nfile_permissions = \"enforce\"").unwrap();
        assert_eq!((table.plugins, table.cache), (PathBuf::from("p"), Some(PathBuf::from("/c"))));
        assert_eq!(table.file_permissions, FilePermissionPolicy::Enforce);
        let error = settings("[plugins]\ncash = \"/c\"").unwrap_err().to_string();
        assert!(error.contains("cash") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn an_address_and_a_port_from_one_source_must_agree() {
        let listen = |from_command_line: &[&str], listen, port| {
            let raw = raw(|raw| {
                raw.sources = Sources::from(Source::CommandLine, from_command_line);
                (raw.listen, raw.app_port) = (some(listen), some(port));
            });
            raw.check().map(|settings| settings.listen.to_string()).map_err(|bad| bad.to_string())
        };
        assert_eq!(listen(&[], "127.0.0.1:1", "1"), Ok("127.0.0.1:1".to_owned()));
        assert_eq!(listen(&["listen"], "127.0.0.1:1", "2"), Ok("127.0.0.1:1".to_owned()));
        assert_eq!(listen(&["app_port"], "127.0.0.1:1", "2"), Ok("0.0.0.0:2".to_owned()));
        let differ = |listen, port| Err(format!("{listen} is 127.0.0.1:1, but {port} is 2: set only one of them"));
        assert_eq!(listen(&[], "127.0.0.1:1", "2"), differ("listen", "APP_PORT"));
        let flags = ["listen", "app_port"];
        assert_eq!(listen(&flags, "127.0.0.1:1", "2"), differ("--listen (listen)", "--app-port (APP_PORT)"));
    }

    #[test]
    fn every_error_in_the_file_is_reported_with_its_position() {
        let text = "listen = 5\nnope = 1\n[queue]\nlease = 2\nleese = \"1s\"\n[redis]\nport = 99999\n[plugins]\ndirr = \"p\"\n[log]\nlevel = \"info\nformat = 1";
        let InvalidSettings(errors) = RawSettings::default().or_file(text, "f").unwrap_err();
        let positions: Vec<_> = errors.iter().map(|error| error.split(": ").nth(1).unwrap()).collect();
        for (position, expected) in [
            ("line 1, column 10", "a string"),
            ("line 2, column 1", "`nope`"),
            ("line 4, column 9", "a string"),
            ("line 5, column 1", "`leese`"),
            ("line 7, column 8", "99999"),
            ("line 9, column 1", "`dirr`"),
            ("line 11", ""),
            ("line 12, column 10", "a string"),
        ] {
            let index = positions.iter().position(|found| found.starts_with(position));
            assert!(index.is_some_and(|index| errors[index].contains(expected)), "{position}: {errors:#?}");
        }
    }

    #[test]
    fn every_error_is_reported_at_once_with_the_allowed_values() {
        let settings = raw(|raw| {
            raw.listen = some("here");
            raw.redis.redis_url = some("http://u:secret@x");
            raw.queue.queue_prefix = some("{mq}:");
            raw.queue.queue_lease = some("499ms");
            raw.queue.queue_max_message = some("1GiB");
            raw.queue.queue_list_pop_side = some("top");
            raw.queue.queue_dead_max_age = some("never");
            raw.queue.queue_dead_max_bytes = some("1KiB");
            raw.plugin_files.plugins_file_permissions = some("maybe");
            raw.log_format = some("xml");
            raw.shutdown_timeout = some("soon");
            raw.handler_threads = some("0");
            raw.handler_memory = some("63MiB");
        });
        let InvalidSettings(errors) = settings.check().unwrap_err();
        assert_eq!(errors.len(), 13, "{errors:#?}");
        assert!(
            errors.iter().any(|error| error.contains("queue.lease: 499ms is out of range: 500ms to 1h")),
            "{errors:#?}"
        );
        assert!(!errors.iter().any(|error| error.contains("secret")), "{errors:#?}");

        let error =
            RawSettings::default().or_file("[queue]\nleese = \"1s\"", "gateway-worker.toml").unwrap_err().to_string();
        assert!(
            error.contains("gateway-worker.toml") && error.contains("leese") && error.contains("line 2"),
            "{error}"
        );
    }
}
