//! Compiles in the Lua scripts of this directory. The client reloads a script
//! that the server does not have any more.

use redis::Script;
use std::sync::LazyLock;

/// The server runs nothing else during a script, so a script that reads many
/// messages stops after this many bytes. Redis needs some milliseconds for them.
pub(crate) const BATCH_BYTES: usize = 1 << 20;

macro_rules! script {
    ($name:ident, $($file:literal),+) => {
        pub(crate) static $name: LazyLock<Script> = LazyLock::new(|| Script::new(concat!($(include_str!($file), "\n"),+)));
    };
}

script!(CANCEL, "waiting.lua", "cancel.lua");
script!(DEAD_EDIT, "common.lua", "dead_edit.lua");
script!(DEAD_EVICT, "common.lua", "dead_evict.lua");
script!(DEAD_PURGE, "common.lua", "dead_purge.lua");
script!(DEAD_REPLAY, "common.lua", "dead_replay.lua");
script!(INGEST, "ingest.lua");
script!(ISOLATE, "isolate.lua");
script!(KEY_VALUE, "key_value.lua");
script!(LEGACY_ACKNOWLEDGE, "legacy_acknowledge.lua");
script!(LEGACY_CLAIM_DUE, "common.lua", "legacy_claim_due.lua");
script!(LEGACY_PROMOTE, "common.lua", "legacy_promote.lua");
script!(LEGACY_SWEEP, "legacy_sweep.lua");
script!(OPEN, "open.lua");
script!(OUTBOX_DELETE, "outbox_delete.lua");
script!(OUTBOX_TAKE, "outbox_take.lua");
script!(PROMOTE, "common.lua", "promote.lua");
script!(PRUNE_CONSUMERS, "prune_consumers.lua");
script!(PUBLISH, "common.lua", "publish.lua");
script!(PURGE, "waiting.lua", "purge.lua");
script!(READ_STREAM, "common.lua", "read_stream.lua");
script!(RECLAIM, "reclaim.lua");
script!(RECONCILE, "reconcile.lua");
script!(REMOVE_CONSUMER, "remove_consumer.lua");
script!(RENEW, "renew.lua");
script!(REQUEUE, "requeue.lua");
script!(REQUEUE_EXCEPT, "requeue_except.lua");
script!(RESET_LEASES, "reset_leases.lua");
script!(SCHEDULE, "common.lua", "schedule.lua");
script!(SEARCH, "common.lua", "waiting.lua", "search.lua");
script!(SETTLE, "common.lua", "settle.lua");
script!(SETTLE_DONE, "settle_done.lua");
script!(TAKE_NEW, "common.lua", "take_new.lua");
