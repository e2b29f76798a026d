//! The settings of a worker: as they were typed ([`Typed`]), and checked
//! ([`Settings`]), with every fault at once: an operator should need one
//! restart, not five. Flags win over the environment, that over the file
//! `gateway-worker.toml`, that over the defaults.

mod admin;
mod file;
mod level;
mod mail;
mod plugins;
mod redis_target;
mod redis_url;
mod secrets;
mod variables;

pub use admin::{AdminSettings, TypedAdmin};
pub use level::OnLine;
pub use mail::{MailSettings, Outlet, Relay, Security, TypedMail};
pub use plugins::{FileCheck, PluginSettings, TypedPlugins};
pub use redis_target::{ClientPem, Login, RedisTarget, TypedRedis};
pub use redis_url::{RedisMode, RedisPlace};
pub use secrets::{SecretsSettings, TypedSecrets};
pub use variables::unknown_variables;

use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

const DEFAULT_PORT: u16 = 8084;

#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub listen: SocketAddr,
    pub plugins: PathBuf,
    /// Where compiled plugins are kept.
    pub cache: Option<PathBuf>,
    pub check_files: FileCheck,
    pub admin: AdminSettings,
    pub redis: RedisTarget,
    pub queue: QueueSettings,
    pub secrets: SecretsSettings,
    pub mail: MailSettings,
    pub log: LogSettings,
    /// How long a stop waits for messages in flight.
    pub drain: Duration,
    /// Threads that handlers run on.
    pub handler_threads: usize,
    /// Bytes for the memories of all handlers together. None: what the machine
    /// allows.
    pub handler_memory: Option<u64>,
}

impl Settings {
    /// The worker's own folders: no grant reaches into them.
    pub fn own_folders(&self) -> Vec<PathBuf> {
        plugins::own_folders(&self.plugins, self.cache.as_deref(), self.secrets.dir.as_deref())
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct QueueSettings {
    pub prefix: String,
    /// May contain `{topic}`.
    pub group: String,
    pub lease: Duration,
    /// A larger entry is dead-lettered as `too-large`, in bytes.
    pub message_bytes_max: usize,
    /// Which end of a list has its oldest message.
    pub list_head: ListHead,
    /// A pending message of one of the original's consumers, which renew
    /// nothing, is taken over after this long.
    pub adopt_after: Duration,
    pub dead_caps: DeadCaps,
}

/// What a topic's dead letters may come to; what is over it is dropped, oldest
/// first. Without caps none is ever dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeadCaps {
    pub age: Option<Duration>,
    /// As Redis counts its memory.
    pub bytes: Option<u64>,
}

/// Where the next message of a list is: publishers that `LPUSH` have it on the
/// right, those that `RPUSH` on the left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListHead {
    Left,
    Right,
    /// Not known: both ends have their turn, so that neither starves.
    Both,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LogSettings {
    pub level: String,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Pretty,
}

/// What a flag, the environment or the file says, unread. Empty is unset:
/// that is how compose files leave a variable out.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Typed {
    #[command(flatten)]
    pub on_line: OnLine,
    /// Where the plugins are [default: plugins]
    #[arg(long, env = "GATEWAY_PLUGINS", value_name = "DIR")]
    pub plugins: Option<String>,
    #[command(flatten)]
    pub plugin_files: TypedPlugins,
    /// Where health and metrics are served [default: 0.0.0.0:8084]
    #[arg(long, env = "GATEWAY_LISTEN", value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// The port alone, as the original's deployments name it
    #[arg(long, env = "APP_PORT", value_name = "PORT", hide = true)]
    pub app_port: Option<String>,
    #[command(flatten)]
    pub admin: TypedAdmin,
    #[command(flatten)]
    pub redis: TypedRedis,
    #[command(flatten)]
    pub queue: TypedQueue,
    #[command(flatten)]
    pub secrets: TypedSecrets,
    #[command(flatten)]
    pub mail: TypedMail,
    /// error, warn, info, debug, trace, or a filter like info,handler=debug [default: info]
    #[arg(long, env = "LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// json or pretty [default: json]
    #[arg(long, env = "LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// How long a stop waits for messages in flight [default: 30s]
    #[arg(long, env = "GATEWAY_DRAIN", value_name = "TIME")]
    pub drain: Option<String>,
    /// Threads that handlers run on [default: one per core]
    #[arg(long, env = "GATEWAY_HANDLER_THREADS", value_name = "N")]
    pub handler_threads: Option<String>,
    /// Memory of all handlers together [default: half of what the worker may have]
    #[arg(long, env = "GATEWAY_HANDLER_MEMORY", value_name = "SIZE")]
    pub handler_memory: Option<String>,
}

/// How the queues are named and kept.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TypedQueue {
    /// What every key begins with [default: mq:]
    #[arg(long, env = "GATEWAY_QUEUE_PREFIX", value_name = "PREFIX")]
    pub queue_prefix: Option<String>,
    /// The consumer group [default: consumer-group-{topic}]
    #[arg(long, env = "GATEWAY_QUEUE_GROUP", value_name = "NAME")]
    pub queue_group: Option<String>,
    /// A worker silent for this long has lost its messages [default: 10s]
    #[arg(long, env = "GATEWAY_QUEUE_LEASE", value_name = "TIME")]
    pub queue_lease: Option<String>,
    /// A larger message is dead-lettered [default: 16MiB]
    #[arg(long, env = "GATEWAY_QUEUE_MAX_MESSAGE", value_name = "SIZE")]
    pub queue_max_message: Option<String>,
    /// What the original's workers left pending is taken over after [default: 60s]
    #[arg(long, env = "GATEWAY_QUEUE_ADOPT_AFTER", value_name = "TIME")]
    pub queue_adopt_after: Option<String>,
    /// Where lists of plain clients have their oldest message: left, right or both [default: both]
    #[arg(long, env = "GATEWAY_QUEUE_LIST_HEAD", value_name = "END")]
    pub queue_list_head: Option<String>,
    /// Dead letters older than this are dropped [default: none are]
    #[arg(long, env = "GATEWAY_QUEUE_DEAD_MAX_AGE", value_name = "TIME")]
    pub queue_dead_max_age: Option<String>,
    /// The oldest dead letters of a topic that has more than this are dropped [default: none are]
    #[arg(long, env = "GATEWAY_QUEUE_DEAD_MAX_BYTES", value_name = "SIZE")]
    pub queue_dead_max_bytes: Option<String>,
}

/// The file. Its tables are the prefixes of the flags.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    plugins: plugins::FilePlugins,
    listen: Option<String>,
    drain: Option<String>,
    handler_threads: Option<usize>,
    handler_memory: Option<String>,
    admin: admin::FileAdmin,
    redis: redis_target::FileRedis,
    queue: FileQueue,
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
    adopt_after: Option<String>,
    list_head: Option<String>,
    dead_max_age: Option<String>,
    dead_max_bytes: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileLog {
    level: Option<String>,
    format: Option<String>,
}

/// Every fault, one a line.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("{}", .0.join("\n"))]
pub struct BadSettings(pub Vec<String>);

impl Typed {
    /// Fills what is unset from the text of the file, whose name is for errors.
    pub fn or_file(self, text: &str, name: &str) -> Result<Self, BadSettings> {
        let file: File = file::read(text, name)?;
        let admin = self.admin.or_file(file.admin);
        let redis = self.redis.or_file(file.redis);
        let listen = if set(&self.app_port).is_some() { self.listen } else { set(&self.listen).or(file.listen) };
        Ok(Self {
            on_line: self.on_line,
            plugins: set(&self.plugins).or_else(|| file.plugins.dir.clone()),
            plugin_files: self.plugin_files.or_file(file.plugins),
            listen,
            app_port: self.app_port,
            admin,
            redis,
            queue: TypedQueue {
                queue_prefix: set(&self.queue.queue_prefix).or(file.queue.prefix),
                queue_group: set(&self.queue.queue_group).or(file.queue.group),
                queue_lease: set(&self.queue.queue_lease).or(file.queue.lease),
                queue_max_message: set(&self.queue.queue_max_message).or(file.queue.max_message),
                queue_adopt_after: set(&self.queue.queue_adopt_after).or(file.queue.adopt_after),
                queue_list_head: set(&self.queue.queue_list_head).or(file.queue.list_head),
                queue_dead_max_age: set(&self.queue.queue_dead_max_age).or(file.queue.dead_max_age),
                queue_dead_max_bytes: set(&self.queue.queue_dead_max_bytes).or(file.queue.dead_max_bytes),
            },
            secrets: self.secrets.or_file(file.secrets),
            mail: self.mail.or_file(file.mail),
            log_level: set(&self.log_level).or(file.log.level),
            log_format: set(&self.log_format).or(file.log.format),
            drain: set(&self.drain).or(file.drain),
            handler_threads: set(&self.handler_threads).or(file.handler_threads.map(|threads| threads.to_string())),
            handler_memory: set(&self.handler_memory).or(file.handler_memory),
        })
    }

    pub fn check(&self) -> Result<Settings, BadSettings> {
        let mut faults = Vec::new();
        let listen = self.listen(&mut faults);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let handler_threads = parse("handler_threads", &self.handler_threads, cores, "a number", &mut faults);
        if !(1..=1024).contains(&handler_threads) {
            faults.push(format!("handler_threads: {handler_threads} is out of range: 1 to 1024"));
        }
        let settings = Settings {
            listen,
            plugins: self.plugins(),
            cache: self.plugin_files.cache(),
            check_files: self.plugin_files.check_files(&mut faults),
            admin: self.admin.check(&mut faults),
            redis: self.redis.check(&mut faults),
            queue: self.queue.check(&mut faults),
            secrets: self.secrets.check(&mut faults),
            mail: self.mail.check(&mut faults),
            log: LogSettings {
                level: set(&self.log_level).unwrap_or_else(|| "info".to_owned()),
                format: parse("log.format", &self.log_format, LogFormat::Json, "json or pretty", &mut faults),
            },
            drain: span("drain", &self.drain, 30_000, (0, 3_600_000), &mut faults),
            handler_threads,
            handler_memory: self.handler_memory(&mut faults),
        };
        if faults.is_empty() { Ok(settings) } else { Err(BadSettings(faults)) }
    }

    /// What concerns plugins alone, for who only looks at them: a folder of
    /// secrets need not be there.
    pub fn check_plugins(&self) -> Result<PluginSettings, BadSettings> {
        let mut faults = Vec::new();
        let settings = PluginSettings {
            dir: self.plugins(),
            cache: self.plugin_files.cache(),
            check_files: self.plugin_files.check_files(&mut faults),
            secrets: self.secrets.check(&mut Vec::new()),
        };
        if faults.is_empty() { Ok(settings) } else { Err(BadSettings(faults)) }
    }

    fn plugins(&self) -> PathBuf {
        set(&self.plugins).unwrap_or_else(|| "plugins".to_owned()).into()
    }

    fn handler_memory(&self, faults: &mut Vec<String>) -> Option<u64> {
        let least = bytesize::ByteSize::mib(64);
        set(&self.handler_memory)?;
        let bytes = parse("handler_memory", &self.handler_memory, least, "a size like 2GiB", faults);
        if bytes < least {
            faults.push(format!("handler_memory: {bytes} is out of range: 64MiB or more"));
        }
        Some(bytes.as_u64())
    }
}

impl Typed {
    /// The address, or the port alone, whichever is named higher up.
    fn listen(&self, faults: &mut Vec<String>) -> SocketAddr {
        let known = faults.len();
        let named = parse("APP_PORT", &self.app_port, DEFAULT_PORT, "a port", faults);
        let everywhere = SocketAddr::from(([0, 0, 0, 0], named));
        let listen = parse("listen", &self.listen, everywhere, "an address like 0.0.0.0:8084", faults);
        if set(&self.listen).is_none() || set(&self.app_port).is_none() || faults.len() > known {
            return listen;
        }
        match (self.on_line.has("listen"), self.on_line.has("app_port")) {
            (true, false) => {}
            (false, true) => return everywhere,
            _ if listen.port() == named => {}
            _ => faults.push(format!("listen is {listen}, and APP_PORT is {named}: name one of them")),
        }
        listen
    }
}

impl TypedQueue {
    pub fn check(&self, faults: &mut Vec<String>) -> QueueSettings {
        let prefix = set(&self.queue_prefix).unwrap_or_else(|| "mq:".to_owned());
        if prefix.contains(['{', '}', '*', '?', '[', '\\']) {
            faults.push(format!("queue.prefix: \"{prefix}\" must not contain braces or any of * ? [ \\"));
        }
        let bytes = parse(
            "queue.max_message",
            &self.queue_max_message,
            bytesize::ByteSize::mib(16),
            "a size like 16MiB",
            faults,
        );
        if !(1 << 10..=256 << 20).contains(&bytes.as_u64()) {
            faults.push(format!("queue.max_message: {bytes} is out of range: 1KiB to 256MiB"));
        }
        QueueSettings {
            prefix,
            group: set(&self.queue_group).unwrap_or_else(|| "consumer-group-{topic}".to_owned()),
            lease: span("queue.lease", &self.queue_lease, 10_000, (500, 3_600_000), faults),
            message_bytes_max: usize::try_from(bytes.as_u64()).unwrap_or(usize::MAX),
            list_head: parse("queue.list_head", &self.queue_list_head, ListHead::Both, "left, right or both", faults),
            adopt_after: span("queue.adopt_after", &self.queue_adopt_after, 60_000, (500, 86_400_000), faults),
            dead_caps: self.dead_caps(faults),
        }
    }

    fn dead_caps(&self, faults: &mut Vec<String>) -> DeadCaps {
        let (name, typed) = ("queue.dead_max_age", &self.queue_dead_max_age);
        let age = set(typed).map(|_| span(name, typed, 1000, (1000, 100 * 365 * 86_400_000), faults));
        let (name, typed, least) = ("queue.dead_max_bytes", &self.queue_dead_max_bytes, bytesize::ByteSize::kib(64));
        let bytes = set(typed).map(|_| parse(name, typed, least, "a size like 512MiB", faults));
        if let Some(bytes) = bytes.filter(|bytes| *bytes < least) {
            faults.push(format!("{name}: {bytes} is too little: at least {least}"));
        }
        DeadCaps { age, bytes: bytes.map(|bytes| bytes.as_u64()) }
    }
}

impl FromStr for ListHead {
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

fn set(typed: &Option<String>) -> Option<String> {
    typed.clone().filter(|text| !text.trim().is_empty())
}

fn parse<T: FromStr>(name: &str, typed: &Option<String>, default: T, allowed: &str, faults: &mut Vec<String>) -> T {
    match set(typed).map(|text| text.trim().parse().map_err(|_| text)) {
        None => default,
        Some(Ok(value)) => value,
        Some(Err(text)) => {
            faults.push(format!("{name}: got \"{text}\", allowed: {allowed}"));
            default
        }
    }
}

/// A time within bounds, all in milliseconds.
fn span(
    name: &str,
    typed: &Option<String>,
    default_ms: u64,
    bounds_ms: (u64, u64),
    faults: &mut Vec<String>,
) -> Duration {
    let default = humantime::Duration::from(Duration::from_millis(default_ms));
    let span = Duration::from(parse(name, typed, default, "a time like 500ms, 30s or 5m", faults));
    let (min, max) = (Duration::from_millis(bounds_ms.0), Duration::from_millis(bounds_ms.1));
    if !(min..=max).contains(&span) {
        let shown = |span| humantime::format_duration(span).to_string();
        faults.push(format!("{name}: {} is out of range: {} to {}", shown(span), shown(min), shown(max)));
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::Secret;

    fn typed(change: impl FnOnce(&mut Typed)) -> Typed {
        let mut typed = Typed::default();
        change(&mut typed);
        typed
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn everything_has_a_default() {
        let settings = Typed::default().check().unwrap();
        assert_eq!(settings.listen.to_string(), "0.0.0.0:8084");
        assert_eq!(settings.redis.shown(), "redis://localhost:6379/0");
        assert_eq!((settings.queue.prefix.as_str(), settings.queue.lease), ("mq:", Duration::from_secs(10)));
        assert_eq!(settings.queue.group, "consumer-group-{topic}");
        assert_eq!(settings.queue.message_bytes_max, 16 << 20);
        assert_eq!(settings.queue.dead_caps, DeadCaps { age: None, bytes: None });
        assert_eq!(settings.handler_memory, None);
    }

    #[test]
    fn the_originals_variables_are_honoured_and_empty_ones_are_unset() {
        let settings = typed(|typed| {
            typed.app_port = some("9000");
            typed.redis.redis_host = some("redis.internal");
            typed.redis.redis_port = some("");
            typed.redis.redis_password = some("p@ss:/word");
            typed.redis.redis_db = some("2");
        });
        let settings = settings.check().unwrap();
        assert_eq!(settings.listen.port(), 9000);
        assert_eq!(settings.redis.shown(), "redis://redis.internal:6379/2");
        assert_eq!(settings.redis.place.login.password.as_ref().map(Secret::reveal), Some("p@ss:/word"));
    }

    #[test]
    fn the_file_fills_what_is_unset() {
        let text = "listen = \"127.0.0.1:1\"\nhandler_memory = \"1GiB\"\nplugins = \"p\"\n[redis]\nhost = \"h\"\nport = 5\n[queue]\nlease = \"2s\"\ndead_max_age = \"30d\"\ndead_max_bytes = \"1GiB\"\n[log]\nformat = \"pretty\"";
        let settings = Typed::default().or_file(text, "f").unwrap().check().unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:1");
        assert_eq!((settings.redis.shown().as_str(), settings.queue.lease), ("redis://h:5/0", Duration::from_secs(2)));
        assert_eq!((settings.log.format, settings.handler_memory), (LogFormat::Pretty, Some(1 << 30)));
        let caps = DeadCaps { age: Some(Duration::from_secs(30 * 86_400)), bytes: Some(1 << 30) };
        assert_eq!(settings.queue.dead_caps, caps);

        let flags = typed(|typed| {
            typed.app_port = some("2");
            typed.redis.redis_host = some("mine");
            typed.queue.queue_lease = some("3s");
        });
        let settings = flags.or_file(text, "f").unwrap().check().unwrap();
        assert_eq!(settings.listen.port(), 2);
        assert_eq!(
            (settings.redis.shown().as_str(), settings.queue.lease),
            ("redis://mine:6379/0", Duration::from_secs(3))
        );
    }

    #[test]
    fn the_files_plugins_are_a_directory_or_a_table() {
        let settings = |text| Typed::default().or_file(text, "f").map(|typed| typed.check().unwrap());
        assert_eq!(settings("plugins = \"p\"").unwrap().plugins, PathBuf::from("p"));
        let table = settings("[plugins]\ndir = \"p\"\ncache = \"/c\"\ncheck_files = \"refuse\"").unwrap();
        assert_eq!((table.plugins, table.cache), (PathBuf::from("p"), Some(PathBuf::from("/c"))));
        assert_eq!(table.check_files, FileCheck::Refuse);
        let error = settings("[plugins]\ncash = \"/c\"").unwrap_err().to_string();
        assert!(error.contains("cash") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn an_address_and_a_port_of_one_level_have_to_agree() {
        let listen = |on_line: &[&str], listen, port| {
            let typed = typed(|typed| {
                typed.on_line = OnLine::of(on_line);
                (typed.listen, typed.app_port) = (some(listen), some(port));
            });
            typed.check().map(|settings| settings.listen.to_string()).map_err(|bad| bad.to_string())
        };
        assert_eq!(listen(&[], "127.0.0.1:1", "1"), Ok("127.0.0.1:1".to_owned()));
        assert_eq!(listen(&["listen"], "127.0.0.1:1", "2"), Ok("127.0.0.1:1".to_owned()));
        assert_eq!(listen(&["app_port"], "127.0.0.1:1", "2"), Ok("0.0.0.0:2".to_owned()));
        for level in [&[][..], &["listen", "app_port"]] {
            let told = "listen is 127.0.0.1:1, and APP_PORT is 2: name one of them".to_owned();
            assert_eq!(listen(level, "127.0.0.1:1", "2"), Err(told));
        }
    }

    #[test]
    fn every_fault_of_the_file_is_told_with_its_place() {
        let text = "listen = 5\nnope = 1\n[queue]\nlease = 2\nleese = \"1s\"\n[redis]\nport = 99999\n[plugins]\ndirr = \"p\"\n[log]\nlevel = \"info\nformat = 1";
        let BadSettings(faults) = Typed::default().or_file(text, "f").unwrap_err();
        let places: Vec<_> = faults.iter().map(|fault| fault.split(": ").nth(1).unwrap()).collect();
        for (place, told) in [
            ("line 1, column 10", "a string"),
            ("line 2, column 1", "`nope`"),
            ("line 4, column 9", "a string"),
            ("line 5, column 1", "`leese`"),
            ("line 7, column 8", "99999"),
            ("line 9, column 1", "`dirr`"),
            ("line 11", ""),
            ("line 12, column 10", "a string"),
        ] {
            let at = places.iter().position(|one| one.starts_with(place));
            assert!(at.is_some_and(|at| faults[at].contains(told)), "{place}: {faults:#?}");
        }
    }

    #[test]
    fn every_fault_is_told_at_once_with_what_is_allowed() {
        let faults = typed(|typed| {
            typed.listen = some("here");
            typed.redis.redis_url = some("http://u:secret@x");
            typed.queue.queue_prefix = some("{mq}:");
            typed.queue.queue_lease = some("499ms");
            typed.queue.queue_max_message = some("1GiB");
            typed.queue.queue_list_head = some("top");
            typed.queue.queue_dead_max_age = some("never");
            typed.queue.queue_dead_max_bytes = some("1KiB");
            typed.plugin_files.plugins_check_files = some("maybe");
            typed.log_format = some("xml");
            typed.drain = some("soon");
            typed.handler_threads = some("0");
            typed.handler_memory = some("63MiB");
        });
        let BadSettings(faults) = faults.check().unwrap_err();
        assert_eq!(faults.len(), 13, "{faults:#?}");
        assert!(
            faults.iter().any(|fault| fault.contains("queue.lease: 499ms is out of range: 500ms to 1h")),
            "{faults:#?}"
        );
        assert!(!faults.iter().any(|fault| fault.contains("secret")), "{faults:#?}");

        let error = Typed::default().or_file("[queue]\nleese = \"1s\"", "gateway-worker.toml").unwrap_err().to_string();
        assert!(
            error.contains("gateway-worker.toml") && error.contains("leese") && error.contains("line 2"),
            "{error}"
        );
    }
}
