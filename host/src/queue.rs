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
mod claim;
mod settlement;
mod delivery;
mod topic;
mod registry;
mod publish;
mod key_value;
mod workers;
mod overlap;
mod unservable;
mod discover;
mod consume;
mod legacy;
mod operate;

pub use crate::settings::RedisTarget;
pub use claim::Claim;
pub use consume::{
    BlockingReader, ClaimAnswer, ClaimRequest, ClaimTerms, Dedup, Delayed, Evicted, Eviction, FireState, FlowControl,
    Isolation, LeaseReset, Leases, ListEnd, ListIntake, Look, NotRenewed, OutboxRelay, PollingReader, Probe, Probes,
    Promoted, ReclaimTimeouts, Reclaimed, Relayed, Schedules, Settled, Settlements, Take, unblock,
};
pub use delivery::Delivery;
pub use discover::{TopicDiscovery, has_keys};
pub use error::QueueError;
pub use key_value::KeyValueStore;
pub use keyspace::{EntryId, StreamKind, consumer_name};
pub use legacy::{LegacyDelayed, LegacyHistory, LegacyPending, SweepCursor, Swept};
pub use operate::{
    Cancelled, ConsumerState, Found, MessageLocation, MessageSearch, PassedOver, Purge, Purged, TopicDetails, dead,
    ended_unrun, inspect, set_paused, topic_details,
};
pub use overlap::{Overlap, overlap};
pub use publish::Publisher;
pub use server::{Connection, Health, PolicyProblem, RedisClock, Trouble, check_policy};
pub use settlement::{DoneKind, ERROR_FIELD, Settlement};
pub use topic::{TopicFlags, TopicHandle, TopicKeys, TopicKind, open};
pub use unservable::UnservableKeys;
pub use workers::{announce, handled_topics};
