//! The manifest `<name>.toml` of the plugin `<name>.wasm`: what it is granted and
//! how it runs. Unknown keys are refused, and all faults are reported at once, with
//! line and column.

mod headers;
mod origin;
mod parse;
mod section;
mod value;

pub use headers::{Header, HeaderPart};
pub use origin::Origin;
pub use section::ManifestFault;
pub use value::SecretName;

use crate::schedule::Schedule;
use crate::topic::Topic;
use crate::verdict::RetryPolicy;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use value::{KIB, MIB};

#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// Empty for a catch-all.
    pub topics: Vec<Topic>,
    /// Whether it handles the topics that no other plugin claims, and which.
    pub catch_all: Option<CatchAll>,
    /// Messages in flight per topic and worker.
    pub concurrency: usize,
    /// Messages in flight per topic over all workers.
    pub global_concurrency: Option<usize>,
    pub instances: Instances,
    /// The arguments of a command, after its name.
    pub args: Vec<String>,
    pub rate: Option<Rate>,
    pub batch: Option<Batch>,
    /// How long a finished message is not run again.
    pub dedup: Option<Duration>,
    pub schedule: Option<Schedule>,
    pub limits: Limits,
    pub retry: RetryPolicy,
    pub grants: Grants,
    pub config: BTreeMap<String, String>,
    /// Headers that the host adds to requests to an origin; the guest never sees
    /// them.
    pub http_headers: BTreeMap<Origin, Vec<Header>>,
}

/// How long an instance lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Instances {
    /// One instance per message or batch.
    #[default]
    PerMessage,
    /// Reused until it has served `max_calls` calls, was idle for `idle_timeout`, or
    /// a call failed.
    Reused { max_calls: u32, idle_timeout: Duration },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Wall-clock time of a run, including host calls.
    pub timeout: Duration,
    pub cpu: Duration,
    /// Bytes over all memories of an instance.
    pub memory: u64,
    /// Elements over all tables of an instance.
    pub table_elements: u32,
    /// Open resources of an instance, such as streams and requests.
    pub resources: u32,
    /// Bytes that one call may pass to the host.
    pub host_call_bytes: u64,
    /// Bytes of log a second.
    pub log: u64,
    /// Bytes of a request's body, and of a reply's.
    pub http_body: u64,
    /// Concurrent requests of a run.
    pub http_requests: u32,
    /// Bytes in the plugin's key-value store, over all workers.
    pub keyvalue: u64,
    pub keyvalue_keys: u64,
}

/// At most `limit` messages of a topic start in any window of length `per`, over
/// all workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub limit: u32,
    pub per: Duration,
}

/// The maximum size of a batch, and how long its first message waits for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    pub size: usize,
    pub wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            cpu: Duration::from_secs(1),
            memory: 64 * MIB,
            table_elements: 100_000,
            resources: 10_000,
            host_call_bytes: 32 * MIB,
            log: 64 * KIB,
            http_body: 8 * MIB,
            http_requests: 16,
            keyvalue: 64 * MIB,
            keyvalue_keys: 100_000,
        }
    }
}

/// What a plugin may reach. Empty means nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grants {
    pub http: BTreeSet<Origin>,
    /// Networks with non-public addresses that the hosts in `http` may resolve to.
    pub private_networks: Vec<IpNet>,
    /// Topics that it may publish to.
    pub publish: BTreeSet<Topic>,
    pub mail: bool,
    pub keyvalue: bool,
    pub secrets: BTreeSet<SecretName>,
    /// Directories of the host, by the path that the guest sees.
    pub read: BTreeMap<PathBuf, PathBuf>,
    pub write: BTreeMap<PathBuf, PathBuf>,
}

impl Grants {
    /// How many directories are opened for each run.
    pub fn folders(&self) -> usize {
        self.read.len() + self.write.len()
    }

    /// The granted kinds with their values, for display.
    pub fn by_kind(&self) -> BTreeMap<&'static str, Vec<String>> {
        fn texts<T: ToString>(items: impl IntoIterator<Item = T>) -> Vec<String> {
            items.into_iter().map(|item| item.to_string()).collect()
        }
        let directories = |mounts: &BTreeMap<PathBuf, PathBuf>| {
            texts(mounts.iter().map(|(guest, host)| format!("{} = {}", guest.display(), host.display())))
        };
        let flag = |is_granted: bool| if is_granted { vec!["true".to_owned()] } else { Vec::new() };
        let mut kinds = BTreeMap::from([
            ("http", texts(&self.http)),
            ("private_networks", texts(&self.private_networks)),
            ("publish", texts(&self.publish)),
            ("mail", flag(self.mail)),
            ("keyvalue", flag(self.keyvalue)),
            ("secrets", texts(&self.secrets)),
            ("read", directories(&self.read)),
            ("write", directories(&self.write)),
        ]);
        kinds.retain(|_, granted| !granted.is_empty());
        kinds
    }
}

/// `http https://a.example; publish b, c`, or `nothing`.
impl fmt::Display for Grants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = self.by_kind();
        if kinds.is_empty() {
            return f.write_str("nothing");
        }
        let formatted: Vec<String> = kinds
            .into_iter()
            .map(
                |(kind, granted)| {
                    if granted == ["true"] { kind.to_owned() } else { format!("{kind} {}", granted.join(", ")) }
                },
            )
            .collect();
        f.write_str(&formatted.join("; "))
    }
}

/// All faults of a manifest, in the order of its text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct InvalidManifest(pub Vec<ManifestFault>);

/// Which topics a catch-all plugin handles. Those with a colon must be asked for
/// with `"*:*"`, because they may be keys of another deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatchAll {
    pub with_colons: bool,
}

impl CatchAll {
    pub fn includes(self, topic: &Topic) -> bool {
        self.with_colons || !topic.as_str().contains(':')
    }
}

/// The topic that a plugin file without a manifest is named after. Topic names
/// may have more characters than are allowed here.
pub fn topic_from_stem(stem: &str) -> Result<Topic, String> {
    Topic::from_file_name(stem).map_err(|error| error.to_string())
}

const CONCURRENCY: usize = 64;

impl Manifest {
    /// The defaults for a plugin without a manifest: one topic, no grants.
    pub fn default_for(topic: Topic) -> Self {
        Self {
            topics: vec![topic],
            catch_all: None,
            concurrency: CONCURRENCY,
            global_concurrency: None,
            instances: Instances::default(),
            args: Vec::new(),
            rate: None,
            batch: None,
            dedup: None,
            schedule: None,
            limits: Limits::default(),
            retry: RetryPolicy::default(),
            grants: Grants::default(),
            config: BTreeMap::new(),
            http_headers: BTreeMap::new(),
        }
    }

    pub fn is_catch_all(&self) -> bool {
        self.catch_all.is_some()
    }

    /// The value of `topics`, for display.
    pub fn topic_patterns(&self) -> Vec<&str> {
        match self.catch_all {
            Some(CatchAll { with_colons: false }) => vec!["*"],
            Some(CatchAll { with_colons: true }) => vec!["*", "*:*"],
            None => self.topics.iter().map(Topic::as_str).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
