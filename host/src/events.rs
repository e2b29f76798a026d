//! Texts of log lines that something outside relies on: tests wait for them,
//! and operators alert on them. A text is changed here, for all of them.

// queue and worker

// plugins

// settings, commands, HTTP
pub const UNKNOWN_SETTING: &str = "unknown setting";
