//! The model of transfers between keys: due messages, lists, the outbox; and of what
//! a legacy worker does meanwhile.

use super::world::{Kind, Location, WORKERS, World, id_in, key_of, plain};
use crate::support::{Entry, field};
use gateway_worker::queue::{ListEnd, OutboxRelay, StreamKind};
use proptest::prelude::*;
use std::time::Duration;

/// The ids and fields of entries.
type Entries = Vec<(String, Entry)>;

#[derive(Debug, Clone)]
pub(super) enum TransferStep {
    Ingest {
        is_left: bool,
    },
    Promote,
    PromoteLegacy,
    Relay {
        worker: usize,
    },
    /// A legacy worker runs this many messages and acknowledges them.
    LegacyRuns {
        count: usize,
    },
    /// A legacy worker fails at one and publishes a copy; the pending entry is acknowledged.
    LegacyFails,
    /// One batch of the history, or all of it.
    Sweep {
        is_whole: bool,
    },
    LoseGroups,
}

pub(super) fn transfer_steps() -> impl Strategy<Value = TransferStep> {
    prop_oneof![
        3 => any::<bool>().prop_map(|is_left| TransferStep::Ingest { is_left }),
        3 => Just(TransferStep::Promote),
        2 => Just(TransferStep::PromoteLegacy),
        2 => (0..WORKERS).prop_map(|worker| TransferStep::Relay { worker }),
        1 => (1..4_usize).prop_map(|count| TransferStep::LegacyRuns { count }),
        1 => Just(TransferStep::LegacyFails),
        2 => any::<bool>().prop_map(|is_whole| TransferStep::Sweep { is_whole }),
        1 => Just(TransferStep::LoseGroups),
    ]
}

impl World<'_> {
    pub(super) async fn transfer(&mut self, step: TransferStep) {
        match step {
            TransferStep::Ingest { is_left } => self.ingest(if is_left { ListEnd::Left } else { ListEnd::Right }).await,
            TransferStep::Promote => self.promote().await,
            TransferStep::PromoteLegacy => self.promote_legacy().await,
            TransferStep::Relay { worker } => self.relay(worker).await,
            TransferStep::LegacyRuns { count } => self.legacy_runs(count).await,
            TransferStep::LegacyFails => self.legacy_fails().await,
            TransferStep::Sweep { is_whole } => self.sweep(is_whole).await,
            TransferStep::LoseGroups => self.lose_groups().await,
        }
    }

    async fn ingest(&mut self, end: ListEnd) {
        let Some(moved) = self.unless_refused(self.queue(0).list_intake.move_batch(end).await) else { return };
        let expected =
            self.move_all(|location| (*location == Location::List).then_some(Location::Waiting(StreamKind::Work)));
        assert_eq!(moved, expected);
    }

    async fn promote(&mut self) {
        let Some(promoted) = self.unless_refused(self.queue(0).delayed.promote().await) else { return };
        let expected = self.move_all(|location| match location {
            Location::Delayed { stream, is_due: true } => Some(Location::Waiting(*stream)),
            _ => None,
        });
        let is_left = self.count(|location| matches!(location, Location::Delayed { .. })) > 0;
        assert_eq!((promoted.moved, promoted.next_due.is_some()), (expected, is_left));
        assert_eq!(self.queue(0).delayed.exists().await.unwrap(), is_left);
    }

    async fn promote_legacy(&mut self) {
        let Some(moved) = self.unless_refused(self.queue(0).legacy_delayed.promote().await) else { return };
        let main = self.main();
        let due = Location::LegacyDelayed { is_due: true };
        assert_eq!(moved, self.move_all(|location| (*location == due).then_some(Location::Waiting(main))));
    }

    /// Relays as a worker that has just started, with a lease that has expired for all
    /// taken entries.
    async fn relay(&mut self, worker: usize) {
        let expired = Duration::from_nanos(3);
        let relayed = OutboxRelay::new(self.queue(worker).handle.clone()).relay(expired).await;
        let Some(relayed) = self.unless_refused(relayed) else { return };
        let is_full = self.is_full();
        let arrived = self.move_all(|location| match location {
            Location::Outbox(to) if !is_full => Some(Location::clone(to)),
            _ => None,
        });
        assert_eq!(relayed.arrived, arrived);
    }

    /// Reads as a legacy worker, which fails on a list and without the group.
    async fn legacy_reads(&mut self, count: usize) -> Entries {
        let streams = self.streams(0).await.unwrap_or_default();
        if !streams.contains(&StreamKind::Normal) {
            return Vec::new();
        }
        let read = format!("XREADGROUP GROUP consumer-group-t consumer-1 COUNT {count} STREAMS mq:t >");
        let streams: Option<Vec<(String, Entries)>> = self.ask(&read).await;
        let entries = streams.into_iter().flatten().flat_map(|(_, entries)| entries).collect::<Vec<_>>();
        let waiting = self.count(|location| *location == Location::Waiting(StreamKind::Normal));
        assert_eq!(entries.len(), count.min(waiting));
        entries
    }

    async fn legacy_runs(&mut self, count: usize) {
        for (entry, fields) in self.legacy_reads(count).await {
            self.ask::<i64>(&format!("XACK mq:t consumer-group-t {entry}")).await;
            let id = id_in(&field(&fields, "message"));
            assert_eq!(self.locations.insert(id.clone(), Location::Done), Some(Location::Waiting(StreamKind::Normal)));
            self.history.push(id);
        }
    }

    async fn legacy_fails(&mut self) {
        if self.is_full() {
            return;
        }
        let Some((_, fields)) = self.legacy_reads(1).await.pop() else { return };
        let body: serde_json::Value = serde_json::from_slice(&field(&fields, "message")).unwrap();
        let id = body["id"].as_str().unwrap().to_owned();
        let retry = body["retry"].as_u64().unwrap_or(0) + 1;
        let data = self.data.get(&id).copied().unwrap_or(1);
        let copy = format!("{},\"retry\":{retry},\"max_retry\":9}}", plain(&id, data).trim_end_matches('}'));
        self.ask::<String>(&format!("XADD mq:t * message {copy}")).await;
        self.attempts.remove(&id);
        assert_eq!(self.queue(0).legacy_pending.acknowledge_copied(Duration::ZERO).await.unwrap(), 1);
        self.history.push(id);
        // Otherwise a lost group would deliver both copies.
        self.swept = None;
        self.sweep(true).await;
    }

    /// Deletes history, except that of a shared stream, for which a floor is stored.
    async fn sweep(&mut self, is_whole: bool) {
        loop {
            let streams = self.streams(0).await.unwrap_or_default();
            if !streams.contains(&StreamKind::Normal) {
                return;
            }
            let is_first = self.swept.is_none();
            let swept = self.queue(0).sweep(self.swept.as_ref()).await;
            let Some(swept) = self.unless_refused(swept) else { return };
            assert_eq!((swept.never_ours, swept.unfinished), (Vec::new(), Vec::new()));
            let swept = swept.next;
            let has_delivered = !self.history.is_empty() || self.in_flight(|stream| stream == StreamKind::Normal) > 0;
            if self.kind == Kind::Shared {
                assert_eq!(swept, None);
            } else {
                assert_eq!(swept.is_some(), is_first && has_delivered);
                if is_first {
                    self.history.clear();
                }
            }
            self.swept = swept;
            if self.swept.is_none() || !is_whole {
                return;
            }
        }
    }

    /// Destroys the groups. Messages in flight wait and run again, and so does history
    /// that was not swept. Shared streams have a floor, so their history does not run
    /// again.
    async fn lose_groups(&mut self) {
        let is_shared = self.kind == Kind::Shared;
        if self.is_full() || (is_shared && self.in_flight(|stream| stream == StreamKind::Normal) > 0) {
            return;
        }
        if is_shared {
            self.sweep(true).await;
        }
        for stream in self.streams(0).await.unwrap() {
            self.ask::<i64>(&format!("XGROUP DESTROY {} consumer-group-t", key_of(stream))).await;
        }
        self.streams(0).await;
        // A new group counts deliveries from one, so an old delivery can look like a new
        // one. No message is lost by that.
        self.last = None;
        self.workers.iter_mut().for_each(|worker| worker.deliveries.clear());
        self.move_all(|location| match location {
            Location::InFlight { entry, .. } => Some(Location::Waiting(entry.stream)),
            _ => None,
        });
        if !is_shared {
            for id in std::mem::take(&mut self.history) {
                assert_eq!(self.locations.insert(id, Location::Waiting(StreamKind::Normal)), Some(Location::Done));
            }
        }
    }
}
