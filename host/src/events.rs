//! Texts of log lines that something outside relies on: tests wait for them,
//! and operators alert on them. A text is changed here, for all of them.

// queue and worker
pub const DEAD_LETTERS_EVICTED: &str = "dead letters evicted";

// plugins

// settings, commands, HTTP
pub const FORCED_SHUTDOWN: &str = "forced shutdown: messages in flight run again when their leases expire";
pub const UNKNOWN_SETTING: &str = "unknown setting";
