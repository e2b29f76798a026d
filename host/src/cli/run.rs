//! `run`: the worker as a service, until a signal stops it.

use super::json_log::{FlatJson, JsonLog};
use super::{Failure, RunArgs, with_file};
use crate::app::App;
use crate::events;
use crate::settings::{LogFormat, LogSettings, unknown_variables};
use std::io::IsTerminal;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::JsonFields;

const QUIET: &str = "wasmtime=warn,wasmtime_wasi_http=error,cranelift_codegen=warn,regalloc2=warn";

pub(super) async fn run(args: RunArgs) -> Result<(), Failure> {
    let settings = with_file(args.settings, args.config.as_deref())?.check()?;
    start_log(&settings.log)?;
    warn_of_unknown_variables();
    let mut signals = Signals::new()?;
    let app = App::start(settings).await?;
    signals.wait_for_end(&app).await;
    end(app, signals).await;
    Ok(())
}

/// Unknown variables are only warned about, because the environment may contain
/// variables of other programs.
pub(super) fn warn_of_unknown_variables() {
    for warning in unknown_variables(&super::variables()) {
        tracing::warn!("{warning}");
    }
}

/// The signals that a worker handles.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::Failed(format!("cannot listen for signals: {error}")));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for SIGTERM or SIGINT. SIGHUP rescans the plugins directory.
    pub(super) async fn wait_for_end(&mut self, app: &App) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
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
        _ = signals.terminate.recv() => tracing::warn!("{}", events::FORCED_SHUTDOWN),
        _ = signals.interrupt.recv() => tracing::warn!("{}", events::FORCED_SHUTDOWN),
    }
}

pub(super) fn start_log(settings: &LogSettings) -> Result<(), Failure> {
    // Debug logs of the compiler, and warnings that guests could trigger any number
    // of times, are logged only where the filter names their targets.
    let filter = EnvFilter::try_new(format!("{QUIET},{}", settings.level))
        .map_err(|error| Failure::BadConfiguration(format!("log.level: \"{}\": {error}", settings.level)))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(std::io::stdout().is_terminal());
    let started = match settings.format {
        LogFormat::Json => {
            let log = log.fmt_fields(JsonFields::new()).event_format(FlatJson::new());
            log.with_writer(JsonLog::new).try_init()
        }
        LogFormat::Pretty => log.try_init(),
    };
    started.map_err(|error| Failure::Failed(error.to_string()))
}
