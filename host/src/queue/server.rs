//! Connections to Redis: a single server, the master that sentinels name, or a
//! cluster.

mod clock;
mod diagnosis;
mod servers;
mod shared;
mod cluster_slots;
mod blocking;
mod connection;
mod policy;
mod scan;

pub(crate) use blocking::BlockingSlot;
pub use clock::RedisClock;
pub use connection::{Connection, Health, Trouble};
pub use policy::{PolicyProblem, check_policy};
pub(crate) use scan::KeyPages;
pub(crate) use shared::Shared;
