//! Hints that the plugins directory may have changed. They only wake the next
//! scan, which looks for itself: what an event names is often not the file
//! (a Kubernetes swap names a link), and some file systems have no events.

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

pub struct Watcher {
    path: PathBuf,
    hints: mpsc::Sender<()>,
    /// The watcher and the inode that it watches.
    watching: Option<(RecommendedWatcher, u64)>,
}

impl Watcher {
    /// Every hint wakes the receiver; many at once are one.
    pub fn new(path: &Path) -> (Self, mpsc::Receiver<()>) {
        let (hints, receiver) = mpsc::channel(1);
        (Self { path: path.to_owned(), hints, watching: None }, receiver)
    }

    /// Watches the directory that is there now, which may be another than
    /// before, or none. To be called once in a while.
    pub fn ensure(&mut self) {
        let inode = std::fs::metadata(&self.path).map(|metadata| metadata.ino()).ok();
        if inode == self.watching.as_ref().map(|(_, inode)| *inode) {
            return;
        }
        self.watching = inode.and_then(|inode| Some((self.watch()?, inode)));
    }

    fn watch(&self) -> Option<RecommendedWatcher> {
        let hints = self.hints.clone();
        let on_event = move |event: notify::Result<Event>| {
            // Reading is no change; our own scans would wake us for ever.
            let is_read =
                |kind| matches!(kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write));
            if event.is_ok_and(|event| !is_read(event.kind)) {
                let _ = hints.try_send(());
            }
        };
        let mut watcher = notify::recommended_watcher(on_event).ok()?;
        watcher.watch(&self.path, RecursiveMode::NonRecursive).ok()?;
        Some(watcher)
    }
}
