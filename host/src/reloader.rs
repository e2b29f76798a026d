//! Reloads plugins when the plugins directory changes: a hint, a quiet time, a
//! scan. It also polls slowly, because some file systems send no events. Requests
//! of operators arrive here too, so that a single loop changes what is live.

mod report;

use crate::events;
use crate::metrics::Metrics;
use crate::plugin::{
    Change, Hint, OrphanManifests, PluginDirError, QUIET, Registry, SHORT_QUIET, VersionError, Watcher,
};
use report::Report;
use std::mem;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

const POLL: Duration = Duration::from_secs(2);

/// A request of an operator.
pub enum Request {
    /// Scan now, as `SIGHUP` does. The reply is what has changed once all plugins
    /// are loaded or refused.
    Scan(Option<oneshot::Sender<Result<Vec<Change>, String>>>),
    RollBack(String, oneshot::Sender<Result<Change, VersionError>>),
    Unblock(String, oneshot::Sender<Result<(), VersionError>>),
}

pub struct Reloader {
    registry: Registry,
    requests: mpsc::Receiver<Request>,
    /// Becomes true when all plugins of the first scan are loaded or refused.
    has_scanned: watch::Sender<bool>,
    report: Report,
    /// Why the directory can't be read, if so.
    dir_problem: watch::Sender<Option<DirProblem>>,
    orphans: OrphanManifests,
    /// Scan requests that wait for their result.
    scan_waiters: Vec<ScanWaiter>,
    /// Rollback requests that wait for their result.
    rollback_waiters: Vec<(String, oneshot::Sender<Result<Change, VersionError>>)>,
}

struct ScanWaiter {
    reply: oneshot::Sender<Result<Vec<Change>, String>>,
    changes: Vec<Change>,
}

/// Why the plugins directory can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirProblem {
    /// With its path.
    pub text: String,
    pub is_missing: bool,
}

impl Reloader {
    pub fn new(
        registry: Registry,
        metrics: Arc<Metrics>,
        requests: mpsc::Receiver<Request>,
        has_scanned: watch::Sender<bool>,
        dir_problem: watch::Sender<Option<DirProblem>>,
    ) -> Self {
        Self {
            report: Report::new(metrics, registry.routes()),
            registry,
            requests,
            has_scanned,
            dir_problem,
            orphans: OrphanManifests::default(),
            scan_waiters: Vec::new(),
            rollback_waiters: Vec::new(),
        }
    }

    pub async fn run(mut self, stop: CancellationToken) {
        let (mut watcher, mut hints) = Watcher::new(self.registry.directory().path());
        let (mut last, mut next, mut has_scanned) = (Instant::now(), Instant::now(), false);
        // How long files must be unchanged. Scans are at least this far apart,
        // however many hints there are.
        let mut quiet = QUIET;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep_until(next) => {
                    watcher.ensure();
                    self.registry.maintain();
                    let scanned = self.registry.scan(quiet);
                    self.scanned(scanned);
                    if !self.registry.is_unstable() {
                        // Polling can't see whether a writer has closed a file.
                        quiet = QUIET;
                    }
                    has_scanned = true;
                    last = Instant::now();
                    next = last + POLL;
                }
                changes = self.registry.next() => self.report_changes(&changes),
                Ok(()) = hints.changed() => {
                    quiet = match *hints.borrow_and_update() {
                        Hint::Written => QUIET,
                        Hint::Complete => SHORT_QUIET,
                    };
                    next = next.min(last + quiet);
                }
                Some(request) = self.requests.recv() => {
                    if self.handle(request) {
                        last = Instant::now();
                    }
                }
            }
            if self.registry.is_unstable() {
                next = next.min(last + quiet);
            }
            if has_scanned && self.registry.is_idle() {
                self.complete();
            }
        }
    }

    fn scanned(&mut self, scanned: Result<Vec<Change>, PluginDirError>) {
        match scanned {
            Ok(changes) => {
                self.report_changes(&changes);
                if self.dir_problem.send_replace(None).is_some() {
                    tracing::info!("{}", events::PLUGINS_DIR_READABLE);
                }
                self.orphans.check(self.registry.directory().path());
            }
            Err(error) => {
                let problem = DirProblem { text: error.to_string(), is_missing: error.is_missing() };
                // Logged once, not at every poll.
                if self.dir_problem.send_replace(Some(problem)).is_none() {
                    tracing::error!(%error, "{}", events::PLUGINS_DIR_UNREADABLE);
                }
                for ScanWaiter { reply, .. } in self.scan_waiters.drain(..) {
                    let _ = reply.send(Err(format!("the plugins directory can't be read: {error}")));
                }
            }
        }
    }

    /// Returns whether the request was a scan.
    fn handle(&mut self, request: Request) -> bool {
        match request {
            Request::Scan(reply) => {
                self.scan_waiters.extend(reply.map(|reply| ScanWaiter { reply, changes: Vec::new() }));
                let scanned = self.registry.rescan();
                self.scanned(scanned);
                return true;
            }
            Request::RollBack(name, reply) => match self.registry.roll_back(&name) {
                Ok(change) => {
                    self.rollback_waiters.push((name, reply));
                    self.report_changes(change.as_slice());
                }
                Err(error) => drop(reply.send(Err(error))),
            },
            Request::Unblock(name, reply) => {
                let result = self.registry.unblock(&name);
                if result.is_ok() {
                    self.report.unblocked(&name);
                }
                let _ = reply.send(result);
            }
        }
        false
    }

    fn report_changes(&mut self, changes: &[Change]) {
        for change in changes {
            self.report.change(change);
            for waiter in &mut self.scan_waiters {
                waiter.changes.push(change.clone());
            }
            let answer = match change {
                Change::Withdrawn { .. } => Ok(change.clone()),
                Change::NotRestored { reason, .. } => Err(VersionError::Impossible(reason.clone())),
                _ => continue,
            };
            for (_, reply) in self.rollback_waiters.extract_if(.., |(name, _)| name == change.name()) {
                let _ = reply.send(answer.clone());
            }
        }
        self.report.live();
    }

    /// Called whenever no plugin is loading or about to be.
    fn complete(&mut self) {
        self.registry.complete_cold_start();
        self.has_scanned.send_if_modified(|has_scanned| !mem::replace(has_scanned, true));
        for ScanWaiter { reply, changes } in self.scan_waiters.drain(..) {
            let _ = reply.send(Ok(changes));
        }
        // The plugins of the remaining rollbacks have been removed.
        for (name, reply) in self.rollback_waiters.drain(..) {
            let _ = reply.send(Err(VersionError::Unknown(name)));
        }
    }
}
