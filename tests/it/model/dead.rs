//! Dead letters live again, are edited, and go for good.

use super::world::{HOUR, Place, World, id_in, plain};
use gateway_worker::queue::Source;
use gateway_worker::queue::dead::{Letter, Order, Origin, Replayed};
use gateway_worker::settings::DeadLetterCaps;
use proptest::prelude::*;

#[derive(Debug, Clone)]
pub(super) enum Rite {
    /// One of the original's.
    DieThere,
    /// The one at this place, and twice, as after a lost reply; or all.
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
    /// More bytes than there may be are dropped, and that is counted.
    Cap,
    /// Nobody has been dead for as long.
    PurgeOlder,
}

pub(super) fn rites() -> impl Strategy<Value = Rite> {
    prop_oneof![
        2 => Just(Rite::DieThere),
        4 => prop::option::of(0..5_usize).prop_map(|at| Rite::Replay { at }),
        3 => (0..5_usize).prop_map(|at| Rite::Edit { at }),
        1 => (0..5_usize).prop_map(|at| Rite::Delete { at }),
        1 => any::<bool>().prop_map(|is_legacy| Rite::Purge { is_legacy }),
        1 => Just(Rite::Cap),
        1 => Just(Rite::PurgeOlder),
    ]
}

impl World<'_> {
    pub(super) async fn bury(&mut self, rite: Rite) {
        let letters = self.letters().await;
        let one = |at: usize| letters.get(at % letters.len().max(1)).cloned();
        match rite {
            Rite::DieThere => self.die_there().await,
            Rite::Replay { at: None } => self.replay(&letters).await,
            Rite::Replay { at: Some(at) } => {
                if let Some(letter) = one(at) {
                    self.replay(&[letter.clone(), letter]).await;
                }
            }
            Rite::Edit { at } => {
                if let Some(letter) = one(at).filter(|letter| letter.origin == Origin::Ours) {
                    self.edit(&letter).await;
                }
            }
            Rite::Delete { at } => {
                if let Some(letter) = one(at) {
                    for is_there in [true, false] {
                        assert_eq!(self.queue(0).delete_dead(&letter.id()).await.unwrap(), is_there);
                    }
                    self.put(&id_of(&letter), Place::Done);
                }
            }
            Rite::Purge { is_legacy } => {
                let (origin, mut newest, mut purged) = (Origin::ALL[usize::from(is_legacy)], None, 0);
                while let count @ 1.. = self.queue(0).purge_dead(origin, &mut newest).await.unwrap() {
                    purged += count;
                }
                assert_eq!(purged, self.drop_dead(is_legacy) as u64);
            }
            Rite::Cap => {
                let (caps, mut dropped) = (DeadLetterCaps { age: Some(HOUR), bytes: Some(1) }, 0);
                while let count @ 1.. = self.queue(0).cap_dead(caps).await.unwrap() {
                    dropped += count;
                }
                let expected = self.drop_dead(false);
                assert_eq!(dropped, expected as u64);
                self.add("dead-dropped", expected);
            }
            Rite::PurgeOlder => {
                for origin in Origin::ALL {
                    assert_eq!(self.queue(0).purge_older(origin, HOUR).await.unwrap(), 0);
                }
            }
        }
    }

    /// All there are, which the model knows of too.
    async fn letters(&self) -> Vec<Letter> {
        let mut letters = Vec::new();
        for origin in Origin::ALL {
            let mut walk = self.queue(0).dead_letters(origin, Order::OldestFirst).await.unwrap();
            while let more @ [_, ..] = &walk.next().await.unwrap()[..] {
                letters.extend_from_slice(more);
            }
        }
        assert_eq!(letters.len(), self.count(|place| matches!(place, Place::Dead { .. })));
        assert_eq!(self.queue(0).dead_count().await.unwrap(), letters.len() as u64);
        letters
    }

    async fn die_there(&mut self) {
        let id = self.next_id();
        let body = format!(r#"{{"error":"boom","original_message":{}}}"#, plain(&id, 1));
        if self.client::<String>(&format!("XADD mq:dead-letter:t * message {body}")).await.is_some() {
            self.put(&id, Place::Dead { source: Source::Normal, is_legacy: true });
        }
    }

    /// Those that are still there live again, each where its like goes.
    async fn replay(&mut self, letters: &[Letter]) {
        let Some(results) = self.unless_refused(self.queue(0).replay(letters).await) else { return };
        assert_eq!(results.len(), letters.len());
        for (letter, result) in letters.iter().zip(results) {
            let id = id_of(letter);
            match (&self.places[&id], result) {
                (Place::Dead { .. }, Replayed::Not(why)) if self.is_refusal(&why) => {}
                (Place::Dead { source, .. }, Replayed::Ok) => {
                    let is_class = matches!(source, Source::High | Source::Low);
                    let source = if is_class { *source } else { self.main() };
                    self.put(&id, Place::Waiting(source));
                    self.attempts.remove(&id);
                }
                (Place::Waiting(_), Replayed::Gone) => {}
                (place, result) => panic!("{id} {place:?} {result:?}"),
            }
        }
    }

    async fn edit(&mut self, letter: &Letter) {
        let id = id_of(letter);
        let data = self.data.get(&id).copied().unwrap_or(1) + 1;
        let body = plain(&id, data);
        let edited = self.queue(0).edit_dead(&letter.id(), body.as_bytes()).await;
        let Some(edited) = self.unless_refused(edited) else { return };
        assert_ne!(edited.unwrap(), letter.id().to_string());
        // What was read is no longer what is there.
        assert_eq!(self.queue(0).edit_dead(&letter.id(), body.as_bytes()).await.unwrap(), None);
        self.data.insert(id, data);
    }

    fn drop_dead(&mut self, legacy: bool) -> usize {
        self.move_all(|place| {
            matches!(place, Place::Dead { is_legacy, .. } if *is_legacy == legacy).then_some(Place::Done)
        })
    }
}

fn id_of(letter: &Letter) -> String {
    id_in(letter.body().unwrap())
}
