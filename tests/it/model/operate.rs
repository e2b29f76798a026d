//! What people do to a topic and its messages.

use super::world::{Place, World};
use gateway_worker::queue;
use gateway_worker::queue::{Purged, Source};
use proptest::prelude::*;

#[derive(Debug, Clone)]
pub(super) enum Order {
    /// The message at this place among all that there ever were.
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

pub(super) fn orders() -> impl Strategy<Value = Order> {
    prop_oneof![
        4 => (0..100_usize).prop_map(|at| Order::Find { at }),
        8 => (0..100_usize).prop_map(|at| Order::Cancel { at }),
        1 => any::<bool>().prop_map(|is_delayed| Order::Purge { is_delayed }),
        2 => prop::bool::weighted(0.3).prop_map(|is_paused| Order::Pause { is_paused }),
    ]
}

impl World<'_> {
    pub(super) async fn operate(&mut self, order: Order) {
        match order {
            Order::Find { at } => {
                if let Some(id) = self.any(at) {
                    let found = self.queue(0).find(&id, &mut |_| ()).await.unwrap();
                    let found: Vec<String> = found.iter().map(|one| told(&one.place)).collect();
                    assert_eq!(found, Vec::from_iter(self.places[&id].told()), "{id}");
                }
            }
            Order::Cancel { at } => {
                if let Some(id) = self.any(at) {
                    self.cancel(&id).await;
                }
            }
            Order::Purge { is_delayed } => self.purge(is_delayed).await,
            Order::Pause { is_paused } => {
                let set = self.queue(0).set_paused(is_paused).await;
                if let Some(is_new) = self.unless_refused(set) {
                    assert_eq!(is_new, is_paused != self.is_paused);
                    self.is_paused = is_paused;
                }
            }
        }
    }

    /// What waits goes, wherever it is, and what is in somebody's hands stays.
    /// It needs no memory.
    async fn cancel(&mut self, id: &str) {
        let cancelled = self.queue(0).cancel(id, &mut |_| ()).await.unwrap();
        let removed: u64 = cancelled.removed.iter().map(|(_, count)| count).sum();
        let place = self.places[id].clone();
        let expected = match &place {
            // The other group has not read it.
            Place::Waiting(source) if self.is_shared(*source) => (0, 0, 1),
            Place::InFlight { is_given_back: false, .. } => (0, 1, 0),
            Place::List | Place::Waiting(_) | Place::Later { .. } | Place::Legacy { .. } | Place::InFlight { .. } => {
                (1, 0, 0)
            }
            Place::Out(_) | Place::Sent | Place::Dead { .. } | Place::Done => (0, 0, 0),
        };
        assert_eq!((removed, cancelled.in_flight.len(), cancelled.wanted.len()), expected, "{id} {place:?}");
        if removed > 0 {
            self.put(id, Place::Done);
            // The one count that is a command of its own may be refused.
            let is_apart = self.server.is_cluster && matches!(place, Place::Legacy { .. });
            self.add("cancelled", usize::from(!(is_apart && self.is_full())));
            if let Place::InFlight { entry, .. } = place {
                self.leave_behind(id, entry.source);
            }
        }
    }

    /// What waits goes, and what is delayed where that is said; of what is in
    /// flight or dead, nothing. It needs no memory.
    async fn purge(&mut self, is_delayed: bool) {
        let mut last = 0;
        let purged = self.queue(0).purge(is_delayed, &mut |count| last += count).await.unwrap();
        let mut delayed = 0;
        if is_delayed {
            let ours = self.move_all(|place| matches!(place, Place::Later { .. }).then_some(Place::Done));
            let legacy = self.move_all(|place| matches!(place, Place::Legacy { .. }).then_some(Place::Done));
            delayed = ours + legacy;
            // In a cluster the original's set has no state beside it, and the
            // command that counts it may be refused.
            let is_counted = !(self.server.is_cluster && self.is_full());
            self.add("purged", if is_counted { delayed } else { ours });
        }
        let waiting = self.move_all(|place| matches!(place, Place::List | Place::Waiting(_)).then_some(Place::Done));
        self.add("purged", waiting);
        assert_eq!(purged, Purged { waiting: waiting as u64, delayed: delayed as u64 });
        assert_eq!(last, purged.waiting + purged.delayed);
    }
}

/// A place in the words of both.
fn told(place: &queue::Place) -> String {
    let waiting = |source: &Source| format!("waiting in {source:?}");
    match place {
        queue::Place::Waiting { source, .. } => waiting(source),
        queue::Place::List { .. } | queue::Place::ListOut { .. } => "list".to_owned(),
        queue::Place::Delayed { .. } => "delayed".to_owned(),
        queue::Place::LegacyDelayed { .. } => "delayed there".to_owned(),
        queue::Place::InFlight { source, entry, consumer, deliveries, .. } => {
            format!("{} by {consumer}, {deliveries}", source.at(entry))
        }
        queue::Place::Dead { reason, .. } => format!("dead of {reason}"),
        queue::Place::LegacyDead { .. } => "dead there".to_owned(),
        queue::Place::Outgoing { to, .. } => format!("out to {to}"),
        queue::Place::Finished => "finished".to_owned(),
    }
}

impl Place {
    fn told(&self) -> Option<String> {
        Some(match self {
            Self::List => "list".to_owned(),
            Self::Waiting(source) => format!("waiting in {source:?}"),
            Self::InFlight { entry, owner, deliveries, .. } => {
                format!("{} by worker-{owner}, {deliveries}", entry.source.at(&entry.id))
            }
            Self::Later { .. } => "delayed".to_owned(),
            Self::Legacy { .. } => "delayed there".to_owned(),
            Self::Out(to) => format!("out to {}", if **to == Self::Sent { "child" } else { "t" }),
            Self::Dead { is_legacy: true, .. } => "dead there".to_owned(),
            Self::Dead { .. } => "dead of reject".to_owned(),
            Self::Sent | Self::Done => return None,
        })
    }
}
