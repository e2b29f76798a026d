//! The slots for connections. Anyone may connect, so a stranger must not keep others
//! out: where all slots are taken, a new connection gets that of the one that has
//! waited longest for its client; and only so many connections may be busy with
//! something other than a probe.

use axum::body::{Body, Bytes};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

const CONNECTIONS_MAX: usize = 512;

/// Requests other than probes that are answered at the same time.
const REQUESTS_MAX: usize = 256;

pub(super) struct Slots {
    connections: Mutex<BTreeMap<u64, Connection>>,
    last_id: AtomicU64,
    free: Arc<Semaphore>,
    requests: Arc<Semaphore>,
}

struct Connection {
    /// Since when it has waited for its client; none while a request is answered.
    waiting_since: Option<Instant>,
    evicted: CancellationToken,
}

/// A connection's slot, for as long as it lives.
pub(super) struct Slot {
    slots: Arc<Slots>,
    id: u64,
    pub(super) evicted: CancellationToken,
    _free: OwnedSemaphorePermit,
}

/// A request that is answered, until all of its response was handed over.
pub(super) struct Answering {
    slots: Arc<Slots>,
    id: u64,
    _request: Option<OwnedSemaphorePermit>,
}

impl Slots {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            connections: Mutex::default(),
            last_id: AtomicU64::new(0),
            free: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
        })
    }

    /// A slot for a new connection. Others make room for it.
    pub(super) async fn take(self: &Arc<Self>) -> Option<Slot> {
        let free = match self.free.clone().try_acquire_owned() {
            Ok(free) => free,
            Err(_) => {
                self.evict_longest_waiting();
                // The semaphore is never closed.
                self.free.clone().acquire_owned().await.ok()?
            }
        };
        let id = self.last_id.fetch_add(1, Ordering::Relaxed);
        let evicted = CancellationToken::new();
        let connection = Connection { waiting_since: Some(Instant::now()), evicted: evicted.clone() };
        self.connections().insert(id, connection);
        Some(Slot { slots: self.clone(), id, evicted, _free: free })
    }

    fn evict_longest_waiting(&self) {
        let mut connections = self.connections();
        let waiting = connections.iter().filter_map(|(id, one)| Some((one.waiting_since?, *id)));
        if let Some((_, id)) = waiting.min()
            && let Some(evicted) = connections.remove(&id)
        {
            evicted.evicted.cancel();
        }
    }

    fn connections(&self) -> MutexGuard<'_, BTreeMap<u64, Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_waiting(&self, id: u64, since: Option<Instant>) {
        if let Some(connection) = self.connections().get_mut(&id) {
            connection.waiting_since = since;
        }
    }
}

impl Slot {
    /// Begins to answer a request. None if too many requests are answered already; a
    /// probe is never one of them.
    pub(super) fn answer(&self, is_probe: bool) -> Option<Answering> {
        let request = match is_probe {
            true => None,
            false => Some(self.slots.requests.clone().try_acquire_owned().ok()?),
        };
        self.slots.set_waiting(self.id, None);
        Some(Answering { slots: self.slots.clone(), id: self.id, _request: request })
    }

    /// Whether no request is being answered.
    pub(super) fn is_waiting(&self) -> bool {
        self.slots.connections().get(&self.id).is_none_or(|one| one.waiting_since.is_some())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.connections().remove(&self.id);
    }
}

impl Answering {
    /// The response, which keeps the request busy until its body was handed over.
    pub(super) fn until_sent(self, response: Response) -> Response {
        response.map(|body| Body::new(Counted { body, _answering: self }))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.slots.set_waiting(self.id, Some(Instant::now()));
    }
}

struct Counted {
    body: Body,
    _answering: Answering,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::JoinSet;

    #[tokio::test]
    async fn the_connection_that_waited_longest_makes_room_and_busy_ones_do_not() {
        let slots = Slots::new();
        let mut taken = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            taken.push(slots.take().await.unwrap());
        }
        let busy = taken[0].answer(false).unwrap();
        let mut next = JoinSet::new();
        let waiting = slots.clone();
        next.spawn(async move { waiting.take().await.is_some() });
        taken[1].evicted.cancelled().await;
        assert!(!taken[0].evicted.is_cancelled() && !taken[2].evicted.is_cancelled());
        taken.remove(1);
        assert!(next.join_next().await.unwrap().unwrap());
        drop(busy);
        // It waits again, but not for as long as the others.
        slots.evict_longest_waiting();
        assert!(!taken[0].evicted.is_cancelled() && taken[1].evicted.is_cancelled());
    }

    #[tokio::test]
    async fn probes_are_answered_however_many_requests_there_are() {
        let (slots, mut answered) = (Slots::new(), Vec::new());
        let slot = slots.take().await.unwrap();
        for _ in 0..REQUESTS_MAX {
            answered.push(slot.answer(false).unwrap());
        }
        assert!(slot.answer(false).is_none());
        assert!(slot.answer(true).is_some());
        answered.pop();
        assert!(slot.answer(false).is_some());
    }

    #[tokio::test]
    async fn a_request_is_answered_until_its_body_is_dropped() {
        let slots = Slots::new();
        let slot = slots.take().await.unwrap();
        assert!(slot.is_waiting());
        let response = slot.answer(true).unwrap().until_sent(Response::new(Body::from("x")));
        assert!(!slot.is_waiting());
        assert_eq!(hyper::body::Body::size_hint(response.body()).exact(), Some(1));
        drop(response);
        assert!(slot.is_waiting());
    }
}
