//! What a worker does with a topic: it reads and settles messages, and maintains
//! leases, delayed messages, the outbox and the schedules.

mod ingest;
mod reader;
mod leases;
mod isolation;
mod dedup;
mod settle;
mod delayed;
mod outbox;
mod cron;
mod probe;
mod eviction;

pub use cron::{FireState, Schedules};
pub use dedup::{ClaimAnswer, ClaimRequest, ClaimTerms, Dedup};
pub use delayed::{Delayed, Promoted};
pub use eviction::{Evicted, Eviction};
pub use ingest::{ListEnd, ListIntake};
pub use isolation::Isolation;
pub use leases::{LeaseReset, Leases, NotRenewed, ReclaimTimeouts, Reclaimed};
pub use outbox::{OutboxRelay, Relayed};
pub use probe::{Probe, Probes};
pub use reader::{BlockingReader, FlowControl, Look, PollingReader, Take, unblock};
pub use settle::{Settled, Settlements};
