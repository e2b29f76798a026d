//! Hints that the plugins directory may have changed. A hint only triggers a
//! scan, because events often don't name the file that changed (Kubernetes
//! swaps a link), and some file systems send no events.

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tokio::sync::watch;

/// What the last event says about its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// Its writer may write more.
    Written,
    /// Its writer closed it, or it was renamed or removed.
    Complete,
}

pub struct Watcher {
    path: PathBuf,
    hints: watch::Sender<Hint>,
    /// The watcher and the inode that it watches.
    watching: Option<(RecommendedWatcher, u64)>,
}

impl Watcher {
    /// Hints that arrive in quick succession may wake the receiver only once.
    pub fn new(path: &Path) -> (Self, watch::Receiver<Hint>) {
        let (hints, receiver) = watch::channel(Hint::Written);
        (Self { path: path.to_owned(), hints, watching: None }, receiver)
    }

    /// Watches the directory that the path names now: it may have been replaced
    /// or removed. Called before every scan.
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
            if let Some(hint) = event.ok().and_then(|event| hint(event.kind)) {
                let _ = hints.send(hint);
            }
        };
        let mut watcher = notify::recommended_watcher(on_event).ok()?;
        watcher.watch(&self.path, RecursiveMode::NonRecursive).ok()?;
        Some(watcher)
    }
}

fn hint(kind: EventKind) -> Option<Hint> {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(_))
        | EventKind::Remove(_) => Some(Hint::Complete),
        // Reading changes nothing, and the host's own scans read.
        EventKind::Access(_) => None,
        _ => Some(Hint::Written),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::Write;
    use std::time::Duration;

    async fn until(hints: &mut watch::Receiver<Hint>, hint: Hint) {
        let awaited = hints.wait_for(|now| *now == hint);
        tokio::time::timeout(Duration::from_secs(10), awaited).await.expect("no such hint").unwrap();
    }

    #[tokio::test]
    async fn a_file_is_complete_once_it_is_closed_or_renamed() {
        let directory = tempfile::tempdir().unwrap();
        let (mut watcher, mut hints) = Watcher::new(directory.path());
        watcher.ensure();
        let (first, second) = (directory.path().join("a.wasm"), directory.path().join("b.wasm"));
        for _ in 0..2 {
            let mut file = File::create(&first).unwrap();
            file.write_all(b"a half").unwrap();
            until(&mut hints, Hint::Written).await;
            drop(file);
            until(&mut hints, Hint::Complete).await;
        }
        fs::set_permissions(&first, fs::metadata(&first).unwrap().permissions()).unwrap();
        until(&mut hints, Hint::Written).await;
        fs::rename(&first, &second).unwrap();
        until(&mut hints, Hint::Complete).await;
        fs::remove_file(&second).unwrap();
        // Opening and reading give no hint.
        for kind in [AccessKind::Open(AccessMode::Any), AccessKind::Read, AccessKind::Close(AccessMode::Read)] {
            assert_eq!(hint(EventKind::Access(kind)), None, "{kind:?}");
        }
    }
}
