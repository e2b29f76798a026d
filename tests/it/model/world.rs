//! Where each message is, as a plain program would have it.

use super::Step;
use super::server::Server;
use super::settle::Settling;
use crate::servers::parse_command;
use gateway_worker::message::field;
use gateway_worker::publication::Priority;
use gateway_worker::queue::{EntryKey, QueueError, Reader, Source, SweptTo, Taken, TopicQueue};
use jiff::Timestamp;
use redis::{Cmd, FromRedisValue};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const WORKERS: usize = 3;
pub(super) const SCHEDULES: [&str; 2] = ["one", "other"];

/// What the topic's key is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// Plain clients', which is emptied into the work stream.
    List,
    Stream,
    /// A stream that another group reads too, or rather has still to read.
    Shared,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Place {
    /// In the list of plain clients.
    List,
    Waiting(Source),
    InFlight {
        entry: EntryKey,
        owner: usize,
        deliveries: u32,
        is_given_back: bool,
    },
    /// Where it comes back to, and whether it is due.
    Later {
        source: Source,
        is_due: bool,
    },
    /// Among the original's delayed messages.
    Legacy {
        is_due: bool,
    },
    /// On its way to there, through the outbox.
    Out(Box<Place>),
    /// In the topic of follow-ups.
    Sent,
    Dead {
        source: Source,
        is_legacy: bool,
    },
    /// Done, or a duplicate, or expired, or cancelled, or purged.
    Done,
}

pub(super) struct Worker {
    pub(super) queue: TopicQueue,
    pub(super) reader: Option<Reader>,
    /// What it believes to hold.
    pub(super) held: Vec<Taken>,
}

/// One topic, its messages, and what else its keys say.
pub(super) struct World<'a> {
    pub(super) server: &'a Server,
    pub(super) kind: Kind,
    pub(super) workers: Vec<Worker>,
    pub(super) places: BTreeMap<String, Place>,
    /// Whose entries stand in the topic's stream, delivered and acknowledged.
    pub(super) history: Vec<String>,
    /// What the bodies say that are not as they came.
    pub(super) data: BTreeMap<String, u32>,
    /// How often a message was put off, which its entry says.
    pub(super) attempts: BTreeMap<String, u32>,
    pub(super) counted: BTreeMap<String, u64>,
    /// What has finished and is remembered.
    pub(super) marks: BTreeSet<String>,
    /// What was published with an id that counts once.
    pub(super) once: Vec<String>,
    pub(super) suspects: BTreeMap<String, (u32, usize)>,
    /// When each schedule fired last.
    pub(super) fired: [Timestamp; SCHEDULES.len()],
    pub(super) last: Option<Settling>,
    pub(super) swept: Option<SweptTo>,
    pub(super) is_paused: bool,
    pub(super) turn: usize,
    /// How many began under a rate.
    pub(super) begun: usize,
    is_full: bool,
    ids: usize,
}

impl<'a> World<'a> {
    pub(super) async fn new(server: &'a Server, kind: Kind) -> Self {
        let worker = |number| {
            let queue = server.queue(&format!("worker-{number}"));
            Worker { queue, reader: None, held: Vec::new() }
        };
        let mut world = Self {
            server,
            kind,
            workers: (0..WORKERS).map(worker).collect(),
            places: BTreeMap::new(),
            history: Vec::new(),
            data: BTreeMap::new(),
            attempts: BTreeMap::new(),
            counted: BTreeMap::new(),
            marks: BTreeSet::new(),
            once: Vec::new(),
            suspects: BTreeMap::new(),
            fired: [Timestamp::UNIX_EPOCH; SCHEDULES.len()],
            last: None,
            swept: None,
            is_paused: false,
            turn: 0,
            begun: 0,
            is_full: false,
            ids: 0,
        };
        // A world that was given up may have left it full.
        world.ask::<()>("CONFIG SET maxmemory 0").await;
        world.ask::<()>("FLUSHALL").await;
        match kind {
            // Plain clients came first.
            Kind::List => world.ask::<()>("HSET {mq:t}:state kind list").await,
            Kind::Stream => {}
            Kind::Shared => world.ask::<()>("XGROUP CREATE mq:t audit 0 MKSTREAM").await,
        }
        for worker in &world.workers {
            worker.queue.open().await.unwrap();
        }
        world.begin_schedules().await;
        world
    }

    pub(super) async fn step(&mut self, step: Step) {
        match step {
            Step::Arrive(arrival) => self.arrive(arrival).await,
            Step::Pass(passage) => self.pass(passage).await,
            Step::Hold(grip) => self.grip(grip).await,
            Step::Settle(verdict) => self.judge(verdict).await,
            Step::Bury(rite) => self.bury(rite).await,
            Step::Operate(order) => self.operate(order).await,
        }
    }

    /// With a full memory an operation happens as ever, or is refused and
    /// changes nothing.
    pub(super) async fn fill(&mut self, is_full: bool) {
        if self.is_full != is_full {
            self.ask::<()>(&format!("CONFIG SET maxmemory {}", u8::from(is_full))).await;
            self.is_full = is_full;
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// What an operation brought; nothing where the full memory refused it.
    pub(super) fn unless_refused<T>(&self, result: Result<T, QueueError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) if self.is_refusal(&error.to_string()) => None,
            Err(error) => panic!("{error}"),
        }
    }

    pub(super) fn is_refusal(&self, error: &str) -> bool {
        self.is_full && error.contains("OOM")
    }

    /// A plain client's command, written as in a shell without quotes; nothing
    /// where it was refused.
    pub(super) async fn client<T: FromRedisValue>(&self, command: &str) -> Option<T> {
        self.send(&parse_command(command)).await
    }

    pub(super) async fn send<T: FromRedisValue>(&self, command: &Cmd) -> Option<T> {
        let result = command.query_async(&mut self.server.client.clone()).await;
        self.unless_refused(result.map_err(QueueError::from))
    }

    /// A command that is never refused.
    pub(super) async fn ask<T: FromRedisValue>(&self, command: &str) -> T {
        self.client(command).await.unwrap()
    }

    pub(super) fn queue(&self, worker: usize) -> &TopicQueue {
        &self.workers[worker].queue
    }

    /// The streams that stand, with their groups made; nothing where those were
    /// refused.
    pub(super) async fn sources(&self, worker: usize) -> Option<Vec<Source>> {
        let opened = self.unless_refused(self.queue(worker).open().await)?;
        assert_eq!(opened.is_paused, self.is_paused);
        Some(opened.sources)
    }

    pub(super) fn next_id(&mut self) -> String {
        self.ids += 1;
        format!("m{:03}", self.ids)
    }

    pub(super) fn is_list(&self) -> bool {
        self.kind == Kind::List
    }

    pub(super) fn is_shared(&self, source: Source) -> bool {
        self.kind == Kind::Shared && source == Source::Normal
    }

    /// Where messages go that have no priority.
    pub(super) fn main(&self) -> Source {
        if self.is_list() { Source::Work } else { Source::Normal }
    }

    pub(super) fn place_of(&self, priority: Priority, is_delayed: bool) -> Place {
        let source = match priority {
            Priority::High => Source::High,
            Priority::Normal => self.main(),
            Priority::Low => Source::Low,
        };
        if is_delayed { Place::Later { source, is_due: false } } else { Place::Waiting(source) }
    }

    pub(super) fn put(&mut self, id: &str, place: Place) {
        self.places.insert(id.to_owned(), place);
    }

    /// The one of this place among all that there ever were.
    pub(super) fn any(&self, at: usize) -> Option<String> {
        self.places.keys().nth(at % self.places.len().max(1)).cloned()
    }

    /// An entry is acknowledged; where another group has still to read it, it
    /// stays.
    pub(super) fn leave_behind(&mut self, id: &str, source: Source) {
        if self.is_shared(source) {
            self.history.push(id.to_owned());
        }
    }

    pub(super) fn count(&self, is: impl Fn(&Place) -> bool) -> usize {
        self.places.values().filter(|place| is(place)).count()
    }

    pub(super) fn in_flight(&self, is: impl Fn(Source) -> bool) -> usize {
        self.count(|place| matches!(place, Place::InFlight { entry, .. } if is(entry.source)))
    }

    pub(super) fn add(&mut self, counter: &str, count: usize) {
        *self.counted.entry(counter.to_owned()).or_default() += count as u64;
    }

    /// Returns how many moved.
    pub(super) fn move_all(&mut self, to: impl Fn(&Place) -> Option<Place>) -> usize {
        let mut moved = 0;
        for place in self.places.values_mut() {
            if let Some(next) = to(place) {
                *place = next;
                moved += 1;
            }
        }
        moved
    }
}

pub(super) fn id_of(taken: &Taken) -> String {
    id_in(field(&taken.fields, "message").unwrap())
}

pub(super) fn id_in(body: &[u8]) -> String {
    let envelope: serde_json::Value = serde_json::from_slice(body).unwrap();
    envelope["id"].as_str().unwrap().to_owned()
}

/// As plain clients write it.
pub(super) fn plain(id: &str, data: u32) -> String {
    format!(r#"{{"id":"{id}","topic":"t","data":{data}}}"#)
}

pub(super) fn key_of(source: Source) -> &'static str {
    match source {
        Source::High => "{mq:t}:high",
        Source::Normal => "mq:t",
        Source::Work => "{mq:t}:work",
        Source::Low => "{mq:t}:low",
    }
}
