//! The names of all Redis keys and of the streams among them.

mod key_name;
mod keys;
mod stream;

pub(crate) use key_name::{Family, KeyName};
pub(crate) use keys::{KeyValueKeys, Keys, group, workers};
pub use stream::{EntryId, StreamKind};
