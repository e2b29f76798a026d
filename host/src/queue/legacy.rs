//! Everything about GinForge, whose workers and publishers this worker replaces and
//! may run alongside: their delayed messages, their pending entries, the history in
//! their streams and their dead letters.

mod dead_letter;
mod delayed;
mod pending;
mod history;

pub(crate) use dead_letter::LegacyDeadLetter;
pub use delayed::LegacyDelayed;
pub use history::{LegacyHistory, SweepCursor, Swept};
pub use pending::LegacyPending;
