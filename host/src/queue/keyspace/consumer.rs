//! The names of our consumers. The lease of a worker ends the name, so that the
//! others know how long its silence may last, whatever their own settings are.

use std::time::Duration;
use uuid::Uuid;

/// A new name; no two are equal. `reclaim.lua` reads the lease from it.
pub fn consumer_name(lease: Duration) -> String {
    format!("{}.lease-{}", Uuid::new_v4(), lease.as_millis())
}
