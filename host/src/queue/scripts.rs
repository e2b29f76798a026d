//! The Lua scripts, each compiled in beside the code that calls it. A script
//! that the server has forgotten is loaded again by the client.

use redis::Script;
use std::sync::LazyLock;

/// Who goes through much in a script, which nothing else runs beside, stops
/// once it has seen so many bytes. Redis takes some milliseconds for them.
pub(super) const PIECE_BYTES: usize = 1 << 20;

macro_rules! script {
    ($name:ident, $($file:literal),+) => {
        pub(super) static $name: LazyLock<Script> = LazyLock::new(|| Script::new(concat!($(include_str!($file), "\n"),+)));
    };
}

script!(CANCEL, "waiting.lua", "cancel.lua");
script!(CRON, "common.lua", "cron.lua");
script!(DEAD_DROP, "common.lua", "dead_drop.lua");
script!(DEAD_EDIT, "common.lua", "dead_edit.lua");
script!(DEAD_REPLAY, "common.lua", "dead_replay.lua");
script!(DONE, "done.lua");
script!(DUE_LEGACY, "common.lua", "due_legacy.lua");
script!(FORGET, "forget.lua");
script!(GIVE_BACK, "give_back.lua");
script!(HAND_ON, "hand_on.lua");
script!(INGEST, "ingest.lua");
script!(KEY_VALUE, "key_value.lua");
script!(LEAVE, "leave.lua");
script!(LOOK, "common.lua", "waiting.lua", "look.lua");
script!(OPEN, "open.lua");
script!(PROMOTE, "common.lua", "promote.lua");
script!(PROMOTE_LEGACY, "common.lua", "promote_legacy.lua");
script!(PUBLISH, "common.lua", "publish.lua");
script!(PURGE, "waiting.lua", "purge.lua");
script!(READ, "common.lua", "read.lua");
script!(RECONCILE, "reconcile.lua");
script!(RELAY, "relay.lua");
script!(RELAYED, "relayed.lua");
script!(RENEW, "renew.lua");
script!(RESTAMP, "restamp.lua");
script!(SETTLE, "common.lua", "settle.lua");
script!(SUPERSEDE, "supersede.lua");
script!(SUSPECT, "suspect.lua");
script!(SWEEP, "sweep.lua");
script!(TAKE, "common.lua", "take.lua");
script!(TAKE_OVER, "take_over.lua");
