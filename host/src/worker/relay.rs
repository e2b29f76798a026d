//! The relay: brings follow-ups out of the outbox. By itself, since a part of a
//! cluster that does not answer must not hold up what else time brings.

use super::Lane;
use super::keep::BEAT;
use crate::queue::{OutboxRelay, QueueError};
use std::sync::atomic::Ordering;
use tokio_util::sync::CancellationToken;

impl Lane {
    pub(super) async fn relay_until(&self, drained: &CancellationToken) {
        let mut outbox = OutboxRelay::new(self.queue.handle.clone());
        loop {
            // What the last ones send on is not left behind.
            let is_last = drained.is_cancelled();
            if let Err(error) = self.relay(&mut outbox, is_last).await {
                // Of Redis as a whole the reader says what is the matter.
                tracing::debug!(topic = %self.topic(), %error, "not kept");
            }
            if is_last {
                return;
            }
            tokio::select! {
                _ = tokio::time::timeout(BEAT, self.outgoing.notified()) => {}
                () = drained.cancelled() => {}
            }
        }
    }

    /// Brings what there is, if there may be any.
    async fn relay(&self, outbox: &mut OutboxRelay, is_last: bool) -> Result<(), QueueError> {
        if !self.has_outgoing.load(Ordering::SeqCst) {
            return Ok(());
        }
        loop {
            let relayed = outbox.relay(self.settings.lease).await?;
            // What does not arrive is for others, where we stop.
            if !relayed.has_more || (is_last && relayed.arrived == 0) {
                break;
            }
        }
        // Something may be sent on meanwhile.
        self.has_outgoing.store(false, Ordering::SeqCst);
        if outbox.len().await.is_ok_and(|outgoing| outgoing == 0) {
            return Ok(());
        }
        self.has_outgoing.store(true, Ordering::SeqCst);
        Ok(())
    }
}
