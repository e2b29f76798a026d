//! Texts of log lines that something outside relies on: tests wait for them,
//! and operators alert on them. A text is changed here, for all of them.

// worker
pub const REPEATED: &str = "repeated lines of this kind, as one";
pub const HANDLED: &str = "handled";
pub const SETTLED: &str = "settled";
pub const SETTLE_IGNORED: &str = "settlement ignored: the lease is no longer held, or it was settled before";
pub const SETTLE_DELAYED: &str = "settlement delayed, retrying";
pub const RECLAIMED: &str = "reclaimed after its worker's lease expired";
pub const RECLAIM_FAILED: &str = "reclaiming failed, retrying";
pub const RECOVERED: &str = "recovered deliveries after a lost reply";
pub const FETCHED_AGAIN: &str = "fetched again after a requeue";
pub const LEASES_LOST: &str = "leases lost: the messages may run twice";
pub const ENTRIES_DELETED: &str =
    "entries were deleted or trimmed while their messages are in flight: those that fail become dead letters";
pub const HISTORY_SWEPT: &str = "delivered history deleted: legacy workers and other groups leave what they finished";
pub const NEVER_OURS: &str = "these messages were passed over before this worker first read the stream, and are kept: \
    `XGROUP SETID <key> <group> 0` runs them, `gateway-worker topics purge` deletes them";
pub const RESTORED: &str = "unfinished messages had lost their pending rows, as by XGROUP DELCONSUMER: they run again";
pub const PARKED: &str = "parked: another message with its deduplication key runs";
pub const PARK_FAILED: &str = "copies can't be parked, retrying";
pub const NO_LONGER_OURS: &str = "delivery dropped: it is no longer pending for this worker";
pub const CLOCK_STEPPED: &str = "Redis' clock was set: every lease starts again";
pub const CLOCK_SKEWED: &str = "the clocks of this host and of Redis differ: messages expire and are due by Redis' clock, \
    and times in this log are the host's; synchronise both, for example by NTP";
pub const CLOCKS_AGREE: &str = "the clocks of this host and of Redis agree again";
pub const LEGACY_DUE_FAR: &str = "legacy delayed messages are due after the year 9999: their scores are probably \
    milliseconds, not seconds; add them again to this key with a score in seconds";
pub const GROUP_LOST: &str = "the consumer group is gone; creating it again";
pub const NOT_CONSUMING: &str = "consuming failed, retrying";
pub const TOPIC_OPENED: &str = "topic opened";
pub const SEAT_TAKEN: &str = "the topic is read by a connection of its own";
pub const TOPIC_LEFT: &str = "topic left";
pub const TOPIC_LEFT_WITH_LEASES: &str = "topic left without releasing its leases";
pub const TOPIC_PAUSED: &str = "topic paused";
pub const TOPIC_RESUMED: &str = "topic resumed";
pub const RUNNING_ISOLATED: &str = "running in isolation after worker crashes";
pub const WAITING_FOR_ISOLATION: &str = "waiting for running handlers, to run in isolation";
pub const REQUEUED_NOT_ISOLATED: &str = "requeued: it can't be isolated here now";
pub const ISOLATION_DELAYED: &str = "isolation delayed";
pub const ISOLATION_TIMED_OUT: &str = "isolation timed out: other handlers are still running";
pub const BATCH_SPLIT: &str = "the batch ended as a whole; running its messages one by one";
pub const RUN_PANICKED: &str = "the worker panicked while it ran a message";
pub const LEGACY_ACKNOWLEDGED: &str = "acknowledged messages that a legacy worker had copied and left pending";
pub const LIST_INTAKE_FAILED: &str = "list intake failed, retrying";
pub const PROMOTION_FAILED: &str = "promotion failed, retrying";
pub const PROBE_FAILED: &str = "probe failed, retrying";
pub const OUTBOX_FAILED: &str = "the outbox can't be relayed, retrying";
pub const JANITOR_FAILED: &str = "cleaning up failed, retrying";
pub const CONSUMERS_REMOVED: &str = "names of consumers that are gone removed";
pub const DEAD_LETTERS_EVICTED: &str = "dead letters evicted";
pub const SCHEDULE_FIRED: &str = "schedule fired";
pub const SCHEDULE_FAILED: &str = "schedule delayed, retrying";
pub const FIRE_TIMES_SKIPPED: &str = "too many fire times were missed; the oldest are skipped";
pub const MAIL_WITHOUT_RELAY: &str =
    "grants.mail is true, but this host has no mail relay: its mails fail until mail.relay (GATEWAY_MAIL_RELAY) is set";
pub const SHUTDOWN_CUT_OFF: &str =
    "the shutdown is cut off at its timeout: leases that were not given back end by themselves";
pub const SHUTDOWN_TIMED_OUT: &str = "shutdown timeout reached: messages in flight are requeued";
pub const UNDERSCORED_TOPIC: &str =
    "nothing was ever published to this topic, but to the same name with dots, which has no handler here";
pub const SHUTTING_DOWN: &str = "gateway-worker shutting down";
pub const STOPPED: &str = "gateway-worker stopped";
pub const TASK_FAILED: &str = "background task failed";
pub const PART_FAILED: &str = "a part of the worker ended unasked: leases are no longer renewed, and the process ends";
pub const PANICKED: &str = "the worker panicked";

// log
pub const LOG_NOT_WRITTEN: &str = "log lines were dropped, because stdout was full, closed or not read";

// queue
pub const REDIS_SERVES: &str = "Redis answers";
pub const REDIS_AWAY: &str = "Redis does not answer";
pub const REDIS_UNWRITABLE: &str = "Redis takes no writes: no message can be fetched or settled";
pub const PRESENCE_REFUSED: &str = "Redis lets this worker not write its presence: commands say that its topics have no \
    handler; grant its user the key";

pub const OTHER_GROUPS: &str = "other groups read this stream: entries are acknowledged and not deleted";
pub const FOLLOW_UP_REFUSED: &str = "a topic refuses a follow-up: it is sent again later";
pub const FOLLOW_UPS_ACCEPTED: &str = "follow-ups are accepted again";
pub const UNSERVABLE_KEY: &str = "this key belongs to no legal topic: its messages are not run; rename or delete it";

pub const PREFIX_OVERLAP: &str = "the prefix of another deployment begins this one";
pub const PREFIX_FREE: &str = "no other deployment's prefix begins this one any more";
pub const PREFIX_UNCHECKED: &str = "whether another deployment's prefix begins this one is unknown, because Redis \
    lets this user not look: prefixes of which neither begins with the other are safe";

// plugins
pub const LOG_LINES_DROPPED: &str = "log lines dropped: more than limits.log";
pub const NO_CA_CERTIFICATES: &str = "no https server can be verified";
pub const REQUEST_NOT_MADE: &str = "request not made";
pub const SECRET_READ: &str = "secret read";
pub const SECRET_UNAVAILABLE: &str = "a granted secret is unavailable";
pub const PLUGIN_LOADED: &str = "plugin loaded";
pub const PLUGIN_REFUSED: &str = "plugin refused";
pub const PLUGIN_REMOVED: &str = "plugin removed; messages of its topics wait";
pub const PLUGIN_UNREADABLE: &str = "the files of this plugin can't be read; it stays as it is";
pub const PLUGINS_DIR_UNREADABLE: &str = "the plugins directory can't be read; live plugins stay as they are";
pub const PLUGINS_DIR_READABLE: &str = "the plugins directory can be read again";
pub const TOO_MANY_PLUGINS: &str = "too many plugin files: the first ignored one and all after it are not loaded";
pub const VERSION_WITHDRAWN: &str = "plugin version withdrawn; the previous version is live again";
pub const VERSION_RESTORED: &str =
    "the plugin's file is refused; the last good version from before the start is live instead: fix the file";
pub const VERSION_NOT_RESTORED: &str = "no earlier version of the plugin can be restored";
pub const VERSIONS_NOT_STORED: &str = "plugin versions are in memory only: after a restart a refused file has no \
    last good version to fall back to; set --plugins-cache to a private directory";
pub const COMPILED: &str = "compiled";
pub const NO_CACHE: &str = "compiled plugins are not cached";
pub const ARTIFACT_DISCARDED: &str = "a compiled plugin in the cache is invalid; it is compiled again";
pub const MAIL_RELAY_UNUSABLE: &str = "the mail relay can't be used";
pub const MAIL_RECIPIENTS_REFUSED: &str = "the mail relay refuses recipients";
pub const MAIL_WRITTEN: &str = "mail written to a file, not sent";

/// Why a topic is refused to a plugin: another one has it. `topic` is `None` for
/// the catch-all.
pub fn topic_conflict(topic: Option<&str>, owner: &str, name: &str) -> String {
    match topic {
        Some(topic) => format!("topic {topic} is handled by {owner}.wasm: remove the topic there, or from {name}"),
        None => format!(
            "{owner}.wasm is already the catch-all plugin (topics = [\"*\"]): name topics there, or in {name}.toml"
        ),
    }
}

/// Also printed by `gateway-worker plugin check`.
pub fn orphan_manifest(name: &str) -> String {
    format!("orphaned manifest: {name}.toml has no {name}.wasm next to it")
}

// settings, commands, HTTP
pub const FORCED_SHUTDOWN: &str = "forced shutdown: messages in flight run again when their leases expire";
pub const WRONG_TOKEN: &str = "requests with a wrong token were refused";
pub const CHANGE_REQUESTED: &str = "a change was requested over HTTP";
pub const SERVICE_VARIABLE: &str = "a variable is passed over";
pub const UNKNOWN_SETTING: &str = "unknown setting";
