//! What operators do with topics and messages, for the command line and the HTTP
//! API. The worker does not use this module.

pub mod inspect;
mod location;
mod search;
mod find;
mod pause;
mod never_ours;
mod purge;
mod details;
pub mod dead;

pub use details::{ConsumerState, PassedOver, TopicDetails, ended_unrun, topic_details};
pub use find::{Cancelled, Found, MessageSearch};
pub use location::MessageLocation;
pub use pause::set_paused;
pub use purge::{Purge, Purged};
