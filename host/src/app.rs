//! The application: builds all parts, starts them, and stops them in a written
//! order.

mod machine;

use crate::admin::{Status, WrongTokens, router, serve};
use crate::capability::{Capabilities, Mailer};
use crate::events;
use crate::health::HealthLoop;
use crate::key_watch::{KeyWatch, PrefixOverlap};
use crate::mail::MailService;
use crate::metrics::Metrics;
use crate::plugin::{Cache, Compiler, Engine, EngineError, EngineResources, PluginDir, Registry, VersionStore};
use crate::queue::{Connection, KeyValueStore, QueueError};
use crate::readiness::ReadinessSources;
use crate::reloader::{Reloader, Request};
use crate::secrets::SecretStore;
use crate::settings::{ListenAddress, Settings};
use crate::supervisor::Supervisor;
use crate::worker::Worker;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A shutdown may take this long even if it is to wait for no message, so that they
/// are given back.
const SHUTDOWN_MIN: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "can't listen on {address}: {source}; is another worker running there? --listen or APP_PORT names another address"
    )]
    Listen { address: ListenAddress, source: io::Error },
    #[error(
        "listen (GATEWAY_LISTEN): {address}: the name can't be resolved: {source}; write an address, or :PORT for all"
    )]
    UnknownName { address: ListenAddress, source: io::Error },
    #[error("redis: {0}")]
    Redis(QueueError),
    #[error("{0}")]
    Mail(String),
    #[error(transparent)]
    Prefix(#[from] PrefixOverlap),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the threads of the handlers can't be started: {0}")]
    Threads(io::Error),
}

pub struct App {
    pub address: SocketAddr,
    pub worker: Arc<Worker>,
    pub has_scanned: watch::Receiver<bool>,
    requests: mpsc::Sender<Request>,
    is_draining: watch::Sender<bool>,
    handlers: Handlers,
    supervisor: Supervisor,
    shutdown_timeout: Duration,
    worker_task: Stage,
    reloader_task: Stage,
    health_task: Stage,
    key_watch_task: Stage,
    admin_task: Stage,
}

/// The threads of the handlers. A runtime must not be dropped inside another
/// one, because that waits for its threads; so it ends in the background, however
/// the worker ends.
struct Handlers(Option<Runtime>);

impl Drop for Handlers {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A task, and the token that stops it.
struct Stage {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Stage {
    #[expect(clippy::disallowed_methods, reason = "every stage is joined in App::stop")]
    fn start<F>(supervisor: &Supervisor, name: &'static str, run: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (supervisor, stop) = (supervisor.clone(), CancellationToken::new());
        let (running, stopped) = (run(stop.clone()), stop.clone());
        Self { task: tokio::spawn(async move { supervisor.run(name, &stopped, running).await }), stop }
    }

    async fn end(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "{}", events::TASK_FAILED);
        }
    }
}

impl App {
    /// Starts the worker. It starts without Redis too, and waits for it.
    pub async fn start(settings: Settings, metrics: Arc<Metrics>, supervisor: Supervisor) -> Result<Self, StartError> {
        let started = Instant::now();
        let listener = listen(&settings.listen).await?;
        let address =
            listener.local_addr().map_err(|source| StartError::Listen { address: settings.listen.clone(), source })?;
        let shutdown_timeout = settings.shutdown_timeout;
        let connection = Connection::to(&settings.redis).map_err(StartError::Redis)?;
        let mut key_watch = KeyWatch::new(&connection, &settings.queue.prefix, &metrics);
        key_watch.check_start().await?;
        let handlers = threads(&settings)?;
        let (runtime, handlers) = (handlers.handle().clone(), Handlers(Some(handlers)));
        let engine = engine(&settings, &metrics, &connection, runtime.clone())?;
        tracing::info!(%address, redis = settings.redis.redacted_url(), plugins = %settings.plugins.display(), "gateway-worker starting");

        let (prefix, admin) = (settings.queue.prefix.clone(), settings.admin.clone());
        let versions = VersionStore::open(settings.cache.as_deref(), &settings.plugins);
        let registry = Registry::new(engine, PluginDir::new(&settings.plugins, settings.file_permissions), versions);
        let routes = registry.routes();
        let worker = Arc::new(Worker::new(connection.clone(), settings, metrics.clone(), runtime, supervisor.clone()));
        let (has_scanned, has_scanned_receiver) = watch::channel(false);
        let (requests, received) = mpsc::channel(16);
        let (is_draining, is_draining_receiver) = watch::channel(false);
        let (health, concerns) = (watch::Sender::new(None), watch::Sender::default());
        let dir_problem = watch::Sender::new(None);

        let status = Arc::new(Status {
            started,
            readiness: ReadinessSources {
                health: health.subscribe(),
                concerns: concerns.subscribe(),
                has_scanned: has_scanned_receiver.clone(),
                dir_problem: dir_problem.subscribe(),
                is_draining: is_draining_receiver,
                routes: routes.clone(),
                worker: worker.clone(),
                metrics: metrics.clone(),
            },
            routes: routes.clone(),
            worker: worker.clone(),
            metrics: metrics.clone(),
            admin,
            wrong_tokens: WrongTokens::default(),
            requests: requests.clone(),
        });
        let health = HealthLoop {
            connection,
            prefix,
            worker_id: Uuid::new_v4().to_string(),
            metrics: metrics.clone(),
            routes: routes.clone(),
            worker: worker.clone(),
            health,
            concerns,
        };
        let reloader = Reloader::new(registry, metrics, received, has_scanned, dir_problem);
        let consuming = worker.clone();
        Ok(Self {
            address,
            worker,
            has_scanned: has_scanned_receiver,
            requests,
            is_draining,
            handlers,
            shutdown_timeout,
            worker_task: Stage::start(&supervisor, "worker", |stop| async move { consuming.run(routes, stop).await }),
            reloader_task: Stage::start(&supervisor, "reloader", |stop| reloader.run(stop)),
            health_task: Stage::start(&supervisor, "health", |stop| health.run(stop)),
            key_watch_task: Stage::start(&supervisor, "key watch", |stop| key_watch.run(stop)),
            admin_task: Stage::start(&supervisor, "HTTP server", |stop| serve(listener, router(status), stop)),
            supervisor,
        })
    }

    /// Rescans the plugins directory.
    pub fn reload(&self) {
        let _ = self.requests.try_send(Request::Scan(None));
    }

    /// Stops, and takes no longer than the timeout of the shutdown, whatever does not
    /// answer. What is not given back by then is taken over when its lease ends.
    pub async fn stop(self) {
        let (supervisor, limit) = (self.supervisor.clone(), self.shutdown_timeout.max(SHUTDOWN_MIN));
        if tokio::time::timeout(limit, self.stop_in_order()).await.is_err() {
            supervisor.give_up();
            tracing::warn!(shutdown_timeout = ?limit, "{}", events::SHUTDOWN_CUT_OFF);
        }
    }

    /// In this order: `/ready` says "draining" first, so that no traffic is
    /// routed here; no more plugins are loaded; no more messages are fetched, and
    /// those in flight finish; the worker is removed from `mq::workers`; and the
    /// HTTP server ends last, so that the last metrics can be read.
    async fn stop_in_order(self) {
        self.is_draining.send_replace(true);
        tracing::info!("{}", events::SHUTTING_DOWN);
        self.reloader_task.end().await;
        self.worker_task.end().await;
        self.health_task.end().await;
        self.key_watch_task.end().await;
        self.admin_task.end().await;
        drop(self.handlers);
        tracing::info!("{}", events::STOPPED);
    }
}

async fn listen(address: &ListenAddress) -> Result<TcpListener, StartError> {
    let addresses: Vec<SocketAddr> = match tokio::net::lookup_host((address.host.as_str(), address.port)).await {
        Ok(found) => found.collect(),
        Err(source) => return Err(StartError::UnknownName { address: address.clone(), source }),
    };
    TcpListener::bind(&addresses[..]).await.map_err(|source| StartError::Listen { address: address.clone(), source })
}

fn engine(
    settings: &Settings,
    metrics: &Arc<Metrics>,
    connection: &Connection,
    runtime: Handle,
) -> Result<Engine, StartError> {
    let resources = EngineResources {
        threads: settings.handler_threads,
        memory: settings.handler_memory.unwrap_or_else(machine::memory_for_handlers),
        open_files: machine::allow_open_files(),
        runtime: Some(runtime),
    };
    let services = capabilities(settings, metrics, connection)?;
    Ok(Engine::with_resources(services, Compiler::new(cache(settings)), resources)?)
}

/// Guests use the CPU here. Leases are renewed and HTTP is answered on other
/// threads.
fn threads(settings: &Settings) -> Result<Runtime, StartError> {
    let mut threads = Builder::new_multi_thread();
    threads.worker_threads(settings.handler_threads).thread_name("handlers").enable_all();
    threads.build().map_err(StartError::Threads)
}

/// Without a cache every start compiles all plugins again.
fn cache(settings: &Settings) -> Option<Cache> {
    let Some(path) = &settings.cache else {
        tracing::warn!("{}: no directory is set; set GATEWAY_PLUGINS_CACHE", events::NO_CACHE);
        return None;
    };
    Cache::open(path)
        .inspect_err(
            |error| tracing::warn!(%error, "{}; set GATEWAY_PLUGINS_CACHE to another directory", events::NO_CACHE),
        )
        .ok()
}

/// The services that guests may use outside of their sandbox, where their manifests
/// grant it.
fn capabilities(
    settings: &Settings,
    metrics: &Arc<Metrics>,
    connection: &Connection,
) -> Result<Capabilities, StartError> {
    let store = KeyValueStore::new(&settings.redis, &settings.queue.prefix).map_err(StartError::Redis)?;
    let mail = MailService::new(&settings.mail).map_err(StartError::Mail)?;
    let mailer = mail.map(|mail| Arc::new(mail) as Arc<dyn Mailer>);
    let secrets = SecretStore::new(&settings.secrets, metrics);
    Ok(Capabilities {
        key_value: Some(Arc::new(store)),
        mailer,
        secrets: Some(Arc::new(secrets)),
        clock: Some(connection.clock()),
        protected_dirs: settings.protected_dirs(),
    })
}
