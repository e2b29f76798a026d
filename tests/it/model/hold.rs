//! Who has what in hand: messages are taken, taken over, given back, and
//! suspected.

use super::world::{HOUR, Place, WORKERS, Worker, World, id_of, key_of};
use gateway_worker::queue::{EntryKey, FlowControl, Patience, Reader, Restamp, Source, Take, Taken};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Debug, Clone)]
pub(super) enum Grip {
    Take {
        worker: usize,
        count: usize,
        total: Option<usize>,
        rate: Option<u32>,
    },
    TakeOver {
        worker: usize,
        count: usize,
    },
    Renew {
        worker: usize,
    },
    /// The worker forgets what it holds, as after a lost reply, and looks.
    Reconcile {
        worker: usize,
    },
    GiveBack {
        worker: usize,
        keeps: usize,
    },
    /// What the worker holds at this place; twice, as after a lost reply.
    HandOn {
        worker: usize,
        at: usize,
    },
    Restamp,
    Suspect {
        worker: usize,
        at: usize,
    },
    Acquit {
        worker: usize,
        at: usize,
    },
    Leave {
        worker: usize,
    },
    Forget {
        worker: usize,
        is_gone: bool,
    },
}

pub(super) fn grips() -> impl Strategy<Value = Grip> {
    let total = prop::option::weighted(0.2, 1..8_usize);
    let rate = prop::option::weighted(0.2, 1..12_u32);
    prop_oneof![
        8 => (0..WORKERS, 1..8_usize, total, rate).prop_map(|(worker, count, total, rate)| Grip::Take { worker, count, total, rate }),
        2 => (0..WORKERS, 1..8_usize).prop_map(|(worker, count)| Grip::TakeOver { worker, count }),
        1 => (0..WORKERS).prop_map(|worker| Grip::Renew { worker }),
        2 => (0..WORKERS).prop_map(|worker| Grip::Reconcile { worker }),
        1 => (0..WORKERS, 0..3_usize).prop_map(|(worker, keeps)| Grip::GiveBack { worker, keeps }),
        2 => (0..WORKERS, 0..4_usize).prop_map(|(worker, at)| Grip::HandOn { worker, at }),
        1 => Just(Grip::Restamp),
        2 => (0..WORKERS, 0..3_usize).prop_map(|(worker, at)| Grip::Suspect { worker, at }),
        1 => (0..WORKERS, 0..3_usize).prop_map(|(worker, at)| Grip::Acquit { worker, at }),
        1 => (0..WORKERS).prop_map(|worker| Grip::Leave { worker }),
        1 => (0..WORKERS, any::<bool>()).prop_map(|(worker, is_gone)| Grip::Forget { worker, is_gone }),
    ]
}

impl World<'_> {
    /// Nothing of it is ever refused by a full memory, but a lost group made
    /// again, without which there is nothing to do.
    pub(super) async fn grip(&mut self, grip: Grip) {
        let Some(sources) = self.sources(0).await else { return };
        match grip {
            Grip::Take { worker, count, total, rate } => {
                let control = FlowControl { total, rate: rate.map(|limit| (limit, HOUR)), turn: self.turn };
                self.take(&sources, worker, count, control).await;
            }
            Grip::TakeOver { worker, count } => self.take_over(&sources, worker, count).await,
            Grip::Renew { worker } => self.renew(worker).await,
            Grip::Reconcile { worker } => self.reconcile(&sources, worker).await,
            Grip::GiveBack { worker, keeps } => self.give_back(&sources, worker, keeps).await,
            Grip::HandOn { worker, at } => self.hand_on(worker, at).await,
            Grip::Restamp => self.restamp(&sources).await,
            Grip::Suspect { worker, at } => self.suspect(worker, at).await,
            Grip::Acquit { worker, at } => {
                if let Some(entry) = self.held(worker, at) {
                    self.queue(worker).acquit(&entry).await.unwrap();
                    self.suspects.remove(&entry.to_string());
                }
            }
            Grip::Leave { worker } => self.leave(&sources, worker).await,
            Grip::Forget { worker, is_gone } => self.forget(&sources, worker, is_gone).await,
        }
    }

    async fn take(&mut self, sources: &[Source], worker: usize, count: usize, control: FlowControl) {
        if sources.is_empty() {
            return;
        }
        let room_in_all = control.total.map_or(count, |total| total.saturating_sub(self.in_flight(|_| true)));
        let room_now = control.rate.map_or(count, |(limit, _)| (limit as usize).saturating_sub(self.begun));
        let Worker { queue, reader, .. } = &mut self.workers[worker];
        if reader.is_none() {
            *reader = Some(Reader::connect(queue).await.unwrap());
        }
        let take = reader.as_mut().unwrap().take(queue, sources, control, count).await.unwrap();
        let expected = if self.is_paused {
            Take::Paused
        } else if room_in_all == 0 {
            Take::Full
        } else if room_now == 0 {
            assert!(matches!(take, Take::TooSoon(wait) if wait > Duration::ZERO), "{take:?}");
            return;
        } else {
            let taken = match take {
                Take::Taken(taken) => taken,
                Take::Empty(behind) if behind.len() == sources.len() => Vec::new(),
                other => panic!("{other:?}"),
            };
            let waiting = self.count(|place| matches!(place, Place::Waiting(_)));
            assert_eq!(taken.len(), count.min(room_in_all).min(room_now).min(waiting));
            self.turn += taken.len();
            self.begun += if control.rate.is_some() { taken.len() } else { 0 };
            for one in taken {
                let id = id_of(&one);
                assert_eq!(self.places[&id], Place::Waiting(one.entry.source), "{id}");
                self.hold(worker, &id, one);
            }
            return;
        };
        assert_eq!(take, expected);
    }

    fn hold(&mut self, worker: usize, id: &str, one: Taken) {
        let (entry, deliveries) = (one.entry.clone(), one.deliveries);
        self.put(id, Place::InFlight { entry, owner: worker, deliveries, is_given_back: false });
        self.workers[worker].held.push(one);
    }

    fn held(&self, worker: usize, at: usize) -> Option<EntryKey> {
        self.workers[worker].held.get(at).map(|one| one.entry.clone())
    }

    /// The place of an entry in flight, if the worker owns it.
    fn owned(&mut self, worker: usize, entry: &EntryKey) -> Option<&mut Place> {
        self.places.values_mut().find(|place| {
            matches!(place, Place::InFlight { entry: theirs, owner, .. } if theirs == entry && *owner == worker)
        })
    }

    async fn renew(&mut self, worker: usize) {
        let held: Vec<EntryKey> = self.workers[worker].held.iter().map(|one| one.entry.clone()).collect();
        let lost = self.queue(worker).renew(&held).await.unwrap();
        let lost: BTreeSet<String> = lost.iter().map(ToString::to_string).collect();
        let (mut expected, mut renewed) = (BTreeSet::new(), Vec::new());
        for entry in held {
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

    /// The lease of what the worker owns begins anew. What was given back is
    /// then as if it never was, but that its delivery does not count.
    fn refresh(&mut self, worker: usize, entry: &EntryKey) {
        if let Some(Place::InFlight { is_given_back, .. }) = self.owned(worker, entry) {
            *is_given_back = false;
        }
    }

    async fn take_over(&mut self, sources: &[Source], worker: usize, count: usize) {
        let now = Patience { lease: Duration::ZERO, legacy: HOUR, connected: HOUR };
        for source in sources {
            let found = self.queue(worker).take_over(*source, now, None, count).await.unwrap();
            let theirs = |place: &Place| matches!(place, Place::InFlight { entry, owner, .. } if entry.source == *source && *owner != worker);
            let all = self.count(theirs);
            assert_eq!(found.taken.len(), count.min(all));
            // With the count reached it does not look at the rest.
            assert!(found.taken.len() == count || found.others as usize == all - found.taken.len());
            for (one, owner) in found.taken {
                let id = id_of(&one);
                let Place::InFlight { entry, owner: before, deliveries, .. } = &self.places[&id] else {
                    panic!("{id}")
                };
                assert_eq!((entry, format!("worker-{before}"), deliveries + 1), (&one.entry, owner, one.deliveries));
                self.hold(worker, &id, one);
            }
        }
    }

    async fn reconcile(&mut self, sources: &[Source], worker: usize) {
        self.workers[worker].held.clear();
        for source in sources {
            for one in self.queue(worker).reconcile(*source, &[]).await.unwrap() {
                let id = id_of(&one);
                let Place::InFlight { entry, owner, deliveries, is_given_back } = &self.places[&id] else {
                    panic!("{id}")
                };
                // A new start of the leases takes the mark off what was given back,
                // but whoever has it has it for the first time at least.
                let expected = (*deliveries + u32::from(*is_given_back)).max(1);
                assert_eq!((entry, *owner, expected), (&one.entry, worker, one.deliveries));
                self.hold(worker, &id, one);
            }
        }
        let owned = self.count(|place| matches!(place, Place::InFlight { owner, .. } if *owner == worker));
        assert_eq!(self.workers[worker].held.len(), owned);
    }

    async fn give_back(&mut self, sources: &[Source], worker: usize, keeps: usize) {
        let kept: Vec<EntryKey> = (0..keeps).filter_map(|at| self.held(worker, at)).collect();
        for source in sources {
            let given = self.queue(worker).give_back(*source, &kept).await.unwrap();
            let mut expected = 0;
            for place in self.places.values_mut() {
                let is_kept = |entry| kept.contains(entry);
                if matches!(place, Place::InFlight { entry, owner, .. } if entry.source == *source && *owner == worker && !is_kept(entry))
                {
                    expected += usize::from(place.give_back());
                }
            }
            assert_eq!(given, expected);
        }
        self.workers[worker].held.truncate(keeps);
    }

    async fn hand_on(&mut self, worker: usize, at: usize) {
        let Some(entry) = self.held(worker, at) else { return };
        self.workers[worker].held.remove(at);
        for _ in 0..2 {
            self.queue(worker).hand_on(&entry).await.unwrap();
        }
        if let Some(place) = self.owned(worker, &entry) {
            place.give_back();
        }
    }

    async fn restamp(&mut self, sources: &[Source]) {
        for source in sources {
            let count = self.queue(0).restamp(*source, Restamp::All).await.unwrap();
            let mut expected = 0;
            for place in self.places.values_mut() {
                if let Place::InFlight { entry, is_given_back, .. } = place
                    && entry.source == *source
                {
                    *is_given_back = false;
                    expected += 1;
                }
            }
            assert_eq!(count, expected);
        }
    }

    async fn suspect(&mut self, worker: usize, at: usize) {
        let Some(entry) = self.held(worker, at) else { return };
        let Some(before) = self.unless_refused(self.queue(worker).suspect(&entry).await) else {
            // What is one's own may run alone with a full memory too.
            assert_eq!(self.owned(worker, &entry), None);
            return;
        };
        let (times, last) = self.suspects.entry(entry.to_string()).or_insert((0, worker));
        // Who writes it down again was not lost with it.
        *times += u32::from(*times == 0 || *last != worker);
        *last = worker;
        assert_eq!(before + 1, *times);
        self.refresh(worker, &entry);
    }

    async fn leave(&mut self, sources: &[Source], worker: usize) {
        for source in sources {
            self.queue(worker).leave(*source).await.unwrap();
            let left = self.consumers(*source).await.remove(&format!("worker-{worker}"));
            assert_ne!(left, Some(0), "it has nothing in hand");
        }
    }

    /// Nobody has been silent for as long as an hour; for no time at all, all
    /// have.
    async fn forget(&mut self, sources: &[Source], worker: usize, is_gone: bool) {
        let (idle, me) = (if is_gone { Duration::ZERO } else { HOUR }, format!("worker-{worker}"));
        for source in sources {
            let mut expected = self.consumers(*source).await;
            let all = expected.len();
            expected.retain(|name, pending| !is_gone || *pending > 0 || *name == me);
            let forgotten = self.queue(worker).forget_the_gone(*source, idle).await.unwrap();
            assert_eq!((forgotten, self.consumers(*source).await), (all - expected.len(), expected));
        }
    }

    /// The names on the group's list, with what each has in hand.
    async fn consumers(&self, source: Source) -> BTreeMap<String, usize> {
        let rows: Vec<BTreeMap<String, redis::Value>> =
            self.ask(&format!("XINFO CONSUMERS {} consumer-group-t", key_of(source))).await;
        let word = |row: &BTreeMap<String, redis::Value>, name: &str| row[name].clone();
        rows.iter()
            .map(|row| {
                let name = redis::from_redis_value(word(row, "name")).unwrap();
                (name, redis::from_redis_value(word(row, "pending")).unwrap())
            })
            .collect()
    }
}

impl Place {
    /// In its place, for anybody to take over, as if never delivered. Returns
    /// whether it was not given back before.
    fn give_back(&mut self) -> bool {
        let Self::InFlight { deliveries, is_given_back: false, .. } = self else { return false };
        *deliveries = deliveries.saturating_sub(1);
        if let Self::InFlight { is_given_back, .. } = self {
            *is_given_back = true;
        }
        true
    }
}
