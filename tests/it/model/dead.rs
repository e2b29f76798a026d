//! The model of operations on dead letters: replay, edit, delete, evict.

use super::settle::dedup_key_of;
use super::world::{HOUR, Location, World, id_in, plain};
use gateway_worker::queue::dead::{DeadLetterEntry, Order, Origin, Replayed};
use gateway_worker::queue::{Evicted, StreamKind};
use gateway_worker::settings::DeadLetterCaps;
use proptest::prelude::*;

#[derive(Debug, Clone)]
pub(super) enum DeadLetterStep {
    /// A legacy worker writes one.
    AddLegacy,
    /// The one at this position, twice as after a lost reply; or all.
    Replay {
        at: Option<usize>,
    },
    Edit {
        at: usize,
    },
    Delete {
        at: usize,
    },
    Purge {
        is_legacy: bool,
    },
    /// Evicts all because of a cap for bytes.
    Evict,
    /// By an age that no dead letter has.
    PurgeOlder,
}

pub(super) fn dead_letter_steps() -> impl Strategy<Value = DeadLetterStep> {
    prop_oneof![
        2 => Just(DeadLetterStep::AddLegacy),
        4 => prop::option::of(0..5_usize).prop_map(|at| DeadLetterStep::Replay { at }),
        3 => (0..5_usize).prop_map(|at| DeadLetterStep::Edit { at }),
        1 => (0..5_usize).prop_map(|at| DeadLetterStep::Delete { at }),
        1 => any::<bool>().prop_map(|is_legacy| DeadLetterStep::Purge { is_legacy }),
        1 => Just(DeadLetterStep::Evict),
        1 => Just(DeadLetterStep::PurgeOlder),
    ]
}

impl World<'_> {
    pub(super) async fn dead_letter_step(&mut self, step: DeadLetterStep) {
        let letters = self.letters().await;
        let one = |at: usize| letters.get(at % letters.len().max(1)).cloned();
        match step {
            DeadLetterStep::AddLegacy => self.add_legacy().await,
            DeadLetterStep::Replay { at: None } => self.replay(&letters).await,
            DeadLetterStep::Replay { at: Some(at) } => {
                if let Some(letter) = one(at) {
                    self.replay(&[letter.clone(), letter]).await;
                }
            }
            DeadLetterStep::Edit { at } => {
                if let Some(letter) = one(at).filter(|letter| letter.origin == Origin::Ours) {
                    self.edit(&letter).await;
                }
            }
            DeadLetterStep::Delete { at } => {
                if let Some(letter) = one(at) {
                    for is_there in [true, false] {
                        assert_eq!(self.queue(0).dead_letters.delete(&letter.id()).await.unwrap(), is_there);
                    }
                    self.put(&id_of(&letter), Location::Done);
                }
            }
            DeadLetterStep::Purge { is_legacy } => {
                let (origin, mut newest, mut purged) = (Origin::ALL[usize::from(is_legacy)], None, 0);
                while let count @ 1.. = self.queue(0).dead_purge.all(origin, &mut newest).await.unwrap() {
                    purged += count;
                }
                assert_eq!(purged, self.remove_dead(is_legacy) as u64);
            }
            DeadLetterStep::Evict => {
                let (caps, mut evicted_count) = (DeadLetterCaps { age: Some(HOUR), bytes: Some(1) }, 0);
                while let evicted = self.queue(0).eviction.evict(caps).await.unwrap()
                    && evicted != Evicted::default()
                {
                    evicted_count += evicted.by_age + evicted.by_bytes;
                }
                let expected = self.remove_dead(false);
                assert_eq!(evicted_count, expected as u64);
                self.add("dead-evicted", expected);
            }
            DeadLetterStep::PurgeOlder => {
                for origin in Origin::ALL {
                    assert_eq!(self.queue(0).dead_purge.older_than(origin, HOUR).await.unwrap(), 0);
                }
            }
        }
    }

    /// All dead letters, compared with the model.
    async fn letters(&self) -> Vec<DeadLetterEntry> {
        let mut letters = Vec::new();
        for origin in Origin::ALL {
            let mut walk = self.queue(0).dead_letters.list(origin, Order::OldestFirst).await.unwrap();
            while let more @ [_, ..] = &walk.next().await.unwrap()[..] {
                letters.extend_from_slice(more);
            }
        }
        assert_eq!(letters.len(), self.count(|location| matches!(location, Location::Dead { .. })));
        assert_eq!(self.queue(0).dead_letters.count().await.unwrap(), letters.len() as u64);
        letters
    }

    async fn add_legacy(&mut self) {
        let id = self.next_id();
        let body = format!(r#"{{"error":"boom","original_message":{}}}"#, plain(&id, 1));
        if self.client::<String>(&format!("XADD mq:dead-letter:t * message {body}")).await.is_some() {
            self.put(&id, Location::Dead { stream: StreamKind::Normal, is_legacy: true });
        }
    }

    /// Those that still exist go where messages of their priority go.
    async fn replay(&mut self, letters: &[DeadLetterEntry]) {
        let Some(results) = self.unless_refused(self.queue(0).replay.replay(letters).await) else { return };
        assert_eq!(results.len(), letters.len());
        for (letter, result) in letters.iter().zip(results) {
            let id = id_of(letter);
            match (&self.locations[&id], &result) {
                (Location::Dead { .. }, Replayed::Not(why)) if self.is_refusal(why) => {}
                (Location::Dead { stream, .. }, Replayed::Ok | Replayed::AsDuplicate) => {
                    let is_finished = self.finished_keys.contains(&dedup_key_of(&id));
                    assert_eq!(result == Replayed::AsDuplicate, is_finished, "{id}");
                    let is_class = matches!(stream, StreamKind::High | StreamKind::Low);
                    let stream = if is_class { *stream } else { self.main() };
                    self.put(&id, Location::Waiting(stream));
                    self.attempts.remove(&id);
                    self.claims.forget(&id);
                }
                (Location::Waiting(_), Replayed::Gone) => {}
                (location, result) => panic!("{id} {location:?} {result:?}"),
            }
        }
    }

    async fn edit(&mut self, letter: &DeadLetterEntry) {
        let id = id_of(letter);
        let data = self.data.get(&id).copied().unwrap_or(1) + 1;
        let body = plain(&id, data);
        let edited = self.queue(0).dead_letters.edit(&letter.id(), body.as_bytes()).await;
        let Some(edited) = self.unless_refused(edited) else { return };
        assert_ne!(edited.unwrap(), letter.id().to_string());
        // The letter that was read does not exist any more.
        assert_eq!(self.queue(0).dead_letters.edit(&letter.id(), body.as_bytes()).await.unwrap(), None);
        self.data.insert(id, data);
    }

    fn remove_dead(&mut self, legacy: bool) -> usize {
        self.move_all(|location| {
            matches!(location, Location::Dead { is_legacy, .. } if *is_legacy == legacy).then_some(Location::Done)
        })
    }
}

fn id_of(letter: &DeadLetterEntry) -> String {
    id_in(letter.body().unwrap())
}
