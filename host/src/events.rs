//! Texts of log lines that something outside relies on: tests wait for them,
//! and operators alert on them. A text is changed here, for all of them.

// queue and worker

// plugins
pub const PLUGIN_LOADED: &str = "plugin loaded";
pub const PLUGIN_REFUSED: &str = "plugin refused";
pub const PLUGIN_REMOVED: &str = "plugin removed; messages of its topics wait";
pub const PLUGIN_UNREADABLE: &str = "the files of this plugin can't be read; it stays as it is";
pub const PLUGINS_DIR_UNREADABLE: &str = "the plugins directory can't be read; live plugins stay as they are";
pub const TOO_MANY_PLUGINS: &str = "too many plugin files: the first ignored one and all after it are not loaded";
pub const VERSION_WITHDRAWN: &str = "plugin version withdrawn; the previous version is live again";
pub const VERSION_RESTORED: &str =
    "the plugin's file is refused; the last good version from before the start is live instead: fix the file";
pub const VERSION_NOT_RESTORED: &str = "no earlier version of the plugin can be restored";
pub const VERSIONS_NOT_STORED: &str = "plugin versions are in memory only: after a restart a refused file has no \
    last good version to fall back to; set --plugins-cache to a private directory";
pub const COMPILED: &str = "compiled";
pub const ARTIFACT_DISCARDED: &str = "a compiled plugin in the cache is invalid; it is compiled again";
pub const MAIL_RELAY_UNUSABLE: &str = "the mail relay can't be used";
pub const MAIL_WRITTEN: &str = "mail written to a file, not sent";

/// Also printed by `gateway-worker plugin check`.
pub fn orphan_manifest(name: &str) -> String {
    format!("orphaned manifest: {name}.toml has no {name}.wasm beside it")
}

// settings, commands, HTTP
