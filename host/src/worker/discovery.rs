//! Finds the topics that no plugin names, for the catch-all plugin. Looks only
//! while there is one.

use crate::plugin::Routes;
use crate::queue::{QueueError, TopicDiscovery};
use crate::topic::Topic;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the registry of topics is read.
const INTERVAL: Duration = Duration::from_secs(1);

/// The shortest time from one scan of all keys to the next, and how many times its own
/// duration a scan is followed by a pause: it costs Redis a hundredth at most, however
/// many keys other programs have.
const SCAN_INTERVAL: Duration = Duration::from_secs(5);
const SCAN_PAUSE_FACTOR: u32 = 100;

/// Whoever may publish can make topics, and each costs a worker something.
const TOPICS_MAX: usize = 1000;

pub(super) struct Discovery {
    pub(super) topics: TopicDiscovery,
    pub(super) routes: watch::Receiver<Arc<Routes>>,
    pub(super) found: watch::Sender<BTreeSet<Topic>>,
}

/// What is remembered between two looks.
#[derive(Default)]
struct Known {
    topics: BTreeSet<Topic>,
    /// When to scan again; at once where it is not known.
    scan_at: Option<Instant>,
    /// More topics than the limit have messages, and the log says so.
    is_full: bool,
}

impl Discovery {
    pub(super) async fn run(mut self, stop: &CancellationToken) {
        let has_catch_all = |routes: &Arc<Routes>| routes.catch_all.is_some();
        let discovering = async {
            let mut known = Known::default();
            loop {
                if self.routes.wait_for(has_catch_all).await.is_err() {
                    return;
                }
                // The topics that were found before are probably still there.
                if let Err(error) = self.look(&mut known).await {
                    tracing::debug!(%error, "topics can't be discovered now");
                }
                tokio::select! {
                    () = tokio::time::sleep(INTERVAL) => {}
                    _ = self.routes.wait_for(|routes| !has_catch_all(routes)) => {
                        known = Known::default();
                        drop(self.found.send_replace(BTreeSet::new()));
                    }
                }
            }
        };
        let _ = stop.run_until_cancelled(discovering).await;
    }

    /// Adds what is registered newly, or scans anew, and passes on which topics are to
    /// be consumed.
    async fn look(&mut self, known: &mut Known) -> Result<(), QueueError> {
        if known.scan_at.is_none_or(|at| at <= Instant::now()) {
            let began = Instant::now();
            known.topics = self.topics.topics_with_messages().await?;
            let pause = SCAN_INTERVAL.max(began.elapsed().saturating_mul(SCAN_PAUSE_FACTOR));
            known.scan_at = Some(Instant::now() + pause);
        } else {
            let registered = self.topics.newly_registered().await?;
            if registered.iter().all(|topic| known.topics.contains(topic)) {
                return Ok(());
            }
            known.topics.extend(registered);
        }
        let chosen = self.choose(known).await?;
        self.found.send_if_modified(|found| {
            let is_new = *found != chosen;
            *found = chosen;
            is_new
        });
        Ok(())
    }

    /// The topics that no plugin has, up to the limit. Beyond it, those that have
    /// messages come before those that have none, whether they are consumed already or
    /// not, so that topics that were used once keep no other from being served.
    async fn choose(&self, known: &mut Known) -> Result<BTreeSet<Topic>, QueueError> {
        let routes = self.routes.borrow().clone();
        let before = self.found.borrow().clone();
        for topic in known.topics.iter().filter(|topic| !before.contains(topic) && !routes.by_topic.contains_key(topic))
        {
            if let Some(plugin) = routes.reserved.get(topic) {
                tracing::debug!(%topic, plugin, "the topic is reserved for a plugin that is not live; the catch-all does not take it");
            }
        }
        let all: BTreeSet<Topic> =
            known.topics.iter().filter(|topic| routes.is_for_catch_all(topic)).cloned().collect();
        if all.len() <= TOPICS_MAX {
            known.is_full = false;
            return Ok(all);
        }
        let with_work = self.topics.with_work(&all).await?;
        let count = with_work.len();
        if count > TOPICS_MAX && !known.is_full {
            tracing::warn!(
                count,
                max = TOPICS_MAX,
                "more topics without a plugin have messages than the catch-all takes at a time; the others wait"
            );
        }
        known.is_full = count > TOPICS_MAX;
        let (working, idle): (Vec<Topic>, Vec<Topic>) = all.into_iter().partition(|topic| with_work.contains(topic));
        let consumed_first = |topics: Vec<Topic>| {
            let (consumed, new): (Vec<Topic>, Vec<Topic>) =
                topics.into_iter().partition(|topic| before.contains(topic));
            consumed.into_iter().chain(new)
        };
        Ok(consumed_first(working).chain(consumed_first(idle)).take(TOPICS_MAX).collect())
    }
}
