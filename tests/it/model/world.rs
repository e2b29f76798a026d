//! The model: where each message has to be.

use super::Step;
use super::dedup::Claims;
use super::server::Server;
use super::settle::{SettleRequest, dedup_key_of};
use crate::servers::parse_command;
use crate::topic_client::TopicClient;
use gateway_worker::message::field;
use gateway_worker::publication::Priority;
use gateway_worker::queue::{BlockingReader, Delivery, EntryId, QueueError, StreamKind, SweepCursor};
use jiff::Timestamp;
use redis::{Cmd, FromRedisValue};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const WORKERS: usize = 3;
pub(super) const SCHEDULES: [&str; 2] = ["one", "other"];

/// The type of the topic's main key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// A list of plain clients, which workers empty into the work stream.
    List,
    Stream,
    /// A stream that another group has not read yet.
    Shared,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Location {
    /// In the list of plain clients.
    List,
    Waiting(StreamKind),
    InFlight {
        entry: EntryId,
        owner: usize,
        delivery_count: u32,
        is_requeued: bool,
    },
    /// The stream that it goes to, and whether it is due.
    Delayed {
        stream: StreamKind,
        is_due: bool,
    },
    /// Among the legacy delayed messages.
    LegacyDelayed {
        is_due: bool,
    },
    /// In the outbox, to arrive at this location.
    Outbox(Box<Location>),
    /// In the topic of the follow-ups.
    Sent,
    Dead {
        stream: StreamKind,
        is_legacy: bool,
    },
    /// Done, a duplicate, expired, cancelled, or purged.
    Done,
}

pub(super) struct Worker {
    pub(super) queue: TopicClient,
    pub(super) reader: Option<BlockingReader>,
    /// The messages that it has in flight, as far as it knows.
    pub(super) deliveries: Vec<Delivery>,
}

/// One topic with its messages and the other contents of its keys.
pub(super) struct World<'a> {
    pub(super) server: &'a Server,
    pub(super) kind: Kind,
    pub(super) workers: Vec<Worker>,
    pub(super) locations: BTreeMap<String, Location>,
    /// Messages whose entries are delivered and acknowledged, and still in the stream.
    pub(super) history: Vec<String>,
    /// The data of edited bodies.
    pub(super) data: BTreeMap<String, u32>,
    /// The attempts that the entries state.
    pub(super) attempts: BTreeMap<String, u32>,
    pub(super) counted: BTreeMap<String, u64>,
    /// The stored deduplication keys of finished messages.
    pub(super) finished_keys: BTreeSet<String>,
    pub(super) claims: Claims,
    /// The ids of `publish_once`.
    pub(super) once: Vec<String>,
    pub(super) isolated: BTreeMap<String, (u32, usize)>,
    /// The last fire time of each schedule.
    pub(super) fired: [Timestamp; SCHEDULES.len()],
    pub(super) last: Option<SettleRequest>,
    pub(super) swept: Option<SweepCursor>,
    pub(super) is_paused: bool,
    pub(super) turn: usize,
    /// How many messages started under a rate limit.
    pub(super) started: usize,
    is_full: bool,
    ids: usize,
}

impl<'a> World<'a> {
    pub(super) async fn new(server: &'a Server, kind: Kind) -> Self {
        let worker = |number| {
            let queue = server.queue(&format!("worker-{number}"));
            Worker { queue, reader: None, deliveries: Vec::new() }
        };
        let mut world = Self {
            server,
            kind,
            workers: (0..WORKERS).map(worker).collect(),
            locations: BTreeMap::new(),
            history: Vec::new(),
            data: BTreeMap::new(),
            attempts: BTreeMap::new(),
            counted: BTreeMap::new(),
            finished_keys: BTreeSet::new(),
            claims: Claims::default(),
            once: Vec::new(),
            isolated: BTreeMap::new(),
            fired: [Timestamp::UNIX_EPOCH; SCHEDULES.len()],
            last: None,
            swept: None,
            is_paused: false,
            turn: 0,
            started: 0,
            is_full: false,
            ids: 0,
        };
        // A failed case may have left the memory full.
        world.ask::<()>("CONFIG SET maxmemory 0").await;
        world.ask::<()>("FLUSHALL").await;
        match kind {
            // Plain clients have used the key before.
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
            Step::Transfer(step) => self.transfer(step).await,
            Step::Lease(step) => self.lease_step(step).await,
            Step::Settle(step) => self.settle_step(step).await,
            Step::Dedup(step) => self.dedup_step(step).await,
            Step::DeadLetter(step) => self.dead_letter_step(step).await,
            Step::Operate(step) => self.operate(step).await,
        }
    }

    /// With a full memory an operation succeeds, or it is refused and changes nothing.
    pub(super) async fn fill(&mut self, is_full: bool) {
        if self.is_full != is_full {
            self.ask::<()>(&format!("CONFIG SET maxmemory {}", u8::from(is_full))).await;
            self.is_full = is_full;
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// The result of an operation; `None` where the full memory refused it.
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

    /// A command of a plain client, written as in a shell without quotes; `None` where
    /// it was refused.
    pub(super) async fn client<T: FromRedisValue>(&self, command: &str) -> Option<T> {
        self.send(&parse_command(command)).await
    }

    pub(super) async fn send<T: FromRedisValue>(&self, command: &Cmd) -> Option<T> {
        let result = command.query_async(&mut self.server.client.clone()).await;
        self.unless_refused(result.map_err(QueueError::from))
    }

    /// A command that a full memory does not refuse.
    pub(super) async fn ask<T: FromRedisValue>(&self, command: &str) -> T {
        self.client(command).await.unwrap()
    }

    pub(super) fn queue(&self, worker: usize) -> &TopicClient {
        &self.workers[worker].queue
    }

    /// The existing streams, with their groups created; `None` where that was refused.
    pub(super) async fn streams(&self, worker: usize) -> Option<Vec<StreamKind>> {
        let opened = self.unless_refused(self.queue(worker).open().await)?;
        assert_eq!(opened.is_paused, self.is_paused);
        Some(opened.streams)
    }

    pub(super) fn next_id(&mut self) -> String {
        self.ids += 1;
        format!("m{:03}", self.ids)
    }

    pub(super) fn is_list(&self) -> bool {
        self.kind == Kind::List
    }

    pub(super) fn is_shared(&self, stream: StreamKind) -> bool {
        self.kind == Kind::Shared && stream == StreamKind::Normal
    }

    /// The stream of messages without a priority.
    pub(super) fn main(&self) -> StreamKind {
        if self.is_list() { StreamKind::Work } else { StreamKind::Normal }
    }

    pub(super) fn location_of(&self, priority: Priority, is_delayed: bool) -> Location {
        let stream = match priority {
            Priority::High => StreamKind::High,
            Priority::Normal => self.main(),
            Priority::Low => StreamKind::Low,
        };
        if is_delayed { Location::Delayed { stream, is_due: false } } else { Location::Waiting(stream) }
    }

    pub(super) fn put(&mut self, id: &str, location: Location) {
        self.locations.insert(id.to_owned(), location);
    }

    /// The id at this position among all that ever existed.
    pub(super) fn any(&self, at: usize) -> Option<String> {
        self.locations.keys().nth(at % self.locations.len().max(1)).cloned()
    }

    /// Records an acknowledged entry that stays for another group.
    pub(super) fn add_history(&mut self, id: &str, stream: StreamKind) {
        if self.is_shared(stream) {
            self.history.push(id.to_owned());
        }
    }

    pub(super) fn count(&self, is: impl Fn(&Location) -> bool) -> usize {
        self.locations.values().filter(|location| is(location)).count()
    }

    pub(super) fn in_flight(&self, is: impl Fn(StreamKind) -> bool) -> usize {
        self.count(|location| matches!(location, Location::InFlight { entry, .. } if is(entry.stream)))
    }

    pub(super) fn add(&mut self, counter: &str, count: usize) {
        *self.counted.entry(counter.to_owned()).or_default() += count as u64;
    }

    /// Returns how many moved.
    pub(super) fn move_all(&mut self, to: impl Fn(&Location) -> Option<Location>) -> usize {
        let mut moved = 0;
        for location in self.locations.values_mut() {
            if let Some(next) = to(location) {
                *location = next;
                moved += 1;
            }
        }
        moved
    }
}

pub(super) fn id_of(taken: &Delivery) -> String {
    id_in(field(&taken.fields, "message").unwrap())
}

pub(super) fn id_in(body: &[u8]) -> String {
    let envelope: serde_json::Value = serde_json::from_slice(body).unwrap();
    envelope["id"].as_str().unwrap().to_owned()
}

/// A message as plain clients write it.
pub(super) fn plain(id: &str, data: u32) -> String {
    format!(r#"{{"id":"{id}","topic":"t","dedup_key":"{}","data":{data}}}"#, dedup_key_of(id))
}

pub(super) fn key_of(stream: StreamKind) -> &'static str {
    match stream {
        StreamKind::High => "{mq:t}:high",
        StreamKind::Normal => "mq:t",
        StreamKind::Work => "{mq:t}:work",
        StreamKind::Low => "{mq:t}:low",
    }
}
