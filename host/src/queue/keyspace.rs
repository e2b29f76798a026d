//! The names of all Redis keys and of the streams among them.

mod consumer;
mod key_name;
mod keys;
mod stream;

pub use consumer::consumer_name;
pub(crate) use key_name::{Family, KeyName};
pub(crate) use keys::{KeyValueKeys, Keys, digest, group, topics, workers};
pub(crate) use stream::position;
pub use stream::{EntryId, StreamKind};
