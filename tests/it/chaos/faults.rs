//! Faults of workers, Redis and the connections between them.

use super::census;
use super::publishers::{ATTEMPTS, CHILD, TOPICS};
use super::redis_setup::{Kind, RedisSetup};
use crate::proxy::{Direction, DropReply};
use crate::support::{Gateway, Plugins, SkewedClock, built, until};
use fastrand::Rng;
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::PipeReader;
use std::time::{Duration, Instant};

/// The workers' leases, in turn. Suspensions last well beyond the shorter ones.
const LEASES: [&str; 3] = ["1s", "500ms", "2s"];

/// Their clocks in seconds, in turn: some hosts' are ahead of Redis', some behind.
const SKEWS: [i64; 3] = [0, 3, -3];

/// The stream or its group may not exist at the moment.
const DELETE_CONSUMERS: &str = r"
    local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
    for _, info in ipairs(consumers) do redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], info[2]) end
    return {}";

/// Returns the bodies of the messages.
const DELETE_IN_FLIGHT: &str = r"
    local bodies = {}
    for _, row in ipairs(redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[2])) do
      local entry = redis.call('XRANGE', KEYS[1], row[1], row[1])[1]
      for i = 1, entry and #entry[2] or 0, 2 do
        if entry[2][i] == 'message' then bodies[#bodies + 1] = entry[2][i + 1] end
      end
      redis.call('XDEL', KEYS[1], row[1])
    end
    return bodies";

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
    /// By an operator, with all that they have in flight.
    DeleteConsumers(String),
    /// By an operator or a publisher: the entries of this many messages in flight.
    DeleteInFlight(String, usize),
    FillUp(u64),
    KillClients,
    Pause(&'static str, u64),
    BreakLog(usize, BrokenLog, u64),
}

/// What is wrong with the log of a worker that is started for this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BrokenLog {
    Stalled,
    Closed,
    Full,
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
        match rng.u32(..19) {
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
            15 => {
                let kinds = [BrokenLog::Stalled, BrokenLog::Closed, BrokenLog::Full];
                Self::BreakLog(rng.usize(..workers), kinds[rng.usize(..kinds.len())], span(rng))
            }
            16 => Self::DeleteConsumers(group(rng)),
            17 => Self::DeleteInFlight(group_of(rng, false), rng.usize(1..4)),
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
            | Self::BreakLog(_, _, ms)
            | Self::Pause(_, ms) => Duration::from_millis(*ms),
            _ => Duration::ZERO,
        }
    }
}

/// A stream and its group, as arguments of a command.
fn group(rng: &mut Rng) -> String {
    group_of(rng, true)
}

/// The same; of a follow-up nobody knows whether it was deleted.
fn group_of(rng: &mut Rng, with_child: bool) -> String {
    let topic = if rng.u32(..9) == 0 && with_child { CHILD } else { TOPICS[rng.usize(..TOPICS.len())] };
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
    /// Nobody reads the log, but the pipe stays open.
    _unread: Option<PipeReader>,
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
    clocks: Vec<SkewedClock>,
    /// The logs of workers that have exited.
    logs: Vec<Vec<Value>>,
    pub(super) events: Vec<Event>,
    /// How often an entry of a message was deleted while it was in flight.
    pub(super) deleted: BTreeMap<String, usize>,
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
        let (clocks, deleted) = (SKEWS.map(SkewedClock::skewed).into(), BTreeMap::new());
        let mut testbed = Self { redis, plugins, workers, leaving, started: 0, active, clocks, logs, events, deleted };
        (0..count).for_each(|at| testbed.start_worker(at));
        testbed
    }

    fn start_worker(&mut self, at: usize) {
        let options = self.options();
        let clock = &self.clocks[self.started % SKEWS.len()];
        let gateway = Gateway::start_with_clock(clock, &self.redis.url(), &self.plugins, &options);
        self.add_worker(at, gateway, None);
    }

    fn options(&self) -> [&'static str; 4] {
        ["--queue-lease", LEASES[self.started % LEASES.len()], "--shutdown-timeout", "3s"]
    }

    fn start_worker_without_log(&mut self, at: usize, kind: BrokenLog) {
        let (reader, writer) = std::io::pipe().unwrap();
        let (stdout, unread) = match kind {
            BrokenLog::Stalled => (writer.into(), Some(reader)),
            BrokenLog::Closed => (writer.into(), None),
            BrokenLog::Full => (File::options().write(true).open("/dev/full").unwrap().into(), None),
        };
        let mut command = Gateway::command(&self.redis.url(), &self.plugins, &self.options());
        let gateway = Gateway::spawn_without_log(&mut command, stdout);
        self.add_worker(at, gateway, unread);
    }

    fn add_worker(&mut self, at: usize, gateway: Gateway, unread: Option<PipeReader>) {
        self.workers.insert(at, Worker { number: self.started, gateway, is_frozen: false, _unread: unread });
        self.started += 1;
    }

    fn stop_worker(&mut self, at: usize) {
        let worker = self.workers.remove(at);
        worker.gateway.signal(Signal::CONT);
        worker.gateway.signal(Signal::TERM);
        self.leaving.push(worker.gateway);
    }

    /// Replaces a worker, if it is still there, by one whose log is read.
    fn replace(&mut self, number: usize) {
        if let Some(at) = self.workers.iter().position(|worker| worker.number == number) {
            self.stop_worker(at);
            self.start_worker(at);
        }
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
                self.stop_worker(*at);
                self.start_worker(*at);
            }
            // Its lines are missing in the audit: that hides runs, and no cause of a run
            // that another worker logs.
            Fault::BreakLog(at, kind, _) => {
                self.stop_worker(*at);
                self.start_worker_without_log(*at, *kind);
                number = self.workers[*at].number;
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
            Fault::DeleteConsumers(group) => drop(self.run_script(DELETE_CONSUMERS, group, 0).await),
            Fault::DeleteInFlight(group, count) => {
                for body in self.run_script(DELETE_IN_FLIGHT, group, *count).await {
                    *self.deleted.entry(census::key(&body).unwrap()).or_default() += 1;
                }
            }
            Fault::FillUp(_) => self.redis.run_on_all_nodes("CONFIG SET maxmemory 1").await,
            Fault::KillClients => self.redis.run_on_all_nodes("CLIENT KILL TYPE normal").await,
            Fault::Pause(topic, _) => self.redis.run_on_all_nodes(&format!("HSET {{mq:{topic}}}:state paused 1")).await,
        }
        self.active.push((Instant::now() + what.span(), what.clone(), number));
        let span = jiff::SignedDuration::try_from(what.span()).unwrap();
        self.events.push(Event { began, ended: Timestamp::now().max(began + span), what });
    }

    async fn run_script(&self, script: &str, group: &str, count: usize) -> Vec<Vec<u8>> {
        let (key, group) = group.split_once(' ').unwrap();
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(1).arg(key).arg(group).arg(count);
        command.query_async(&mut self.redis.connection().await).await.unwrap()
    }

    /// Reverts the faults whose time is over.
    pub(super) async fn revert(&mut self, all: bool) {
        let now = Instant::now();
        let (over, active): (Vec<_>, Vec<_>) = self.active.drain(..).partition(|(at, ..)| all || *at <= now);
        self.active = active;
        for (_, what, number) in over {
            match what {
                Fault::FreezeWorker(..) => self.wake(number),
                Fault::BreakLog(..) => self.replace(number),
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
