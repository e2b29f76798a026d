//! One topic: its names and keys, and what Redis says about it.

mod state;
pub(crate) mod reply;
mod handle;
pub(crate) mod groups;
pub(crate) mod markers;
mod open;

pub use handle::TopicHandle;
pub use open::open;
pub use state::{TopicFlags, TopicKeys, TopicKind};
