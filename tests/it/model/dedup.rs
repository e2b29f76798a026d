//! The model of deduplication: which message has the claim of a key.

use super::settle::dedup_key_of;
use super::world::{HOUR, Location, WORKERS, World, id_of};
use gateway_worker::queue::{Claim, ClaimAnswer, ClaimRequest, ClaimTerms, Delivery};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Debug, Clone)]
pub(super) enum DedupStep {
    /// The worker asks for the claims of its first deliveries; twice, as after a lost
    /// reply.
    Claim {
        worker: usize,
        count: usize,
    },
    Extend {
        worker: usize,
    },
}

/// What the model knows of claims. None lapses during a test.
#[derive(Default)]
pub(super) struct Claims {
    /// For each deduplication key the first entry of the message that has its claim.
    held: BTreeMap<String, String>,
    /// The first entries that are written in fields, by message id.
    firsts: BTreeMap<String, String>,
    /// The entries that messages without such a field had when they asked.
    entries: BTreeMap<String, String>,
    /// How many workers were lost with a message before it was parked.
    crashes: BTreeMap<String, u32>,
}

pub(super) fn dedup_steps() -> impl Strategy<Value = DedupStep> {
    prop_oneof![
        4 => (0..WORKERS, 1..8_usize).prop_map(|(worker, count)| DedupStep::Claim { worker, count }),
        1 => (0..WORKERS).prop_map(|worker| DedupStep::Extend { worker }),
    ]
}

pub(super) fn claim_of(one: &Delivery) -> Claim {
    Claim::new(&dedup_key_of(&id_of(one)), one.first_entry(), HOUR)
}

impl Claims {
    /// The message is not run any more.
    pub(super) fn free(&mut self, id: &str, first: &str) {
        if self.held.get(&dedup_key_of(id)).is_some_and(|held| held == first) {
            self.held.remove(&dedup_key_of(id));
        }
    }

    /// The message was cancelled.
    pub(super) fn free_cancelled(&mut self, id: &str, location: &Location) {
        let first = match location {
            Location::InFlight { entry, .. } => Some(entry.to_string()),
            // It was in flight when the group was lost.
            Location::Waiting(_) => self.entries.get(id).cloned(),
            _ => None,
        };
        if let Some(first) = self.firsts.get(id).cloned().or(first) {
            self.free(id, &first);
        }
    }

    /// The message was purged: what its fields don't say is not known.
    pub(super) fn free_purged(&mut self, id: &str) {
        if let Some(first) = self.firsts.get(id).cloned() {
            self.free(id, &first);
        }
    }

    /// The message will run again, with its first entry in its fields.
    pub(super) fn hold(&mut self, id: &str, first: &str) {
        self.held.entry(dedup_key_of(id)).or_insert_with(|| first.to_owned());
        self.firsts.insert(id.to_owned(), first.to_owned());
        self.crashes.remove(id);
    }

    /// The message is published again, without its past.
    pub(super) fn forget(&mut self, id: &str) {
        self.firsts.remove(id);
        self.entries.remove(id);
        self.crashes.remove(id);
    }

    fn check_delivery(&self, one: &Delivery) {
        let id = id_of(one);
        let first = self.firsts.get(&id).cloned().unwrap_or_else(|| one.entry.to_string());
        assert_eq!(one.first_entry().to_string(), first, "{id}");
        let earlier = self.crashes.get(&id).copied().unwrap_or(0);
        assert_eq!(one.crash_count, one.delivery_count - 1 + earlier, "{id}");
    }
}

impl World<'_> {
    /// A full memory refuses neither step.
    pub(super) async fn dedup_step(&mut self, step: DedupStep) {
        if self.streams(0).await.is_none() {
            return;
        }
        match step {
            DedupStep::Claim { worker, count } => {
                for _ in 0..2 {
                    self.claim(worker, count).await;
                }
            }
            DedupStep::Extend { worker } => {
                let claims: Vec<Claim> = self.workers[worker].deliveries.iter().map(claim_of).collect();
                let is_held = |one: &&Delivery| {
                    self.claims.held.get(&dedup_key_of(&id_of(one))) == Some(&one.first_entry().to_string())
                };
                let expected = self.workers[worker].deliveries.iter().filter(is_held).count();
                assert_eq!(self.queue(worker).dedup.extend(&claims).await.unwrap(), expected);
            }
        }
    }

    async fn claim(&mut self, worker: usize, count: usize) {
        let deliveries: Vec<Delivery> = self.workers[worker].deliveries.iter().take(count).cloned().collect();
        let claims: Vec<Claim> = deliveries.iter().map(claim_of).collect();
        let request = |(delivery, claim)| ClaimRequest { delivery, claim, expires_at: None };
        let requests: Vec<_> = deliveries.iter().zip(&claims).map(request).collect();
        let terms = ClaimTerms { window: HOUR, lease: HOUR, is_fetched: false, is_rated: false };
        let answers = self.queue(worker).dedup.claim(&requests, terms).await.unwrap();
        for (one, answer) in deliveries.iter().zip(answers) {
            assert_eq!(answer, self.answer(worker, one), "{}", id_of(one));
        }
    }

    /// Applies a request to the model, and returns the answer.
    fn answer(&mut self, worker: usize, one: &Delivery) -> ClaimAnswer {
        let id = id_of(one);
        let is_ours = matches!(&self.locations[&id], Location::InFlight { entry, owner, .. } if *entry == one.entry && *owner == worker);
        if !is_ours {
            return ClaimAnswer::Gone;
        }
        self.claims.check_delivery(one);
        let (key, first) = (dedup_key_of(&id), one.first_entry().to_string());
        self.claims.entries.insert(id.clone(), one.entry.to_string());
        if self.finished_keys.contains(&key) {
            self.claims.free(&id, &first);
            return ClaimAnswer::Duplicate;
        }
        if *self.claims.held.entry(key).or_insert_with(|| first.clone()) == first {
            return ClaimAnswer::Run;
        }
        self.put(&id, Location::Delayed { stream: one.entry.stream, is_due: false });
        self.add_history(&id, one.entry.stream);
        self.add("parked", 1);
        if one.crash_count > 0 {
            self.claims.crashes.insert(id.clone(), one.crash_count);
            self.claims.firsts.insert(id, first);
        }
        ClaimAnswer::Busy
    }

    pub(super) async fn check_claims(&self) {
        let expected = self.claims.held.iter().map(|(key, first)| {
            let claim = Claim::new(key, first.parse().unwrap(), HOUR);
            (claim.key_hash().to_owned(), first.clone())
        });
        let stored: BTreeMap<String, String> = self.ask("HGETALL {mq:t}:dedup:claims").await;
        let first = |(hash, claim): (String, String)| (hash, claim.split_once(' ').unwrap().1.trim_end().to_owned());
        assert_eq!(stored.into_iter().map(first).collect::<BTreeMap<_, _>>(), expected.collect());
    }
}
