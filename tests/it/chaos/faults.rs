//! Faults of workers, Redis and the connections between them.

use super::publishers::{ATTEMPTS, CHILD, TOPICS};
use super::redis_setup::{Kind, RedisSetup};
use crate::proxy::{Direction, DropReply};
use crate::support::{Gateway, Plugins, built, until};
use fastrand::Rng;
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::Value;
use std::time::{Duration, Instant};

/// Suspensions last well beyond it.
const LEASE: &str = "1s";

/// Durations are in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    KillWorker(usize),
    StopWorker(usize),
    FreezeWorker(usize, u64),
    KillRedis(u64),
    Failover,
    Cut,
    Stall(Direction, u64),
    LoseReply(usize),
    Refuse(u64),
    ForgetScripts,
    DestroyGroup(String),
    FillUp(u64),
    KillClients,
    Pause(&'static str, u64),
}

impl Fault {
    pub(super) fn draw(rng: &mut Rng, workers: usize, kind: Kind) -> Self {
        match kind {
            Kind::Standalone => Self::draw_standalone(rng, workers),
            Kind::Sentinel => Self::draw_sentinel(rng, workers),
        }
    }

    /// Without a proxy, since sentinels name the servers themselves.
    fn draw_sentinel(rng: &mut Rng, workers: usize) -> Self {
        match rng.u32(..13) {
            0 | 1 => Self::KillWorker(rng.usize(..workers)),
            2 => Self::StopWorker(rng.usize(..workers)),
            3 => Self::FreezeWorker(rng.usize(..workers), rng.u64(1200..4000)),
            4..=6 => Self::KillRedis(rng.u64(..2500)),
            7..=8 => Self::Failover,
            9 => Self::ForgetScripts,
            10 => Self::DestroyGroup(group(rng)),
            11 => Self::KillClients,
            _ => Self::Pause(TOPICS[rng.usize(..TOPICS.len())], rng.u64(200..3000)),
        }
    }

    fn draw_standalone(rng: &mut Rng, workers: usize) -> Self {
        let span = |rng: &mut Rng| rng.u64(200..3000);
        let direction = |rng: &mut Rng| if rng.bool() { Direction::ToRedis } else { Direction::ToWorker };
        match rng.u32(..16) {
            0 | 1 => Self::KillWorker(rng.usize(..workers)),
            2 => Self::StopWorker(rng.usize(..workers)),
            3 => Self::FreezeWorker(rng.usize(..workers), rng.u64(1200..4000)),
            4 => Self::KillRedis(rng.u64(..2500)),
            5 => Self::Cut,
            6 => Self::Stall(direction(rng), span(rng)),
            7..=9 => Self::LoseReply(rng.usize(..40)),
            10 => Self::Refuse(span(rng)),
            11 => Self::ForgetScripts,
            12 => Self::DestroyGroup(group(rng)),
            13 => Self::FillUp(span(rng)),
            14 => Self::KillClients,
            _ => Self::Pause(TOPICS[rng.usize(..TOPICS.len())], span(rng)),
        }
    }

    /// Whether a message may run again because of this fault.
    pub(super) fn can_cause_reruns(&self) -> bool {
        !matches!(self, Self::ForgetScripts | Self::FillUp(_) | Self::Pause(..))
    }

    fn span(&self) -> Duration {
        match self {
            Self::FreezeWorker(_, ms)
            | Self::KillRedis(ms)
            | Self::Stall(_, ms)
            | Self::Refuse(ms)
            | Self::FillUp(ms)
            | Self::Pause(_, ms) => Duration::from_millis(*ms),
            _ => Duration::ZERO,
        }
    }
}

/// A stream and its group, as arguments of a command.
fn group(rng: &mut Rng) -> String {
    let topic = if rng.u32(..9) == 0 { CHILD } else { TOPICS[rng.usize(..TOPICS.len())] };
    let stream = match (topic, rng.u32(..3)) {
        ("list", _) => "{mq:list}:work".to_owned(),
        ("prio", 0) => "{mq:prio}:high".to_owned(),
        ("prio", 1) => "{mq:prio}:low".to_owned(),
        _ => format!("mq:{topic}"),
    };
    format!("{stream} consumer-group-{topic}")
}

/// An injected fault with its start and end.
pub(super) struct Event {
    pub(super) began: Timestamp,
    pub(super) ended: Timestamp,
    pub(super) what: Fault,
}

struct Worker {
    number: usize,
    gateway: Gateway,
    is_frozen: bool,
}

pub(super) struct Testbed {
    pub(super) redis: RedisSetup,
    plugins: Plugins,
    workers: Vec<Worker>,
    /// Workers that were asked to stop and may still run.
    leaving: Vec<Gateway>,
    started: usize,
    /// Faults to revert, and when.
    active: Vec<(Instant, Fault, usize)>,
    /// The logs of workers that have exited.
    logs: Vec<Vec<Value>>,
    pub(super) events: Vec<Event>,
}

impl Testbed {
    pub(super) async fn set(count: usize, kind: Kind) -> Self {
        let redis = RedisSetup::start(kind).await;
        let plugins = Plugins::empty();
        let retry = format!("[retry]\nattempts = {ATTEMPTS}\nbase = \"20ms\"\ncap = \"200ms\"\n");
        let grants = format!("[grants]\npublish = [\"seen\", \"{CHILD}\"]\n");
        let names = TOPICS.into_iter().filter(|name| *name != "dedup").chain([CHILD]);
        let names: Vec<String> = names.map(|name| format!("\"{name}\"")).collect();
        plugins.put("puppet", &built("puppet"), &format!("topics = [{}]\n{retry}{grants}", names.join(", ")));
        plugins.put("dedup", &built("puppet"), &format!("{retry}{grants}[dedup]\nwindow = \"1h\"\n"));
        let (workers, leaving, active, logs, events) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut testbed = Self { redis, plugins, workers, leaving, started: 0, active, logs, events };
        (0..count).for_each(|at| testbed.start_worker(at));
        testbed
    }

    fn start_worker(&mut self, at: usize) {
        let options = ["--queue-lease", LEASE, "--shutdown-timeout", "3s"];
        let gateway = Gateway::start_with(&self.redis.url(), &self.plugins, &options);
        self.workers.insert(at, Worker { number: self.started, gateway, is_frozen: false });
        self.started += 1;
    }

    pub(super) async fn inject(&mut self, what: Fault) {
        let began = Timestamp::now();
        let mut number = 0;
        match &what {
            Fault::KillWorker(at) => {
                let worker = self.workers.remove(*at);
                self.logs.push(worker.gateway.kill_and_read_log());
                self.start_worker(*at);
            }
            Fault::StopWorker(at) => {
                let worker = self.workers.remove(*at);
                worker.gateway.signal(Signal::CONT);
                worker.gateway.signal(Signal::TERM);
                self.leaving.push(worker.gateway);
                self.start_worker(*at);
            }
            Fault::FreezeWorker(at, _) => {
                let worker = &mut self.workers[*at];
                worker.is_frozen = true;
                worker.gateway.signal(Signal::STOP);
                number = worker.number;
            }
            Fault::KillRedis(ms) => {
                self.redis.kill_redis(Duration::from_millis(*ms)).await;
            }
            Fault::Failover => self.redis.failover().await,
            Fault::Cut => self.redis.proxy().cut(),
            Fault::Stall(direction, _) => self.redis.proxy().stall(*direction, true),
            Fault::LoseReply(after) => self.redis.proxy().drop_next_reply(DropReply::After(*after)),
            Fault::Refuse(_) => {
                self.redis.proxy().refuse(true);
                self.redis.proxy().cut();
            }
            Fault::ForgetScripts => self.redis.run_on_all_nodes("SCRIPT FLUSH").await,
            Fault::DestroyGroup(group) => self.redis.run_on_all_nodes(&format!("XGROUP DESTROY {group}")).await,
            Fault::FillUp(_) => self.redis.run_on_all_nodes("CONFIG SET maxmemory 1").await,
            Fault::KillClients => self.redis.run_on_all_nodes("CLIENT KILL TYPE normal").await,
            Fault::Pause(topic, _) => self.redis.run_on_all_nodes(&format!("HSET {{mq:{topic}}}:state paused 1")).await,
        }
        self.active.push((Instant::now() + what.span(), what.clone(), number));
        let span = jiff::SignedDuration::try_from(what.span()).unwrap();
        self.events.push(Event { began, ended: Timestamp::now().max(began + span), what });
    }

    /// Reverts the faults whose time is over.
    pub(super) async fn revert(&mut self, all: bool) {
        let now = Instant::now();
        let (over, active): (Vec<_>, Vec<_>) = self.active.drain(..).partition(|(at, ..)| all || *at <= now);
        self.active = active;
        for (_, what, number) in over {
            match what {
                Fault::FreezeWorker(..) => self.wake(number),
                Fault::Stall(direction, _) => self.redis.proxy().stall(direction, false),
                Fault::Refuse(_) => self.redis.proxy().refuse(false),
                Fault::FillUp(_) => self.redis.run_on_all_nodes("CONFIG SET maxmemory 0").await,
                Fault::Pause(topic, _) => {
                    self.redis.run_on_all_nodes(&format!("HDEL {{mq:{topic}}}:state paused")).await
                }
                _ => {}
            }
        }
    }

    fn wake(&mut self, number: usize) {
        if let Some(worker) = self.workers.iter_mut().find(|worker| worker.number == number && worker.is_frozen) {
            worker.gateway.signal(Signal::CONT);
            worker.is_frozen = false;
        }
    }

    /// Stops every worker with SIGTERM and returns the logs of all.
    pub(super) async fn end(&mut self) -> Vec<Vec<Value>> {
        let mut ending: Vec<Gateway> = self.workers.drain(..).map(|worker| worker.gateway).collect();
        ending.iter().for_each(|gateway| gateway.signal(Signal::TERM));
        ending.append(&mut self.leaving);
        for mut gateway in ending {
            until("a worker exits", async || (!gateway.is_running()).then_some(())).await;
            self.logs.push(gateway.kill_and_read_log());
        }
        std::mem::take(&mut self.logs)
    }
}
