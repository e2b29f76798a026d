//! The scripts against a plain model: whatever is done in whatever order, each
//! message is where the model says, and nowhere else.

use crate::support::{Redis, topic};
use gateway_worker::message::{Fields, field};
use gateway_worker::publication::{Draft, Priority, Publication};
use gateway_worker::queue::{
    End, EntryKey, FlowControl, Patience, Reader, Restamp, Settled, Settlement, Source, Take, Taken, TopicQueue,
};
use jiff::Timestamp;
use proptest::prelude::*;
use proptest::test_runner::Config;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);
const WORKERS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    Publish {
        priority: usize,
        is_delayed: bool,
    },
    /// A plain client's, into the list of the other topic.
    Push {
        is_left: bool,
    },
    Ingest {
        is_left: bool,
    },
    Take {
        worker: usize,
        count: usize,
    },
    /// What the worker holds at this place, in its order.
    Settle {
        worker: usize,
        at: usize,
        fate: Fate,
    },
    /// The last batch once more, as after a lost reply.
    SettleAgain,
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
    Promote,
    Restamp,
    LoseGroup,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Done,
    DoneAndSend,
    Again,
    Later,
    Dead,
}

#[derive(Debug, Clone, PartialEq)]
enum Place {
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
    Dead,
    Done,
}

fn steps() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![
        3 => Just(Fate::Done), 2 => Just(Fate::DoneAndSend), 2 => Just(Fate::Again), 1 => Just(Fate::Later), 1 => Just(Fate::Dead)
    ];
    prop_oneof![
        6 => (0..3_usize, any::<bool>()).prop_map(|(priority, is_delayed)| Step::Publish { priority, is_delayed }),
        3 => any::<bool>().prop_map(|is_left| Step::Push { is_left }),
        3 => any::<bool>().prop_map(|is_left| Step::Ingest { is_left }),
        6 => (0..WORKERS, 1..8_usize).prop_map(|(worker, count)| Step::Take { worker, count }),
        10 => (0..WORKERS, 0..8_usize, fate).prop_map(|(worker, at, fate)| Step::Settle { worker, at, fate }),
        2 => Just(Step::SettleAgain),
        2 => (0..WORKERS, 1..8_usize).prop_map(|(worker, count)| Step::TakeOver { worker, count }),
        1 => (0..WORKERS).prop_map(|worker| Step::Renew { worker }),
        2 => (0..WORKERS).prop_map(|worker| Step::Reconcile { worker }),
        1 => (0..WORKERS, 0..3_usize).prop_map(|(worker, keeps)| Step::GiveBack { worker, keeps }),
        3 => Just(Step::Promote),
        1 => Just(Step::Restamp),
        1 => Just(Step::LoseGroup),
    ]
}

/// One topic, which is a list to plain clients and has priorities to ours.
struct World<'a> {
    redis: &'a Redis,
    workers: Vec<TopicQueue>,
    /// What each worker believes to hold.
    held: Vec<Vec<Taken>>,
    places: BTreeMap<String, Place>,
    sent: usize,
    last: Option<(usize, Vec<Settlement>)>,
    turn: usize,
}

impl<'a> World<'a> {
    async fn new(redis: &'a Redis) -> Self {
        redis.run::<()>("FLUSHALL").await;
        let workers = (0..WORKERS).map(|worker| redis.queue("t", &format!("worker-{worker}"))).collect();
        let held = vec![Vec::new(); WORKERS];
        Self { redis, workers, held, places: BTreeMap::new(), sent: 0, last: None, turn: 0 }
    }

    fn next_id(&self) -> String {
        format!("m{:03}", self.places.len())
    }

    fn count(&self, is: impl Fn(&Place) -> bool) -> usize {
        self.places.values().filter(|place| is(place)).count()
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Publish { priority, is_delayed } => self.publish(priority, is_delayed).await,
            Step::Push { is_left } => {
                let id = self.next_id();
                let how = if is_left { "LPUSH" } else { "RPUSH" };
                self.redis.run::<i64>(&format!("{how} mq:t {{\"id\":\"{id}\",\"topic\":\"t\",\"data\":1}}")).await;
                self.places.insert(id, Place::List);
            }
            Step::Ingest { is_left } => {
                let moved = self.workers[0].ingest(if is_left { End::Left } else { End::Right }).await.unwrap();
                assert_eq!(moved, self.count(|place| *place == Place::List));
                self.move_all(|place| (*place == Place::List).then_some(Place::Waiting(Source::Work)));
            }
            Step::Take { worker, count } => self.take(worker, count).await,
            Step::Settle { worker, at, fate } => self.settle(worker, at, fate).await,
            Step::SettleAgain => {
                // Done twice is fine; what has moved is gone.
                if let Some((worker, batch)) = self.last.clone() {
                    self.workers[worker].settle(&batch, HOUR).await.unwrap();
                }
            }
            Step::TakeOver { worker, count } => self.take_over(worker, count).await,
            Step::Renew { worker } => {
                let held: Vec<EntryKey> = self.held[worker].iter().map(|one| one.entry.clone()).collect();
                let lost: BTreeSet<String> =
                    self.workers[worker].renew(&held).await.unwrap().iter().map(ToString::to_string).collect();
                let expected = held.iter().filter(|entry| !self.owns(worker, entry)).map(ToString::to_string).collect();
                assert_eq!(lost, expected);
            }
            Step::Reconcile { worker } => self.reconcile(worker).await,
            Step::GiveBack { worker, keeps } => self.give_back(worker, keeps).await,
            Step::Promote => self.promote().await,
            Step::Restamp => self.restamp().await,
            Step::LoseGroup => self.lose_group().await,
        }
    }

    fn move_all(&mut self, to: impl Fn(&Place) -> Option<Place>) {
        for place in self.places.values_mut() {
            if let Some(next) = to(place) {
                *place = next;
            }
        }
    }

    /// The streams that stand, with their groups made.
    async fn sources(&self) -> Vec<Source> {
        self.workers[0].open().await.unwrap().sources
    }

    async fn publish(&mut self, priority: usize, is_delayed: bool) {
        // Plain clients came first, so that the topic is a list.
        self.redis.run::<i64>("HSET {mq:t}:state kind list").await;
        let (priority, source) =
            [(Priority::High, Source::High), (Priority::Normal, Source::Work), (Priority::Low, Source::Low)][priority];
        let (id, topic) = (self.next_id(), topic("t"));
        let delay = if is_delayed { HOUR } else { Duration::ZERO };
        let draft = Draft { priority, delay, ..Draft::new(id.clone(), &topic, "1") };
        self.workers[0].publish(&draft.seal(Timestamp::now()).unwrap()).await.unwrap();
        let place = if is_delayed { Place::Later { source, is_due: false } } else { Place::Waiting(source) };
        self.places.insert(id, place);
    }

    async fn take(&mut self, worker: usize, count: usize) {
        let sources = self.sources().await;
        if sources.is_empty() {
            return;
        }
        let mut reader = Reader::connect(&self.workers[worker]).await.unwrap();
        let control = FlowControl { turn: self.turn, ..FlowControl::default() };
        let taken = match reader.take(&self.workers[worker], &sources, control, count).await.unwrap() {
            Take::Taken(taken) => taken,
            Take::Empty(_) => Vec::new(),
            other => panic!("{other:?}"),
        };
        self.turn += taken.len();
        assert_eq!(taken.len(), count.min(self.count(|place| matches!(place, Place::Waiting(_)))));
        for one in taken {
            let id = id_of(&one);
            assert_eq!(self.places[&id], Place::Waiting(one.entry.source), "{id}");
            self.hold(worker, &id, one);
        }
    }

    fn hold(&mut self, worker: usize, id: &str, one: Taken) {
        let (entry, deliveries) = (one.entry.clone(), one.deliveries);
        self.places.insert(id.to_owned(), Place::InFlight { entry, owner: worker, deliveries, is_given_back: false });
        self.held[worker].push(one);
    }

    fn owns(&self, worker: usize, entry: &EntryKey) -> bool {
        self.places.values().any(|place| {
            matches!(place, Place::InFlight { entry: theirs, owner, .. } if theirs == entry && *owner == worker)
        })
    }

    async fn settle(&mut self, worker: usize, at: usize, fate: Fate) {
        if at >= self.held[worker].len() {
            return;
        }
        let one = self.held[worker].remove(at);
        let id = id_of(&one);
        let settlement = match fate {
            Fate::Done => one.done(None, Vec::new(), None),
            Fate::DoneAndSend => one.done(None, vec![follow_up(&id)], None),
            Fate::Again => one.later(Duration::ZERO, Fields::new()),
            Fate::Later => one.later(HOUR, Fields::new()),
            Fate::Dead => one.dead(Fields::new()),
        };
        // An entry stands until it is settled; whoever has it may finish it, but
        // only its owner, and only of this delivery, may move it.
        let (stands, is_mine) = match &self.places[&id] {
            Place::InFlight { entry, owner, deliveries, .. } if *entry == one.entry => {
                (true, *owner == worker && *deliveries == one.deliveries)
            }
            _ => (false, false),
        };
        let batch = vec![settlement];
        let result = self.workers[worker].settle(&batch, HOUR).await.unwrap().remove(0);
        self.last = Some((worker, batch));
        let next = match fate {
            Fate::Done | Fate::DoneAndSend if stands => Some(Place::Done),
            Fate::Again if is_mine => Some(Place::Later { source: one.entry.source, is_due: true }),
            Fate::Later if is_mine => Some(Place::Later { source: one.entry.source, is_due: false }),
            Fate::Dead if is_mine => Some(Place::Dead),
            _ => None,
        };
        let expected = if next.is_some() || fate == Fate::Done { Settled::Ok } else { Settled::Gone };
        assert_eq!(result, expected, "{id} {fate:?}");
        self.sent += usize::from(fate == Fate::DoneAndSend && next.is_some());
        if let Some(next) = next {
            self.places.insert(id, next);
        }
    }

    async fn take_over(&mut self, worker: usize, count: usize) {
        let now = Patience { lease: Duration::ZERO, legacy: HOUR, connected: HOUR };
        for source in self.sources().await {
            let found = self.workers[worker].take_over(source, now, None, count).await.unwrap();
            let theirs = |place: &Place| matches!(place, Place::InFlight { entry, owner, .. } if entry.source == source && *owner != worker);
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

    async fn reconcile(&mut self, worker: usize) {
        self.held[worker].clear();
        for source in self.sources().await {
            for one in self.workers[worker].reconcile(source, &[]).await.unwrap() {
                let id = id_of(&one);
                let Place::InFlight { entry, owner, deliveries, is_given_back } = &self.places[&id] else {
                    panic!("{id}")
                };
                // A new start of the leases takes the mark off what was given back,
                // but whoever has it has it for the first time at least.
                let expected = (*deliveries + u32::from(*is_given_back)).max(1);
                assert_eq!((entry, *owner, expected), (&one.entry, worker, one.deliveries));
                let (entry, deliveries) = (one.entry.clone(), one.deliveries);
                self.places.insert(id, Place::InFlight { entry, owner: worker, deliveries, is_given_back: false });
                self.held[worker].push(one);
            }
        }
        let owned = self.count(|place| matches!(place, Place::InFlight { owner, .. } if *owner == worker));
        assert_eq!(self.held[worker].len(), owned);
    }

    async fn give_back(&mut self, worker: usize, keeps: usize) {
        let kept: Vec<EntryKey> = self.held[worker].iter().take(keeps).map(|one| one.entry.clone()).collect();
        for source in self.sources().await {
            let given = self.workers[worker].give_back(source, &kept).await.unwrap();
            let mut expected = 0;
            for place in self.places.values_mut() {
                if let Place::InFlight { entry, owner, deliveries, is_given_back } = place
                    && entry.source == source
                    && *owner == worker
                    && !*is_given_back
                    && !kept.contains(entry)
                {
                    // In its place, for anybody to take over, as if never delivered.
                    *deliveries = deliveries.saturating_sub(1);
                    *is_given_back = true;
                    expected += 1;
                }
            }
            assert_eq!(given, expected);
        }
        self.held[worker].truncate(keeps);
    }

    async fn restamp(&mut self) {
        for source in self.sources().await {
            let count = self.workers[0].restamp(source, Restamp::All).await.unwrap();
            let mut expected = 0;
            for place in self.places.values_mut() {
                if let Place::InFlight { entry, is_given_back, .. } = place
                    && entry.source == source
                {
                    *is_given_back = false;
                    expected += 1;
                }
            }
            assert_eq!(count, expected);
        }
    }

    async fn promote(&mut self) {
        let due = self.count(|place| matches!(place, Place::Later { is_due: true, .. }));
        let moved = self.workers[0].promote().await.unwrap().moved;
        assert_eq!(moved, due);
        self.move_all(|place| match place {
            Place::Later { source, is_due: true } => Some(Place::Waiting(*source)),
            _ => None,
        });
    }

    /// What was in flight waits again, and runs again.
    async fn lose_group(&mut self) {
        for source in self.sources().await {
            self.redis.run::<i64>(&format!("XGROUP DESTROY {} consumer-group-t", key_of(source))).await;
        }
        self.sources().await;
        // A new group counts from one again, so what was held before may not be
        // told from what is held then. Nothing is lost by it.
        self.last = None;
        self.held.iter_mut().for_each(Vec::clear);
        self.move_all(|place| match place {
            Place::InFlight { entry, .. } => Some(Place::Waiting(entry.source)),
            _ => None,
        });
    }

    /// Everything in Redis is where the model has it.
    async fn check(&self) {
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut note = |id: String, place: String| found.entry(id).or_default().push(place);
        for source in Source::ALL {
            for envelope in self.redis.envelopes(key_of(source)).await {
                note(envelope["id"].as_str().unwrap().to_owned(), format!("{source:?}"));
            }
        }
        for envelope in self.redis.envelopes("{mq:t}:dead").await {
            note(envelope["id"].as_str().unwrap().to_owned(), "dead".to_owned());
        }
        for list in ["mq:t", "{mq:t}:in"] {
            for text in self.redis.run::<Vec<String>>(&format!("LRANGE {list} 0 -1")).await {
                let envelope: serde_json::Value = serde_json::from_str(&text).unwrap();
                note(envelope["id"].as_str().unwrap().to_owned(), "list".to_owned());
            }
        }
        let bodies: BTreeMap<String, redis::Value> = self.redis.run("HGETALL {mq:t}:later:body").await;
        let tokens: BTreeSet<String> = self.redis.run("ZRANGE {mq:t}:later 0 -1").await;
        assert_eq!(bodies.keys().cloned().collect::<BTreeSet<_>>(), tokens);
        for body in bodies.values() {
            let redis::Value::BulkString(packed) = body else { panic!("{body:?}") };
            let text = String::from_utf8_lossy(packed);
            let id = &text[text.find("\"id\":\"").unwrap() + 6..][..4];
            note(id.to_owned(), "later".to_owned());
        }
        let expected = |place: &Place| match place {
            Place::List => vec!["list".to_owned()],
            Place::Waiting(source) => vec![format!("{source:?}")],
            Place::InFlight { entry, .. } => vec![format!("{:?}", entry.source)],
            Place::Later { .. } => vec!["later".to_owned()],
            Place::Dead => vec!["dead".to_owned()],
            Place::Done => Vec::new(),
        };
        for (id, place) in &self.places {
            assert_eq!(found.remove(id).unwrap_or_default(), expected(place), "{id} {place:?}");
        }
        assert!(found.is_empty(), "{found:?}");
        assert_eq!(self.redis.run::<usize>("XLEN mq:child").await, self.sent);
    }
}

fn id_of(taken: &Taken) -> String {
    let envelope: serde_json::Value = serde_json::from_slice(field(&taken.fields, "message").unwrap()).unwrap();
    envelope["id"].as_str().unwrap().to_owned()
}

fn follow_up(parent: &str) -> Publication {
    let topic = topic("child");
    Draft::new(format!("{parent}-child"), &topic, "1").seal(Timestamp::now()).unwrap()
}

fn key_of(source: Source) -> &'static str {
    match source {
        Source::High => "{mq:t}:high",
        // Plain clients' key: a list here, so nothing of ours is in it.
        Source::Normal => "{mq:t}:none",
        Source::Work => "{mq:t}:work",
        Source::Low => "{mq:t}:low",
    }
}

#[test]
fn every_message_is_where_the_model_says() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let redis = Redis::start_with(&["--appendonly", "no"]);
    // As many as PROPTEST_CASES says, which the runner's default heeds.
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { Config::default().cases } else { 96 };
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 400, ..Config::default() };
    proptest!(config, |(steps in prop::collection::vec(steps(), 1..80))| {
        runtime.block_on(async {
            let mut world = World::new(&redis).await;
            for step in steps {
                world.step(step).await;
            }
            world.check().await;
        });
    });
}
