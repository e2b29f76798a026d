//! What happens to workers, Redis and the way between them.

use super::published::{ATTEMPTS, CHILD, TOPICS};
use super::site::{Kind, Site};
use crate::proxy::{Lost, Way};
use crate::support::{Gateway, Plugins, built, until};
use fastrand::Rng;
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::Value;
use std::time::{Duration, Instant};

/// Silences go well beyond it.
const LEASE: &str = "1s";

/// Spans are in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Disturbance {
    KillWorker(usize),
    StopWorker(usize),
    FreezeWorker(usize, u64),
    KillRedis(u64),
    HandOver,
    Cut,
    Stall(Way, u64),
    LoseReply(usize),
    Refuse(u64),
    ForgetScripts,
    DestroyGroup(String),
    FillUp(u64),
    KillClients,
    Pause(&'static str, u64),
}

impl Disturbance {
    pub(super) fn draw(rng: &mut Rng, workers: usize, kind: Kind) -> Self {
        match kind {
            Kind::Alone => Self::draw_alone(rng, workers),
            Kind::Watched => Self::draw_watched(rng, workers),
        }
    }

    /// Without a proxy, since sentinels name the servers themselves.
    fn draw_watched(rng: &mut Rng, workers: usize) -> Self {
        match rng.u32(..13) {
            0 | 1 => Self::KillWorker(rng.usize(..workers)),
            2 => Self::StopWorker(rng.usize(..workers)),
            3 => Self::FreezeWorker(rng.usize(..workers), rng.u64(1200..4000)),
            4..=6 => Self::KillRedis(rng.u64(..2500)),
            7..=8 => Self::HandOver,
            9 => Self::ForgetScripts,
            10 => Self::DestroyGroup(group(rng)),
            11 => Self::KillClients,
            _ => Self::Pause(TOPICS[rng.usize(..TOPICS.len())], rng.u64(200..3000)),
        }
    }

    fn draw_alone(rng: &mut Rng, workers: usize) -> Self {
        let span = |rng: &mut Rng| rng.u64(200..3000);
        let way = |rng: &mut Rng| if rng.bool() { Way::ToRedis } else { Way::ToWorker };
        match rng.u32(..16) {
            0 | 1 => Self::KillWorker(rng.usize(..workers)),
            2 => Self::StopWorker(rng.usize(..workers)),
            3 => Self::FreezeWorker(rng.usize(..workers), rng.u64(1200..4000)),
            4 => Self::KillRedis(rng.u64(..2500)),
            5 => Self::Cut,
            6 => Self::Stall(way(rng), span(rng)),
            7..=9 => Self::LoseReply(rng.usize(..40)),
            10 => Self::Refuse(span(rng)),
            11 => Self::ForgetScripts,
            12 => Self::DestroyGroup(group(rng)),
            13 => Self::FillUp(span(rng)),
            14 => Self::KillClients,
            _ => Self::Pause(TOPICS[rng.usize(..TOPICS.len())], span(rng)),
        }
    }

    /// Whether a message may run again because of it.
    pub(super) fn is_excuse(&self) -> bool {
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

/// A stream and its group, as a command has them.
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

/// Something that happened, and until when it lasted.
pub(super) struct Event {
    pub(super) began: Timestamp,
    pub(super) ended: Timestamp,
    pub(super) what: Disturbance,
}

struct Worker {
    number: usize,
    gateway: Gateway,
    is_frozen: bool,
}

pub(super) struct Scene {
    pub(super) site: Site,
    plugins: Plugins,
    workers: Vec<Worker>,
    /// Asked to stop, and perhaps still at it.
    leaving: Vec<Gateway>,
    started: usize,
    /// What is to be made good again, and when.
    to_undo: Vec<(Instant, Disturbance, usize)>,
    /// What workers that have ended had logged.
    logs: Vec<Vec<Value>>,
    pub(super) events: Vec<Event>,
}

impl Scene {
    pub(super) async fn set(count: usize, kind: Kind) -> Self {
        let site = Site::start(kind).await;
        let plugins = Plugins::empty();
        let retry = format!("[retry]\nattempts = {ATTEMPTS}\nbase = \"20ms\"\ncap = \"200ms\"\n");
        let grants = format!("[grants]\npublish = [\"seen\", \"{CHILD}\"]\n");
        let names = TOPICS.into_iter().filter(|name| *name != "dedup").chain([CHILD]);
        let names: Vec<String> = names.map(|name| format!("\"{name}\"")).collect();
        plugins.put("puppet", &built("puppet"), &format!("topics = [{}]\n{retry}{grants}", names.join(", ")));
        plugins.put("dedup", &built("puppet"), &format!("{retry}{grants}[dedup]\nwindow = \"1h\"\n"));
        let (workers, leaving, to_undo, logs, events) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut scene = Self { site, plugins, workers, leaving, started: 0, to_undo, logs, events };
        (0..count).for_each(|at| scene.start_worker(at));
        scene
    }

    fn start_worker(&mut self, at: usize) {
        let options = ["--queue-lease", LEASE, "--shutdown-timeout", "3s"];
        let gateway = Gateway::start_with(&self.site.url(), &self.plugins, &options);
        self.workers.insert(at, Worker { number: self.started, gateway, is_frozen: false });
        self.started += 1;
    }

    pub(super) async fn disturb(&mut self, what: Disturbance) {
        let began = Timestamp::now();
        let mut number = 0;
        match &what {
            Disturbance::KillWorker(at) => {
                let worker = self.workers.remove(*at);
                self.logs.push(worker.gateway.last_words());
                self.start_worker(*at);
            }
            Disturbance::StopWorker(at) => {
                let worker = self.workers.remove(*at);
                worker.gateway.signal(Signal::CONT);
                worker.gateway.signal(Signal::TERM);
                self.leaving.push(worker.gateway);
                self.start_worker(*at);
            }
            Disturbance::FreezeWorker(at, _) => {
                let worker = &mut self.workers[*at];
                worker.is_frozen = true;
                worker.gateway.signal(Signal::STOP);
                number = worker.number;
            }
            Disturbance::KillRedis(ms) => {
                self.site.kill_redis(Duration::from_millis(*ms)).await;
            }
            Disturbance::HandOver => self.site.hand_over().await,
            Disturbance::Cut => self.site.proxy().cut(),
            Disturbance::Stall(way, _) => self.site.proxy().stall(*way, true),
            Disturbance::LoseReply(after) => self.site.proxy().lose(Lost::After(*after)),
            Disturbance::Refuse(_) => {
                self.site.proxy().refuse(true);
                self.site.proxy().cut();
            }
            Disturbance::ForgetScripts => self.site.tell("SCRIPT FLUSH").await,
            Disturbance::DestroyGroup(group) => self.site.tell(&format!("XGROUP DESTROY {group}")).await,
            Disturbance::FillUp(_) => self.site.tell("CONFIG SET maxmemory 1").await,
            Disturbance::KillClients => self.site.tell("CLIENT KILL TYPE normal").await,
            Disturbance::Pause(topic, _) => self.site.tell(&format!("HSET {{mq:{topic}}}:state paused 1")).await,
        }
        self.to_undo.push((Instant::now() + what.span(), what.clone(), number));
        let span = jiff::SignedDuration::try_from(what.span()).unwrap();
        self.events.push(Event { began, ended: Timestamp::now().max(began + span), what });
    }

    /// Makes good again what has lasted long enough.
    pub(super) async fn undo(&mut self, all: bool) {
        let now = Instant::now();
        let (over, to_undo): (Vec<_>, Vec<_>) = self.to_undo.drain(..).partition(|(at, ..)| all || *at <= now);
        self.to_undo = to_undo;
        for (_, what, number) in over {
            match what {
                Disturbance::FreezeWorker(..) => self.wake(number),
                Disturbance::Stall(way, _) => self.site.proxy().stall(way, false),
                Disturbance::Refuse(_) => self.site.proxy().refuse(false),
                Disturbance::FillUp(_) => self.site.tell("CONFIG SET maxmemory 0").await,
                Disturbance::Pause(topic, _) => self.site.tell(&format!("HDEL {{mq:{topic}}}:state paused")).await,
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

    /// Ends every worker as an operator does, and returns what all have logged.
    pub(super) async fn end(&mut self) -> Vec<Vec<Value>> {
        let mut ending: Vec<Gateway> = self.workers.drain(..).map(|worker| worker.gateway).collect();
        ending.iter().for_each(|gateway| gateway.signal(Signal::TERM));
        ending.append(&mut self.leaving);
        for mut gateway in ending {
            until("a worker ends", async || (!gateway.is_running()).then_some(())).await;
            self.logs.push(gateway.last_words());
        }
        std::mem::take(&mut self.logs)
    }
}
