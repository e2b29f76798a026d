//! Compiles in the Lua scripts of this directory. The client reloads a script
//! that the server does not have any more.

use redis::Script;
use std::ops::Range;
use std::sync::LazyLock;

/// The server runs nothing else during a script, so a script that reads many
/// messages stops after this many bytes. Redis needs some milliseconds for them.
pub(crate) const BATCH_BYTES: usize = 1 << 20;

/// Splits items of these sizes: a server closes the connection of a client whose
/// command is too long, and a script that reads much stops all others.
pub(crate) fn batches(sizes: impl IntoIterator<Item = usize>, count_max: usize) -> Vec<Range<usize>> {
    let (mut batches, mut first, mut end, mut bytes) = (Vec::new(), 0, 0, 0);
    for size in sizes {
        if end > first && (bytes + size > BATCH_BYTES || end - first == count_max) {
            batches.push(first..end);
            (first, bytes) = (end, 0);
        }
        bytes += size;
        end += 1;
    }
    if first < end {
        batches.push(first..end);
    }
    batches
}

macro_rules! script {
    ($name:ident, $($file:literal),+) => {
        pub(crate) static $name: LazyLock<Script> = LazyLock::new(|| Script::new(concat!($(include_str!($file), "\n"),+)));
    };
}

script!(CANCEL, "common.lua", "dedup.lua", "order.lua", "waiting.lua", "cancel.lua");
script!(CLAIM, "common.lua", "dedup.lua", "claim.lua");
script!(DEAD_EDIT, "common.lua", "dead_edit.lua");
script!(DEAD_EVICT, "common.lua", "dead_evict.lua");
script!(DEAD_PURGE, "common.lua", "dead_purge.lua");
script!(DEAD_REPLAY, "common.lua", "dead_replay.lua");
script!(EXTEND_CLAIMS, "common.lua", "dedup.lua", "extend_claims.lua");
script!(FINISHED, "common.lua", "dedup.lua", "finished.lua");
script!(INGEST, "ingest.lua");
script!(ISOLATE, "isolate.lua");
script!(KEY_VALUE, "key_value.lua");
script!(LEGACY_ACKNOWLEDGE, "legacy_acknowledge.lua");
script!(LEGACY_CLAIM_DUE, "common.lua", "legacy_claim_due.lua");
script!(LEGACY_PROMOTE, "common.lua", "legacy_promote.lua");
script!(NEVER_OURS, "order.lua", "delivered.lua", "never_ours.lua");
script!(OPEN, "order.lua", "open.lua");
script!(OUTBOX_DELETE, "outbox_delete.lua");
script!(OUTBOX_TAKE, "outbox_take.lua");
script!(PROMOTE, "common.lua", "promote.lua");
script!(PRUNE_CONSUMERS, "prune_consumers.lua");
script!(PUBLISH, "common.lua", "publish.lua");
script!(PURGE, "common.lua", "dedup.lua", "order.lua", "waiting.lua", "purge.lua");
script!(READ_STREAM, "common.lua", "read_stream.lua");
script!(RECLAIM, "reclaim.lua");
script!(RECONCILE, "reconcile.lua");
script!(REMOVE_CONSUMER, "remove_consumer.lua");
script!(RENEW, "renew.lua");
script!(REQUEUE, "requeue.lua");
script!(REQUEUE_EXCEPT, "requeue_except.lua");
script!(RESET_LEASES, "reset_leases.lua");
script!(RESTORE, "order.lua", "delivered.lua", "restore.lua");
script!(SCHEDULE, "common.lua", "schedule.lua");
script!(SEARCH, "common.lua", "order.lua", "waiting.lua", "search.lua");
script!(SETTLE, "common.lua", "dedup.lua", "order.lua", "acknowledge.lua", "settle.lua");
script!(SETTLE_CLAIMED, "common.lua", "dedup.lua", "order.lua", "acknowledge.lua", "settle_claimed.lua");
script!(SETTLE_DONE, "order.lua", "acknowledge.lua", "settle_done.lua");
script!(SWEEP, "order.lua", "delivered.lua", "sweep.lua");
script!(TAKE_NEW, "common.lua", "take_new.lua");
