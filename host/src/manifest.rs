//! What a plugin may and how it is run: `<name>.toml` beside `<name>.wasm`.
//! Unknown keys are refused, and every fault is told at once with its line and
//! column.

mod headers;
mod origin;
mod read;
mod text;
mod value;

pub use headers::{Header, Piece};
pub use origin::Origin;
pub use text::Fault;
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
    /// Empty where it takes all topics that no other plugin claims.
    pub topics: Vec<Topic>,
    /// Messages in flight per topic and worker.
    pub concurrency: usize,
    /// Messages in flight per topic over all workers.
    pub concurrency_total: Option<usize>,
    pub instances: Instances,
    /// The words after its name that a command gets.
    pub args: Vec<String>,
    pub rate: Option<Rate>,
    pub batch: Option<Batch>,
    /// A message that has finished is not run again for so long.
    pub dedup: Option<Duration>,
    pub schedule: Option<Schedule>,
    pub limits: Limits,
    pub retry: RetryPolicy,
    pub grants: Grants,
    pub config: BTreeMap<String, String>,
    /// What the host adds to requests to an origin: the guest never sees it.
    pub http_headers: BTreeMap<Origin, Vec<Header>>,
}

/// How long an instance lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Instances {
    /// For one message, or one batch.
    #[default]
    PerMessage,
    /// For so many calls, or until it has been idle for so long; never after a
    /// call that did not return.
    Reused { calls: u32, idle: Duration },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Wall clock of a run, waiting in host calls included.
    pub timeout: Duration,
    pub cpu: Duration,
    /// Bytes over all memories of an instance.
    pub memory: u64,
    /// Elements over all tables of an instance.
    pub table_elements: u32,
    /// Things of the host that an instance holds at once: streams, requests.
    pub handles: u32,
    /// Bytes that one call may pass to the host.
    pub host_call: u64,
    /// Bytes of log a second.
    pub log: u64,
    /// Bytes of a request's body, and of a reply's.
    pub http_body: u64,
    /// Requests of a run that are under way at once.
    pub http_requests: u32,
    /// What the plugin may keep in its key-value store, over all workers.
    pub keyvalue: u64,
    pub keyvalue_keys: u64,
}

/// How many messages of a topic may begin in how long, over all workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub limit: u32,
    pub per: Duration,
}

/// How many messages a batch handler gets at once at the most, and how long
/// the first of them waits for the others.
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
            handles: 10_000,
            host_call: 32 * MIB,
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
    /// Addresses other than public ones that the names in `http` may lead to.
    pub networks: Vec<IpNet>,
    /// Topics that it may publish to.
    pub publish: BTreeSet<Topic>,
    pub mail: bool,
    pub keyvalue: bool,
    pub secrets: BTreeSet<SecretName>,
    /// Folders by the path that the guest sees.
    pub read: BTreeMap<PathBuf, PathBuf>,
    pub write: BTreeMap<PathBuf, PathBuf>,
}

impl Grants {
    /// How many folders are opened for each run.
    pub fn folders(&self) -> usize {
        self.read.len() + self.write.len()
    }

    /// Each kind that is granted, with what of it; for people and for status.
    pub fn by_kind(&self) -> BTreeMap<&'static str, Vec<String>> {
        fn texts<T: ToString>(items: impl IntoIterator<Item = T>) -> Vec<String> {
            items.into_iter().map(|item| item.to_string()).collect()
        }
        let folders = |folders: &BTreeMap<PathBuf, PathBuf>| {
            texts(folders.iter().map(|(guest, host)| format!("{} = {}", guest.display(), host.display())))
        };
        let flag = |is_granted: bool| if is_granted { vec!["true".to_owned()] } else { Vec::new() };
        let mut kinds = BTreeMap::from([
            ("http", texts(&self.http)),
            ("networks", texts(&self.networks)),
            ("publish", texts(&self.publish)),
            ("mail", flag(self.mail)),
            ("keyvalue", flag(self.keyvalue)),
            ("secrets", texts(&self.secrets)),
            ("read", folders(&self.read)),
            ("write", folders(&self.write)),
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
        let shown: Vec<String> = kinds
            .into_iter()
            .map(
                |(kind, granted)| {
                    if granted == ["true"] { kind.to_owned() } else { format!("{kind} {}", granted.join(", ")) }
                },
            )
            .collect();
        f.write_str(&shown.join("; "))
    }
}

/// All that is wrong with a manifest, in the order of its text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct BadManifest(pub Vec<Fault>);

const CONCURRENCY: usize = 64;

impl Manifest {
    /// What applies without a manifest: the file's stem is the topic, and
    /// nothing is granted.
    pub fn default_for(topic: Topic) -> Self {
        Self {
            topics: vec![topic],
            concurrency: CONCURRENCY,
            concurrency_total: None,
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

    /// Whether it takes the topics that no other plugin claims.
    pub fn takes_unclaimed(&self) -> bool {
        self.topics.is_empty()
    }
}

#[cfg(test)]
mod tests;
