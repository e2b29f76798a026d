//! The model of deliveries: messages are taken, reclaimed, requeued and isolated.

use super::world::{HOUR, Kind, Location, WORKERS, Worker, World, id_of, key_of};
use crate::support::topic;
use gateway_worker::queue::{
    BlockingReader, Delivery, EntryId, FlowControl, LeaseReset, ReclaimTimeouts, Settled, StreamKind, Take,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Debug, Clone)]
pub(super) enum LeaseStep {
    Take {
        worker: usize,
        count: usize,
        total: Option<usize>,
        rate: Option<u32>,
    },
    Reclaim {
        worker: usize,
        count: usize,
    },
    Renew {
        worker: usize,
    },
    /// The worker loses its list of messages in flight, as after a lost reply.
    Reconcile {
        worker: usize,
    },
    RequeueExcept {
        worker: usize,
        in_flight: usize,
    },
    /// The delivery at this position; twice, as after a lost reply.
    Requeue {
        worker: usize,
        at: usize,
    },
    Reset,
    Isolate {
        worker: usize,
        at: usize,
    },
    ClearIsolation {
        worker: usize,
        at: usize,
    },
    RemoveConsumer {
        worker: usize,
    },
    /// By an operator, with what it has in flight.
    DeleteConsumer {
        worker: usize,
    },
    /// By an operator or a publisher, while it is in flight. The worker fails.
    DeleteEntry {
        worker: usize,
        at: usize,
        is_renewed: bool,
    },
    PruneConsumers {
        worker: usize,
        is_gone: bool,
    },
}

pub(super) fn lease_steps() -> impl Strategy<Value = LeaseStep> {
    let total = prop::option::weighted(0.2, 1..8_usize);
    let rate = prop::option::weighted(0.2, 1..12_u32);
    prop_oneof![
        8 => (0..WORKERS, 1..8_usize, total, rate).prop_map(|(worker, count, total, rate)| LeaseStep::Take { worker, count, total, rate }),
        2 => (0..WORKERS, 1..8_usize).prop_map(|(worker, count)| LeaseStep::Reclaim { worker, count }),
        1 => (0..WORKERS).prop_map(|worker| LeaseStep::Renew { worker }),
        2 => (0..WORKERS).prop_map(|worker| LeaseStep::Reconcile { worker }),
        1 => (0..WORKERS, 0..3_usize).prop_map(|(worker, in_flight)| LeaseStep::RequeueExcept { worker, in_flight }),
        2 => (0..WORKERS, 0..4_usize).prop_map(|(worker, at)| LeaseStep::Requeue { worker, at }),
        1 => Just(LeaseStep::Reset),
        2 => (0..WORKERS, 0..3_usize).prop_map(|(worker, at)| LeaseStep::Isolate { worker, at }),
        1 => (0..WORKERS, 0..3_usize).prop_map(|(worker, at)| LeaseStep::ClearIsolation { worker, at }),
        1 => (0..WORKERS).prop_map(|worker| LeaseStep::RemoveConsumer { worker }),
        2 => (0..WORKERS).prop_map(|worker| LeaseStep::DeleteConsumer { worker }),
        2 => (0..WORKERS, 0..3_usize, any::<bool>()).prop_map(|(worker, at, is_renewed)| LeaseStep::DeleteEntry { worker, at, is_renewed }),
        1 => (0..WORKERS, any::<bool>()).prop_map(|(worker, is_gone)| LeaseStep::PruneConsumers { worker, is_gone }),
    ]
}

impl World<'_> {
    /// A full memory refuses none of these steps, except the creation of a lost group,
    /// without which no step is possible.
    pub(super) async fn lease_step(&mut self, step: LeaseStep) {
        let Some(streams) = self.streams(0).await else { return };
        match step {
            LeaseStep::Take { worker, count, total, rate } => {
                let control = FlowControl { total, rate: rate.map(|limit| (limit, HOUR)), turn: self.turn };
                self.take(&streams, worker, count, control).await;
            }
            LeaseStep::Reclaim { worker, count } => self.reclaim(&streams, worker, count).await,
            LeaseStep::Renew { worker } => self.renew(worker).await,
            LeaseStep::Reconcile { worker } => self.reconcile(&streams, worker).await,
            LeaseStep::RequeueExcept { worker, in_flight } => self.requeue_except(&streams, worker, in_flight).await,
            LeaseStep::Requeue { worker, at } => self.requeue(worker, at).await,
            LeaseStep::Reset => self.reset_leases(&streams).await,
            LeaseStep::Isolate { worker, at } => self.isolate(worker, at).await,
            LeaseStep::ClearIsolation { worker, at } => {
                if let Some(entry) = self.delivered(worker, at) {
                    self.queue(worker).isolation.clear(&entry).await.unwrap();
                    self.isolated.remove(&entry.to_string());
                }
            }
            LeaseStep::RemoveConsumer { worker } => self.remove_consumer(&streams, worker).await,
            LeaseStep::DeleteConsumer { worker } => self.delete_consumer(&streams, worker).await,
            LeaseStep::DeleteEntry { worker, at, is_renewed } => self.delete_entry(worker, at, is_renewed).await,
            LeaseStep::PruneConsumers { worker, is_gone } => self.prune_consumers(&streams, worker, is_gone).await,
        }
    }

    async fn take(&mut self, streams: &[StreamKind], worker: usize, count: usize, control: FlowControl) {
        if streams.is_empty() {
            return;
        }
        let capacity = control.total.map_or(count, |total| total.saturating_sub(self.in_flight(|_| true)));
        let rate_left = control.rate.map_or(count, |(limit, _)| (limit as usize).saturating_sub(self.started));
        let Worker { queue, reader, .. } = &mut self.workers[worker];
        if reader.is_none() {
            *reader = Some(BlockingReader::connect(&queue.handle).await.unwrap());
        }
        let take = reader.as_mut().unwrap().take(streams, control, count).await.unwrap();
        let expected = if self.is_paused {
            Take::Paused
        } else if capacity == 0 {
            Take::Full
        } else if rate_left == 0 {
            assert!(matches!(take, Take::TooSoon(wait) if wait > Duration::ZERO), "{take:?}");
            return;
        } else {
            let taken = match take {
                Take::Taken(taken) => taken,
                Take::Empty(behind) if behind.len() == streams.len() => Vec::new(),
                other => panic!("{other:?}"),
            };
            let waiting = self.count(|location| matches!(location, Location::Waiting(_)));
            assert_eq!(taken.len(), count.min(capacity).min(rate_left).min(waiting));
            self.turn += taken.len();
            self.started += if control.rate.is_some() { taken.len() } else { 0 };
            for one in taken {
                let id = id_of(&one);
                assert_eq!(self.locations[&id], Location::Waiting(one.entry.stream), "{id}");
                self.deliver(worker, &id, one);
            }
            return;
        };
        assert_eq!(take, expected);
    }

    fn deliver(&mut self, worker: usize, id: &str, one: Delivery) {
        let (entry, delivery_count) = (one.entry.clone(), one.delivery_count);
        self.put(id, Location::InFlight { entry, owner: worker, delivery_count, is_requeued: false });
        self.workers[worker].deliveries.push(one);
    }

    fn delivered(&self, worker: usize, at: usize) -> Option<EntryId> {
        self.workers[worker].deliveries.get(at).map(|one| one.entry.clone())
    }

    /// The location of an entry in flight, if this worker owns it.
    fn owned(&mut self, worker: usize, entry: &EntryId) -> Option<&mut Location> {
        self.locations.values_mut().find(|location| {
            matches!(location, Location::InFlight { entry: theirs, owner, .. } if theirs == entry && *owner == worker)
        })
    }

    async fn renew(&mut self, worker: usize) {
        let in_flight: Vec<EntryId> = self.workers[worker].deliveries.iter().map(|one| one.entry.clone()).collect();
        let lost = self.queue(worker).leases.renew(&in_flight).await.unwrap();
        assert_eq!(lost.deleted, Vec::new());
        let lost: BTreeSet<String> = lost.taken.iter().chain(&lost.gone).map(ToString::to_string).collect();
        let (mut expected, mut renewed) = (BTreeSet::new(), Vec::new());
        for entry in in_flight {
            match self.owned(worker, &entry) {
                Some(_) => renewed.push(entry),
                None => drop(expected.insert(entry.to_string())),
            }
        }
        assert_eq!(lost, expected);
        for entry in renewed {
            self.refresh(worker, &entry);
        }
    }

    /// The lease of an entry is renewed. A requeued entry is then in flight again,
    /// without its delivery being counted.
    fn refresh(&mut self, worker: usize, entry: &EntryId) {
        if let Some(Location::InFlight { is_requeued, .. }) = self.owned(worker, entry) {
            *is_requeued = false;
        }
    }

    async fn reclaim(&mut self, streams: &[StreamKind], worker: usize, count: usize) {
        let now = ReclaimTimeouts { lease: Duration::ZERO, legacy: HOUR, connected: HOUR };
        for stream in streams {
            let found = self.queue(worker).leases.reclaim(*stream, now, None, count).await.unwrap();
            let theirs = |location: &Location| matches!(location, Location::InFlight { entry, owner, .. } if entry.stream == *stream && *owner != worker);
            let all = self.count(theirs);
            assert_eq!(found.deliveries.len(), count.min(all));
            // Once the count is reached, it reads no further entries.
            assert!(found.deliveries.len() == count || found.others as usize == all - found.deliveries.len());
            for (one, owner) in found.deliveries {
                let id = id_of(&one);
                let Location::InFlight { entry, owner: before, delivery_count, .. } = &self.locations[&id] else {
                    panic!("{id}")
                };
                assert_eq!(
                    (entry, format!("worker-{before}"), delivery_count + 1),
                    (&one.entry, owner, one.delivery_count)
                );
                self.deliver(worker, &id, one);
            }
        }
    }

    async fn reconcile(&mut self, streams: &[StreamKind], worker: usize) {
        self.workers[worker].deliveries.clear();
        for stream in streams {
            for one in self.queue(worker).leases.reconcile(*stream, &[]).await.unwrap() {
                let id = id_of(&one);
                let Location::InFlight { entry, owner, delivery_count, is_requeued } = &self.locations[&id] else {
                    panic!("{id}")
                };
                // A reset of the leases hides that an entry was requeued, but a delivery
                // counts at least once.
                let expected = (*delivery_count + u32::from(*is_requeued)).max(1);
                assert_eq!((entry, *owner, expected), (&one.entry, worker, one.delivery_count));
                self.deliver(worker, &id, one);
            }
        }
        let owned = self.count(|location| matches!(location, Location::InFlight { owner, .. } if *owner == worker));
        assert_eq!(self.workers[worker].deliveries.len(), owned);
    }

    async fn requeue_except(&mut self, streams: &[StreamKind], worker: usize, in_flight: usize) {
        let running: Vec<EntryId> = (0..in_flight).filter_map(|at| self.delivered(worker, at)).collect();
        for stream in streams {
            let requeued = self.queue(worker).leases.requeue_except(*stream, &running).await.unwrap();
            let mut expected = 0;
            for location in self.locations.values_mut() {
                let is_running = |entry| running.contains(entry);
                if matches!(location, Location::InFlight { entry, owner, .. } if entry.stream == *stream && *owner == worker && !is_running(entry))
                {
                    expected += usize::from(location.requeue());
                }
            }
            assert_eq!(requeued, expected);
        }
        self.workers[worker].deliveries.truncate(in_flight);
    }

    async fn requeue(&mut self, worker: usize, at: usize) {
        let Some(entry) = self.delivered(worker, at) else { return };
        self.workers[worker].deliveries.remove(at);
        for _ in 0..2 {
            self.queue(worker).leases.requeue(&entry).await.unwrap();
        }
        if let Some(location) = self.owned(worker, &entry) {
            location.requeue();
        }
    }

    /// What is not history is unfinished, and is made pending again.
    async fn delete_consumer(&mut self, streams: &[StreamKind], worker: usize) {
        // Of a shared stream all of that would be history, and so it would be in a stream
        // that a legacy worker reads.
        if self.kind == Kind::Shared || self.is_full() {
            return;
        }
        for stream in streams {
            // The last looks at what legacy workers have done.
            self.queue(0).sweep_all(*stream).await;
            if *stream == StreamKind::Normal {
                self.history.clear();
            }
            let delete = format!("XGROUP DELCONSUMER {} consumer-group-t", key_of(*stream));
            self.ask::<i64>(&format!("{delete} consumer-1")).await;
            self.ask::<i64>(&format!("{delete} worker-{worker}")).await;
            let swept = self.queue(0).sweep_all(*stream).await;
            let unfinished: Vec<(EntryId, Option<u32>)> =
                swept.unfinished.iter().cloned().map(|one| (one, None)).collect();
            let restored = self.queue(1).leases.restore(*stream, &unfinished).await.unwrap();
            assert_eq!(restored, swept.unfinished);
            let (mut expected, mut found) = (BTreeSet::new(), BTreeSet::new());
            for location in self.locations.values_mut() {
                let Location::InFlight { entry, owner, .. } = location else { continue };
                if entry.stream != *stream || *owner != worker {
                    continue;
                }
                expected.insert(entry.to_string());
                *location = if swept.history.contains(entry) {
                    Location::Done
                } else {
                    let entry = entry.clone();
                    Location::InFlight { entry, owner: 1, delivery_count: 0, is_requeued: true }
                };
            }
            found.extend(swept.history.iter().chain(&swept.unfinished).map(ToString::to_string));
            assert_eq!(found, expected);
        }
        self.swept = None;
        self.last = None;
        self.workers[worker].deliveries.clear();
    }

    /// The message becomes a dead letter, made from the copy in hand, however often
    /// that is asked for.
    async fn delete_entry(&mut self, worker: usize, at: usize, is_renewed: bool) {
        let Some(one) = self.workers[worker].deliveries.get(at).cloned() else { return };
        let count = one.delivery_count;
        let is_mine = matches!(self.owned(worker, &one.entry), Some(Location::InFlight { delivery_count, .. }) if *delivery_count == count);
        if !is_mine || self.is_full() || self.is_shared(one.entry.stream) {
            return;
        }
        self.workers[worker].deliveries.remove(at);
        self.ask::<i64>(&format!("XDEL {} {}", key_of(one.entry.stream), one.entry.id)).await;
        let queue = self.queue(worker);
        if is_renewed {
            for _ in 0..2 {
                let renewed = queue.leases.renew(std::slice::from_ref(&one.entry)).await.unwrap();
                assert_eq!((renewed.taken, renewed.deleted), (Vec::new(), vec![one.entry.clone()]));
            }
        }
        let failed = one.run_again(HOUR, Vec::new());
        assert_eq!(queue.settlements.settle(&[failed], HOUR).await.unwrap(), [Settled::Deleted]);
        let source = format!("{}/{}", one.entry.stream.name_in(&topic("t")), one.entry.id);
        let set = [("gw-reason", "entry-deleted".to_owned()), ("gw-source", source)];
        let letter = one.entry_deleted(set.map(|(name, value)| (name.into(), value.into_bytes())).to_vec());
        for expected in [Settled::Ok, Settled::Gone] {
            assert_eq!(queue.settlements.settle(&[&letter], HOUR).await.unwrap(), [expected]);
        }
        let stream = one.entry.stream;
        self.put(&id_of(&one), Location::Dead { stream, is_legacy: false });
        self.add("dead", 1);
    }

    async fn reset_leases(&mut self, streams: &[StreamKind]) {
        for stream in streams {
            let count = self.queue(0).leases.reset(*stream, LeaseReset::All).await.unwrap();
            let mut expected = 0;
            for location in self.locations.values_mut() {
                if let Location::InFlight { entry, is_requeued, .. } = location
                    && entry.stream == *stream
                {
                    *is_requeued = false;
                    expected += 1;
                }
            }
            assert_eq!(count, expected);
        }
    }

    async fn isolate(&mut self, worker: usize, at: usize) {
        let Some(entry) = self.delivered(worker, at) else { return };
        let Some(before) = self.unless_refused(self.queue(worker).isolation.begin(&entry, &entry).await) else {
            // An entry of its own can be isolated with a full memory too.
            assert_eq!(self.owned(worker, &entry), None);
            return;
        };
        let (times, last) = self.isolated.entry(entry.to_string()).or_insert((0, worker));
        // A worker that records it again was not lost.
        *times += u32::from(*times == 0 || *last != worker);
        *last = worker;
        assert_eq!(before + 1, *times);
        self.refresh(worker, &entry);
    }

    async fn remove_consumer(&mut self, streams: &[StreamKind], worker: usize) {
        for stream in streams {
            self.queue(worker).leases.remove_consumer(*stream).await.unwrap();
            let left = self.consumers(*stream).await.remove(&format!("worker-{worker}"));
            assert_ne!(left, Some(0), "it has no pending entries");
        }
    }

    /// No consumer has been idle for an hour, and all have been for no time.
    async fn prune_consumers(&mut self, streams: &[StreamKind], worker: usize, is_gone: bool) {
        if is_gone && self.kind != Kind::Shared {
            if self.is_full() {
                return;
            }
            // A legacy worker is seen by many looks before its name is removed.
            if streams.contains(&StreamKind::Normal) {
                self.queue(0).sweep_all(StreamKind::Normal).await;
                (self.history, self.swept) = (Vec::new(), None);
            }
        }
        let (idle, me) = (if is_gone { Duration::ZERO } else { HOUR }, format!("worker-{worker}"));
        for stream in streams {
            let mut expected = self.consumers(*stream).await;
            let all = expected.len();
            expected.retain(|name, pending| !is_gone || *pending > 0 || *name == me);
            let pruned = self.queue(worker).leases.prune_consumers(*stream, idle).await.unwrap();
            assert_eq!((pruned, self.consumers(*stream).await), (all - expected.len(), expected));
        }
    }

    /// The consumers of the group, with the number of their pending entries.
    async fn consumers(&self, stream: StreamKind) -> BTreeMap<String, usize> {
        let rows: Vec<BTreeMap<String, redis::Value>> =
            self.ask(&format!("XINFO CONSUMERS {} consumer-group-t", key_of(stream))).await;
        let word = |row: &BTreeMap<String, redis::Value>, name: &str| row[name].clone();
        rows.iter()
            .map(|row| {
                let name = redis::from_redis_value(word(row, "name")).unwrap();
                (name, redis::from_redis_value(word(row, "pending")).unwrap())
            })
            .collect()
    }
}

impl Location {
    /// Requeues an entry in flight: its delivery does not count. Returns whether it was
    /// not requeued before.
    fn requeue(&mut self) -> bool {
        let Self::InFlight { delivery_count, is_requeued: false, .. } = self else { return false };
        *delivery_count = delivery_count.saturating_sub(1);
        if let Self::InFlight { is_requeued, .. } = self {
            *is_requeued = true;
        }
        true
    }
}
