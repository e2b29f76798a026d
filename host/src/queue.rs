//! The Redis edge: the only module that talks to Redis. It delivers messages
//! and applies settlements; what a message means, and what happens after its
//! run, is decided elsewhere.
//!
//! Each state change of a message is one Lua script, so it happens completely
//! or not at all, and each script may be sent twice. The rooms are listed in
//! order: each uses only those above it.

mod error;
mod keyspace;
mod server;
mod lua;
mod settlement;
mod delivery;
mod topic;
mod publish;
mod key_value;
mod workers;
mod discover;
mod consume;
mod legacy;
mod operate;

pub use crate::settings::RedisTarget;
pub use consume::{
    BlockingReader, Dedup, Delayed, Evicted, Eviction, FireState, FlowControl, Isolation, LeaseReset, Leases, ListEnd,
    ListIntake, OutboxRelay, Probe, Probes, Promoted, ReclaimTimeouts, Reclaimed, RedisClock, Relayed, Schedules,
    Settled, Settlements, Take, unblock,
};
pub use delivery::Delivery;
pub use discover::{TopicDiscovery, has_keys};
pub use error::QueueError;
pub use key_value::KeyValueStore;
pub use keyspace::{EntryId, StreamKind};
pub use legacy::{LegacyDelayed, LegacyHistory, LegacyPending, SweepCursor};
pub use operate::{
    Cancelled, ConsumerState, Found, MessageLocation, MessageSearch, Purge, Purged, TopicDetails, dead, inspect,
    set_paused, topic_details,
};
pub use publish::Publisher;
pub use server::{Connection, Health, check_policy};
pub use settlement::{DoneKind, ERROR_FIELD, Settlement};
pub use topic::{TopicFlags, TopicHandle, TopicKeys, TopicKind, open};
pub use workers::{announce, handled_topics};
