//! The worker: consumes the topics that have a live plugin, from the fetch of a
//! message to its confirmed settlement.
//!
//! A topic is state only (`topic`). The loops belong to the worker and go over
//! all topics (`topic_loop`), each in a file of its own: `intake` fetches,
//! `list_intake` moves lists of plain clients into streams, the `settler`
//! settles, `renewal` renews leases, `reclaim` takes over expired ones,
//! `promotion` moves what is due, `probe` looks at the keys, `outbox` publishes
//! follow-ups, `cron` publishes by the clock, and the `janitor` cleans up.
//!
//! A message goes down this list: `receive` puts it into the local queue, unless
//! `deduplicate` keeps it from running, a `runner` takes it with the `batcher`, `run` calls the handler, `judged` makes
//! a settlement of the outcome, and the `settler` settles it.

mod hints;
mod seats;
mod view;
mod work_item;
mod in_flight;
mod local_queue;
mod isolation_gate;
mod run_state;
mod repeats;
mod unsettled;
mod topic;
mod retry_log;
mod topic_loop;
mod judged;
mod admission;
mod batcher;
mod run;
mod runner;
mod deduplicate;
mod receive;
mod renewal;
mod settle_retry;
mod settler;
mod reclaim;
mod promotion;
mod probe;
mod outbox;
mod cron;
mod sweep;
mod janitor;
mod list_intake;
mod intake;
mod discovery;

pub use topic::TopicState;
pub use view::Service;

use crate::events;
use crate::metrics::Metrics;
use crate::plugin::{Plugin, Routes};
use crate::queue::{Connection, TopicDiscovery, TopicHandle, consumer_name};
use crate::settings::Settings;
use crate::supervisor::Supervisor;
use crate::topic::Topic;
use discovery::Discovery;
use hints::Hints;
use isolation_gate::IsolationGate;
use seats::Seats;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use topic::{LoopHints, Shared};
use topic_loop::TopicLoop;

/// How long the loops may take to end when every topic is drained.
const LOOPS_END: Duration = Duration::from_secs(2);

/// What is kept of the shutdown's timeout at most for giving back what did not end.
const GIVE_BACK_MAX: Duration = Duration::from_secs(2);

/// For how long the metrics of a topic without a plugin are shown.
const METRICS_KEPT: Duration = Duration::from_secs(5 * 60);

pub struct Worker {
    connection: Connection,
    settings: Settings,
    metrics: Arc<Metrics>,
    shared: Arc<Shared>,
    topics: Mutex<BTreeMap<Topic, Arc<TopicState>>>,
    /// The topics that have lost their plugin, whose metrics are still shown.
    gone: Mutex<Vec<(Instant, Topic)>>,
}

impl Worker {
    pub fn new(
        connection: Connection,
        settings: Settings,
        metrics: Arc<Metrics>,
        handlers: Handle,
        supervisor: Supervisor,
    ) -> Self {
        let shared = Shared {
            settings: settings.queue.clone(),
            hints: LoopHints::default(),
            gate: IsolationGate::default(),
            seats: Seats::new(settings.redis_connections),
            handlers,
            active_runners_max: settings.handler_threads,
            stop: CancellationToken::new(),
            supervisor,
            drain_timeout: settings.shutdown_timeout - (settings.shutdown_timeout / 4).min(GIVE_BACK_MAX),
        };
        Self {
            connection,
            settings,
            metrics,
            shared: Arc::new(shared),
            topics: Mutex::default(),
            gone: Mutex::default(),
        }
    }

    /// The topics that have a plugin now. Those that are being drained are not
    /// among them.
    pub fn topics(&self) -> BTreeMap<Topic, Arc<TopicState>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Consumes what the routes say until stopped, then drains every topic.
    pub async fn run(&self, routes: watch::Receiver<Arc<Routes>>, stop: CancellationToken) {
        let (found, discovered) = watch::channel(BTreeSet::new());
        let topics = TopicDiscovery::new(&self.connection, &self.settings.queue.prefix);
        let discovery = Discovery { topics, routes: routes.clone(), found };
        let (no_more_topics, all_drained) = (CancellationToken::new(), CancellationToken::new());
        let mut intake = JoinSet::new();
        self.start(intake::Intake, |hints| &hints.intake, &mut intake, &no_more_topics);
        let mut loops = self.start_loops(&all_drained);
        tokio::join!(self.follow_until_stopped(routes, discovered, &stop), discovery.run(&stop));
        self.shared.stop.cancel();
        self.topics().values().for_each(|topic| topic.stop.cancel());
        no_more_topics.cancel();
        join_all(&mut intake).await;
        // Until here leases were renewed and settlements sent.
        all_drained.cancel();
        // A visit that waits for a Redis that does not answer has nothing left to do.
        let _ = tokio::time::timeout(LOOPS_END, join_all(&mut loops)).await;
        loops.shutdown().await;
        self.shared.hints.all().into_iter().for_each(Hints::clear);
    }

    /// The loops that go on until every topic is drained.
    fn start_loops(&self, stop: &CancellationToken) -> JoinSet<()> {
        let mut loops = JoinSet::new();
        self.start(list_intake::ListIntake, |hints| &hints.list_intake, &mut loops, stop);
        self.start(settler::Settler, |hints| &hints.settling, &mut loops, stop);
        self.start(renewal::Renewal, |hints| &hints.renewal, &mut loops, stop);
        self.start(reclaim::Reclaim, |hints| &hints.reclaim, &mut loops, stop);
        self.start(promotion::Promotion, |hints| &hints.promotion, &mut loops, stop);
        self.start(probe::Probe, |hints| &hints.probe, &mut loops, stop);
        self.start(outbox::Outbox, |hints| &hints.outbox, &mut loops, stop);
        self.start(cron::Cron, |hints| &hints.cron, &mut loops, stop);
        self.start(janitor::Janitor, |hints| &hints.janitor, &mut loops, stop);
        loops
    }

    fn start<L: TopicLoop<TopicState>>(
        &self,
        which: L,
        hints: fn(&LoopHints) -> &Hints<TopicState>,
        loops: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) {
        let (shared, stop) = (self.shared.clone(), stop.clone());
        loops.spawn(async move {
            let running = which.run(hints(&shared.hints), &stop);
            shared.supervisor.run(L::NAME, &stop, running).await;
        });
    }

    async fn follow_until_stopped(
        &self,
        mut routes: watch::Receiver<Arc<Routes>>,
        mut discovered: watch::Receiver<BTreeSet<Topic>>,
        stop: &CancellationToken,
    ) {
        loop {
            let current = routes.borrow_and_update().clone();
            let discovered_now = discovered.borrow_and_update().clone();
            self.follow(&current, &discovered_now);
            tokio::select! {
                changed = routes.changed() => if changed.is_err() {
                    // The reloader has ended, which comes before the worker's own stop.
                    stop.cancelled().await;
                    return;
                },
                Ok(()) = discovered.changed() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Begins the topics that have a handler now, hands new versions to the
    /// others, and stops those that have lost their handler.
    fn follow(&self, routes: &Routes, discovered: &BTreeSet<Topic>) {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        let handlers = routes.handlers(discovered);
        topics.retain(|name, topic| {
            let stays = handlers.contains_key(name);
            if !stays {
                topic.stop.cancel();
                self.gone().push((Instant::now(), name.clone()));
            }
            stays
        });
        for (name, plugin) in handlers {
            match topics.get(&name) {
                Some(topic) => topic.swap_plugin(plugin),
                None => {
                    let topic = self.begin(&name, plugin);
                    topics.insert(name, topic);
                }
            }
        }
    }

    /// Drops the metrics of topics that have been without a plugin for a while: the last
    /// values were read meanwhile. To be called now and then.
    pub fn retire_metrics(&self) {
        let topics = self.topics();
        self.gone().retain(|(since, topic)| {
            let is_due = since.elapsed() >= METRICS_KEPT;
            if is_due && !topics.contains_key(topic) {
                self.metrics.retire(topic);
            }
            !is_due
        });
    }

    fn gone(&self) -> MutexGuard<'_, Vec<(Instant, Topic)>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, name: &Topic, plugin: Arc<Plugin>) -> Arc<TopicState> {
        let settings = &self.settings.queue;
        // Each life of a topic has a consumer name of its own, within one process
        // too: what the life before left is reclaimed like that of another worker.
        let consumer = consumer_name(settings.lease);
        let queue = TopicHandle::new(&self.connection, &settings.prefix, &settings.group, &consumer, name);
        let topic = TopicState::new(queue, plugin, self.metrics.topic(name), self.shared.clone());
        topic.begin();
        topic
    }
}

async fn join_all(tasks: &mut JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "{}", events::TASK_FAILED);
        }
    }
}
