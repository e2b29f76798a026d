//! Connections for blocking reads, and who may end such a read early.

use super::servers::Node;
use super::shared::Shared;
use crate::queue::QueueError;
use redis::aio::MultiplexedConnection;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where a reader sits, for as long as it reads.
pub(in crate::queue) struct Seat {
    id: i64,
    readers: Arc<Readers>,
}

/// The readers that there are. Redis' ids of clients are each server's own, so
/// readers are known by ids of ours.
#[derive(Default)]
pub(super) struct Readers {
    last_id: AtomicI64,
    open: Mutex<HashMap<i64, (Node, i64)>>,
}

impl Seat {
    /// With a connection that the reader has for itself.
    pub(super) async fn take(node: Node, readers: &Arc<Readers>) -> Result<(MultiplexedConnection, Self), QueueError> {
        let mut connection = node.connect_patiently().await?;
        let client_id = redis::cmd("CLIENT").arg("ID").query_async(&mut connection).await?;
        let id = readers.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        readers.open().insert(id, (node, client_id));
        Ok((connection, Self { id, readers: readers.clone() }))
    }

    /// Never 0.
    pub(in crate::queue) fn id(&self) -> i64 {
        self.id
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.readers.open().remove(&self.id);
    }
}

impl Readers {
    fn open(&self) -> MutexGuard<'_, HashMap<i64, (Node, i64)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a reader's read, on the server that it reads from.
    pub(super) async fn unblock(&self, id: i64, shared: &mut Shared) -> Result<(), QueueError> {
        let Some((node, client_id)) = self.open().get(&id).cloned() else { return Ok(()) };
        let mut command = redis::cmd("CLIENT");
        command.arg("UNBLOCK").arg(client_id);
        if shared.is_at(&node) {
            return Ok(command.query_async(shared).await?);
        }
        Ok(command.query_async(&mut node.connect().await?).await?)
    }
}
