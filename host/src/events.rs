//! Texts of log lines that something outside relies on: tests wait for them,
//! and operators alert on them. A text is changed here, for all of them.

// queue and worker

pub const OTHER_GROUPS: &str = "other groups read this stream: entries are acknowledged and not deleted";
pub const FOLLOW_UP_REFUSED: &str = "a topic refuses a follow-up: it is sent again later";
pub const FOLLOW_UPS_ACCEPTED: &str = "follow-ups are accepted again";
pub const UNSERVABLE_KEY: &str = "this key belongs to no legal topic: its messages are not run; rename or delete it";

// plugins

// settings, commands, HTTP
