//! The worker as a whole: builds everything, starts everything, and stops
//! everything in a written order.

mod machine;

use crate::admin::{Status, router, serve};
use crate::capability::{Capabilities, Mailer};
use crate::health::HealthLoop;
use crate::lanes::Lanes;
use crate::mail::MailService;
use crate::metrics::Metrics;
use crate::plugin::{Cache, Compiler, Engine, EngineError, Means, PluginDir, Registry, VersionStore};
use crate::queue::{Connection, QueueError, Store};
use crate::reloader::{Reloader, Request};
use crate::secrets::SecretStore;
use crate::settings::Settings;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "can't listen on {address}: {source}; is another worker running there? --listen or APP_PORT names another place"
    )]
    Listen { address: SocketAddr, source: io::Error },
    #[error("redis: {0}")]
    Redis(QueueError),
    #[error("{0}")]
    Mail(String),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("threads for handlers can't be started: {0}")]
    Threads(io::Error),
}

pub struct App {
    pub address: SocketAddr,
    pub lanes: Arc<Lanes>,
    pub has_scanned: watch::Receiver<bool>,
    requests: mpsc::Sender<Request>,
    is_draining: watch::Sender<bool>,
    handlers: Handlers,
    lanes_task: Stage,
    reloader_task: Stage,
    health_task: Stage,
    admin_task: Stage,
}

/// The threads of the handlers. A runtime must not be waited for where others
/// run, so it is left to end by itself, whatever way the worker ends.
struct Handlers(Option<Runtime>);

impl Drop for Handlers {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A task and what ends it.
struct Stage {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Stage {
    #[expect(clippy::disallowed_methods, reason = "every stage is joined in App::stop")]
    fn start<F: Future<Output = ()> + Send + 'static>(run: impl FnOnce(CancellationToken) -> F) -> Self {
        let stop = CancellationToken::new();
        Self { task: tokio::spawn(run(stop.clone())), stop }
    }

    async fn end(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "a part of the worker failed");
        }
    }
}

impl App {
    /// Starts the worker. Redis may be away: it is waited for.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let started = Instant::now();
        let address = settings.listen;
        let listener = TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })?;
        let address = listener.local_addr().unwrap_or(address);
        let metrics = Arc::new(Metrics::default());
        let connection = Connection::to(&settings.redis).map_err(StartError::Redis)?;
        let open_files = machine::allow_open_files();
        let handlers = threads(&settings)?;
        let (runtime, handlers) = (handlers.handle().clone(), Handlers(Some(handlers)));
        let memory = settings.handler_memory.unwrap_or_else(machine::memory_for_handlers);
        let means = Means { threads: settings.handler_threads, memory, open_files, runtime: Some(runtime.clone()) };
        let engine = Engine::with(capabilities(&settings, &metrics)?, Compiler::new(cache(&settings)), means)?;
        tracing::info!(%address, redis = settings.redis.shown(), plugins = %settings.plugins.display(), "gateway-worker starting");

        let (prefix, admin) = (settings.queue.prefix.clone(), settings.admin.clone());
        let archive = VersionStore::open(settings.cache.as_deref(), &settings.plugins);
        let registry = Registry::new(engine, PluginDir::new(&settings.plugins, settings.check_files), archive);
        let routes = registry.routes();
        let lanes = Arc::new(Lanes::new(connection.clone(), settings, metrics.clone(), runtime));
        let (has_scanned, has_scanned_receiver) = watch::channel(false);
        let (requests, received) = mpsc::channel(16);
        let (is_draining, is_draining_receiver) = watch::channel(false);
        let health = watch::Sender::new(None);

        let status = Arc::new(Status {
            started,
            health: health.subscribe(),
            has_scanned: has_scanned_receiver.clone(),
            is_draining: is_draining_receiver,
            routes: routes.clone(),
            lanes: lanes.clone(),
            metrics: metrics.clone(),
            admin,
            requests: requests.clone(),
        });
        let health = HealthLoop {
            connection,
            prefix,
            worker_id: Uuid::new_v4().to_string(),
            metrics: metrics.clone(),
            routes: routes.clone(),
            lanes: lanes.clone(),
            health,
        };
        let reloader = Reloader::new(registry, metrics, received, has_scanned);
        let consumed = lanes.clone();
        Ok(Self {
            address,
            lanes,
            has_scanned: has_scanned_receiver,
            requests,
            is_draining,
            handlers,
            lanes_task: Stage::start(|stop| async move { consumed.run(routes, stop).await }),
            reloader_task: Stage::start(|stop| reloader.run(stop)),
            health_task: Stage::start(|stop| health.run(stop)),
            admin_task: Stage::start(|stop| serve(listener, router(status), stop)),
        })
    }

    /// Looks at the plugins directory now.
    pub fn reload(&self) {
        let _ = self.requests.try_send(Request::Scan(None));
    }

    /// Stops, in this order: say so first, that nobody counts on us; load no
    /// more plugins; take no more messages and finish those in flight; tell
    /// Redis that we are gone; and last stop answering, so that `/ready` says
    /// "draining" and the last metrics can be read until the end.
    pub async fn stop(self) {
        self.is_draining.send_replace(true);
        tracing::info!("gateway-worker draining");
        self.reloader_task.end().await;
        self.lanes_task.end().await;
        self.health_task.end().await;
        self.admin_task.end().await;
        drop(self.handlers);
        tracing::info!("gateway-worker stopped");
    }
}

/// Guests burn CPU here; leases are renewed and health is told elsewhere.
fn threads(settings: &Settings) -> Result<Runtime, StartError> {
    let mut threads = Builder::new_multi_thread();
    threads.worker_threads(settings.handler_threads).thread_name("handlers").enable_all();
    threads.build().map_err(StartError::Threads)
}

/// Without one every start compiles all plugins again.
fn cache(settings: &Settings) -> Option<Cache> {
    let Some(path) = &settings.cache else {
        tracing::warn!("compiled plugins are not kept: nothing says where; set GATEWAY_PLUGINS_CACHE");
        return None;
    };
    Cache::open(path)
        .inspect_err(
            |error| tracing::warn!(%error, "compiled plugins are not kept; GATEWAY_PLUGINS_CACHE names another place"),
        )
        .ok()
}

/// What guests reach beyond their sandbox, where their manifests grant it.
fn capabilities(settings: &Settings, metrics: &Arc<Metrics>) -> Result<Capabilities, StartError> {
    let store = Store::new(&settings.redis, &settings.queue.prefix).map_err(StartError::Redis)?;
    let post = MailService::new(&settings.mail).map_err(StartError::Mail)?;
    let mailer = post.map(|post| Arc::new(post) as Arc<dyn Mailer>);
    let secrets = SecretStore::new(&settings.secrets, metrics);
    Ok(Capabilities {
        key_value: Some(Arc::new(store)),
        mailer,
        secrets: Some(Arc::new(secrets)),
        protected_dirs: settings.own_folders(),
    })
}
