//! Keeps one lane for every topic that has a live plugin: starts them, hands
//! them new versions, and drains those whose topic has lost its plugin. Where
//! a plugin takes the topics that nobody names, they are looked for in Redis.

mod discovery;

use crate::metrics::Metrics;
use crate::plugin::{Plugin, Routes};
use crate::queue::{Connection, TopicDiscovery, TopicHandle};
use crate::settings::Settings;
use crate::topic::Topic;
use crate::worker::{Alone, Lane, LaneParts};
use discovery::Discovery;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub struct Lanes {
    connection: Connection,
    settings: Settings,
    metrics: Arc<Metrics>,
    handlers: Handle,
    alone: Arc<Alone>,
    running: Mutex<BTreeMap<Topic, Arc<Lane>>>,
}

impl Lanes {
    pub fn new(connection: Connection, settings: Settings, metrics: Arc<Metrics>, handlers: Handle) -> Self {
        Self { connection, settings, metrics, handlers, alone: Arc::default(), running: Mutex::default() }
    }

    /// The lanes of the topics that have a plugin now.
    pub fn running(&self) -> BTreeMap<Topic, Arc<Lane>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Follows the routes until stopped; then drains everything.
    pub async fn run(&self, routes: watch::Receiver<Arc<Routes>>, stop: CancellationToken) {
        let (found, discovered) = watch::channel(BTreeSet::new());
        let topics = TopicDiscovery::new(&self.connection, &self.settings.queue.prefix);
        let discovery = Discovery { topics, routes: routes.clone(), found };
        tokio::join!(self.run_lanes(routes, discovered, &stop), discovery.run(&stop));
    }

    async fn run_lanes(
        &self,
        mut routes: watch::Receiver<Arc<Routes>>,
        mut discovered: watch::Receiver<BTreeSet<Topic>>,
        stop: &CancellationToken,
    ) {
        let mut tasks = JoinSet::new();
        loop {
            let current = routes.borrow_and_update().clone();
            let rest = discovered.borrow_and_update().clone();
            self.follow(&current, &rest, stop, &mut tasks);
            while tasks.try_join_next().is_some() {}
            tokio::select! {
                changed = routes.changed() => if changed.is_err() { break },
                Ok(()) = discovered.changed() => {}
                () = stop.cancelled() => break,
            }
        }
        self.running().values().for_each(|lane| lane.stop());
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a lane failed");
            }
        }
    }

    fn follow(&self, routes: &Routes, rest: &BTreeSet<Topic>, stop: &CancellationToken, tasks: &mut JoinSet<()>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let handlers = routes.handlers(rest);
        running.retain(|topic, lane| {
            let stays = handlers.contains_key(topic);
            if !stays {
                lane.stop();
            }
            stays
        });
        for (topic, plugin) in handlers {
            match running.get(&topic) {
                Some(lane) => lane.swap_plugin(plugin),
                None => {
                    let lane = self.start(&topic, &plugin, stop, tasks);
                    running.insert(topic, lane);
                }
            }
        }
    }

    fn start(
        &self,
        topic: &Topic,
        plugin: &Arc<Plugin>,
        stop: &CancellationToken,
        tasks: &mut JoinSet<()>,
    ) -> Arc<Lane> {
        let settings = &self.settings.queue;
        // A name for each lane's life: the next lane of this topic, in this
        // process too, is another consumer.
        let me = Uuid::new_v4().to_string();
        let (lane, settlements) = Lane::new(LaneParts {
            queue: TopicHandle::new(&self.connection, &settings.prefix, &settings.group, &me, topic),
            plugin: plugin.clone(),
            settings: settings.clone(),
            metrics: self.metrics.topic(topic),
            handlers: self.handlers.clone(),
            alone: self.alone.clone(),
            abreast_max: self.settings.handler_threads,
        });
        let (running, stop, drain) = (lane.clone(), stop.clone(), self.settings.drain);
        tasks.spawn(async move {
            let grace = async {
                stop.cancelled().await;
                tokio::time::sleep(drain).await;
            };
            tokio::select! {
                () = running.clone().run(settlements) => {}
                () = grace => {
                    tracing::warn!(topic = %running.topic(), ?drain, "messages did not end in time and are given back");
                    running.leave().await;
                }
            }
        });
        lane
    }
}
