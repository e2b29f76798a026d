//! The decisions that the rules need and that the source does not show. An
//! entry that is no longer needed fails its test, so that the tables shrink.

use super::owners::Owners::{self, Everybody, Rooms};
use super::owners::Restricted;

/// Rooms where a file uses one below it, or two files use each other.
pub(super) const UNCLEAN_ROOMS: &[(&str, &str)] = &[
    ("admin", "its parts use what the parent declares, and the `mod` lines are in alphabetical order"),
    ("cli", "the commands use what the parent declares, and the `mod` lines are in alphabetical order"),
    ("cli/dead", "the commands use what the parent declares"),
    ("manifest", "the `mod` lines are in alphabetical order"),
    ("message", "edit uses the names of the fields that the parent declares"),
    ("plugin", "rooms follow"),
    ("plugin/deployment", "rooms follow"),
    ("plugin/http", "rooms follow"),
    ("settings", "the parts use functions of the parent, and the `mod` lines are in alphabetical order"),
];

/// Files or rooms with an `impl` of a type that is declared elsewhere; `*` is every type.
pub(super) const MISPLACED_IMPLS: &[(&str, &str)] = &[
    ("admin/plugins", "Problem"),
    ("plugin/call", "Plugin"),
    ("plugin/http", "Guest"),
    ("plugin/imports", "Guest"),
    ("plugin/imports", "Fault"),
    ("plugin/imports/publisher", "RunState"),
];

/// The first room must not use the second one, although that is above it.
pub(super) const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("plugin", "queue", "the sandbox and Redis do not know each other: the worker connects them"),
    ("worker", "queue/operate", "what operators do is out of the worker's reach"),
    ("queue/operate", "queue/consume", "what operators do needs nothing of what the worker does"),
    ("queue/legacy", "queue/consume", "the legacy room can be deleted without a change elsewhere in the queue"),
];

/// The rooms that may name a dependency of the host.
pub(super) const CRATES: &[(&str, Owners)] = &[
    ("arc_swap", Rooms(&["plugin", "queue", "worker"])),
    ("async_trait", Rooms(&["capability", "mail", "queue"])),
    ("axum", Rooms(&["admin"])),
    ("base64", Rooms(&["message", "publication"])),
    ("bytes", Rooms(&["plugin"])),
    ("bytesize", Rooms(&["manifest", "settings", "cli"])),
    ("clap", Rooms(&["publication", "settings", "plugin/compile", "cli"])),
    ("croner", Rooms(&["schedule"])),
    ("crossbeam_utils", Rooms(&["plugin"])),
    ("fastrand", Rooms(&["worker"])),
    ("http_body_util", Rooms(&["plugin", "cli"])),
    ("humantime", Rooms(&["manifest", "settings", "cli"])),
    ("hyper", Rooms(&["plugin", "admin", "cli"])),
    ("hyper_rustls", Rooms(&["plugin"])),
    ("hyper_util", Rooms(&["plugin", "admin", "cli"])),
    ("idna", Rooms(&["settings", "mail"])),
    ("ipnet", Rooms(&["manifest", "plugin"])),
    ("jiff", Everybody("times of messages, schedules and logs")),
    ("lettre", Rooms(&["mail"])),
    ("notify", Rooms(&["plugin"])),
    ("percent_encoding", Rooms(&["settings"])),
    ("prometheus_client", Rooms(&["metrics"])),
    ("redis", Rooms(&["queue"])),
    ("rustix", Rooms(&["plugin", "app", "private_redis"])),
    ("rustls", Rooms(&["tls", "queue", "plugin"])),
    ("serde", Everybody("each room reads or writes JSON or TOML")),
    ("serde_json", Everybody("messages and answers are JSON")),
    ("sha2", Rooms(&["queue", "plugin", "mail", "admin"])),
    ("strsim", Rooms(&["settings", "cli"])),
    ("terminal_size", Rooms(&["cli"])),
    ("thiserror", Everybody("each room has its errors")),
    ("tokio", Everybody("tasks, waits and channels")),
    ("tokio_util", Everybody("the tokens that end tasks")),
    ("toml", Rooms(&["schedule", "manifest", "settings"])),
    ("tower_service", Rooms(&["plugin", "admin"])),
    ("tracing", Everybody("each room logs")),
    ("tracing_subscriber", Rooms(&["run_span", "log"])),
    ("unicode_width", Rooms(&["cli"])),
    ("url", Rooms(&["manifest", "settings", "plugin", "cli"])),
    ("uuid", Rooms(&["plugin", "queue", "app", "cli"])),
    ("wasmtime", Rooms(&["plugin"])),
    ("wasmtime_wasi", Rooms(&["plugin"])),
    ("wasmtime_wasi_http", Rooms(&["plugin"])),
    ("wiggle", Rooms(&["plugin"])),
];

pub(super) const ENVIRONMENT: Restricted = Restricted {
    paths: &["std::env::var", "std::env::var_os", "std::env::vars", "std::env::vars_os"],
    room: "",
    allowed: &[
        ("settings", "a variable that is read elsewhere is missing in the list of settings"),
        ("private_redis", "searches PATH for redis-server"),
    ],
    reason: "only the settings read the environment",
};

pub(super) const CLOCK: Restricted = Restricted {
    paths: &["jiff::Timestamp::now", "jiff::Zoned::now", "std::time::SystemTime"],
    room: "queue",
    allowed: &[(
        "queue/server/clock",
        "by how much the host's clock differs, and the only one before Redis has answered",
    )],
    reason: "the clocks of two workers differ: Redis says what is due and for how long something has been so",
};

/// The only file with unsafe code.
pub(super) const UNSAFE: &str = "plugin/cache.rs";
