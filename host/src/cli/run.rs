//! `run`: the worker as a service, until a signal stops it.

use super::{Failure, RunArgs, with_file};
use crate::app::App;
use crate::events;
use crate::log::{Log, LogError};
use crate::metrics::Metrics;
use crate::settings::{LogSettings, service_variables, unknown_variables};
use crate::supervisor::Supervisor;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub(super) async fn run(args: RunArgs) -> Result<(), Failure> {
    let settings = with_file(args.settings, args.config.as_deref())?.check()?;
    let base = Base::start(&settings.log)?;
    log_variables();
    let mut signals = Signals::new()?;
    let serving = async {
        let starting = App::start(settings, base.metrics.clone(), base.supervisor.clone());
        let app = tokio::select! {
            app = starting => app?,
            // Nothing has begun yet that would have to end.
            () = signals.wait_for_stop() => return Ok(()),
        };
        signals.wait_for_end(&app).await;
        end(app, signals).await;
        Ok(())
    };
    base.supervise(Box::pin(serving)).await
}

/// Unknown variables are only warned about, because the environment may contain
/// variables of other programs.
pub(super) fn log_variables() {
    for passed_over in service_variables() {
        tracing::info!("{passed_over}");
    }
    for warning in unknown_variables(&super::variables()) {
        tracing::warn!("{warning}");
    }
}

/// The signals that a worker handles.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hang_up: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::Failed(format!("cannot listen for signals: {error}")));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            quit: listen(SignalKind::quit())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for SIGTERM, SIGINT or SIGQUIT, which some images of containers stop with.
    async fn wait_for_stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.quit.recv() => {}
        }
    }

    /// The same. SIGHUP rescans the plugins directory.
    pub(super) async fn wait_for_end(&mut self, app: &App) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.quit.recv() => return,
                _ = self.hang_up.recv() => {
                    tracing::info!("SIGHUP: rescanning the plugins directory");
                    app.reload();
                }
            }
        }
    }
}

/// Shuts down gracefully. A second signal stops at once, and the leases of messages
/// in flight expire.
pub(super) async fn end(app: App, mut signals: Signals) {
    tokio::select! {
        () = app.stop() => {}
        () = signals.wait_for_stop() => tracing::warn!("{}", events::FORCED_SHUTDOWN),
    }
}

/// What the process has before its worker: its metrics, its log, and what watches
/// its parts.
pub(super) struct Base {
    pub(super) metrics: Arc<Metrics>,
    pub(super) supervisor: Supervisor,
    pub(super) log: Log,
}

impl Base {
    pub(super) fn start(settings: &LogSettings) -> Result<Self, Failure> {
        let (metrics, supervisor) = (Arc::new(Metrics::default()), Supervisor::default());
        let log = Log::start(settings, &metrics, &supervisor).map_err(|error| match error {
            LogError::Filter { .. } => Failure::BadConfiguration(error.to_string()),
            LogError::Failed(_) => Failure::Failed(error.to_string()),
        })?;
        Ok(Self { metrics, supervisor, log })
    }

    /// Does the work, unless a part of the worker fails meanwhile.
    pub(super) async fn supervise<F>(&self, work: F) -> Result<(), Failure>
    where
        F: Future<Output = Result<(), Failure>>,
    {
        tokio::select! {
            biased;
            part = self.supervisor.failed() => Err(Failure::PartFailed(part)),
            ended = work => ended,
        }
    }
}
