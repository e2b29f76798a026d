//! Keeps the registry up to what lies in the plugins directory: a hint, a
//! moment of quiet, a scan. The slow poll is always on, since events are only
//! hints and some file systems send none. Operators' wishes about versions
//! arrive here too, so that one loop changes what is live.

mod report;

use crate::metrics::Metrics;
use crate::plugin::{Change, Denied, FolderError, Hint, LoneManifests, QUIET, Registry, SHORT_QUIET, Watcher};
use report::Report;
use std::mem;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

const POLL: Duration = Duration::from_secs(2);

/// What somebody wants of the plugins.
pub enum Request {
    /// Look at the directory now, as `SIGHUP` does; the answer is what has
    /// changed until all was loaded or refused.
    Scan(Option<oneshot::Sender<Result<Vec<Change>, String>>>),
    RollBack(String, oneshot::Sender<Result<Change, Denied>>),
    Release(String, oneshot::Sender<Result<(), Denied>>),
}

pub struct Reloader {
    registry: Registry,
    requests: mpsc::Receiver<Request>,
    /// Becomes true after the first scan, when all of it is loaded or refused.
    has_scanned: watch::Sender<bool>,
    report: Report,
    is_readable: bool,
    lone: LoneManifests,
    /// Who wants to know what a scan changes.
    asking: Vec<Asking>,
    /// Who waits for a version from before.
    going_back: Vec<(String, oneshot::Sender<Result<Change, Denied>>)>,
}

struct Asking {
    asker: oneshot::Sender<Result<Vec<Change>, String>>,
    seen: Vec<Change>,
}

impl Reloader {
    pub fn new(
        registry: Registry,
        metrics: Arc<Metrics>,
        requests: mpsc::Receiver<Request>,
        has_scanned: watch::Sender<bool>,
    ) -> Self {
        Self {
            report: Report::new(metrics, registry.routes()),
            registry,
            requests,
            has_scanned,
            is_readable: true,
            lone: LoneManifests::default(),
            asking: Vec::new(),
            going_back: Vec::new(),
        }
    }

    pub async fn run(mut self, stop: CancellationToken) {
        let (mut watcher, mut hints) = Watcher::new(self.registry.folder().path());
        let (mut last, mut next, mut has_looked) = (Instant::now(), Instant::now(), false);
        // How long files must be the same; scans are as far apart, however many
        // hints there are.
        let mut quiet = QUIET;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep_until(next) => {
                    watcher.ensure();
                    self.registry.tend();
                    let scanned = self.registry.scan(quiet);
                    self.scanned(scanned);
                    if !self.registry.is_moving() {
                        // A change without an event says nothing of its writers.
                        quiet = QUIET;
                    }
                    has_looked = true;
                    last = Instant::now();
                    next = last + POLL;
                }
                changes = self.registry.next() => self.tell(&changes),
                Ok(()) = hints.changed() => {
                    quiet = match *hints.borrow_and_update() {
                        Hint::Written => QUIET,
                        Hint::Whole => SHORT_QUIET,
                    };
                    next = next.min(last + quiet);
                }
                Some(request) = self.requests.recv() => {
                    if self.answer(request) {
                        last = Instant::now();
                    }
                }
            }
            if self.registry.is_moving() {
                next = next.min(last + quiet);
            }
            if has_looked && self.registry.is_at_rest() {
                self.settle();
            }
        }
    }

    fn scanned(&mut self, scanned: Result<Vec<Change>, FolderError>) {
        match scanned {
            Ok(changes) => {
                self.tell(&changes);
                self.is_readable = true;
                self.lone.look(self.registry.folder().path());
            }
            Err(error) => {
                // Once, not at every poll. What is live stays live.
                if mem::replace(&mut self.is_readable, false) {
                    tracing::error!(%error, "the plugins directory can't be read; live plugins stay as they are");
                }
                for Asking { asker, .. } in self.asking.drain(..) {
                    let _ = asker.send(Err(format!("the plugins directory can't be read: {error}")));
                }
            }
        }
    }

    /// Whether that was a scan.
    fn answer(&mut self, request: Request) -> bool {
        match request {
            Request::Scan(asker) => {
                self.asking.extend(asker.map(|asker| Asking { asker, seen: Vec::new() }));
                let scanned = self.registry.scan_again();
                self.scanned(scanned);
                return true;
            }
            Request::RollBack(name, asker) => match self.registry.roll_back(&name) {
                Ok(change) => {
                    self.going_back.push((name, asker));
                    self.tell(change.as_slice());
                }
                Err(reason) => drop(asker.send(Err(reason))),
            },
            Request::Release(name, asker) => {
                let released = self.registry.release(&name);
                if released.is_ok() {
                    self.report.released(&name);
                }
                let _ = asker.send(released);
            }
        }
        false
    }

    fn tell(&mut self, changes: &[Change]) {
        for change in changes {
            self.report.change(change);
            for asking in &mut self.asking {
                asking.seen.push(change.clone());
            }
            let answer = match change {
                Change::Withdrawn { .. } => Ok(change.clone()),
                Change::NotRestored { reason, .. } => Err(Denied::Impossible(reason.clone())),
                _ => continue,
            };
            for (_, asker) in self.going_back.extract_if(.., |(name, _)| name == change.name()) {
                let _ = asker.send(answer.clone());
            }
        }
        self.report.live();
    }

    /// Nothing is under way that is worth waiting for.
    fn settle(&mut self) {
        self.registry.settle();
        self.has_scanned.send_if_modified(|has_scanned| !mem::replace(has_scanned, true));
        for Asking { asker, seen } in self.asking.drain(..) {
            let _ = asker.send(Ok(seen));
        }
        // Whoever still waits was overtaken: its plugin has been removed.
        for (name, asker) in self.going_back.drain(..) {
            let _ = asker.send(Err(Denied::Unknown(name)));
        }
    }
}
