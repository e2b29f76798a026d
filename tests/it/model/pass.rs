//! Messages move by themselves: what is due, what a list holds, what is on its
//! way; and what the original does beside us.

use super::world::{Kind, Place, WORKERS, World, id_in, key_of, plain};
use crate::support::{Entry, field};
use gateway_worker::queue::{End, Outbox, Source};
use proptest::prelude::*;
use std::time::Duration;

/// With their ids.
type Entries = Vec<(String, Entry)>;

#[derive(Debug, Clone)]
pub(super) enum Passage {
    Ingest {
        is_left: bool,
    },
    Promote,
    PromoteLegacy,
    Relay {
        worker: usize,
    },
    /// A worker of the original runs so many, which it acknowledges only.
    OriginalRuns {
        count: usize,
    },
    /// It fails at one, and publishes a copy; what it leaves behind is adopted.
    OriginalFails,
    /// A piece of the history, or all of it.
    Sweep {
        is_whole: bool,
    },
    LoseGroups,
}

pub(super) fn passages() -> impl Strategy<Value = Passage> {
    prop_oneof![
        3 => any::<bool>().prop_map(|is_left| Passage::Ingest { is_left }),
        3 => Just(Passage::Promote),
        2 => Just(Passage::PromoteLegacy),
        2 => (0..WORKERS).prop_map(|worker| Passage::Relay { worker }),
        1 => (1..4_usize).prop_map(|count| Passage::OriginalRuns { count }),
        1 => Just(Passage::OriginalFails),
        2 => any::<bool>().prop_map(|is_whole| Passage::Sweep { is_whole }),
        1 => Just(Passage::LoseGroups),
    ]
}

impl World<'_> {
    pub(super) async fn pass(&mut self, passage: Passage) {
        match passage {
            Passage::Ingest { is_left } => self.ingest(if is_left { End::Left } else { End::Right }).await,
            Passage::Promote => self.promote().await,
            Passage::PromoteLegacy => self.promote_legacy().await,
            Passage::Relay { worker } => self.relay(worker).await,
            Passage::OriginalRuns { count } => self.original_runs(count).await,
            Passage::OriginalFails => self.original_fails().await,
            Passage::Sweep { is_whole } => self.sweep(is_whole).await,
            Passage::LoseGroups => self.lose_groups().await,
        }
    }

    async fn ingest(&mut self, end: End) {
        let Some(moved) = self.unless_refused(self.queue(0).ingest(end).await) else { return };
        let expected = self.move_all(|place| (*place == Place::List).then_some(Place::Waiting(Source::Work)));
        assert_eq!(moved, expected);
    }

    async fn promote(&mut self) {
        let Some(promoted) = self.unless_refused(self.queue(0).promote().await) else { return };
        let expected = self.move_all(|place| match place {
            Place::Later { source, is_due: true } => Some(Place::Waiting(*source)),
            _ => None,
        });
        let is_left = self.count(|place| matches!(place, Place::Later { .. })) > 0;
        assert_eq!((promoted.moved, promoted.next_due.is_some()), (expected, is_left));
        assert_eq!(self.queue(0).has_later().await.unwrap(), is_left);
    }

    async fn promote_legacy(&mut self) {
        let Some(moved) = self.unless_refused(self.queue(0).promote_legacy().await) else { return };
        let main = self.main();
        let due = Place::Legacy { is_due: true };
        assert_eq!(moved, self.move_all(|place| (*place == due).then_some(Place::Waiting(main))));
    }

    /// By a worker that has just started, and to which all that others took and
    /// did not bring is free.
    async fn relay(&mut self, worker: usize) {
        let no_time = Duration::from_nanos(3);
        let relayed = self.queue(worker).relay(&mut Outbox::default(), no_time).await;
        let Some(relayed) = self.unless_refused(relayed) else { return };
        let is_full = self.is_full();
        let arrived = self.move_all(|place| match place {
            Place::Out(to) if !is_full => Some(Place::clone(to)),
            _ => None,
        });
        assert_eq!(relayed.arrived, arrived);
    }

    /// Where it may: on a list it fails, and without the group.
    async fn original_reads(&mut self, count: usize) -> Entries {
        let sources = self.sources(0).await.unwrap_or_default();
        if !sources.contains(&Source::Normal) {
            return Vec::new();
        }
        let read = format!("XREADGROUP GROUP consumer-group-t consumer-1 COUNT {count} STREAMS mq:t >");
        let streams: Option<Vec<(String, Entries)>> = self.ask(&read).await;
        let entries = streams.into_iter().flatten().flat_map(|(_, entries)| entries).collect::<Vec<_>>();
        let waiting = self.count(|place| *place == Place::Waiting(Source::Normal));
        assert_eq!(entries.len(), count.min(waiting));
        entries
    }

    async fn original_runs(&mut self, count: usize) {
        for (entry, fields) in self.original_reads(count).await {
            self.ask::<i64>(&format!("XACK mq:t consumer-group-t {entry}")).await;
            let id = id_in(&field(&fields, "message"));
            assert_eq!(self.places.insert(id.clone(), Place::Done), Some(Place::Waiting(Source::Normal)));
            self.history.push(id);
        }
    }

    async fn original_fails(&mut self) {
        if self.is_full() {
            return;
        }
        let Some((_, fields)) = self.original_reads(1).await.pop() else { return };
        let body: serde_json::Value = serde_json::from_slice(&field(&fields, "message")).unwrap();
        let id = body["id"].as_str().unwrap().to_owned();
        let retry = body["retry"].as_u64().unwrap_or(0) + 1;
        let data = self.data.get(&id).copied().unwrap_or(1);
        let copy = format!("{},\"retry\":{retry},\"max_retry\":9}}", plain(&id, data).trim_end_matches('}'));
        self.ask::<String>(&format!("XADD mq:t * message {copy}")).await;
        self.attempts.remove(&id);
        assert_eq!(self.queue(0).adopt(Duration::ZERO).await.unwrap(), 1);
        self.history.push(id);
        // Otherwise it would be twice in a group that is lost.
        self.swept = None;
        self.sweep(true).await;
    }

    /// History goes; beside another group it stays, and is known to be such.
    async fn sweep(&mut self, is_whole: bool) {
        loop {
            let sources = self.sources(0).await.unwrap_or_default();
            if !sources.contains(&Source::Normal) {
                return;
            }
            let is_first = self.swept.is_none();
            let swept = self.queue(0).sweep(self.swept.as_ref()).await;
            let Some(swept) = self.unless_refused(swept) else { return };
            let has_delivered = !self.history.is_empty() || self.in_flight(|source| source == Source::Normal) > 0;
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

    /// What was in flight waits again, and runs again; and so does history that
    /// was not swept. That of a shared stream is as long as the stream, and is
    /// not run again.
    async fn lose_groups(&mut self) {
        let is_shared = self.kind == Kind::Shared;
        if self.is_full() || (is_shared && self.in_flight(|source| source == Source::Normal) > 0) {
            return;
        }
        if is_shared {
            self.sweep(true).await;
        }
        for source in self.sources(0).await.unwrap() {
            self.ask::<i64>(&format!("XGROUP DESTROY {} consumer-group-t", key_of(source))).await;
        }
        self.sources(0).await;
        // A new group counts from one again, so what was held before may not be
        // told from what is held then. Nothing is lost by it.
        self.last = None;
        self.workers.iter_mut().for_each(|worker| worker.held.clear());
        self.move_all(|place| match place {
            Place::InFlight { entry, .. } => Some(Place::Waiting(entry.source)),
            _ => None,
        });
        if !is_shared {
            for id in std::mem::take(&mut self.history) {
                assert_eq!(self.places.insert(id, Place::Waiting(Source::Normal)), Some(Place::Done));
            }
        }
    }
}
