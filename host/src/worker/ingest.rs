//! The ingester: moves what plain clients push into a list to where it can be
//! leased. A list stays one for those who know of it, also while it is drained.

use super::{Lane, PAUSE_MAX};
use crate::queue::{BlockingReader, ListEnd, QueueError};
use crate::settings::ListHead;
use std::time::Duration;

/// How long one wait for the list lasts, and so how long a piece that a lost
/// worker had in hand may lie.
const WAIT: Duration = Duration::from_secs(4);

impl Lane {
    pub(super) async fn ingest_until_stopped(&self) {
        let mut is_list = self.is_list.subscribe();
        while !self.stop.is_cancelled() {
            if !*is_list.borrow_and_update() {
                tokio::select! {
                    changed = is_list.changed() => if changed.is_err() { return },
                    () = self.stop.cancelled() => return,
                }
                continue;
            }
            let ended = self.ingest().await;
            // It may be no list any more, or what was moved last came unseen.
            self.look_again().await;
            if let Err(error) = ended {
                tracing::warn!(topic = %self.topic(), %error, retry_in = ?PAUSE_MAX, "the list is not taken from");
                let _ = tokio::time::timeout(PAUSE_MAX, self.stop.cancelled()).await;
            }
        }
    }

    /// One connection's life. Where the publishers' end is not known, both have
    /// their turn, and the whole list is moved each time.
    async fn ingest(&self) -> Result<(), QueueError> {
        let mut reader = BlockingReader::connect(&self.queue.handle).await?;
        let mut end = match self.settings.list_head {
            ListHead::Left => ListEnd::Left,
            ListHead::Right | ListHead::Both => ListEnd::Right,
        };
        while !self.stop.is_cancelled() && *self.is_list.borrow() {
            if self.queue.list_intake.move_batch(end).await? == 0 {
                // Ended by the stop: what it moves is safe wherever it is then.
                tokio::select! {
                    moved = reader.wait_for_list(end, WAIT) => { moved?; }
                    () = self.stop.cancelled() => {}
                }
            }
            if self.settings.list_head == ListHead::Both {
                end = end.other();
            }
        }
        Ok(())
    }
}
