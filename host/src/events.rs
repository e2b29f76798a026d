//! Texts of log lines that something outside relies on: tests wait for them,
//! and operators alert on them. A text is changed here, for all of them.

// queue and worker

// plugins
pub const LOG_LINES_DROPPED: &str = "log lines dropped: more than limits.log";
pub const NO_CA_CERTIFICATES: &str = "no https server can be verified";
pub const REQUEST_NOT_MADE: &str = "request not made";
pub const SECRET_READ: &str = "secret read";
pub const SECRET_UNAVAILABLE: &str = "a granted secret is unavailable";

// settings, commands, HTTP
