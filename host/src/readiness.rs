//! Whether this worker is ready for messages, and what is worse than it should be
//! although it works. Each reason has two texts: strangers learn no hosts, paths and
//! users.

use crate::health::{RedisConcerns, SKEW_MAX};
use crate::metrics::Metrics;
use crate::plugin::Routes;
use crate::queue::{Health, Trouble};
use crate::reloader::DirProblem;
use crate::topic::Topic;
use crate::worker::{Service, Worker};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// For so long a topic may be unserved, for example while a connection is made anew.
const UNSERVED_MAX: Duration = Duration::from_secs(10);

/// Of more topics or plugins the first ones are named.
const NAMED_MAX: usize = 10;

/// What readiness follows from.
pub struct ReadinessSources {
    pub health: watch::Receiver<Option<Health>>,
    pub concerns: watch::Receiver<RedisConcerns>,
    pub has_scanned: watch::Receiver<bool>,
    pub dir_problem: watch::Receiver<Option<DirProblem>>,
    pub is_draining: watch::Receiver<bool>,
    pub routes: watch::Receiver<Arc<Routes>>,
    pub worker: Arc<Worker>,
    pub metrics: Arc<Metrics>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Ready,
    Starting,
    NotReady,
    Draining,
}

/// One reason why the worker is not ready, or is degraded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    pub kind: &'static str,
    /// For strangers.
    pub public_text: String,
    /// For operators.
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    pub state: State,
    /// Why it is not ready.
    pub reasons: Vec<Reason>,
    pub degraded: Vec<Reason>,
}

/// The topics that this worker serves, and those that it should.
#[derive(Default)]
struct Topics {
    consumed: usize,
    paused: Vec<Topic>,
    unserved: Vec<(Topic, Option<Trouble>)>,
    /// They have not been served for a moment only.
    briefly_unserved: usize,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::NotReady => "not_ready",
            Self::Draining => "draining",
        }
    }
}

impl Reason {
    /// A reason that is no secret.
    fn open(kind: &'static str, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { kind, public_text: text.clone(), text }
    }

    fn of(kind: &'static str, trouble: &Trouble) -> Self {
        Self { kind, public_text: trouble.public_text.clone(), text: trouble.text.clone() }
    }

    /// The same with more words before it.
    fn after(self, words: &str) -> Self {
        let Self { kind, public_text, text } = self;
        Self { kind, public_text: format!("{words}: {public_text}"), text: format!("{words}: {text}") }
    }
}

impl ReadinessSources {
    pub fn readiness(&self) -> Readiness {
        let topics = self.topics();
        let mut reasons: Vec<Reason> = self.redis().into_iter().collect();
        let is_starting = self.health.borrow().is_none() || !*self.has_scanned.borrow();
        if !*self.has_scanned.borrow() {
            reasons.push(Reason::open("starting", "plugins are being loaded"));
        }
        let hard = reasons.len();
        reasons.extend(self.plugins_dir());
        reasons.extend(self.all_refused());
        reasons.extend(topics.all_unserved());
        let is_faulty =
            reasons.len() > hard || matches!(&*self.health.borrow(), Some(health) if *health != Health::Connected);
        let state = if *self.is_draining.borrow() {
            reasons = vec![Reason::open("draining", "shutting down: messages in flight are being finished")];
            State::Draining
        } else if reasons.is_empty() {
            State::Ready
        } else if is_starting && !is_faulty {
            State::Starting
        } else {
            State::NotReady
        };
        Readiness { state, reasons, degraded: self.degraded(&topics) }
    }

    fn redis(&self) -> Option<Reason> {
        match &*self.health.borrow() {
            Some(Health::Connected) => None,
            Some(Health::Away(trouble)) => Some(Reason::of("redis-away", trouble)),
            Some(Health::Unwritable(trouble)) => {
                Some(Reason::of("redis-unwritable", trouble).after("Redis takes no writes"))
            }
            None => Some(Reason::open("starting", "Redis has not answered yet")),
        }
    }

    fn plugins_dir(&self) -> Option<Reason> {
        let problem = self.dir_problem.borrow().clone()?;
        let advice = if problem.is_missing {
            "the plugins directory is missing: create or mount it, or name another one (--plugins)"
        } else {
            "the plugins directory can't be read: its owner has to permit it"
        };
        let text = format!("{advice}: {}", problem.text);
        Some(Reason { kind: "plugins-dir", public_text: advice.to_owned(), text })
    }

    /// An empty directory is no reason: plugins may come later.
    fn all_refused(&self) -> Option<Reason> {
        let routes = self.routes.borrow().clone();
        let refused = refused_plugins(&routes)?;
        (routes.plugins.is_empty() && *self.has_scanned.borrow()).then(|| refused.after("every plugin is refused"))
    }

    fn topics(&self) -> Topics {
        let mut topics = Topics::default();
        for (name, topic) in self.worker.topics() {
            match topic.service() {
                Service::Consumed => topics.consumed += 1,
                Service::Paused => topics.paused.push(name),
                Service::Unserved(since, trouble) if since >= UNSERVED_MAX => topics.unserved.push((name, trouble)),
                Service::Unserved(..) => topics.briefly_unserved += 1,
            }
        }
        topics
    }

    fn degraded(&self, topics: &Topics) -> Vec<Reason> {
        let mut degraded = Vec::new();
        let routes = self.routes.borrow().clone();
        degraded.extend(refused_plugins(&routes).map(|reason| reason.after("some plugins are refused")));
        if !topics.paused.is_empty() {
            let names = list(topics.paused.iter().map(Topic::as_str));
            degraded
                .push(Reason::open("topics-paused", format!("topics are paused: {names}; `topics resume` ends it")));
        }
        degraded.extend(topics.unserved().map(|reason| reason.after("some topics are not consumed")));
        let skew = self.metrics.clock_skew_seconds.get();
        if skew.abs() > SKEW_MAX {
            let text = format!(
                "the clock of this host differs from Redis' by {skew:.1} s, and Redis' decides; synchronise both, for example by NTP"
            );
            degraded.push(Reason::open("clock-skew", text));
        }
        let concerns = self.concerns.borrow().clone();
        degraded.extend(concerns.policy.into_iter().map(|problem| Reason {
            kind: "redis-policy",
            text: format!("{}: {}", problem.server, problem.text),
            public_text: problem.text,
        }));
        let presence = concerns.presence.iter().map(|trouble| Reason::of("presence", trouble));
        degraded
            .extend(presence.map(|reason| reason.after("this worker can't be announced, so commands do not know it")));
        if self.metrics.prefix_overlap.get() > 0 {
            let text = "the prefix of another deployment begins this one's, so each uses keys of the other; change queue.prefix";
            degraded.push(Reason::open("prefix-overlap", text));
        }
        degraded
    }
}

impl Topics {
    fn all_unserved(&self) -> Option<Reason> {
        let is_some_served = self.consumed + self.briefly_unserved > 0;
        let unserved = self.unserved().filter(|_| !is_some_served)?;
        let seconds = UNSERVED_MAX.as_secs();
        Some(unserved.after(&format!("no topic has been consumed for {seconds} s")))
    }

    fn unserved(&self) -> Option<Reason> {
        let (first, trouble) = self.unserved.iter().find(|(_, trouble)| trouble.is_some()).or(self.unserved.first())?;
        let names = list(self.unserved.iter().map(|(topic, _)| topic.as_str()));
        Some(match trouble {
            Some(trouble) => Reason::of("topics-unserved", trouble).after(&format!("{names}; {first}")),
            None => Reason::open("topics-unserved", names),
        })
    }
}

/// The refused plugins. What is wrong with them may contain secrets of their manifests.
fn refused_plugins(routes: &Routes) -> Option<Reason> {
    let public_text = format!("{}; `plugins ls` and the log say why", list(routes.refused().map(|(name, ..)| name)));
    let (name, refusal, _) = routes.refused().next()?;
    let text = format!("{public_text}: {name}: {}", refusal.reason);
    Some(Reason { kind: "plugins-refused", public_text, text })
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let more = names.len().saturating_sub(NAMED_MAX);
    let named = names.iter().take(NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
    if more == 0 { named } else { format!("{named} and {more} more") }
}
