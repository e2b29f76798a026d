//! What becomes of what was taken.

use super::arrive::{priorities, publication};
use super::world::{HOUR, Place, WORKERS, World, id_of};
use crate::support::topic;
use gateway_worker::message::Fields;
use gateway_worker::publication::Priority;
use gateway_worker::queue::{Counted, Settled, Settlement, Taken};
use proptest::prelude::*;
use std::time::Duration;

#[derive(Debug, Clone)]
pub(super) enum Verdict {
    /// What the worker holds at this place, in its order.
    Settle { worker: usize, at: usize, fate: Fate },
    /// The last one once more, as after a lost reply.
    Again,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fate {
    Done,
    /// Unless one of its kind has finished; and remembered.
    Once,
    Duplicate,
    Expired,
    /// Done and remembered, with a follow-up: to the topic itself, or to
    /// another, which in a cluster is in another slot.
    Send {
        priority: Priority,
        is_delayed: bool,
    },
    SendOut,
    Again,
    Later,
    Dead,
}

/// What was asked for, to be asked for again.
#[derive(Debug, Clone)]
pub(super) struct Settling {
    worker: usize,
    one: Taken,
    fate: Fate,
}

pub(super) fn verdicts() -> impl Strategy<Value = Verdict> {
    let fate = prop_oneof![
        3 => Just(Fate::Done),
        3 => Just(Fate::Once),
        1 => Just(Fate::Expired),
        2 => (priorities(), any::<bool>()).prop_map(|(priority, is_delayed)| Fate::Send { priority, is_delayed }),
        1 => Just(Fate::SendOut),
        2 => Just(Fate::Again),
        1 => Just(Fate::Later),
        3 => Just(Fate::Dead),
    ];
    prop_oneof![
        6 => (0..WORKERS, 0..8_usize, fate).prop_map(|(worker, at, fate)| Verdict::Settle { worker, at, fate }),
        1 => Just(Verdict::Again),
    ]
}

impl World<'_> {
    pub(super) async fn judge(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Settle { worker, at, fate } => {
                if at >= self.workers[worker].held.len() {
                    return;
                }
                let one = self.workers[worker].held.remove(at);
                // As a worker does that drops copies: it asks before the run.
                let mark = mark_of(&id_of(&one));
                let is_known = self.queue(worker).finished(std::slice::from_ref(&mark)).await.unwrap();
                assert_eq!(is_known, [self.marks.contains(&mark)]);
                let fate = if fate == Fate::Once && is_known[0] { Fate::Duplicate } else { fate };
                self.settle(Settling { worker, one, fate }).await;
            }
            Verdict::Again => {
                if let Some(last) = self.last.take() {
                    self.settle(last).await;
                }
            }
        }
    }

    async fn settle(&mut self, settling: Settling) {
        let Settling { worker, one, fate } = &settling;
        let id = id_of(one);
        let child = self.next_id();
        let settlement = self.settlement(one, *fate, &child);
        let next = self.next_place(*worker, one, *fate);
        let result = self.queue(*worker).settle(&[settlement], HOUR).await.unwrap().remove(0);
        if matches!(&result, Settled::Failed(error) if self.is_refusal(error)) {
            // To move is to add first. To be done adds nothing.
            assert!(next.is_some() && !fate.is_plain(), "{id} {fate:?}");
        } else {
            let expected = if next.is_some() || fate.is_plain() { Settled::Ok } else { Settled::Gone };
            assert_eq!(result, expected, "{id} {fate:?}");
            self.note(&settling, &child, next);
        }
        self.last = Some(settling);
    }

    fn settlement(&self, one: &Taken, fate: Fate, child: &str) -> Settlement {
        let id = id_of(one);
        let attempt = self.attempts.get(&id).copied().unwrap_or(0) + 1;
        let set = |name: &str, value: String| -> Fields { vec![(name.into(), value.into_bytes())] };
        let with = |child| one.done(Some(mark_of(&id)), vec![child], None);
        match fate {
            Fate::Done => one.done(None, Vec::new(), None),
            Fate::Once => one.done(Some(mark_of(&id)), Vec::new(), None),
            Fate::Duplicate => one.dropped(Counted::Duplicate),
            Fate::Expired => one.dropped(Counted::Expired),
            Fate::Send { priority, is_delayed } => with(publication("t", child, priority, is_delayed)),
            Fate::SendOut => with(publication("child", child, Priority::Normal, false)),
            Fate::Again => one.later(Duration::ZERO, set("gw-attempt", attempt.to_string())),
            Fate::Later => one.later(HOUR, set("gw-attempt", attempt.to_string())),
            Fate::Dead => {
                let source = format!("{}/{}", one.entry.source.of(&topic("t")), one.entry.id);
                one.dead([set("gw-reason", "reject".to_owned()), set("gw-source", source)].concat())
            }
        }
    }

    /// Where it goes, if it does. An entry stands until it is settled; whoever
    /// has it may finish it, but only its owner, and only of this delivery, may
    /// move it.
    fn next_place(&self, worker: usize, one: &Taken, fate: Fate) -> Option<Place> {
        let is_mine = match &self.places[&id_of(one)] {
            Place::InFlight { entry, owner, deliveries, .. } if *entry == one.entry => {
                *owner == worker && *deliveries == one.deliveries
            }
            _ => return None,
        };
        let source = one.entry.source;
        match fate {
            Fate::Again => is_mine.then_some(Place::Later { source, is_due: true }),
            Fate::Later => is_mine.then_some(Place::Later { source, is_due: false }),
            Fate::Dead => is_mine.then_some(Place::Dead { source, is_legacy: false }),
            _ => Some(Place::Done),
        }
    }

    /// It has happened.
    fn note(&mut self, Settling { one, fate, .. }: &Settling, child: &str, next: Option<Place>) {
        let (id, fate) = (&id_of(one), *fate);
        // Who has run to the end has finished, even if it counts no more.
        if fate == Fate::Once || (fate.sends() && next.is_some()) {
            self.marks.insert(mark_of(id));
        }
        let Some(next) = next else { return };
        self.put(id, next);
        self.leave_behind(id, one.entry.source);
        let counter = match fate {
            Fate::Done | Fate::Once | Fate::Send { .. } | Fate::SendOut => "done",
            Fate::Duplicate => "duplicate",
            Fate::Expired => "expired",
            Fate::Again | Fate::Later => "retried",
            Fate::Dead => "dead",
        };
        self.add(counter, 1);
        match fate {
            Fate::Again | Fate::Later => *self.attempts.entry(id.clone()).or_default() += 1,
            Fate::Send { priority, is_delayed } => self.put(child, self.place_of(priority, is_delayed)),
            Fate::SendOut if self.server.is_cluster => self.put(child, Place::Out(Box::new(Place::Sent))),
            Fate::SendOut => self.put(child, Place::Sent),
            _ => {}
        }
    }
}

impl Fate {
    fn is_plain(self) -> bool {
        matches!(self, Self::Done | Self::Once | Self::Duplicate | Self::Expired)
    }

    fn sends(self) -> bool {
        matches!(self, Self::Send { .. } | Self::SendOut)
    }
}

/// What copies are known by. Some messages are said to be copies of others.
pub(super) fn mark_of(id: &str) -> String {
    format!("k{}", id[1..].parse::<usize>().unwrap() % MARKS)
}

pub(super) const MARKS: usize = 7;
