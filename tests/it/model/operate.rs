//! The model of what operators do with topics and messages.

use super::world::{Location, World};
use gateway_worker::queue::{MessageLocation, Purged, StreamKind};
use proptest::prelude::*;

#[derive(Debug, Clone)]
pub(super) enum OperatorStep {
    /// The message at this position among all that ever existed.
    Find {
        at: usize,
    },
    Cancel {
        at: usize,
    },
    Purge {
        is_delayed: bool,
    },
    Pause {
        is_paused: bool,
    },
}

pub(super) fn operator_steps() -> impl Strategy<Value = OperatorStep> {
    prop_oneof![
        4 => (0..100_usize).prop_map(|at| OperatorStep::Find { at }),
        8 => (0..100_usize).prop_map(|at| OperatorStep::Cancel { at }),
        1 => any::<bool>().prop_map(|is_delayed| OperatorStep::Purge { is_delayed }),
        2 => prop::bool::weighted(0.3).prop_map(|is_paused| OperatorStep::Pause { is_paused }),
    ]
}

impl World<'_> {
    pub(super) async fn operate(&mut self, step: OperatorStep) {
        match step {
            OperatorStep::Find { at } => {
                if let Some(id) = self.any(at) {
                    let found = self.queue(0).search.find(&id, &mut |_| ()).await.unwrap();
                    let found: Vec<String> = found.iter().map(|one| describe(&one.location)).collect();
                    assert_eq!(found, Vec::from_iter(self.locations[&id].describe()), "{id}");
                }
            }
            OperatorStep::Cancel { at } => {
                if let Some(id) = self.any(at) {
                    self.cancel(&id).await;
                }
            }
            OperatorStep::Purge { is_delayed } => self.purge(is_delayed).await,
            OperatorStep::Pause { is_paused } => {
                let set = self.queue(0).set_paused(is_paused).await;
                if let Some(is_new) = self.unless_refused(set) {
                    assert_eq!(is_new, is_paused != self.is_paused);
                    self.is_paused = is_paused;
                }
            }
        }
    }

    /// Removes a waiting message wherever it is, and not one in flight. Works with a
    /// full memory.
    async fn cancel(&mut self, id: &str) {
        let cancelled = self.queue(0).search.cancel(id, &mut |_| ()).await.unwrap();
        let removed: u64 = cancelled.removed.iter().map(|(_, count)| count).sum();
        let location = self.locations[id].clone();
        let expected = match &location {
            // The other group has not read it yet.
            Location::Waiting(stream) if self.is_shared(*stream) => (0, 0, 1),
            Location::InFlight { is_requeued: false, .. } => (0, 1, 0),
            Location::List
            | Location::Waiting(_)
            | Location::Delayed { .. }
            | Location::LegacyDelayed { .. }
            | Location::InFlight { .. } => (1, 0, 0),
            Location::Outbox(_) | Location::Sent | Location::Dead { .. } | Location::Done => (0, 0, 0),
        };
        assert_eq!((removed, cancelled.in_flight.len(), cancelled.unread.len()), expected, "{id} {location:?}");
        if removed > 0 {
            self.claims.free_cancelled(id, &location);
            self.put(id, Location::Done);
            // Here the counter has a separate command, which a full memory refuses.
            let is_apart = self.server.is_cluster && matches!(location, Location::LegacyDelayed { .. });
            self.add("cancelled", usize::from(!(is_apart && self.is_full())));
            if let Location::InFlight { entry, .. } = location {
                self.add_history(id, entry.stream);
            }
        }
    }

    /// Deletes waiting messages and, if asked for, delayed ones; none that are in
    /// flight or dead. Works with a full memory.
    async fn purge(&mut self, is_delayed: bool) {
        let mut last = 0;
        let purged = self.queue(0).purge.purge(is_delayed, &mut |count| last += count).await.unwrap();
        let is_purged = |location: &Location| match location {
            Location::List | Location::Waiting(_) => true,
            Location::Delayed { .. } => is_delayed,
            _ => false,
        };
        for (id, _) in self.locations.iter().filter(|(_, location)| is_purged(location)) {
            self.claims.free_purged(id);
        }
        let mut delayed = 0;
        if is_delayed {
            let ours = self.move_all(|location| matches!(location, Location::Delayed { .. }).then_some(Location::Done));
            let legacy =
                self.move_all(|location| matches!(location, Location::LegacyDelayed { .. }).then_some(Location::Done));
            delayed = ours + legacy;
            // In a cluster the legacy set is in another slot than the state, and a full
            // memory refuses the separate command of the counter.
            let is_counted = !(self.server.is_cluster && self.is_full());
            self.add("purged", if is_counted { delayed } else { ours });
        }
        let waiting = self
            .move_all(|location| matches!(location, Location::List | Location::Waiting(_)).then_some(Location::Done));
        self.add("purged", waiting);
        assert_eq!(purged, Purged { waiting: waiting as u64, delayed: delayed as u64 });
        assert_eq!(last, purged.waiting + purged.delayed);
    }
}

/// The location that Redis reports and that of the model as comparable texts.
fn describe(location: &MessageLocation) -> String {
    let waiting = |stream: &StreamKind| format!("waiting in {stream:?}");
    match location {
        MessageLocation::Waiting { stream, .. } => waiting(stream),
        MessageLocation::List { .. } | MessageLocation::ListOut { .. } => "list".to_owned(),
        MessageLocation::Delayed { .. } => "delayed".to_owned(),
        MessageLocation::LegacyDelayed { .. } => "legacy delayed".to_owned(),
        MessageLocation::InFlight { stream, entry, consumer, delivery_count, .. } => {
            format!("{} by {consumer}, {delivery_count}", stream.at(entry))
        }
        MessageLocation::Dead { reason, .. } => format!("dead of {reason}"),
        MessageLocation::LegacyDead { .. } => "legacy dead".to_owned(),
        MessageLocation::Outbox { to, .. } => format!("out to {to}"),
        MessageLocation::Finished => "finished".to_owned(),
    }
}

impl Location {
    fn describe(&self) -> Option<String> {
        Some(match self {
            Self::List => "list".to_owned(),
            Self::Waiting(stream) => format!("waiting in {stream:?}"),
            Self::InFlight { entry, owner, delivery_count, .. } => {
                format!("{} by worker-{owner}, {delivery_count}", entry.stream.at(&entry.id))
            }
            Self::Delayed { .. } => "delayed".to_owned(),
            Self::LegacyDelayed { .. } => "legacy delayed".to_owned(),
            Self::Outbox(to) => format!("out to {}", if **to == Self::Sent { "child" } else { "t" }),
            Self::Dead { is_legacy: true, .. } => "legacy dead".to_owned(),
            Self::Dead { .. } => "dead of reject".to_owned(),
            Self::Sent | Self::Done => return None,
        })
    }
}
