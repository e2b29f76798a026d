//! The model of settlements.

use super::arrive::{priorities, publication};
use super::dedup::claim_of;
use super::world::{HOUR, Location, WORKERS, World, id_of};
use crate::support::topic;
use gateway_worker::message::Fields;
use gateway_worker::publication::Priority;
use gateway_worker::queue::{Delivery, DoneKind, Settled, Settlement};
use proptest::prelude::*;
use std::time::Duration;

#[derive(Debug, Clone)]
pub(super) enum SettleStep {
    /// The worker's delivery at this position.
    Settle { worker: usize, at: usize, kind: SettleKind },
    /// The last settlement once more, as after a lost reply.
    Again,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum SettleKind {
    Done,
    /// Unless another message with its deduplication key has finished.
    DoneOnce,
    Duplicate,
    Expired,
    /// Done, with a follow-up: to the same topic, or to another one, which in a
    /// cluster is in another slot.
    Send {
        priority: Priority,
        is_delayed: bool,
    },
    SendOut,
    RunAgainNow,
    RunAgainLater,
    Dead,
}

/// A settlement that may be sent again.
#[derive(Debug, Clone)]
pub(super) struct SettleRequest {
    worker: usize,
    one: Delivery,
    kind: SettleKind,
}

pub(super) fn settle_steps() -> impl Strategy<Value = SettleStep> {
    let kind = prop_oneof![
        3 => Just(SettleKind::Done),
        3 => Just(SettleKind::DoneOnce),
        1 => Just(SettleKind::Expired),
        2 => (priorities(), any::<bool>()).prop_map(|(priority, is_delayed)| SettleKind::Send { priority, is_delayed }),
        1 => Just(SettleKind::SendOut),
        2 => Just(SettleKind::RunAgainNow),
        1 => Just(SettleKind::RunAgainLater),
        3 => Just(SettleKind::Dead),
    ];
    prop_oneof![
        6 => (0..WORKERS, 0..8_usize, kind).prop_map(|(worker, at, kind)| SettleStep::Settle { worker, at, kind }),
        1 => Just(SettleStep::Again),
    ]
}

impl World<'_> {
    pub(super) async fn settle_step(&mut self, step: SettleStep) {
        match step {
            SettleStep::Settle { worker, at, kind } => {
                if at >= self.workers[worker].deliveries.len() {
                    return;
                }
                let one = self.workers[worker].deliveries.remove(at);
                // A worker that discards duplicates asks before the run.
                let dedup_key = dedup_key_of(&id_of(&one));
                let is_known = self.queue(worker).dedup.finished(std::slice::from_ref(&dedup_key)).await.unwrap();
                assert_eq!(is_known, [self.finished_keys.contains(&dedup_key)]);
                let kind = if kind == SettleKind::DoneOnce && is_known[0] { SettleKind::Duplicate } else { kind };
                self.settle(SettleRequest { worker, one, kind }).await;
            }
            SettleStep::Again => {
                if let Some(last) = self.last.take() {
                    self.settle(last).await;
                }
            }
        }
    }

    async fn settle(&mut self, request: SettleRequest) {
        let SettleRequest { worker, one, kind } = &request;
        let id = id_of(one);
        let child = self.next_id();
        let settlement = self.settlement(one, *kind, &child);
        let next = self.next_location(*worker, one, *kind);
        let result = self.queue(*worker).settlements.settle(&[settlement], HOUR).await.unwrap().remove(0);
        if matches!(&result, Settled::Failed(error) if self.is_refusal(error)) {
            // A refused settlement moves the message; an acknowledgement writes nothing new.
            assert!(next.is_some() && !kind.is_acknowledgement(), "{id} {kind:?}");
        } else {
            let expected = if next.is_some() || kind.is_acknowledgement() { Settled::Ok } else { Settled::Gone };
            assert_eq!(result, expected, "{id} {kind:?}");
            self.apply(&request, &child, next);
        }
        self.last = Some(request);
    }

    fn settlement(&self, one: &Delivery, kind: SettleKind, child: &str) -> Settlement {
        let id = id_of(one);
        let attempt = self.attempts.get(&id).copied().unwrap_or(0) + 1;
        let set = |name: &str, value: String| -> Fields { vec![(name.into(), value.into_bytes())] };
        let claim = Some(claim_of(one));
        let with = |child| one.done(claim.clone(), vec![child]);
        let again = || {
            let first = set("gw-first", one.first_entry().to_string());
            let dedup = set("gw-dedup", claim_of(one).key_hash().to_owned());
            [set("gw-attempt", attempt.to_string()), first, dedup].concat()
        };
        match kind {
            SettleKind::Done => one.done(None, Vec::new()),
            SettleKind::DoneOnce => one.done(claim, Vec::new()),
            SettleKind::Duplicate => one.discard(DoneKind::Duplicate),
            SettleKind::Expired => one.discard(DoneKind::Expired).with_claim(claim),
            SettleKind::Send { priority, is_delayed } => with(publication("t", child, priority, is_delayed)),
            SettleKind::SendOut => with(publication("child", child, Priority::Normal, false)),
            SettleKind::RunAgainNow => one.run_again(Duration::ZERO, again()).with_claim(claim),
            SettleKind::RunAgainLater => one.run_again(HOUR, again()).with_claim(claim),
            SettleKind::Dead => {
                let stream = format!("{}/{}", one.entry.stream.name_in(&topic("t")), one.entry.id);
                let set = [set("gw-reason", "reject".to_owned()), set("gw-source", stream)].concat();
                one.dead_letter(set).with_claim(claim)
            }
        }
    }

    /// The location after a settlement, unless it is `Gone`. Any worker may finish an
    /// existing entry, but only its owner may move it, and only of this delivery.
    fn next_location(&self, worker: usize, one: &Delivery, kind: SettleKind) -> Option<Location> {
        let is_mine = match &self.locations[&id_of(one)] {
            Location::InFlight { entry, owner, delivery_count, .. } if *entry == one.entry => {
                *owner == worker && *delivery_count == one.delivery_count
            }
            _ => return None,
        };
        let stream = one.entry.stream;
        match kind {
            SettleKind::RunAgainNow => is_mine.then_some(Location::Delayed { stream, is_due: true }),
            SettleKind::RunAgainLater => is_mine.then_some(Location::Delayed { stream, is_due: false }),
            SettleKind::Dead => is_mine.then_some(Location::Dead { stream, is_legacy: false }),
            _ => Some(Location::Done),
        }
    }

    /// Applies a settlement to the model.
    fn apply(&mut self, SettleRequest { one, kind, .. }: &SettleRequest, child: &str, next: Option<Location>) {
        let (id, kind) = (&id_of(one), *kind);
        // A finished run stores its deduplication key even after a lost lease.
        if kind == SettleKind::DoneOnce || (kind.sends() && next.is_some()) {
            self.finished_keys.insert(dedup_key_of(id));
        }
        let first = one.first_entry().to_string();
        if kind == SettleKind::DoneOnce
            || kind == SettleKind::Expired
            || (next.is_some() && (kind.sends() || kind == SettleKind::Dead))
        {
            self.claims.free(id, &first);
        }
        let Some(next) = next else { return };
        if matches!(kind, SettleKind::RunAgainNow | SettleKind::RunAgainLater) {
            self.claims.hold(id, &first);
        }
        self.put(id, next);
        self.add_history(id, one.entry.stream);
        let counter = match kind {
            SettleKind::Done | SettleKind::DoneOnce | SettleKind::Send { .. } | SettleKind::SendOut => "done",
            SettleKind::Duplicate => "duplicate",
            SettleKind::Expired => "expired",
            SettleKind::RunAgainNow | SettleKind::RunAgainLater => "retried",
            SettleKind::Dead => "dead",
        };
        self.add(counter, 1);
        match kind {
            SettleKind::RunAgainNow | SettleKind::RunAgainLater => *self.attempts.entry(id.clone()).or_default() += 1,
            SettleKind::Send { priority, is_delayed } => self.put(child, self.location_of(priority, is_delayed)),
            SettleKind::SendOut if self.server.is_cluster => {
                self.put(child, Location::Outbox(Box::new(Location::Sent)))
            }
            SettleKind::SendOut => self.put(child, Location::Sent),
            _ => {}
        }
    }
}

impl SettleKind {
    fn is_acknowledgement(self) -> bool {
        matches!(self, Self::Done | Self::DoneOnce | Self::Duplicate | Self::Expired)
    }

    fn sends(self) -> bool {
        matches!(self, Self::Send { .. } | Self::SendOut)
    }
}

/// The deduplication key of a message. Several messages share one.
pub(super) fn dedup_key_of(id: &str) -> String {
    format!("k{}", id[1..].parse::<usize>().unwrap() % DEDUP_KEYS)
}

pub(super) const DEDUP_KEYS: usize = 7;
