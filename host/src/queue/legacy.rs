//! Everything about GinForge's worker, the legacy worker that this one replaces
//! and may run beside: its delayed messages, its pending entries, the history in
//! its streams and its dead letters.

mod dead_letter;
mod delayed;
mod pending;
mod history;

pub(crate) use dead_letter::LegacyDeadLetter;
pub use delayed::LegacyDelayed;
pub use history::{LegacyHistory, SweepCursor};
pub use pending::LegacyPending;
