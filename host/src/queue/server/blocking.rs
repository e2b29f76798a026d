//! Connections for blocking reads, and how such a read is ended early.

use super::servers::Node;
use super::shared::Shared;
use crate::queue::error::QueueError;
use redis::aio::MultiplexedConnection;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The registration of one blocking reader; dropping it removes the reader.
pub(crate) struct BlockingSlot {
    id: i64,
    readers: Arc<BlockingReaders>,
}

/// The connected readers. Redis' client ids are unique only within a server, so
/// readers get ids of this process.
#[derive(Default)]
pub(crate) struct BlockingReaders {
    last_id: AtomicI64,
    open: Mutex<HashMap<i64, (Node, i64)>>,
}

impl BlockingSlot {
    pub(crate) async fn connect(
        node: Node,
        readers: &Arc<BlockingReaders>,
    ) -> Result<(MultiplexedConnection, Self), QueueError> {
        let mut connection = node.connect_without_timeout().await?;
        let client_id = redis::cmd("CLIENT").arg("ID").query_async(&mut connection).await?;
        let id = readers.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        readers.open().insert(id, (node, client_id));
        Ok((connection, Self { id, readers: readers.clone() }))
    }

    /// Never 0.
    pub(crate) fn id(&self) -> i64 {
        self.id
    }
}

impl Drop for BlockingSlot {
    fn drop(&mut self) {
        self.readers.open().remove(&self.id);
    }
}

impl BlockingReaders {
    fn open(&self) -> MutexGuard<'_, HashMap<i64, (Node, i64)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a reader's read on the server that it reads from.
    pub(crate) async fn unblock(&self, id: i64, shared: &mut Shared) -> Result<(), QueueError> {
        let Some((node, client_id)) = self.open().get(&id).cloned() else { return Ok(()) };
        let mut command = redis::cmd("CLIENT");
        command.arg("UNBLOCK").arg(client_id);
        if shared.is_at(&node) {
            return Ok(command.query_async(shared).await?);
        }
        Ok(command.query_async(&mut node.connect().await?).await?)
    }
}
